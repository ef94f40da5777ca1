"""Laws by name, for stored fits: a fit records the name of its law only."""

from __future__ import annotations

from flops_fit_core.errors import FitError
from flops_fit_core.plugins.protocols import LossLaw
from flops_fit_core.plugins.registry.law_offers import OFFERS, short_name
from flops_fit_core.plugins.registry.offers import RegisteredSpec
from flops_fit_core.plugins.registry.registry import installed
from flops_fit_core.plugins.specs import LawSpec

_RENAMED = {"parametric": "chinchilla"}
"""Names of laws in fits of earlier versions."""
_laws: dict[str, tuple[RegisteredSpec[LawSpec], LossLaw]] = {}
"""Name -> the law, and the offer that built it."""


def is_loss_law(name: str) -> bool:
    """Whether a law of this name gives the loss at every N and D."""
    return _find_offer(_RENAMED.get(name, name)) is not None


def find_law(name: str) -> LossLaw:
    """The law with this name in fits. Raises FitError if no plugin of the process offers it."""
    name = _RENAMED.get(name, name)
    offer = _find_offer(name)
    if offer is None:
        known = f"the laws are {', '.join(sorted(OFFERS))}"
        advice = f"install its plugin, or name it with -p {name.partition('/')[0]}" if "/" in name else known
        raise FitError(f"no law named {name!r}: {advice}")
    built_by, law = _laws.get(name, (None, None))
    if law is None or built_by is not offer:
        law = offer.spec.build()
        if not isinstance(law, LossLaw):
            raise FitError(f"law {name!r} ({offer.source}): build returned {law!r} instead of a LossLaw")
        _laws[name] = (offer, law)
    return law


def _find_offer(name: str) -> RegisteredSpec[LawSpec] | None:
    if name not in OFFERS:  # a registry without entry points has remembered its own laws only
        for offer in installed().offers("law"):
            OFFERS.setdefault(short_name(offer.name), offer)
    return OFFERS.get(name)
