"""Python objects given to ``find_optimal``, as specs of an in-memory plugin ``inline``.

From here on they go the same way as names. Records hold identities only.
"""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import create_model

from flops_fit_core.api.fingerprint.objects import identify_callable, qualified_name
from flops_fit_core.errors import ConfigError, raised_at
from flops_fit_core.plugins.hookspecs import hookimpl
from flops_fit_core.plugins.protocols import CounterInput, Dataset, FlopCount, RunInfo, own_parameter_groups
from flops_fit_core.plugins.specs import (
    DatasetSpec,
    FlopCounterSpec,
    ModelSpec,
    OptimizerSpec,
    Options,
    Spec,
    StoreSpec,
)
from flops_fit_core.study.directory import INLINE

INLINE_REVISION = 2
"""Of the dataset: 2 counts valid targets, and draws random items by their position."""


class IdentifiedOptions(Options):
    """Options of a Python callable: its identity."""

    identity: str = ""


@dataclass
class InlinePlugin:
    """The specs of one call's Python objects.

    It holds what makes the specs rather than specs, since it travels to workers by cloudpickle, which does not
    take an options class that was made at run time.
    """

    makers: list[Callable[[], Spec]] = field(default_factory=list)
    _made: list[Spec] = field(default_factory=list)

    def _of(self, kind: str) -> list[Any]:
        self._made += [make() for make in self.makers[len(self._made) :]]
        return [spec for spec in self._made if spec.kind == kind]

    def __getstate__(self) -> dict[str, Any]:
        return {"makers": self.makers, "_made": []}

    @hookimpl
    def flops_fit_models(self) -> Iterable[Any]:
        return self._of("model")

    @hookimpl
    def flops_fit_datasets(self) -> Iterable[Any]:
        return self._of("dataset")

    @hookimpl
    def flops_fit_optimizers(self) -> Iterable[Any]:
        return self._of("optimizer")

    @hookimpl
    def flops_fit_schedules(self) -> Iterable[Any]:
        return self._of("schedule")

    @hookimpl
    def flops_fit_recipes(self) -> Iterable[Any]:
        return self._of("recipe")

    @hookimpl
    def flops_fit_flop_counters(self) -> Iterable[Any]:
        return self._of("counter")

    @hookimpl
    def flops_fit_stores(self) -> Iterable[Any]:
        return self._of("store")

    @hookimpl
    def flops_fit_devices(self) -> Iterable[Any]:
        return self._of("device")

    @hookimpl
    def flops_fit_trainers(self) -> Iterable[Any]:
        return self._of("trainer")

    @hookimpl
    def flops_fit_executors(self) -> Iterable[Any]:
        return self._of("executor")

    @hookimpl
    def flops_fit_loggers(self) -> Iterable[Any]:
        return self._of("logger")

    @hookimpl
    def flops_fit_fitters(self) -> Iterable[Any]:
        return self._of("fitter")


# ---------------------------------------------------------------------------- specs


Entry = tuple[Callable[[], Spec], dict[str, Any]]
"""What makes a spec, and the table by which the experiment chooses it."""


def model_entry(
    model_cls: Callable[..., Any], size: str, kwargs: Mapping[str, Any], fingerprint: str | None
) -> Entry:
    """A family that calls ``model_cls(**kwargs, **{size: value})``.

    Raises ConfigError where it does not take the size, or cannot be identified.
    """
    if not callable(model_cls):
        raise ConfigError(f"model_cls must be a class or function that makes a model, not {model_cls!r}")
    _check_takes(model_cls, size, kwargs)
    identity = fingerprint or identify_callable(model_cls, kwargs, "model_cls")
    return partial(_model_spec, model_cls, size, dict(kwargs)), {"name": f"{INLINE}/model", "identity": identity}


def _model_spec(model_cls: Callable[..., Any], size: str, kwargs: Mapping[str, Any]) -> Spec:
    fields: dict[str, Any] = {size: (int, 1)}
    options = create_model("InlineModelOptions", __base__=IdentifiedOptions, **fields)
    return ModelSpec(
        name="model",
        options=options,
        size=size,
        build=partial(_build_model, model_cls, size, kwargs),
        parameter_groups=own_parameter_groups,
    )


def _build_model(
    model_cls: Callable[..., Any], size: str, kwargs: Mapping[str, Any], options: Any, task: object
) -> Any:
    # A copy: one run's training must not change what the next one starts from, nor what the caller holds.
    made_by, others = copied((model_cls, kwargs))
    return made_by(**others, **{size: getattr(options, size)})


def copied(given: Any) -> Any:
    """A deep copy; the same object where it cannot be copied (it holds a lock, a file, a graph of gradients)."""
    try:
        return copy.deepcopy(given)
    except Exception:  # a user's own __deepcopy__ or __reduce__ may raise anything
        return given


