"""Builds a model on the meta device (shapes without memory), counts it and checks that it fits its task."""

from __future__ import annotations

import contextlib
import io
import math
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import Chosen
from flops_fit_core.errors import PlanError, PluginError, UserError, raised_at
from flops_fit_core.flops.build_model import build_model
from flops_fit_core.flops.parameter_counts import (
    UNTRACED,
    count_parameters,
    own_num_params,
    parameter_groups,
    short_task,
    trace_example,
)
from flops_fit_core.flops.parameter_usage import ParameterUsage, TraceTooLarge
from flops_fit_core.plugins.protocols import FlopCount, MeasuredModel, Task, TransformerShape
from flops_fit_core.plugins.specs import FlopCounterSpec, ModelSpec, Options
from flops_fit_core.records import ParameterCounts

if TYPE_CHECKING:
    from torch import nn

LARGEST_TRIED = 20_000_000
"""Models up to this many parameters are tried for real; larger ones on the meta device only."""


NO_VALUES = ("called on meta tensors", "Cannot copy out of meta tensor", "can't convert meta device")
"""How torch refuses to read the values of tensors on the meta device."""
LARGEST_FORWARD = 1e9
"""FLOPs of a forward pass up to which a model is traced for real."""


@dataclass(frozen=True)
class Measured:
    """What the planner needs to know of one size of a model."""

    options: Options
    size: int | float | str
    parameters: ParameterCounts
    count: FlopCount
    width: int | None
    heads: tuple[int, int] | None = None
    """Attention heads, and channels of each."""

    @property
    def params(self) -> int:
        """N by the FLOPs counter's convention."""
        return self.count.params


