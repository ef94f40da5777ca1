"""Forecast the accuracy of a task: in two steps over a loss, and directly from N and D.

Step 1 fits a loss L(N, D), such as the bits per byte of the correct answers. Step 2 fits accuracy as a sigmoid of
that loss. The direct curve fits accuracy as a sigmoid of ln C and ln(N / D). The forecast is the mean of the two.
Bhagia et al. 2024, arXiv 2412.04403.
"""
