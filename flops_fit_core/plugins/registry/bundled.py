"""The kinds that each bundled plugin offers: a command loads only the bundled plugins of the kinds it needs.

All other plugins are always loaded, because their kinds are unknown before. So are the bundled laws, because fits
name a law without a registry (see :mod:`~flops_fit_core.plugins.registry.law_offers`).
"""

from __future__ import annotations

from collections.abc import Mapping

BUNDLED_KINDS: Mapping[str, frozenset[str]] = {
    "callable": frozenset({"model", "dataset"}),
    "counters": frozenset({"counter"}),
    "devices": frozenset({"device"}),
    "executors": frozenset({"executor"}),
    "fitters": frozenset({"fitter"}),
    "gpt": frozenset({"model"}),
    "hf": frozenset({"dataset"}),
    "images": frozenset({"dataset"}),
    "loggers": frozenset({"logger"}),
    "mlp": frozenset({"model"}),
    "optim": frozenset({"optimizer"}),
    "readers": frozenset({"reader"}),
    "recipes": frozenset({"recipe"}),
    "schedules": frozenset({"schedule"}),
    "stores": frozenset({"store"}),
    "surface": frozenset({"model", "dataset", "trainer"}),
    "text": frozenset({"dataset"}),
    "tokens": frozenset({"dataset"}),
    "trainers": frozenset({"trainer"}),
    "transformers": frozenset({"model"}),
    "vit": frozenset({"model"}),
}
"""Name of the entry point -> kinds."""
