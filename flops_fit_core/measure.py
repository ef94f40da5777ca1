"""Builds a model on the meta device (shapes without memory), counts it and checks that it fits its task."""

from __future__ import annotations

import copy
import inspect
import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import Chosen
from flops_fit_core.contracts import FlopCount, MeasuredModel, ParameterGroup, Task, TransformerShape
from flops_fit_core.errors import PlanError, PluginError, UserError, raised_at
from flops_fit_core.parameter_usage import ParameterUsage, TraceTooLarge, Use, trace_usage
from flops_fit_core.records import ParameterCounts
from flops_fit_core.specs import FlopCounterSpec, ModelSpec, Options
from flops_fit_core.tasks import LanguageTask

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_TRIED = 20_000_000
"""Models up to this many parameters are tried for real; larger ones on the meta device only."""


LARGEST_FORWARD = 1e9
"""FLOPs of a forward pass up to which a model is traced for real."""
SHORT_CONTEXT = 32
"""Tokens of a sequence on which the use of parameters is traced: it does not depend on the context."""
TRACED_SAMPLES = 2
UNTRACED = ParameterUsage({})
"""No trace: parameters are told apart by module types."""


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
            width=self.model.calling("width", options) if spec.width is not None else None,
            heads=self.model.calling("heads", options) if spec.heads is not None else None,
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
        module: nn.Module = model.calling("build", options, task)
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
            return _trace(own, self.task, math.inf)
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
            return _trace(self.model.calling("build", options, task), task, LARGEST_FORWARD)

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


def short_task(task: Task) -> Task:
    """A language task with a short context; any other as it is."""
    if isinstance(task, LanguageTask):
        return replace(task, context=min(task.context, SHORT_CONTEXT))
    return task


def trace_module(module: nn.Module, task: Task) -> ParameterUsage:
    """How a forward pass of this module uses its parameters; ``UNTRACED`` if it cannot be traced.

    A real module is copied first, since a pass changes running statistics.
    """
    import torch

    is_meta = any(parameter.is_meta for parameter in module.parameters())
    try:
        with torch.random.fork_rng(devices=[]):
            return _trace(module if is_meta else copy.deepcopy(module), task, math.inf)
    except Exception:  # whatever a user's own module raises
        return UNTRACED


def _trace(module: nn.Module, task: Task, limit: float) -> ParameterUsage:
    import torch

    device = next(parameter.device for parameter in module.parameters())
    with device, torch.no_grad():
        batch = task.example(TRACED_SAMPLES)
        tokens = TRACED_SAMPLES * task.tokens_per_sample
        return trace_usage(module, batch, lambda: task.outputs(module, batch), TRACED_SAMPLES, tokens, limit)


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
        counted = model.calling("flops_per_token", options, task)
        own = None if counted is None else float(counted)
    if spec.shape is not None:
        shape = model.calling("shape", options, task)
        if not isinstance(shape, TransformerShape | None):
            raise PluginError(f"model {model.name!r}: shape gave {shape!r} instead of a TransformerShape")
    groups = parameter_groups(model, module)
    usage = (usages or UsageTraces(model, task)).of(options, module)
    parameters = count_parameters(module, task, groups, usage)
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


def count_parameters(
    module: nn.Module,
    task: Task,
    groups: Iterable[ParameterGroup] = (),
    usage: ParameterUsage | None = None,
) -> ParameterCounts:
    """Count parameters, each once.

    A lookup table is looked up and never multiplied. The output head is the matrix (and bias) whose product the
    outputs of a language task are. Of both, what one token uses is counted.

    Args:
        module: Its own ``num_params()`` is N, see :func:`own_num_params`.
        task: Gives the batch of the trace, and whether there is a head.
        groups: Say which parameters are used by some tokens only.
        usage: How a forward pass uses the parameters; None to trace this module now. ``UNTRACED``, which a failed
            trace gives too: parameters are told apart by module types (:func:`tables_by_type`,
            :func:`head_by_type`).

    Raises PlanError for a model without parameters, and where ``num_params()`` leaves out what is not used.
    """
    groups = list(groups)
    shares = {id(one): group.active for group in groups for one in group.parameters}
    idle = round(sum((1 - group.active) * sum(one.numel() for one in group.parameters) for group in groups))

    def used(parameter: Tensor) -> float:
        return shares.get(id(parameter), 1.0) * parameter.numel()

    own = own_num_params(module)
    if own is not None:
        total = own
        if idle >= total:
            raise PlanError(
                f"{type(module).__name__}: num_params() gives {total:,}, and its parameter groups have {idle:,} "
                f"that a token does not use: num_params() has to count those too"
            )
        return ParameterCounts(total=total, active=total - idle)
    total = sum(parameter.numel() for parameter in module.parameters())
    if total < 1:
        raise PlanError(f"{type(module).__name__} has no parameters: there is nothing to train")
    usage = trace_module(module, task) if usage is None else usage
    uses = usage.of([name for name, _ in module.named_parameters()])
    tables, head = tables_by_type(module), head_by_type(module, task)
    if uses is not None:
        named = dict(module.named_parameters())
        is_embedding = {id(table) for table in tables}
        tables = [part for name, part in named.items() if is_table(part, uses[name], id(part) in is_embedding)]
        head = [part for name, part in named.items() if uses[name].head and _is_of_vocabulary(part, usage, task)]
    lookup, unembedding = sum(map(used, tables)), sum(map(used, head))
    return ParameterCounts(total=total, lookup=round(lookup), unembedding=round(unembedding), active=total - idle)


