"""Builds a model on the meta device (shapes without memory), counts it and checks that it fits its task."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import Chosen
from flops_fit_core.contracts import FlopCount, MeasuredModel, ParameterGroup, Task, TransformerShape
from flops_fit_core.errors import PlanError, PluginError, UserError
from flops_fit_core.records import ParameterCounts
from flops_fit_core.specs import FlopCounterSpec, ModelSpec, Options
from flops_fit_core.tasks import LanguageTask

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_TRIED = 20_000_000
"""Models up to this many parameters are tried for real; larger ones on the meta device only."""


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
    """Measures sizes of one model family on one task with one FLOPs counter. Remembers what it measured."""

    def __init__(self, model: Chosen[ModelSpec], task: Task, counter: Chosen[FlopCounterSpec]) -> None:
        self.model = model
        self.task = task
        self.counter = counter
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
        measured = measure_model(self.model, options, self.task)
        return Measured(
            options=options,
            size=getattr(options, spec.size),
            parameters=measured.parameters,
            count=count_flops(self.counter, measured),
            width=self.model.calling("width", options) if spec.width is not None else None,
            heads=self.model.calling("heads", options) if spec.heads is not None else None,
        )

    def check_fit(self, options: Options) -> None:
        """Push one example through the model and its task's loss, for real where the model is small.

        Raises PlanError where the model's outputs do not fit the task.
        """
        real = self.measure(options).parameters.total <= LARGEST_TRIED
        push_example(self.model, options, self.task, "cpu" if real else "meta")


def push_example(model: Chosen[ModelSpec], options: Options, task: Task, device: str) -> None:
    """Push one example through the model and its task's loss on a device.

    Raises PlanError where the model's outputs do not fit the task.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
        module = model.calling("build", options, task)
        batch = task.example(2)
        try:
            outputs = task.outputs(module, batch)
            loss, count = task.loss(outputs, batch)
        except UserError:
            raise
        except Exception as error:
            raise PlanError(
                f"model {model.name!r} does not fit dataset's task on a batch of 2: "
                f"{type(error).__name__}: {error}"
            ) from error
    if loss.ndim != 0 or count < 1:
        raise PlanError(
            f"the loss on a batch of 2 has shape {tuple(loss.shape)} over {count} predictions; it must be a "
            f"sum (a scalar) over at least one"
        )


def measure_model(model: Chosen[ModelSpec], options: Options, task: Task) -> MeasuredModel:
    """The model with these options as a FLOPs counter sees it.

    Raises PlanError, or PluginError where the family breaks.
    """
    spec = model.spec
    module = build_on_meta(model, options, task)
    own = shape = None
    if spec.flops_per_token is not None:
        counted = model.calling("flops_per_token", options, task)
        own = None if counted is None else float(counted)
    if spec.shape is not None:
        shape = model.calling("shape", options, task)
        if not isinstance(shape, TransformerShape | None):
            raise PluginError(f"model {model.name!r}: shape gave {shape!r} instead of a TransformerShape")
    parameters = count_parameters(module, task, parameter_groups(model, module))
    return MeasuredModel(module, task, parameters, own, model.name, shape)


def count_flops(counter: Chosen[FlopCounterSpec], measured: MeasuredModel) -> FlopCount:
    """What the counter says of the model. Raises ConfigError where it cannot count it, PluginError."""
    count = counter.calling("build", counter.options, measured)
    if not isinstance(count, FlopCount) or not 0 < count.flops_per_token < float("inf"):
        raise PluginError(f"flops {counter.name!r} gave {count!r} instead of a FlopCount above zero")
    return count


def build_on_meta(model: Chosen[ModelSpec], options: Options, task: Task) -> nn.Module:
    """The model's shapes, without memory. Raises PlanError, or PluginError where the family breaks."""
    import torch

    with torch.device("meta"), _no_initialization():
        module = model.calling("build", options, task)
    if not isinstance(module, torch.nn.Module):
        raise PluginError(f"model {model.name!r} built a {type(module).__name__}, not a torch.nn.Module")
    return module


