"""Tasks and token windows.

A task is the demand that a dataset makes on a model: the form of inputs and outputs, and the loss. Token windows
cut rows of tokens into training samples in a computed order.
"""
