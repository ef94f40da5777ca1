"""Reads tables of runs: CSV, Parquet, JSON and exports of experiment trackers."""
