"""FLOPs of a family's sizes by a trace, as cheaply as planning needs them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from flops_fit_core.config import Chosen
from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.errors import UserError
from flops_fit_core.flops.audit.tracing import SAMPLES, Trace, Untraceable, trace_flops
from flops_fit_core.flops.build_model import build_model
from flops_fit_core.flops.model_stats import LARGEST_TRIED, build_on_meta
from flops_fit_core.flops.parameter_usage import TraceTooLarge
from flops_fit_core.plugins.protocols import Task
from flops_fit_core.plugins.specs import ModelSpec, Options

if TYPE_CHECKING:
    from torch import nn

EXACT = 1e-6
"""Relative difference up to which a formula is the trace's own."""
LARGEST_TRACED = 2_000_000_000
"""Parameters."""
LARGEST_RUN = 3e9
"""FLOPs of a trace up to which the model is run for real, a fraction of a second. For the first model on the meta
device torch imports its compiler, which takes longer."""
MOST_PARTS = 300
"""Modules within modules up to which a model is traced on the meta device: 1 to 2 ms each."""


class ReferenceFlops:
    """Training FLOPs per token of the sizes of one family, by a trace.

    A family's own count that equals a trace at two small sizes stands for the trace at every size. Other models
    are run for real on the CPU if that takes a fraction of a second, otherwise traced on the meta device. Every
    value is computed once.
    """

    def __init__(self, model: Chosen[ModelSpec], task: Task) -> None:
        self.model = model
        self.task = task
        self._traces: dict[str, Trace] = {}
        self._exact: dict[str, bool] = {}

    def own(self, options: Options) -> float | None:
        """The family's own count; None if it has none."""
        return self._own(options, self.task)

    def at(self, options: Options) -> float:
        """FLOPs per token of this size. Raises Untraceable, and what building the model raises."""
        own = self.own(options)
        if own is not None and self._is_exact_when_small(options):
            return own
        return self.trace(options).flops_per_token

    def is_own(self, options: Options) -> bool:
        """Whether the family's own count is the trace's at every size."""
        return self.own(options) is not None and self._is_exact_when_small(options)

    def is_cheap(self, options: Options) -> bool:
        """Whether :meth:`at` takes a fraction of a second once torch's compiler is imported."""
        if self.is_own(options):
            return True
        module = build_on_meta(self.model, options, self.task)
        parts = sum(1 for _ in module.modules())
        return parts <= MOST_PARTS and sum(part.numel() for part in module.parameters()) <= LARGEST_TRACED

    def trace(self, options: Options) -> Trace:
        """The trace itself. Raises Untraceable, and what building the model raises."""
        key = options.model_dump_json()
        if key not in self._traces:
            self._traces[key] = self._trace(options)
        return self._traces[key]

    def _trace(self, options: Options) -> Trace:
        task = self.task
        shapes = build_on_meta(self.model, options, task)
        name = f"model {self.model.name!r}"
        try:
            if self._may_run(options, shapes):
                return self._run(options, task, name)
        except TraceTooLarge:
            pass
        except Untraceable as error:
            if error.reads_values:
                return self._without_values(shapes, task, name, error)
            # A kernel of the CPU may have no formula where the meta device's operations have (an LSTM).
        except UserError as error:
            raise Untraceable(str(error), str(error).splitlines()[0]) from error
        try:
            return trace_flops(shapes, task, name)
        except Untraceable:
            raise
        except UserError as error:
            raise Untraceable(str(error), str(error).splitlines()[0]) from error

    def _without_values(self, shapes: nn.Module, task: Task, name: str, refusal: Untraceable) -> Trace:
        """The trace of a model that reads values on the CPU only, as ``one_hot`` does to check its input.

        Raises the refusal where the model needs values.
        """
        try:
            return trace_flops(shapes, task, name)
        except UserError:
            raise refusal from None

    def _may_run(self, options: Options, shapes: nn.Module) -> bool:
        """Whether the model is small, and so is the pass as far as the family counts it."""
        own = self.own(options) or 0.0
        is_small = sum(parameter.numel() for parameter in shapes.parameters()) <= LARGEST_TRIED
        return is_small and own * self.task.tokens_per_sample * SAMPLES <= LARGEST_RUN

    def _run(self, options: Options, task: Task, name: str) -> Trace:
        """For real, on the CPU. Raises TraceTooLarge."""
        import torch

        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            module = build_model(self.model, options, task)
            return trace_flops(module, task, name, limit=LARGEST_RUN)

    def _own(self, options: Options, task: Task) -> float | None:
        count = self.model.spec.flops_per_token
        if count is None:
            return None
        counted = self.model.call(count, options, task)
        return None if counted is None else float(counted)

    def _is_exact_when_small(self, options: Options) -> bool:
        """At two sizes, 2 and 3 times ``multiple_of``, and on a language task at two short contexts."""
        others = options.model_dump_json(exclude={self.model.spec.size})
        if others not in self._exact:
            self._exact[others] = all(self._is_exact(options, times) for times in (2, 3))
        return self._exact[others]

    def _is_exact(self, options: Options, times: int) -> bool:
        size, task = times * self.model.spec.multiple_of, self.task
        if isinstance(task, LanguageTask):
            task = replace(task, context=min(task.context, 16 * times))
        try:
            smaller = type(options).model_validate({**options.model_dump(), self.model.spec.size: size})
            own = self._own(smaller, task)
            if own is None or own * task.tokens_per_sample * SAMPLES > LARGEST_RUN:
                return False
            traced = self._run(smaller, task, self.model.name).flops_per_token
        except Exception:
            return False  # this family has no such size, or it cannot be run
        return math.isclose(own, traced, rel_tol=EXACT)