class Meter:
    """Measures sizes of one model family on one task with one FLOPs counter. Remembers what it measured.

    Args:
        model: The family.
        task: What it is trained on.
        counter: Counts N and FLOPs.
        usages: How sizes use their parameters; by default traced.
    """

    def __init__(
        self,
        model: Chosen[ModelSpec],
        task: Task,
        counter: Chosen[FlopCounterSpec],
        usages: UsageTraces | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.counter = counter
        self.usages = usages or UsageTraces(model, task)
        self._known: dict[str, Measured] = {}

    def at(self, size: int, **changes: Any) -> Measured:
        """Measure the model with its size option set to ``size``, and further options changed.

        Raises PlanError where the family does not take it or cannot be built with it.
        """
        spec = self.model.spec
        try:
            options = self.model.with_options(**{**changes, spec.size: size}).options
        except ValueError as error:
            raise PlanError(f"model {self.model.name!r} cannot have {spec.size} = {size}: {error}") from None
        return self.measure(options)

    def measure(self, options: Options) -> Measured:
        """Measure the model with these options. Raises PlanError, PluginError."""
        key = options.model_dump_json()
        if key not in self._known:
            self._known[key] = self._measure(options)
        return self._known[key]

    def _measure(self, options: Options) -> Measured:
        spec = self.model.spec
        measured = measure_model(self.model, options, self.task, self.usages)
        return Measured(
            options=options,
            size=getattr(options, spec.size),
            parameters=measured.parameters,
            count=count_flops(self.counter, measured),
            width=self.model.call(spec.width, options) if spec.width is not None else None,
            heads=self.model.call(spec.heads, options) if spec.heads is not None else None,
        )

    def check_fit(self, options: Options) -> nn.Module | None:
        """Push one example through the model and its task's loss, for real where the model is small.

        Returns the model where it has values. Raises PlanError where the model's outputs do not fit the task.
        """
        real = self.measure(options).parameters.total <= LARGEST_TRIED
        module = push_example(self.model, options, self.task, "cpu" if real else "meta")
        return module if real else None


def push_example(model: Chosen[ModelSpec], options: Options, task: Task, device: str) -> nn.Module:
    """Push one example through the model and its task's loss on a device. Returns the model.

    Raises PlanError where the model's outputs do not fit the task.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
        module: nn.Module = build_model(model, options, task)
        batch = task.example(2)
        try:
            loss, count = task.loss(task.outputs(module, batch), batch)
            sample = getattr(task, "sample", None)
            if sample is not None and device == "cpu":  # zeros fit where real inputs and targets may not
                loss, count = task.loss(task.outputs(module, sample), sample)
        except UserError:
            raise
        except Exception as error:
            where = raised_at("".join(traceback.format_exception(error)))
            raise PlanError(
                f"model {model.name!r} does not fit dataset's task on a batch of 2: "
                f"{type(error).__name__}: {error}" + (f" ({where})" if where else "")
            ) from error
    is_ignored = sample is not None and device == "cpu" and count == 0  # a sample may hold ignored targets only
    if loss.ndim != 0 or (count < 1 and not is_ignored):
        raise PlanError(
            f"the loss on a batch of 2 has shape {tuple(loss.shape)} over {count} predictions; it must be a "
            f"sum (a scalar) over at least one"
        )
    return module


class UsageTraces:
    """How the sizes of one model family use their parameters on one task.

    One size is traced, and others with the same parameters by name have the same uses. The pass runs for real on
    the CPU if the model and the pass are small, or on a small size of the family in the place of a large one: the
    first model on the meta device costs seconds, in which torch imports its compiler.
    """

    def __init__(self, model: Chosen[ModelSpec], task: Task, *, by_type: bool = False) -> None:
        self.model = model
        self.task = task
        self.failure: str | None = None
        """Why no trace was possible; parameters are then told apart by module types."""
        self.traced: list[ParameterUsage] = []
        self._by_type = by_type

    def of(self, options: Options, module: nn.Module) -> ParameterUsage:
        """The uses of the parameters of this size, which ``module`` is. ``UNTRACED`` if it cannot be traced."""
        if self._by_type or self.failure is not None or own_num_params(module) is not None:
            return UNTRACED
        names = [name for name, _ in module.named_parameters()]
        for usage in self.traced:
            if usage.of(names) is not None:
                return usage
        usage = self._trace(options, module, names)
        if usage is not UNTRACED:
            self.traced.append(usage)
        return usage

    def _trace(self, options: Options, own: nn.Module, names: Sequence[str]) -> ParameterUsage:
        module = own
        for smaller in (options, *self._small_relatives(options)):
            try:
                if smaller is not options:
                    module = build_on_meta(self.model, smaller, short_task(self.task))
                usage = self._run(smaller, module)
            except TraceTooLarge:
                continue
            except Exception as error:  # a model that cannot be run here may still be planned
                if smaller is options:
                    return self._fail(error)
                continue
            if usage.of(names) is not None:
                return usage
        try:
            return trace_example(own, self.task, math.inf)
        except Exception as error:
            return self._fail(error)

    def _fail(self, error: Exception) -> ParameterUsage:
        self.failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return UNTRACED

    def _run(self, options: Options, shapes: nn.Module) -> ParameterUsage:
        """On the CPU, on a short context. Raises TraceTooLarge."""
        import torch

        if sum(parameter.numel() for parameter in shapes.parameters()) > LARGEST_TRIED:
            raise TraceTooLarge
        task = short_task(self.task)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return trace_example(build_model(self.model, options, task), task, LARGEST_FORWARD)

    def _small_relatives(self, options: Options) -> list[Options]:
        """Two small sizes with the same other options, as far as the family takes them."""
        spec = self.model.spec
        relatives = []
        for times in (2, 16):
            size = times * spec.multiple_of
            try:
                given = options.model_dump(exclude_unset=True)
                relatives.append(spec.options.model_validate({**given, spec.size: size}))
            except ValueError:
                continue
        return relatives if spec.scale is None else []


def measure_model(
    model: Chosen[ModelSpec], options: Options, task: Task, usages: UsageTraces | None = None
) -> MeasuredModel:
    """The model with these options as a FLOPs counter sees it.

    Raises PlanError, or PluginError where the family breaks.
    """
    spec = model.spec
    module = build_on_meta(model, options, task)
    own = shape = None
    if spec.flops_per_token is not None:
        counted = model.call(spec.flops_per_token, options, task)
        own = None if counted is None else float(counted)
    if spec.shape is not None:
        shape = model.call(spec.shape, options, task)
        if not isinstance(shape, TransformerShape | None):
            raise PluginError(f"model {model.name!r}: shape gave {shape!r} instead of a TransformerShape")
    groups = parameter_groups(model, module)
    usage = (usages or UsageTraces(model, task)).of(options, module)
    parameters = count_parameters(module, task, groups, usage)
    return MeasuredModel(module, task, parameters, own, model.name, shape)


def count_flops(counter: Chosen[FlopCounterSpec], measured: MeasuredModel) -> FlopCount:
    """What the counter says of the model. Raises ConfigError where it cannot count it, PluginError."""
    count = counter.call(counter.spec.build, counter.options, measured)
    if not isinstance(count, FlopCount) or not 0 < count.flops_per_token < float("inf"):
        raise PluginError(f"flops {counter.name!r} gave {count!r} instead of a FlopCount above zero")
    return count


def build_on_meta(model: Chosen[ModelSpec], options: Options, task: Task) -> nn.Module:
    """The model's shapes, without memory. Raises PlanError, or PluginError where the family breaks."""
    import torch

    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        try:
            with _no_initialization():
                module = build_model(model, options, task)
        except PluginError as error:
            if not reads_values(error):
                raise
            with _no_initialization(with_constants=True):  # of a linspace of drop rates, for one
                module = build_model(model, options, task)
    if not isinstance(module, torch.nn.Module):
        raise PluginError(f"model {model.name!r} built a {type(module).__name__}, not a torch.nn.Module")
    _move_to_meta(module)
    return module


def reads_values(error: BaseException) -> bool:
    """Whether torch raised this because a tensor on the meta device has no values."""
    return any(sign in str(error) for sign in NO_VALUES)


def _move_to_meta(module: nn.Module) -> None:
    """Move what was made elsewhere, as a table from NumPy is. Numbers stay: torch takes them on any device."""
    import torch

    moved: dict[int, Any] = {}

    def shape_of(tensor: Any) -> Any:
        if id(tensor) not in moved:
            shapes = tensor.detach().to("meta")
            if isinstance(tensor, torch.nn.Parameter):
                shapes = torch.nn.Parameter(shapes, requires_grad=tensor.requires_grad)
            moved[id(tensor)] = tensor, shapes  # the tensor is kept, so that no other gets its id
        return moved[id(tensor)][1]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None or tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
                    continue
                if tensor.ndim:
                    tensors[name] = shape_of(tensor)


def _no_initialization(*, with_constants: bool = False) -> AbstractContextManager[Any]:
    """Leaves out random initialization, which on the meta device changes nothing and takes most of the time.

    Args:
        with_constants: Make constants (``linspace``, ``arange``, ``tensor``) on the CPU, where they have values.
    """
    import torch
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    fills = {getattr(Tensor, name) for name in ("normal_", "uniform_", "random_", "exponential_", "bernoulli_")}

    constants = {torch.linspace, torch.logspace, torch.arange, torch.tensor} if with_constants else set()

    class LeaveOut(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in constants:
                kwargs = {"device": "cpu", **kwargs}
            if func in fills or getattr(func, "__module__", "") == "torch.nn.init":
                tensor = args[0] if args else kwargs.get("tensor")
                if isinstance(tensor, Tensor) and tensor.is_meta:
                    return tensor
            return func(*args, **kwargs)

    return LeaveOut()
