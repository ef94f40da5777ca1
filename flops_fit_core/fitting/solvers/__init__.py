"""Least squares and Huber objectives, and the solvers that minimise them in float64."""