def _check_takes(model_cls: Callable[..., Any], size: str, kwargs: Mapping[str, Any]) -> None:
    if size in kwargs:
        raise ConfigError(f"model_kwargs has {size!r}, which is the size that the sweep chooses: leave it out")
    try:
        signature = inspect.signature(model_cls)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**kwargs, **{size: 1})
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "nothing"
        raise ConfigError(
            f"{qualified_name(model_cls)} cannot be called with {', '.join([size, *kwargs])}: {error}; it takes "
            f"{takes}"
        ) from None


def dataset_entry(make: Callable[[int], Dataset]) -> Entry:
    """A dataset made by ``make(seed)``. Its fingerprint identifies it."""
    return partial(_dataset_spec, make), {"name": f"{INLINE}/dataset"}


def _dataset_spec(make: Callable[[int], Dataset]) -> Spec:
    return DatasetSpec(name="dataset", build=partial(_build_dataset, make), revision=INLINE_REVISION)


def _build_dataset(make: Callable[[int], Dataset], options: Options, seed: int) -> Dataset:
    return make(seed)


def torch_dataset_entry(open_data: Callable[[int, Any], Dataset], options: type[Options]) -> Entry:
    """A torch dataset, opened by seed and options. Its fingerprint identifies it."""
    return partial(_torch_dataset_spec, open_data, options), {"name": f"{INLINE}/dataset"}


def _torch_dataset_spec(open_data: Callable[[int, Any], Dataset], options: type[Options]) -> Spec:
    build = partial(_open_dataset, open_data)
    return DatasetSpec(name="dataset", options=options, build=build, revision=INLINE_REVISION)


def _open_dataset(open_data: Callable[[int, Any], Dataset], options: Options, seed: int) -> Dataset:
    return open_data(seed, options)


def optimizer_entry(make: Callable[..., Any], fingerprint: str | None) -> Entry:
    """An optimizer made by ``make(parameters)``: a class such as ``torch.optim.Adam``, a partial, a function."""
    identity = _identity(make, "optimizer", fingerprint)
    return partial(_optimizer_spec, make), {"name": f"{INLINE}/optimizer", "identity": identity}


def _identity(function: Callable[..., Any], what: str, fingerprint: str | None) -> str:
    """Its own, where it has one: the fingerprint stands for model, data and loss."""
    try:
        return identify_callable(function, {}, what)
    except ConfigError:
        if fingerprint is None:
            raise
        return fingerprint


def _optimizer_spec(make: Callable[..., Any]) -> Spec:
    build = partial(_build_optimizer, make)
    # The function sets one learning rate for all parameters, and recipes cannot change it.
    return OptimizerSpec(name="optimizer", options=IdentifiedOptions, build=build, width_scaling="none")


def _build_optimizer(make: Callable[..., Any], options: Options, model: Any, run: RunInfo) -> Any:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        return make(parameters)
    except Exception as error:
        where = raised_at("".join(traceback.format_exception(error)))
        raise ConfigError(
            f"optimizer: {_name_of(make)}(parameters) raised {type(error).__name__}: {error}"
            + (f" ({where})" if where else "")
        ) from error


def _name_of(make: Callable[..., Any]) -> str:
    while isinstance(make, partial):
        make = make.func
    return str(getattr(make, "__name__", type(make).__name__))


def counter_entry(count: Callable[[Any], Any], fingerprint: str | None) -> Entry:
    """A counter made by ``count(module)``, which gives training FLOPs a token as a number, or a FlopCount."""
    identity = _identity(count, "flops", fingerprint)
    return partial(_counter_spec, count), {"name": f"{INLINE}/flops", "identity": identity}


def _counter_spec(count: Callable[[Any], Any]) -> Spec:
    return FlopCounterSpec(name="flops", options=IdentifiedOptions, build=partial(_count, count))


def _count(count: Callable[[Any], Any], options: Options, measured: CounterInput) -> FlopCount:
    given = count(measured.module)
    if isinstance(given, FlopCount):
        return given
    name = f"as {qualified_name(count)} counts"
    used = " that a token uses" if measured.parameters.inactive else ""
    n_name = f"matmul parameters{used} (all but lookup tables)"
    return FlopCount(float(given), measured.parameters.matmul, name, n_name)


def store_entry() -> Entry:
    """The name by which the folder records a store that is a Python object. Its study holds the object itself."""
    return _store_spec, {"name": f"{INLINE}/store"}


def _store_spec() -> Spec:
    return StoreSpec(name="store", build=_refuse_to_open)


def _refuse_to_open(options: Options, folder: Any) -> Any:
    raise ConfigError(
        f"the results of {folder} are in a store that was given as a Python object: pass it as store= again, or "
        f"choose another output_dir"
    )
