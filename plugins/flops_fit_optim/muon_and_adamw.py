"""Muon and AdamW as one optimizer of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import optim


class MuonAndAdamW(optim.Optimizer):
    """``torch.optim.Muon`` for hidden matrices and ``torch.optim.AdamW`` for all other parameters.

    Both share the groups and the state of this optimizer: a learning rate set in ``param_groups`` applies to them,
    and ``state_dict`` contains the state of both.

    Args:
        hidden: Groups of matrices, for Muon. At least one.
        rest: Groups of other parameters, for AdamW. May be empty.
        muon, adamw: Options of each optimizer, for all of its groups.
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
        """Take a step with both. Returns the closure's loss if there is a closure."""
        loss = self._muon.step(closure)
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the ``state_dict()`` of an optimizer with the same groups."""
        super().load_state_dict(state_dict)
        self._share()

    def _parts(self) -> list[optim.Optimizer]:
        return [part for part in (self._muon, self._adamw) if part is not None]

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self._parts():
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = cast("Any", self.state)
