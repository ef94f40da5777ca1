"""Injects faults into real sweeps and checks that no result is lost, duplicated, replaced or silently changed.

In the spirit of SQLite's crash tests and Jepsen's checkers. ``python -m tests.torture --help`` lists the parts;
README.md explains them. ``test_torture.py`` runs a stride of each part.
"""
