"""Parameters and FLOPs of a model, counted before anything is trained.

Models are built on the meta device, which needs no memory for weights. ``model_stats`` counts parameters and
calls a FLOPs counter; ``audit`` runs a small model and compares every counter with the operations that torch
executes.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
