"""The functions for Python: ``find_optimal``, ``plan``, ``run`` and ``fit``.

``find_optimal`` takes models, data and losses as Python objects, wraps them as plugins and checks them with a
small model. ``fingerprint`` hashes their source, so that a run's id changes when its code does.
"""

from flops_fit_core.api.functions import find_optimal, fit, plan, run

__all__ = ["find_optimal", "fit", "plan", "run"]
