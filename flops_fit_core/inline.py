"""Python objects given to ``find_optimal``, as specs of an in-memory plugin ``inline``.

From here on they go the same way as names. Records hold identities only: of a callable, its qualified name,
source text, JSON-able defaults, closure values and keyword arguments; of a dataset, its type, length and a
hash of 64 evenly spaced items (of a stream, its first 64).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

from pydantic import create_model

from flops_fit_core.contracts import Dataset, FlopCount, MeasuredModel, RunView
from flops_fit_core.errors import ConfigError
from flops_fit_core.hookspecs import hookimpl
from flops_fit_core.records import canonical_json, content_hash
from flops_fit_core.specs import DatasetSpec, FlopCounterSpec, ModelSpec, OptimizerSpec, Options, Spec

INLINE = "inline"


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

    def _of(self, kind: str) -> list[Any]:
        return [spec for spec in (make() for make in self.makers) if spec.kind == kind]

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
        return self._of("flops")

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
        name="model", options=options, size=size, build=partial(_build_model, model_cls, size, kwargs)
    )


def _build_model(
    model_cls: Callable[..., Any], size: str, kwargs: Mapping[str, Any], options: Any, task: object
) -> Any:
    return model_cls(**kwargs, **{size: getattr(options, size)})


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
            f"{_name(model_cls)} cannot be called with {', '.join([size, *kwargs])}: {error}; it takes {takes}"
        ) from None


def dataset_entry(make: Callable[[int], Dataset]) -> Entry:
    """A dataset made by ``make(seed)``. Its fingerprint identifies it."""
    return partial(_dataset_spec, make), {"name": f"{INLINE}/dataset"}


def _dataset_spec(make: Callable[[int], Dataset]) -> Spec:
    return DatasetSpec(name="dataset", build=partial(_build_dataset, make))


def _build_dataset(make: Callable[[int], Dataset], options: Options, seed: int) -> Dataset:
    return make(seed)


def optimizer_entry(make: Callable[..., Any], fingerprint: str | None) -> Entry:
    """An optimizer made by ``make(parameters)``: a class such as ``torch.optim.Adam``, a partial, a function."""
    identity = fingerprint or identify_callable(make, {}, "optimizer")
    return partial(_optimizer_spec, make), {"name": f"{INLINE}/optimizer", "identity": identity}


def _optimizer_spec(make: Callable[..., Any]) -> Spec:
    return OptimizerSpec(name="optimizer", options=IdentifiedOptions, build=partial(_build_optimizer, make))


def _build_optimizer(make: Callable[..., Any], options: Options, model: Any, run: RunView) -> Any:
    return make([parameter for parameter in model.parameters() if parameter.requires_grad])


def counter_entry(count: Callable[[Any], Any], fingerprint: str | None) -> Entry:
    """A counter made by ``count(module)``, which gives training FLOPs a token as a number, or a FlopCount."""
    identity = fingerprint or identify_callable(count, {}, "flops")
    return partial(_counter_spec, count), {"name": f"{INLINE}/flops", "identity": identity}


def _counter_spec(count: Callable[[Any], Any]) -> Spec:
    return FlopCounterSpec(name="flops", options=IdentifiedOptions, build=partial(_count, count))


def _count(count: Callable[[Any], Any], options: Options, measured: MeasuredModel) -> FlopCount:
    given = count(measured.module)
    if isinstance(given, FlopCount):
        return given
    name = f"as {_name(count)} counts"
    return FlopCount(float(given), measured.parameters.matmul, name, "matmul parameters (all but lookup tables)")


# ---------------------------------------------------------------------------- identity


def identify_callable(function: Callable[..., Any], kwargs: Mapping[str, Any], what: str) -> str:
    """A hash of what a callable is: its name, source, defaults, closure and keyword arguments; of a class,
    those of its base classes too.

    Raises ConfigError, asking for ``fingerprint=``, where something it depends on cannot be identified.
    """
    if isinstance(function, partial):
        inner = identify_callable(function.func, {**function.keywords, **kwargs}, what)
        return content_hash([inner, _plain(list(function.args), what)])
    function = _undecorated(function)
    parts: list[Any] = [_plain(dict(kwargs), what)]
    if isinstance(function, MethodType):
        parts += [identify_callable(function.__func__, {}, what), identify_value(function.__self__, what)]
    elif isinstance(function, type):
        parts += [_name(function), *(_describe(one, what) for one in function.__mro__ if _is_own(one))]
    elif isinstance(function, FunctionType | BuiltinFunctionType):
        parts.append(_describe(function, what) if _is_own(function) else _name(function))
    else:  # an object with __call__: its class and what it holds
        parts += [identify_callable(type(function), {}, what), _plain(getattr(function, "__dict__", {}), what)]
    return content_hash(parts)


def _is_own(one: Any) -> bool:
    """Whether a class or function may change under its name: one of Python's or torch's own does not."""
    package = (getattr(one, "__module__", None) or "__main__").partition(".")[0]
    return package != "torch" and (package == "__main__" or package not in sys.stdlib_module_names)


def _undecorated(function: Any) -> Any:
    """Without what torch has put around it: ``torch.no_grad()`` and the like, and around an optimizer's ``step``
    something of its own as soon as there is an instance."""
    while (
        isinstance(function, FunctionType)
        and hasattr(function, "__wrapped__")
        and str(function.__globals__.get("__name__")).partition(".")[0] == "torch"
    ):
        function = function.__wrapped__
    return function


def _describe(function: Callable[..., Any], what: str) -> dict[str, Any]:
    """Name, source text (at a prompt, compiled code), defaults and closures; of a class, those of its methods."""
    parts: dict[str, Any] = {"name": _name(function)}
    methods = list(_functions(function))
    try:
        parts["source"] = inspect.getsource(function)
    except (OSError, TypeError):
        # Compiled code and code typed at a prompt have no source. Installed modules are named well enough.
        parts["code"] = [_describe_code(one.__code__) for one in methods]
        if not methods and getattr(function, "__module__", "__main__") == "__main__":
            raise _unidentified(what, f"{_name(function)} has no source text") from None
    parts["defaults"] = [_plain(list(one.__defaults__), what) for one in methods if one.__defaults__]
    parts["closure"] = [_plain(value, what) for one in methods for value in _closure(one)]
    return parts


def _functions(function: Callable[..., Any]) -> Iterator[FunctionType]:
    members = vars(function).values() if isinstance(function, type) else [function]
    for member in members:
        inner = _undecorated(getattr(member, "__func__", getattr(member, "fget", member)))
        if isinstance(inner, FunctionType) and _is_own(inner):
            yield inner


def _closure(function: FunctionType) -> Iterator[Any]:
    """What it closes over, but for the class that it is a method of (Python's own ``__class__``)."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__":
            with contextlib.suppress(ValueError):  # not yet filled
                yield cell.cell_contents


def _describe_code(code: CodeType) -> list[Any]:
    constants = [_describe_code(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _constant(value: Any) -> str:
    # A set of texts shows itself in another order in every process.
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def identify_value(value: Any, what: str) -> str:
    """A hash of a callable, of a torch module (its structure and weights) or of a JSON-able value."""
    import torch

    if isinstance(value, torch.nn.Module):
        weights = [hash_item(tensor) for tensor in value.state_dict().values()]
        return content_hash([_name(type(value)), repr(value), weights])
    if callable(value):
        return identify_callable(value, {}, what)
    return content_hash(_plain(value, what))


def _plain(value: Any, what: str) -> Any:
    """JSON-able stand-in for a value; callables by their identity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, what) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_plain(item, what) for item in value]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    if callable(value):
        return identify_value(value, what)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return hash_item(value)
    try:
        canonical_json(value)
    except (TypeError, ValueError):
        raise _unidentified(what, f"{value!r} has no JSON") from None
    return value


def _unidentified(what: str, why: str) -> ConfigError:
    return ConfigError(
        f"{what} cannot be identified ({why}), so a later call could not tell whether its runs are the same: "
        f'pass fingerprint="...", a name of your own that you change whenever it changes'
    )


def hash_item(item: Any) -> str:
    """A hash of one item of a dataset: nested tuples, lists and dicts of tensors, arrays and numbers."""
    digest = hashlib.sha256()
    _feed(digest, item)
    return digest.hexdigest()[:16]


def _feed(digest: Any, item: Any) -> None:
    if isinstance(item, Mapping):
        for key in sorted(item, key=str):
            digest.update(str(key).encode())
            _feed(digest, item[key])
    elif isinstance(item, list | tuple):
        digest.update(f"[{len(item)}".encode())
        for part in item:
            _feed(digest, part)
    elif hasattr(item, "detach"):
        tensor = item.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.float().numpy().tobytes() if tensor.is_floating_point() else tensor.numpy().tobytes())
    elif hasattr(item, "tobytes"):
        digest.update(f"{getattr(item, 'dtype', '')}{getattr(item, 'shape', '')}".encode())
        digest.update(item.tobytes())
    else:
        digest.update(repr(item).encode())


def _name(thing: Any) -> str:
    module = getattr(thing, "__module__", "")
    return f"{module}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
