"""Fingerprints of Python objects: stable across processes; they change when results would change."""
