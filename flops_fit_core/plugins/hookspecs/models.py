"""Hooks for what is trained, and on what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flops_fit_core.plugins.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from flops_fit_core.plugins.specs import DatasetSpec, ModelSpec


@hookspec
def flops_fit_models() -> Iterable[ModelSpec]:
    """Offer model families: ``[model]`` in an experiment.

    ::

        from flops_fit_core.data import LanguageTask
        from flops_fit_core.plugins import ModelSpec, Options, hookimpl

        class BigramOptions(Options):
            width: int = 16

        def build_bigram(options, task: LanguageTask):
            from torch import nn

            return nn.Sequential(
                nn.Embedding(task.vocab_size, options.width), nn.Linear(options.width, task.vocab_size)
            )

        @hookimpl
        def flops_fit_models():
            yield ModelSpec(name="bigram", options=BigramOptions, build=build_bigram, size="width")
    """
    return ()


@hookspec
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    """Offer datasets: ``[dataset]`` in an experiment.

    ::

        from flops_fit_core.data import SupervisedTask
        from flops_fit_core.plugins import Dataset, DatasetSpec, hookimpl

        class Neighbours(Dataset):
            task = SupervisedTask(inputs=(32,), outputs_size=2)
            fingerprint = "which neighbours of 32 bits differ, version 1"

            def __init__(self, seed):
                self.seed = seed

            def batches(self, batch_size, start=0):
                position = start
                while True:
                    yield make_bits([(self.seed, position + i) for i in range(batch_size)])
                    position += batch_size

            def eval_batches(self, tokens, batch_size):
                for first in range(0, tokens, batch_size):
                    yield make_bits([("held out", i) for i in range(first, min(first + batch_size, tokens))])

        def make_bits(keys):
            import random

            import torch

            numbers = [random.Random(str(key)).getrandbits(32) for key in keys]
            bits = torch.tensor([[number >> i & 1 for i in range(32)] for number in numbers])
            differing = (bits[:, 1:] != bits[:, :-1]).sum(1)  # of 31 pairs of neighbours
            return bits.float(), (differing > 15).long()

        @hookimpl
        def flops_fit_datasets():
            yield DatasetSpec(name="neighbours", build=lambda options, seed: Neighbours(seed))
    """
    return ()
