"""Laws by name, for stored fits: a fit records the name of its law only."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from flops_fit_core.errors import FitError
from flops_fit_core.plugins.protocols import LossLaw
from flops_fit_core.plugins.registry.offers import RegisteredSpec
from flops_fit_core.plugins.specs import LawSpec

BUNDLED = "laws/"
"""Prefix of the bundled laws, which fits record without it."""
_RENAMED = {"parametric": "chinchilla"}
"""Names of laws in fits of earlier versions."""
_offers: dict[str, RegisteredSpec[LawSpec]] = {}


def remember_laws(offers: Iterable[RegisteredSpec[LawSpec]]) -> None:
    """Record the laws of a registry. Every registry of the process does so when it is created."""
    for offer in offers:
        name = short_name(offer.name)
        if _offers.get(name) is not offer:
            _offers[name] = offer
            _build.cache_clear()


def short_name(name: str) -> str:
    """The name in fits: ``skaling`` for the bundled ``laws/skaling``, ``my-plugin/my-law`` for others."""
    return name.removeprefix(BUNDLED)


def is_loss_law(name: str) -> bool:
    """Whether a law of this name gives the loss at every N and D."""
    return _load(name) is not None


def find_law(name: str) -> LossLaw:
    """The law with this name in fits. Raises FitError if no plugin of the process offers it."""
    return _build(_RENAMED.get(name, name))


@cache
def _build(name: str) -> LossLaw:
    offer = _load(name)
    if offer is None:
        advice = f"install its plugin, or name it with -p {name.partition('/')[0]}" if "/" in name else ""
        known = ", ".join(sorted(_offers))
        raise FitError(f"no law named {name!r}: {advice or f'the laws are {known}'}")
    law = offer.spec.build()
    if not isinstance(law, LossLaw):
        raise FitError(f"law {name!r} ({offer.source}): build returned {law!r} instead of a LossLaw")
    return law


def _load(name: str) -> RegisteredSpec[LawSpec] | None:
    name = _RENAMED.get(name, name)
    if name not in _offers:  # a registry without entry points has remembered its own laws only
        from flops_fit_core.plugins.registry import installed

        for offer in installed().offers("law"):
            _offers.setdefault(short_name(offer.name), offer)
    return _offers.get(name)
