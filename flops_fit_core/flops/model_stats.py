"""Statistics of models, counted on the meta device (shapes without memory), and a check that a model fits its
task."""

from __future__ import annotations

import contextlib
import io
import math
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import PluginConfig
from flops_fit_core.errors import PlanError, PluginError, UserError, raised_at
from flops_fit_core.flops.build_model import build_model
from flops_fit_core.flops.parameter_counts import (
    UNTRACED,
    count_parameters,
    num_params_of,
    parameter_groups,
    short_task,
    trace_example,
)
from flops_fit_core.flops.parameter_usage import ParameterUsage, TraceTooLarge
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.protocols import CounterInput, FlopCount, Task, TransformerShape
from flops_fit_core.plugins.specs import FlopCounterSpec, ModelSpec
from flops_fit_core.records import ParameterCounts

if TYPE_CHECKING:
    from torch import nn

MAX_REAL_PARAMS = 20_000_000
"""Models up to this many parameters are tried on the CPU; larger models on the meta device only."""


NO_VALUES_MESSAGES = ("called on meta tensors", "Cannot copy out of meta tensor", "can't convert meta device")
"""Parts of torch's error messages if code reads the values of tensors on the meta device."""
MAX_FORWARD_FLOPS = 1e9
"""Models with up to this many FLOPs per forward pass are traced on the CPU."""


@dataclass(frozen=True)
class SizeStats:
    """Statistics of one size of a model, for the planner."""

    options: Options
    size: int | float | str
    parameters: ParameterCounts
    count: FlopCount
    width: int | None
    heads: tuple[int, int] | None = None
    """Number of attention heads, and channels per head."""

    @property
    def params(self) -> int:
        """N, by the convention of the FLOPs counter."""
        return self.count.params


