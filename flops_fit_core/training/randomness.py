"""Every random generator that user code may draw from: seeded, kept and put back together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def random_state(device: str) -> dict[str, Any]:
    """Every generator that user code may draw from, as plain data and tensors."""
    kind, keys, position, has_gauss, cached = cast("tuple[Any, ...]", np.random.get_state())
    python = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.startswith("cuda") else None,
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [str(kind), torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)],
    }


def set_random_state(state: dict[str, Any], device: str) -> None:
    """Put every generator back to where :func:`random_state` found it."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.startswith("cuda"):
        torch.cuda.set_rng_state(state["cuda"], device)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, cached))


@contextmanager
def fixed_randomness() -> Iterator[None]:
    """Inside, what is drawn on the CPU is the same every time; afterwards the generators are as they were."""
    before = random_state("cpu")
    torch.default_generator.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        set_random_state(before, "cpu")


def seed_everything(seed: int) -> None:
    """Seed torch on every device, python's ``random`` and numpy's global generator."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
