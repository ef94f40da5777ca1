"""The base class of the conformance kits, and helpers that several kits share."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import JsonValue

from flops_fit_core.config import PluginConfig
from flops_fit_core.data.tasks import LanguageTask, SupervisedTask
from flops_fit_core.plugins.protocols import Batch, Task
from flops_fit_core.plugins.registry import Registry, installed
from flops_fit_core.testing.batches import tensors

if TYPE_CHECKING:
    from torch import nn


class Kit:
    """Base class of the kits. Plugin authors set ``name`` and ``options``.

    Attributes:
        name: The plugin's name, as in the experiment file.
        options: The plugin's options.
        plugins: Plugins that are not installed, as for ``Registry``: name -> module or object.
    """

    kind: ClassVar[str]
    name: str
    options: Mapping[str, JsonValue] = {}
    plugins: Mapping[str, object] = {}

    @pytest.fixture
    def registry(self) -> Registry:
        """A registry with the plugin under test."""
        return _registry_of(type(self))  # type: ignore[arg-type]  # mypy: a class is no Hashable

    @pytest.fixture
    def given_options(self) -> Mapping[str, JsonValue]:
        """The options. Override it if they need another fixture, such as ``tmp_path``."""
        return self.options

    @pytest.fixture
    def chosen(self, registry: Registry, given_options: Mapping[str, JsonValue]) -> PluginConfig[Any]:
        """The plugin with its options."""
        offer = registry.find(self.kind, self.name)
        return PluginConfig(offer, offer.spec.options.model_validate(dict(given_options)))


@functools.lru_cache(maxsize=16)
def _registry_of(kit: type[Kit]) -> Registry:
    """One registry per class, because discovery takes longer than most tests."""
    return Registry(kit.plugins) if kit.plugins else installed()


def random_batch(task: Task, size: int, seed: int = 0) -> Batch:
    """A batch with random content for the tasks of flops_fit_core; the task's example for other tasks."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    if isinstance(task, LanguageTask):
        return torch.randint(task.vocab_size, (size, task.context + 1), generator=generator)
    if isinstance(task, SupervisedTask):
        inputs = torch.randn(size, *task.inputs, generator=generator)
        if task.kind == "cross_entropy":
            return inputs, torch.randint(task.outputs_size, (size,), generator=generator)
        return inputs, torch.randn(size, task.outputs_size, generator=generator)
    return task.example(size)


def forward_flops(module: nn.Module, task: Task, batch: Batch) -> float:
    """FLOPs per token of a forward pass, counted by ``torch.utils.flop_counter``."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # The math kernel consists of matrix products, which the counter counts on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        task.outputs(module, batch)
    return float(counter.get_total_flops()) / (len(next(tensors(batch))) * task.tokens_per_sample)
