"""Laws of the loss: ``flops-fit fit RUNS --law NAME``; ``flops-fit laws`` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

from flops_fit_core.plugins import LawSpec, LossLaw, hookimpl

_LAWS = {
    "chinchilla": ("dense", "Chinchilla"),
    "tied": ("dense", "Tied"),
    "skaling": ("dense", "Skaling"),
    "kaplan": ("dense", "Kaplan"),
    "farseer": ("dense", "Farseer"),
    "muennighoff": ("repeated_data", "Muennighoff"),
    "bounded": ("repeated_data", "Bounded"),
    "vocabulary": ("further_inputs", "Vocabulary"),
    "clark-moe": ("further_inputs", "ClarkMoe"),
    "joint-moe": ("further_inputs", "JointMoe"),
    "parallel": ("further_inputs", "Parallel"),
}
"""Name -> module and class. The modules import numpy, so they are imported when a law is used."""


@hookimpl
def flops_fit_laws() -> Iterable[LawSpec]:
    """Offer the bundled laws."""
    for name, (module, cls) in _LAWS.items():
        yield LawSpec(name=name, build=_builder(module, cls))


def _builder(module: str, cls: str) -> Callable[[], LossLaw]:
    def build() -> LossLaw:
        law: LossLaw = getattr(import_module(f"flops_fit_laws.{module}"), cls)()
        return law

    return build
