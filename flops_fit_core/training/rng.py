"""The random generators that user code may use: torch, Python and numpy. Seeded, saved and restored together."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch


def random_state(device: str) -> dict[str, Any]:
    """The state of every generator, as plain data and tensors. Includes the CUDA generator of a CUDA device."""
    kind, keys, position, has_gauss, cached = cast("tuple[Any, ...]", np.random.get_state())
    python = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.startswith("cuda") else None,
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [str(kind), torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)],
    }


def set_random_state(state: dict[str, Any], device: str) -> None:
    """Restore the state that :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.startswith("cuda"):
        torch.cuda.set_rng_state(state["cuda"], device)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, cached))


class SeparateGenerators:
    """Inside the ``with`` block, the global CPU generators have a separate state, seeded once.

    Each block continues from the state at the end of the last one. Outside, the generators are unchanged.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._state: dict[str, Any] | None = None
        self._outside: dict[str, Any] | None = None

    def __enter__(self) -> None:
        self._outside = random_state("cpu")
        if self._state is not None:
            set_random_state(self._state, "cpu")
            return
        torch.default_generator.manual_seed(self._seed)
        random.seed(self._seed)
        np.random.seed(self._seed % 2**32)

    def __exit__(self, *_: object) -> None:
        assert self._outside is not None
        self._state = random_state("cpu")
        set_random_state(self._outside, "cpu")


def fixed_randomness(seed: int = 0) -> SeparateGenerators:
    """A ``with`` block in which CPU generators start from ``seed``. Outside, they are unchanged."""
    return SeparateGenerators(seed)


def draws_random_numbers(work: Callable[[], object]) -> bool:
    """Whether ``work()`` draws from the global CPU generators. Their state is restored."""
    with fixed_randomness():
        before = random_state("cpu")
        work()
        after = random_state("cpu")
    changed = not torch.equal(before["torch"], after["torch"]) or before["python"] != after["python"]
    kept = before["numpy"], after["numpy"]
    return changed or kept[0][2:] != kept[1][2:] or not torch.equal(kept[0][1], kept[1][1])


def seed_everything(seed: int) -> None:
    """Seed torch on every device, python's ``random`` and numpy's global generator."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
