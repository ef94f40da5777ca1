"""The Python objects of a ``find_optimal`` call as specs of an in-memory plugin ``inline``.

The experiment selects them by name, as it selects other plugins. Records contain only their identities.
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
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.protocols import CounterInput, Dataset, FlopCount, RunInfo, own_parameter_groups
from flops_fit_core.plugins.specs import DatasetSpec, FlopCounterSpec, ModelSpec, OptimizerSpec, Spec, StoreSpec
from flops_fit_core.study.directory import INLINE

INLINE_REVISION = 2
"""Revision of the dataset. Revision 2 counts valid targets and seeds random items by their position."""


class IdentifiedOptions(Options):
    """The identity of a Python callable, as its only option."""

    identity: str = ""


@dataclass
class InlinePlugin:
    """The specs of the Python objects of one call.

    The plugin is sent to workers with cloudpickle, which cannot pickle an options class created at run time. It
    therefore contains functions that make the specs.
    """

    makers: list[Callable[[], Spec]] = field(default_factory=list)
    _specs: list[Spec] = field(default_factory=list)

    def _specs_of(self, kind: str) -> list[Any]:
        self._specs += [make() for make in self.makers[len(self._specs) :]]
        return [spec for spec in self._specs if spec.kind == kind]

    def __getstate__(self) -> dict[str, Any]:
        return {"makers": self.makers, "_specs": []}

    @hookimpl
    def flops_fit_models(self) -> Iterable[Any]:
        return self._specs_of("model")

    @hookimpl
    def flops_fit_datasets(self) -> Iterable[Any]:
        return self._specs_of("dataset")

    @hookimpl
    def flops_fit_optimizers(self) -> Iterable[Any]:
        return self._specs_of("optimizer")

    @hookimpl
    def flops_fit_schedules(self) -> Iterable[Any]:
        return self._specs_of("schedule")

    @hookimpl
    def flops_fit_recipes(self) -> Iterable[Any]:
        return self._specs_of("recipe")

    @hookimpl
    def flops_fit_flop_counters(self) -> Iterable[Any]:
        return self._specs_of("counter")

    @hookimpl
    def flops_fit_stores(self) -> Iterable[Any]:
        return self._specs_of("store")

    @hookimpl
    def flops_fit_devices(self) -> Iterable[Any]:
        return self._specs_of("device")

    @hookimpl
    def flops_fit_trainers(self) -> Iterable[Any]:
        return self._specs_of("trainer")

    @hookimpl
    def flops_fit_executors(self) -> Iterable[Any]:
        return self._specs_of("executor")

    @hookimpl
    def flops_fit_loggers(self) -> Iterable[Any]:
        return self._specs_of("logger")

    @hookimpl
    def flops_fit_fitters(self) -> Iterable[Any]:
        return self._specs_of("fitter")


# ---------------------------------------------------------------------------- specs


Entry = tuple[Callable[[], Spec], dict[str, Any]]
"""A function that makes a spec, and the table that selects the spec in an experiment."""


def model_entry(
    model_cls: Callable[..., Any], size: str, kwargs: Mapping[str, Any], fingerprint: str | None
) -> Entry:
    """A model family that calls ``model_cls(**kwargs, **{size: value})``.

    Raises ConfigError if ``model_cls`` does not accept the size or cannot be identified.
    """
    if not callable(model_cls):
        raise ConfigError(f"model_cls must be a class or function that makes a model, not {model_cls!r}")
    _check_call(model_cls, size, kwargs)
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
    # A copy, because training a run must change neither the start of the next run nor the caller's objects.
    make_model, arguments = copied((model_cls, kwargs))
    return make_model(**arguments, **{size: getattr(options, size)})


def copied(value: Any) -> Any:
    """A deep copy, or the same object if it cannot be copied (it has a lock, a file or an autograd graph)."""
    try:
        return copy.deepcopy(value)
    except Exception:  # a user's __deepcopy__ or __reduce__ may raise any error
        return value


def _check_call(model_cls: Callable[..., Any], size: str, kwargs: Mapping[str, Any]) -> None:
    if size in kwargs:
        raise ConfigError(f"model_kwargs contains {size!r}, which the sweep sets: remove it from model_kwargs")
    try:
        signature = inspect.signature(model_cls)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**kwargs, **{size: 1})
    except TypeError as error:
        parameters = ", ".join(signature.parameters) or "none"
        raise ConfigError(
            f"{qualified_name(model_cls)} cannot be called with {', '.join([size, *kwargs])}: {error}. Its "
            f"parameters: {parameters}"
        ) from None


def dataset_entry(make: Callable[[int], Dataset]) -> Entry:
    """A dataset from ``make(seed)``, identified by its fingerprint."""
    return partial(_dataset_spec, make), {"name": f"{INLINE}/dataset"}


def _dataset_spec(make: Callable[[int], Dataset]) -> Spec:
    return DatasetSpec(name="dataset", build=partial(_build_dataset, make), revision=INLINE_REVISION)


def _build_dataset(make: Callable[[int], Dataset], options: Options, seed: int) -> Dataset:
    return make(seed)


def torch_dataset_entry(open_data: Callable[[int, Any], Dataset], options: type[Options]) -> Entry:
    """A torch dataset from ``open_data(seed, options)``, identified by its fingerprint."""
    return partial(_torch_dataset_spec, open_data, options), {"name": f"{INLINE}/dataset"}


def _torch_dataset_spec(open_data: Callable[[int, Any], Dataset], options: type[Options]) -> Spec:
    build = partial(_open_dataset, open_data)
    return DatasetSpec(name="dataset", options=options, build=build, revision=INLINE_REVISION)


def _open_dataset(open_data: Callable[[int, Any], Dataset], options: Options, seed: int) -> Dataset:
    return open_data(seed, options)


def optimizer_entry(make: Callable[..., Any], fingerprint: str | None) -> Entry:
    """An optimizer from ``make(parameters)``: a class such as ``torch.optim.Adam``, a partial or a function."""
    identity = _identity(make, "optimizer", fingerprint)
    return partial(_optimizer_spec, make), {"name": f"{INLINE}/optimizer", "identity": identity}


def _identity(function: Callable[..., Any], argument: str, fingerprint: str | None) -> str:
    """The function's own identity, or the user's fingerprint if the function cannot be identified."""
    try:
        return identify_callable(function, {}, argument)
    except ConfigError:
        if fingerprint is None:
            raise
        return fingerprint


def _optimizer_spec(make: Callable[..., Any]) -> Spec:
    build = partial(_build_optimizer, make)
    # The function sets one learning rate for all parameters. Recipes cannot change it.
    return OptimizerSpec(name="optimizer", options=IdentifiedOptions, build=build, width_scaling="none")


def _build_optimizer(make: Callable[..., Any], options: Options, model: Any, run: RunInfo) -> Any:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        return make(parameters)
    except Exception as error:
        place = raised_at("".join(traceback.format_exception(error)))
        raise ConfigError(
            f"optimizer: {_name_of(make)}(parameters) raised {type(error).__name__}: {error}"
            + (f" ({place})" if place else "")
        ) from error


def _name_of(make: Callable[..., Any]) -> str:
    while isinstance(make, partial):
        make = make.func
    return str(getattr(make, "__name__", type(make).__name__))


def counter_entry(count: Callable[[Any], Any], fingerprint: str | None) -> Entry:
    """A counter from ``count(module)``, which returns training FLOPs per token as a number, or a FlopCount."""
    identity = _identity(count, "counter", fingerprint)
    return partial(_counter_spec, count), {"name": f"{INLINE}/counter", "identity": identity}


def _counter_spec(count: Callable[[Any], Any]) -> Spec:
    return FlopCounterSpec(name="counter", options=IdentifiedOptions, build=partial(_count, count))


def _count(count: Callable[[Any], Any], options: Options, model: CounterInput) -> FlopCount:
    result = count(model.module)
    if isinstance(result, FlopCount):
        return result
    flops_name = f"as {qualified_name(count)} counts"
    used = " that a token uses" if model.parameters.inactive else ""
    params_name = f"matmul parameters{used} (all but lookup tables)"
    return FlopCount(float(result), model.parameters.matmul, flops_name, params_name)


def store_entry() -> Entry:
    """The name under which the folder records a store that is a Python object. The study has the object."""
    return _store_spec, {"name": f"{INLINE}/store"}


def _store_spec() -> Spec:
    return StoreSpec(name="store", build=_refuse_to_open)


def _refuse_to_open(options: Options, folder: Any) -> Any:
    raise ConfigError(
        f"the results of {folder} are in a store that was passed as a Python object: pass it as store= again, or "
        f"choose another output_dir"
    )
