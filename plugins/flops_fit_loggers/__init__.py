"""Loggers: what a run does, shown while it trains."""
