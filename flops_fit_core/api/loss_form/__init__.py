"""Finds the form of a user's loss function: sum or mean, and the positions that it covers."""