def _no_initialization() -> AbstractContextManager[Any]:
    """Leaves out random initialization, which on the meta device changes nothing and takes most of the time."""
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    fills = {getattr(Tensor, name) for name in ("normal_", "uniform_", "random_", "exponential_", "bernoulli_")}

    class LeaveOut(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in fills or getattr(func, "__module__", "") == "torch.nn.init":
                tensor = args[0] if args else kwargs.get("tensor")
                if isinstance(tensor, Tensor) and tensor.is_meta:
                    return tensor
            return func(*args, **kwargs)

    return LeaveOut()


def count_parameters(module: nn.Module, task: Task, groups: Iterable[ParameterGroup] = ()) -> ParameterCounts:
    """Count parameters, each once. A model's own ``num_params()`` is believed where it has one; its family's
    groups say which are used by some tokens only.

    Lookup tables are the weights of ``nn.Embedding`` and ``nn.EmbeddingBag`` that no other module shares. The
    output head is the last ``nn.Linear`` with one output a vocabulary entry, on a language task. Of both, what one
    token uses is counted.

    Raises PlanError for a model without parameters, and where ``num_params()`` leaves out what is not used.
    """
    import torch

    groups = list(groups)
    shares = {id(one): group.active for group in groups for one in group.parameters}
    idle = round(sum((1 - group.active) * sum(one.numel() for one in group.parameters) for group in groups))

    def used(parameter: Tensor) -> float:
        return shares.get(id(parameter), 1.0) * parameter.numel()

    own = getattr(module, "num_params", None)
    if callable(own):
        total = int(own())
        if idle >= total:
            raise PlanError(
                f"{type(module).__name__}: num_params() gives {total:,}, and its parameter groups have {idle:,} "
                f"that a token does not use: num_params() has to count those too"
            )
        return ParameterCounts(total=total, active=total - idle)
    total = sum(parameter.numel() for parameter in module.parameters())
    if total < 1:
        raise PlanError(f"{type(module).__name__} has no parameters: there is nothing to train")
    tables: dict[int, float] = {}
    multiplied: set[int] = set()
    head = 0.0
    vocabulary = task.vocab_size if isinstance(task, LanguageTask) else None
    for part in module.modules():
        looks_up = isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag)
        for parameter in part.parameters(recurse=False):
            if looks_up:
                tables[id(parameter)] = used(parameter)
            else:
                multiplied.add(id(parameter))
        if isinstance(part, torch.nn.Linear) and part.out_features == vocabulary:
            head = used(part.weight) + (used(part.bias) if part.bias is not None else 0)
    lookup = sum(size for key, size in tables.items() if key not in multiplied)
    return ParameterCounts(total=total, lookup=round(lookup), unembedding=round(head), active=total - idle)


def parameter_groups(model: Chosen[Any], module: nn.Module) -> list[ParameterGroup]:
    """The family's groups, or one group of everything, which gets one learning rate.

    Raises PluginError where a family's groups are none, leave out a parameter or have one twice.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if model.spec.parameter_groups is None:
        return [ParameterGroup(trained)]
    given = list(model.calling("parameter_groups", module))
    for group in given:
        if not isinstance(group, ParameterGroup):
            raise PluginError(
                f"model {model.name!r}: parameter_groups gave a {type(group).__name__} instead of a ParameterGroup"
            )
    groups = [group for group in given if group.parameters]
    grouped = [id(parameter) for group in groups for parameter in group.parameters]
    if sorted(grouped) != sorted(id(parameter) for parameter in trained):
        raise PluginError(
            f"model {model.name!r}: parameter_groups gives {len(grouped)} parameters of which "
            f"{len(set(grouped))} are different; the model has {len(trained)}, and each must be in one group"
        )
    return groups