def own_num_params(module: nn.Module) -> int | None:
    """The model's own ``num_params()``. None if it has none, or one with arguments, such as nanoGPT's
    ``num_params(non_embedding=True)``, whose convention is its own.

    Raises PlanError if it fails or gives no positive whole number.
    """
    method = getattr(module, "num_params", None)
    if not callable(method) or inspect.signature(method).parameters:
        return None
    try:
        total = method()
        number = int(total)
    except Exception as error:
        raise PlanError(
            f"{type(module).__name__}: num_params() raised {type(error).__name__}: {error}. It must return the "
            f"number of parameters; without it they are counted"
        ) from error
    if number < 1 or number != total:
        raise PlanError(
            f"{type(module).__name__}: num_params() returned {total!r}. It must return the number of parameters, "
            "a whole number above 0; without it they are counted"
        )
    return number


def tables_by_type(module: nn.Module) -> list[nn.Parameter]:
    """Weights of ``nn.Embedding`` and ``nn.EmbeddingBag`` that no other module shares."""
    import torch

    tables: dict[int, nn.Parameter] = {}
    others: set[int] = set()
    for part in module.modules():
        looks_up = isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag)
        for parameter in part.parameters(recurse=False):
            if looks_up:
                tables[id(parameter)] = parameter
            else:
                others.add(id(parameter))
    return [table for key, table in tables.items() if key not in others]


def head_by_type(module: nn.Module, task: Task) -> list[nn.Parameter]:
    """Weight and bias of the last ``nn.Linear`` with one output per vocabulary entry, on a language task."""
    import torch

    head: list[nn.Parameter] = []
    vocabulary = task.vocab_size if isinstance(task, LanguageTask) else None
    for part in module.modules():
        if isinstance(part, torch.nn.Linear) and part.out_features == vocabulary:
            head = list(part.parameters(recurse=False))
    return head


def is_table(parameter: Tensor, use: Use, is_embedding: bool) -> bool:
    """Whether the parameter is a lookup table: its rows are looked up or, as learned positions are, added or
    put beside the data.

    A table of which the rows of a batch are multiplied by activations (a sampled softmax) is none if that is at
    least half of it. A stack of matrices from which tokens choose (experts) is none.
    """
    if use.multiplied or use.routed:
        return False
    if use.looked_up:
        return use.products < 0.5 and not (use.products > 0 and parameter.ndim > 2)
    if is_embedding:
        return True
    is_grid = sum(length > 1 for length in parameter.shape) > 1
    return use.placed and is_grid and not (use.other or use.by_weights)


def _is_of_vocabulary(parameter: Tensor, usage: ParameterUsage, task: Task) -> bool:
    """Whether it has one row or entry per output of a language task."""
    return is_language_task(task) and usage.outputs_size in parameter.shape


def is_language_task(task: Task) -> bool:
    """Whether a model predicts a token at every position of a sequence of tokens.

    True for a ``LanguageTask``, and for any task whose batches have integer targets of shape (batch, time) and
    integer inputs of two dimensions.
    """
    if isinstance(task, LanguageTask):
        return True
    batch = task.example(2)
    if isinstance(batch, Mapping):
        name = getattr(task, "targets", "labels")
        targets, inputs = batch.get(name), [value for key, value in batch.items() if key != name]
    elif isinstance(batch, list | tuple) and len(batch) > 1:
        targets, inputs = batch[1], [batch[0]]
    else:
        targets, inputs = batch, [batch]
    return _is_token_ids(targets) and any(map(_is_token_ids, inputs))


def _is_token_ids(value: Any) -> bool:
    import torch

    if not isinstance(value, torch.Tensor) or value.dtype == torch.bool:
        return False
    return value.ndim == 2 and value.shape[1] > 1 and not (value.is_floating_point() or value.is_complex())


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
