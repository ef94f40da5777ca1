"""Finds the form of a user's loss function: a sum or a mean, and over which positions."""
