"""Muon and AdamW as one optimizer of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import optim


class MuonAndAdamW(optim.Optimizer):
    """``torch.optim.Muon`` for some groups and ``torch.optim.AdamW`` for the others.

    Both work on this optimizer's own groups and state: a learning rate set in ``param_groups`` is theirs, and
    ``state_dict`` has everything.

    Args:
        hidden: Groups of matrices, for Muon. At least one.
        rest: Groups of other parameters, for AdamW. May be empty.
        muon, adamw: Options of each that all of its groups share.
    """

    def __init__(
        self,
        hidden: list[dict[str, Any]],
        rest: list[dict[str, Any]],
        *,
        muon: Mapping[str, Any],
        adamw: Mapping[str, Any],
    ) -> None:
        self._muon: optim.Optimizer = optim.Muon(hidden, **muon)
        self._adamw = optim.AdamW(rest, **adamw) if rest else None
        super().__init__([group for part in self._parts() for group in part.param_groups], {})
        self._share()

    def step(self, closure: Any = None) -> Any:
        """Both take a step. Returns the closure's loss, where there is a closure."""
        loss = self._muon.step(closure)
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from another one's ``state_dict()`` with the same groups."""
        super().load_state_dict(state_dict)
        self._share()

    def _parts(self) -> list[optim.Optimizer]:
        return [part for part in (self._muon, self._adamw) if part is not None]

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self._parts():
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = cast("Any", self.state)
