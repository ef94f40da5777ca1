"""Traced FLOPs of a family's sizes, computed fast enough for planning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from flops_fit_core.config import PluginConfig
from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.errors import UserError
from flops_fit_core.flops.audit.tracing import SAMPLES, Trace, Untraceable, trace_flops
from flops_fit_core.flops.build_model import build_model
from flops_fit_core.flops.model_stats import MAX_REAL_PARAMS, build_on_meta
from flops_fit_core.flops.parameter_usage import TraceTooLarge
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.protocols import Task
from flops_fit_core.plugins.specs import ModelSpec

if TYPE_CHECKING:
    from torch import nn

EXACT_TOLERANCE = 1e-6
"""Relative difference up to which a formula equals a trace."""
MAX_TRACED_PARAMS = 2_000_000_000
"""Models with more parameters are not traced."""
MAX_RUN_FLOPS = 3e9
"""FLOPs up to which a model is traced on the CPU, in a fraction of a second. The first model on the meta device
takes longer, because torch imports its compiler."""
MAX_MODULES = 300
"""Number of modules up to which a model is traced on the meta device, at 1 to 2 ms per module."""


class ReferenceFlops:
    """Training FLOPs per token of the sizes of one family, from traces.

    If a family's formula equals a trace at two small sizes, the formula is used for every size. Other models are
    traced on the CPU if this takes a fraction of a second, otherwise on the meta device. Results are cached.
    """

    def __init__(self, model: PluginConfig[ModelSpec], task: Task) -> None:
        self.model = model
        self.task = task
        self._traces: dict[str, Trace] = {}
        self._exact: dict[str, bool] = {}

    def family_flops(self, options: Options) -> float | None:
        """FLOPs per token by the family's formula; None without a formula."""
        return self._family_flops(options, self.task)

    def at(self, options: Options) -> float:
        """FLOPs per token of a size. Raises Untraceable, and the errors of building the model."""
        family_flops = self.family_flops(options)
        if family_flops is not None and self._is_exact_when_small(options):
            return family_flops
        return self.trace(options).flops_per_token

    def is_exact(self, options: Options) -> bool:
        """Whether the family's formula is used instead of traces."""
        return self.family_flops(options) is not None and self._is_exact_when_small(options)

    def is_cheap(self, options: Options) -> bool:
        """Whether :meth:`at` takes a fraction of a second once torch's compiler is imported."""
        if self.is_exact(options):
            return True
        module = build_on_meta(self.model, options, self.task)
        num_modules = sum(1 for _ in module.modules())
        return (
            num_modules <= MAX_MODULES and sum(part.numel() for part in module.parameters()) <= MAX_TRACED_PARAMS
        )

    def trace(self, options: Options) -> Trace:
        """The trace of a size. Raises Untraceable, and the errors of building the model."""
        key = options.model_dump_json()
        if key not in self._traces:
            self._traces[key] = self._trace(options)
        return self._traces[key]

    def _trace(self, options: Options) -> Trace:
        task = self.task
        shapes = build_on_meta(self.model, options, task)
        name = f"model {self.model.name!r}"
        try:
            if self._is_small(options, shapes):
                return self._run(options, task, name)
        except TraceTooLarge:
            pass
        except Untraceable as error:
            if error.reads_values:
                return self._trace_without_values(shapes, task, name, error)
            # CPU kernels may have no formula where the operations on the meta device have one (an LSTM).
        except UserError as error:
            raise Untraceable(str(error), str(error).splitlines()[0]) from error
        try:
            return trace_flops(shapes, task, name)
        except Untraceable:
            raise
        except UserError as error:
            raise Untraceable(str(error), str(error).splitlines()[0]) from error

    def _trace_without_values(self, shapes: nn.Module, task: Task, name: str, refusal: Untraceable) -> Trace:
        """Trace on the meta device a model that read values on the CPU, as ``one_hot`` does to check its input.

        Raises ``refusal`` if the model also needs values there.
        """
        try:
            return trace_flops(shapes, task, name)
        except UserError:
            raise refusal from None

    def _is_small(self, options: Options, shapes: nn.Module) -> bool:
        """Whether the model is small, and the pass too, as far as the family's formula shows."""
        family_flops = self.family_flops(options) or 0.0
        is_small = sum(parameter.numel() for parameter in shapes.parameters()) <= MAX_REAL_PARAMS
        return is_small and family_flops * self.task.tokens_per_sample * SAMPLES <= MAX_RUN_FLOPS

    def _run(self, options: Options, task: Task, name: str) -> Trace:
        """Trace on the CPU. Raises TraceTooLarge."""
        import torch

        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            module = build_model(self.model, options, task)
            return trace_flops(module, task, name, limit=MAX_RUN_FLOPS)

    def _family_flops(self, options: Options, task: Task) -> float | None:
        count = self.model.spec.flops_per_token
        if count is None:
            return None
        counted = self.model.call(count, options, task)
        return None if counted is None else float(counted)

    def _is_exact_when_small(self, options: Options) -> bool:
        """Compare with traces at 2 and 3 times ``multiple_of``; for language tasks, also at two short contexts."""
        other_options = options.model_dump_json(exclude={self.model.spec.size})
        if other_options not in self._exact:
            self._exact[other_options] = all(self._matches_trace(options, multiple) for multiple in (2, 3))
        return self._exact[other_options]

    def _matches_trace(self, options: Options, multiple: int) -> bool:
        size, task = multiple * self.model.spec.multiple_of, self.task
        if isinstance(task, LanguageTask):
            task = replace(task, context=min(task.context, 16 * multiple))
        try:
            smaller = type(options).model_validate({**options.model_dump(), self.model.spec.size: size})
            family_flops = self._family_flops(smaller, task)
            if family_flops is None or family_flops * task.tokens_per_sample * SAMPLES > MAX_RUN_FLOPS:
                return False
            traced = self._run(smaller, task, self.model.name).flops_per_token
        except Exception:
            return False  # the family has no size this small, or it cannot run
        return math.isclose(family_flops, traced, rel_tol=EXACT_TOLERANCE)
