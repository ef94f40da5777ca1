"""A plan of a few runs of milliseconds, a store on disk, and drivers of it."""

from __future__ import annotations

from collections import Counter

import torch
from small import Bench

from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed
from flops_fit_core.study.sweep import Sweep
from flops_fit_core.training.executor_context import StudyExecutorContext


class Setting:
    """The plan, with three sizes by default. ``trained`` counts the models that were built, by width."""

    def __init__(self, folder, sizes=(4, 6, 8), **changes):
        self.folder = folder
        self.bench = Bench()
        self.registry = self.bench.registry()
        table = self.bench.table(20, **changes)
        table["sweep"]["sizes"] = [{"width": width} for width in sizes]
        table["sweep"] = {key: value for key, value in table["sweep"].items() if key != "batch_size"}
        self.experiment = make_experiment(table, self.registry)
        self.plan = make_plan(self.experiment)
        self.trained = Counter()
        self.bench.built.append(lambda model: self.trained.update([model[0].embedding_dim]))

    def store(self, name="sqlite"):
        spec = installed().find("store", f"stores/{name}").spec
        return spec.build(spec.options(), self.folder)

    def executor(self):
        chosen = self.experiment.executor
        context = StudyExecutorContext(
            folder=self.folder,
            plugins=self.registry.setup.model_dump_json(),
            live=self.registry.objects,
            slots=[{}],
        )
        return chosen.spec.build(chosen.options, context)

    def driver(self, store, registry=None, **options):
        return Sweep(self.plan, store, self.executor(), registry or self.registry, **options)

    def break_size(self, width, error=RuntimeError):
        def spoil(model):
            def hook(module, inputs):
                if torch.is_grad_enabled():
                    raise error("this size breaks")

            if model[0].embedding_dim == width:
                model.register_forward_pre_hook(hook)

        self.bench.built.append(spoil)
