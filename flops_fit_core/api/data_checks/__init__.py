"""Checks of a user's data before anything is trained."""
