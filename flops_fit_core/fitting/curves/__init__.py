"""Loss-curve laws: the loss along a run from its learning-rate schedule, and forecasts of unfinished runs.

A law is fitted to the (step, lr, loss) rows of one or several curves of one model size. It predicts the loss of
another schedule, and the final loss of a run that has not ended.
"""
