"""The laws of all registries of this process, by the names in fits."""

from __future__ import annotations

from collections.abc import Iterable

from flops_fit_core.plugins.registry.offers import RegisteredSpec
from flops_fit_core.plugins.specs import LawSpec

BUNDLED = "laws/"
"""Prefix of the bundled laws, which fits record without it."""
OFFERS: dict[str, RegisteredSpec[LawSpec]] = {}
"""Name in fits -> the law of the registry that was created last."""


def short_name(name: str) -> str:
    """The name in fits: ``skaling`` for the bundled ``laws/skaling``, ``my-plugin/my-law`` for others."""
    return name.removeprefix(BUNDLED)


def remember_laws(offers: Iterable[RegisteredSpec[LawSpec]]) -> None:
    """Record the laws of a registry. Every registry of the process does so when it is created."""
    OFFERS.update({short_name(offer.name): offer for offer in offers})
