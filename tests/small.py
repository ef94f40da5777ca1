"""Small real experiments for tests of several subjects: seconds of training."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from flops_fit_core import RunResult
from flops_fit_core.config import make_experiment
from flops_fit_core.data import TokenDataset
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import DatasetSpec, ModelSpec, Options, hookimpl
from flops_fit_core.plugins.registry import Registry, installed
from flops_fit_core.training import work

WORDS = [
    *("the", "a", "model", "of", "loss", "data", "tree", "river", "stone", "runs", "falls", "grows"),
    *("and", "or", "in", "on", "with", "every", "other", "cold"),
]


def write_text(folder: Path, files: int = 30, words: int = 600) -> Path:
    """Write files of words. Every call writes the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        chosen = random.Random(number).choices(WORDS, k=words)
        (folder / f"{number:03d}.txt").write_text(" ".join(chosen))
    return folder


def text_table(text: Path, **changes) -> dict:
    """An experiment on these files: two sizes, about 100 steps each. ``sweep={...}`` changes single entries."""
    table = {
        "name": "small",
        "sweep": {
            "budgets": [2.4e8],
            "sizes": [{"width": 8}, {"width": 12}],
            "allow_repeat": True,
            "min_steps": 1,
        },
        "model": {"name": "gpt", "depth": 1, "head_dim": 4},
        "dataset": {"name": "text", "path": str(text), "context": 16},
        "optimizer": {"name": "adamw"},
        "counter": {"name": "model"},
        "trainer": {"name": "torch", "eval_tokens": 512},
        "device": {"name": "cpu"},
        "executor": "local",
    }
    for kind, options in changes.items():
        keep = isinstance(options, dict) and "name" not in options
        table[kind] = {**table.get(kind, {}), **options} if keep else options
    return table


def formula_table(**changes) -> dict:
    """An experiment on a formula: 9 runs that take no time."""
    return {
        "name": "formula",
        "sweep": {"budgets": [1e18, 1e19, 1e20], "sizes": 3, "batch_size": 8},
        "model": "surface",
        "dataset": {"name": "surface", "noise": 0.005},
        "fitter": {"name": "parametric", "draws": 20},
        "executor": "local",
        **changes,
    }


class NetOptions(Options):
    width: int = 8
    dropout: float = 0.0


class Bench:
    """A plugin with a model and a dataset that record their use.

    The model is an embedding and a head; the tokens are random with a regular part, 12 kinds of them.
    """

    vocab_size, context, length = 12, 8, 40_000

    def __init__(self) -> None:
        self.built: list = []
        """Functions to call with every model that is built for training."""
        self.served: list = []
        """Every training batch that was served."""
        random_state = np.random.default_rng(0)
        steps = random_state.choice([1, 2, 5], size=self.length, p=[0.7, 0.2, 0.1])
        self.row = (np.cumsum(steps) % self.vocab_size).astype(np.uint8)
        self.cut = self.length * 9 // 10
        self.fingerprint = "random walk on a circle of 12"

    @hookimpl
    def flops_fit_models(self):
        yield ModelSpec(name="net", options=NetOptions, build=self.build_net, size="width")

    @hookimpl
    def flops_fit_datasets(self):
        yield DatasetSpec(name="walk", build=self.build_walk)

    def build_net(self, options, task):
        import torch
        from torch import nn

        model = nn.Sequential(
            nn.Embedding(task.vocab_size, options.width),
            nn.Dropout(options.dropout),
            nn.Linear(options.width, task.vocab_size),
        )
        if not torch.empty(0).is_meta:
            for call in self.built:
                call(model)
        return model

    def build_walk(self, options, seed):
        bench = self

        class Walk(TokenDataset):
            def batches(self, batch_size, start=0):
                for batch in super().batches(batch_size, start):
                    bench.served.append(batch.clone())
                    yield batch

        return Walk(
            self.row[: self.cut],
            self.row[self.cut :],
            vocab_size=self.vocab_size,
            context=self.context,
            seed=seed,
            fingerprint=self.fingerprint,
            bytes_per_token=0.5,
        )

    def registry(self) -> Registry:
        return installed().with_plugins({"bench": self})

    def table(self, steps: int = 60, batch_size: int = 8, **changes) -> dict:
        """One run of this many steps, with 6 N D = 6 (12 x 8 + 12) D at width 8."""
        table = {
            "sweep": {
                "budgets": [6 * (self.vocab_size * 8 + self.vocab_size) * steps * batch_size * self.context],
                "sizes": [{"width": 8}],
                "batch_size": batch_size,
                "min_steps": 1,
            },
            "model": {"name": "bench/net"},
            "dataset": {"name": "bench/walk"},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "trainer": {"name": "torch", "eval_tokens": 400},
            "device": {"name": "cpu"},
            "executor": "local",
        }
        for kind, options in changes.items():
            keep = isinstance(options, dict) and "name" not in options
            table[kind] = {**table.get(kind, {}), **options} if keep else options
        return table


def train(table: dict, registry: Registry | None = None, folder: Path | None = None, **more) -> list[RunResult]:
    """The results of every run of an experiment, trained one after another in this process."""
    return [event for event in events(table, registry, folder, **more) if isinstance(event, RunResult)]


def events(
    table: dict, registry: Registry | None = None, folder: Path | None = None, done: Collection[str] = (), **more
) -> list:
    """All events of training the runs that are not done. Checkpoints stay if there is a folder."""
    registry = registry or installed()
    plan = make_plan(make_experiment(table, registry))
    messages = []
    with tempfile.TemporaryDirectory() as nowhere:
        for job in plan.jobs({run.id for run in plan.runs} - set(done)):
            messages += work(
                job.model_dump_json(),
                registry.setup.model_dump_json(),
                objects=registry.objects,
                folder=folder or Path(nowhere),
                **more,
            )
    return messages


def stopped_after(steps: int) -> Callable[[], bool]:
    """A ``should_stop`` that returns True after this many calls."""
    calls = itertools.count(1)
    return lambda: next(calls) > steps
