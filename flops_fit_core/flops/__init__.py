"""Parameters and FLOPs of a model, counted before anything is trained.

Models are built on the meta device, where their size costs no memory. ``model_stats`` counts parameters and asks a
FLOPs counter; ``audit`` runs a small model and compares every counter with the operations that torch executes.
"""