class SizeMeasurer:
    """Measures sizes of one model family on one task with one FLOPs counter. Results are cached.

    Args:
        model: The family.
        task: The training task.
        counter: The counter of N and FLOPs.
        usages: Traces of the use of parameters; by default new traces.
    """

    def __init__(
        self,
        model: PluginConfig[ModelSpec],
        task: Task,
        counter: PluginConfig[FlopCounterSpec],
        usages: UsageTraces | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.counter = counter
        self.usages = usages or UsageTraces(model, task)
        self._stats: dict[str, SizeStats] = {}

    def at(self, size: int, **changes: Any) -> SizeStats:
        """Measure the model with its size option set to ``size`` and with other options changed.

        Raises PlanError if the family does not accept this size or cannot be built with it.
        """
        spec = self.model.spec
        try:
            options = self.model.with_options(**{**changes, spec.size: size}).options
        except ValueError as error:
            raise PlanError(f"model {self.model.name!r} cannot have {spec.size} = {size}: {error}") from None
        return self.measure(options)

    def measure(self, options: Options) -> SizeStats:
        """Measure the model with these options. Raises PlanError, PluginError."""
        key = options.model_dump_json()
        if key not in self._stats:
            self._stats[key] = self._measure(options)
        return self._stats[key]

    def _measure(self, options: Options) -> SizeStats:
        spec = self.model.spec
        measured = measure_model(self.model, options, self.task, self.usages)
        return SizeStats(
            options=options,
            size=getattr(options, spec.size),
            parameters=measured.parameters,
            count=count_flops(self.counter, measured),
            width=self.model.call(spec.width, options) if spec.width is not None else None,
            heads=self.model.call(spec.heads, options) if spec.heads is not None else None,
        )

    def check_fit(self, options: Options) -> nn.Module | None:
        """Run one example through the model and its task's loss, on the CPU if the model is small.

        Returns the model if it ran on the CPU. Raises PlanError if the model's outputs do not match the task.
        """
        is_real = self.measure(options).parameters.total <= MAX_REAL_PARAMS
        module = push_example(self.model, options, self.task, "cpu" if is_real else "meta")
        return module if is_real else None


def push_example(model: PluginConfig[ModelSpec], options: Options, task: Task, device: str) -> nn.Module:
    """Run one example through the model and its task's loss on a device. Returns the model.

    Raises PlanError if the model's outputs do not match the task.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
        module: nn.Module = build_model(model, options, task)
        batch = task.example(2)
        try:
            loss, count = task.loss(task.outputs(module, batch), batch)
            sample = getattr(task, "sample", None)
            if sample is not None and device == "cpu":  # real inputs and targets may fail where zeros work
                loss, count = task.loss(task.outputs(module, sample), sample)
        except UserError:
            raise
        except Exception as error:
            location = raised_at("".join(traceback.format_exception(error)))
            raise PlanError(
                f"model {model.name!r} does not match the dataset's task on a batch of 2: "
                f"{type(error).__name__}: {error}" + (f" ({location})" if location else "")
            ) from error
    is_ignored = sample is not None and device == "cpu" and count == 0  # a sample may contain ignored targets only
    if loss.ndim != 0 or (count < 1 and not is_ignored):
        raise PlanError(
            f"the loss on a batch of 2 has shape {tuple(loss.shape)} over {count} predictions; it must be a "
            f"scalar, the sum over at least one prediction"
        )
    return module


class UsageTraces:
    """How the sizes of one model family use their parameters on one task.

    A trace of one size holds for all sizes with the same parameter names. The pass runs on the CPU if the model
    and the pass are small; a small size of the family stands in for a large model. Otherwise the pass runs on the
    meta device, where the first model costs seconds because torch imports its compiler.

    Args:
        model: The family.
        task: The training task.
        by_type: Classify parameters by module types, without a trace.
    """

    def __init__(self, model: PluginConfig[ModelSpec], task: Task, *, by_type: bool = False) -> None:
        self.model = model
        self.task = task
        self.failure: str | None = None
        """The reason if no trace was possible. Then parameters are classified by module types."""
        self.traced: list[ParameterUsage] = []
        self._by_type = by_type

    def of(self, options: Options, module: nn.Module) -> ParameterUsage:
        """The uses of the parameters of ``module``, the model with ``options``. ``UNTRACED`` without a trace."""
        if self._by_type or self.failure is not None or num_params_of(module) is not None:
            return UNTRACED
        names = [name for name, _ in module.named_parameters()]
        for usage in self.traced:
            if usage.of(names) is not None:
                return usage
        usage = self._trace(options, module, names)
        if usage is not UNTRACED:
            self.traced.append(usage)
        return usage

    def _trace(self, options: Options, shapes: nn.Module, names: Sequence[str]) -> ParameterUsage:
        module = shapes
        for smaller in (options, *self._small_relatives(options)):
            try:
                if smaller is not options:
                    module = build_on_meta(self.model, smaller, short_task(self.task))
                usage = self._run(smaller, module)
            except TraceTooLarge:
                continue
            except Exception as error:  # a model that cannot run on this machine can still be planned
                if smaller is options:
                    return self._fail(error)
                continue
            if usage.of(names) is not None:
                return usage
        try:
            return trace_example(shapes, self.task, math.inf)
        except Exception as error:
            return self._fail(error)

    def _fail(self, error: Exception) -> ParameterUsage:
        self.failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return UNTRACED

    def _run(self, options: Options, shapes: nn.Module) -> ParameterUsage:
        """Trace on the CPU, with a short context. Raises TraceTooLarge."""
        import torch

        if sum(parameter.numel() for parameter in shapes.parameters()) > MAX_REAL_PARAMS:
            raise TraceTooLarge
        task = short_task(self.task)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return trace_example(build_model(self.model, options, task), task, MAX_FORWARD_FLOPS)

    def _small_relatives(self, options: Options) -> list[Options]:
        """Two small sizes with the same other options, if the family accepts them."""
        spec = self.model.spec
        relatives = []
        for times in (2, 16):
            size = times * spec.multiple_of
            try:
                set_options = options.model_dump(exclude_unset=True)
                relatives.append(spec.options.model_validate({**set_options, spec.size: size}))
            except ValueError:
                continue
        return relatives if spec.scale is None else []


def measure_model(
    model: PluginConfig[ModelSpec], options: Options, task: Task, usages: UsageTraces | None = None
) -> CounterInput:
    """The input of a FLOPs counter for the model with these options.

    Raises PlanError, or PluginError if the family is broken.
    """
    spec = model.spec
    module = build_on_meta(model, options, task)
    family_flops = shape = None
    if spec.flops_per_token is not None:
        counted = model.call(spec.flops_per_token, options, task)
        family_flops = None if counted is None else float(counted)
    if spec.shape is not None:
        shape = model.call(spec.shape, options, task)
        if not isinstance(shape, TransformerShape | None):
            raise PluginError(f"model {model.name!r}: shape returned {shape!r}, not a TransformerShape")
    groups = parameter_groups(model, module)
    usage = (usages or UsageTraces(model, task)).of(options, module)
    parameters = count_parameters(module, task, groups, usage)
    return CounterInput(module, task, parameters, family_flops, model.name, shape)


def count_flops(counter: PluginConfig[FlopCounterSpec], measured: CounterInput) -> FlopCount:
    """Count a model. Raises ConfigError if the counter does not support it, PluginError for a broken counter."""
    count = counter.call(counter.spec.build, counter.options, measured)
    if not isinstance(count, FlopCount) or not 0 < count.flops_per_token < float("inf"):
        raise PluginError(f"counter {counter.name!r} returned {count!r}, not a FlopCount above zero")
    return count


def build_on_meta(model: PluginConfig[ModelSpec], options: Options, task: Task) -> nn.Module:
    """Build the model without memory for weights. Raises PlanError, or PluginError if the family is broken."""
    import torch

    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        try:
            with _no_initialization():
                module = build_model(model, options, task)
        except PluginError as error:
            if not reads_values(error):
                raise
            with _no_initialization(with_constants=True):  # for example a linspace of drop rates
                module = build_model(model, options, task)
    if not isinstance(module, torch.nn.Module):
        raise PluginError(f"model {model.name!r} built a {type(module).__name__}, not a torch.nn.Module")
    _move_to_meta(module)
    return module


def reads_values(error: BaseException) -> bool:
    """Whether torch raised an error because a tensor on the meta device has no values."""
    return any(message in str(error) for message in NO_VALUES_MESSAGES)


def _move_to_meta(module: nn.Module) -> None:
    """Move tensors to the meta device, for example a table from NumPy. Scalars work on every device and stay."""
    import torch

    meta_tensors: dict[int, Any] = {}

    def shape_of(tensor: Any) -> Any:
        if id(tensor) not in meta_tensors:
            shapes = tensor.detach().to("meta")
            if isinstance(tensor, torch.nn.Parameter):
                shapes = torch.nn.Parameter(shapes, requires_grad=tensor.requires_grad)
            meta_tensors[id(tensor)] = tensor, shapes  # keeps the tensor alive: Python reuses ids
        return meta_tensors[id(tensor)][1]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None or tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
                    continue
                if tensor.ndim:
                    tensors[name] = shape_of(tensor)


def _no_initialization(*, with_constants: bool = False) -> AbstractContextManager[Any]:
    """Skip random initialization, which has no effect on the meta device and takes most of the time.

    Args:
        with_constants: Create constants (``linspace``, ``arange``, ``tensor``) on the CPU, where they have values.
    """
    import torch
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    fills = {getattr(Tensor, name) for name in ("normal_", "uniform_", "random_", "exponential_", "bernoulli_")}

    constants = {torch.linspace, torch.logspace, torch.arange, torch.tensor} if with_constants else set()

    class SkipInitialization(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in constants:
                kwargs = {"device": "cpu", **kwargs}
            if func in fills or getattr(func, "__module__", "") == "torch.nn.init":
                tensor = args[0] if args else kwargs.get("tensor")
                if isinstance(tensor, Tensor) and tensor.is_meta:
                    return tensor
            return func(*args, **kwargs)

    return SkipInitialization()
