"""The arguments of ``find_optimal`` as tables of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from flops_fit_core.api.fingerprint.objects import qualified_name
from flops_fit_core.api.inline import (
    Entry,
    InlinePlugin,
    counter_entry,
    dataset_entry,
    model_entry,
    optimizer_entry,
    store_entry,
    torch_dataset_entry,
)
from flops_fit_core.api.inline_data import InlineDataOptions, check_inline_data
from flops_fit_core.api.streams import SeededStream
from flops_fit_core.api.torch_data import InlineDataset
from flops_fit_core.errors import ConfigError, no_exit
from flops_fit_core.plugins.protocols import Dataset, Fitter, Logger, ResultStore, Trainer
from flops_fit_core.plugins.specs import Spec
from flops_fit_core.study.directory import INLINE


class ArgumentTables:
    """Turns arguments into tables. Python objects become specs of the inline plugin.

    Args:
        inline: The plugin that receives the specs.
        fingerprint: Identifies the model, data and loss if they cannot be fingerprinted.
    """

    def __init__(self, inline: InlinePlugin, fingerprint: str | None) -> None:
        self._inline = inline
        self._fingerprint = fingerprint

    def model(self, model_cls: Callable[..., Any], size: str, kwargs: Mapping[str, Any]) -> Any:
        return self._add(model_entry(model_cls, size, kwargs, self._fingerprint))

    @no_exit()
    def dataset(self, data: Any, **arguments: Any) -> tuple[Any, int | None]:
        """The dataset's table, and a DataLoader's batch size.

        Args:
            data: The argument ``dataset``.
            arguments: The other data arguments.
        """
        loader_batch = getattr(data, "batch_size", None)
        if isinstance(data, Mapping) and "name" not in data:
            raise ConfigError(
                f"dataset is a mapping of several parts ({', '.join(map(str, data))}): pass the training part as "
                "dataset and the held-out part as eval_dataset, such as dataset=parts['train'], "
                "eval_dataset=parts['validation']. The table of a dataset plugin has a name, {\"name\": ...}"
            )
        if isinstance(data, str | Mapping | Spec):
            _check_plugin_arguments(arguments)
            return self.choice("dataset", data), None
        if isinstance(data, Dataset):
            raise ConfigError(
                f"dataset is a {type(data).__name__} for one seed, but the sweep needs a dataset per seed: give a "
                f"function make(seed) that returns it"
            )
        is_data = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
        if isinstance(data, type) or (callable(data) and not is_data):
            if isinstance(_make_dataset(data), Dataset):
                return self._add(dataset_entry(data)), None
            data = SeededStream(data)
        arguments["batch_size"] = arguments["batch_size"] or loader_batch
        checked = check_inline_data(data, fingerprint=self._fingerprint, **arguments)
        return self._add(torch_dataset_entry(partial(InlineDataset, checked), InlineDataOptions)), loader_batch

    def optimizer(self, value: Any) -> Any:
        if callable(value) and not isinstance(value, Spec):
            return self._add(optimizer_entry(value, self._fingerprint))
        if hasattr(value, "param_groups"):
            name = type(value).__name__
            raise ConfigError(
                f"optimizer: this {name} belongs to one model, but each run makes its own optimizer: give the "
                f"class ({name}), or functools.partial({name}, lr=0.01)"
            )
        return self.choice("optimizer", value)

    def counter(self, value: Any) -> Any:
        if callable(value) and not isinstance(value, Spec):
            return self._add(counter_entry(value, self._fingerprint))
        return self.choice("counter", value)

    def store(self, value: Any) -> Any:
        if isinstance(value, ResultStore):
            return self._add(store_entry())
        if hasattr(value, "add"):
            shown = value.__name__ if isinstance(value, type) else type(value).__name__
            raise ConfigError(
                f"store={shown}: pass an object of a class that inherits flops_fit_core.plugins.ResultStore"
            )
        return self.choice("store", value)

    def choice(self, kind: str, value: Any) -> Any:
        """A name or a table, unchanged; the table of a spec."""
        if isinstance(value, Spec):
            if value.kind != kind:
                raise ConfigError(f"{kind}={value.name!r}: a {value.kind} spec cannot be used as {kind}")
            return self._add((lambda: value, {"name": f"{INLINE}/{value.name}"}))
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, Mapping):
            return dict(value)
        raise ConfigError(
            f"{kind}: give a name, a table {{'name': ...}} or a spec, not {type(value).__name__}"
            f"{_spec_advice(value)}"
        )

    def _add(self, entry: Entry) -> dict[str, Any]:
        make_spec, table = entry
        self._inline.makers.append(make_spec)
        return table


def list_of_numbers(values: Any, name: str, example: str) -> list[Any]:
    """The numbers of a list, a range or an array, as Python numbers. Raises ConfigError for other values."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}: give a list of numbers, such as {example} (given: {values!r})")
    return [value.item() if hasattr(value, "item") else value for value in values]


def sweep_sizes(sizes: Any, size_param: str) -> int | list[dict[str, Any]]:
    """A number of sizes, or the model options of each size."""
    value = sizes.item() if hasattr(sizes, "item") and not getattr(sizes, "shape", ()) else sizes
    if isinstance(value, int):
        return value
    return [{size_param: size} for size in list_of_numbers(value, "sizes", "[64, 128, 256]")]


def _check_plugin_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises ConfigError for data arguments that a dataset plugin sets itself."""
    if arguments["loss_fn"] is not None or arguments["eval_dataset"] is not None:
        raise ConfigError("a dataset plugin has its own loss and held-out part: omit loss_fn and eval_dataset")
    names = ("tokens_per_sample", "unit", "loss_reduction")
    if ignored := [name for name in names if arguments[name] is not None]:
        raise ConfigError(f"a dataset plugin sets {', '.join(ignored)} itself: omit the argument")


def _make_dataset(make: Callable[[int], Any]) -> Any:
    """The dataset of seed 0. Raises ConfigError unless it is a stream or a flops-fit Dataset."""
    name = qualified_name(make)
    try:
        made = make(0)
    except Exception as error:
        raise ConfigError(
            f"dataset={name} was called with a seed and raised {type(error).__name__}: {error}. "
            "Give a dataset, or a function make(seed)"
        ) from error
    if isinstance(made, Dataset):
        return made
    type_name = type(made).__name__
    if hasattr(made, "task") and hasattr(made, "eval_batches"):
        raise ConfigError(
            f"dataset={name} returned a {type_name}, which does not inherit Dataset: write class "
            f"{type_name}(Dataset), with Dataset from flops_fit_core.plugins"
        )
    has_length = hasattr(made, "__getitem__") and hasattr(made, "__len__")
    if not hasattr(made, "__iter__") or has_length:
        raise ConfigError(
            f"dataset={name} returned a {type_name}: it must return an IterableDataset or a flops-fit Dataset. "
            "Pass a dataset with a length directly; the sweep shuffles it"
        )
    return made


def _spec_advice(value: Any) -> str:
    """The spec to write for a plugin object; empty for other objects."""
    advice = "; wrap it in a spec: {spec}(name={name!r}, build=lambda {arguments}: ...)"
    name = type(value).__name__.lower()
    if isinstance(value, Logger):
        return advice.format(spec="LoggerSpec", name=name, arguments="options, folder")
    if isinstance(value, Fitter):
        return advice.format(spec="FitterSpec", name=name, arguments="options")
    if isinstance(value, Trainer):
        return advice.format(spec="TrainerSpec", name=name, arguments="options")
    return ""
