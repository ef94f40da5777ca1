"""The embedding surface: ``find_optimal``, ``plan``, ``run``, ``fit``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flops_fit_core.api.fingerprint.objects import qualified_name
from flops_fit_core.api.inline import (
    InlinePlugin,
    counter_entry,
    dataset_entry,
    model_entry,
    optimizer_entry,
    store_entry,
    torch_dataset_entry,
)
from flops_fit_core.api.streams import SeededStream
from flops_fit_core.api.torch_data import InlineDataOptions, open_inline_data
from flops_fit_core.config import (
    DEFAULTS,
    Experiment,
    build_fitter,
    check_argument,
    load_experiment,
    make_experiment,
)
from flops_fit_core.config import choose_from_table as _choose
from flops_fit_core.errors import ConfigError, StudyWarning, no_exit
from flops_fit_core.planning import WARNING, make_plan
from flops_fit_core.planning.init_from_fit import expected_params
from flops_fit_core.plugins.protocols import Dataset, Fitter, Logger, ResultStore, Trainer
from flops_fit_core.plugins.registry import Registry, installed
from flops_fit_core.plugins.specs import Spec
from flops_fit_core.records import LawFit, Observation, SweepPlan
from flops_fit_core.study import Study, study_folder
from flops_fit_core.study.directory import INLINE
from flops_fit_core.study.model_check import compare_model_check, with_model_check

logger = logging.getLogger("flops_fit")

Source = Experiment | Mapping[str, Any] | str | Path


def plan(source: Source, *, registry: Registry | None = None, out: str | Path | None = None) -> Study:
    """Plan an experiment; nothing is trained or written.

    Args:
        source: An experiment file, plain data like one, or an Experiment.
        registry: The plugins to use; by default those that are installed.
        out: The study's folder; by default ``runs/<name>``. Runs that it has finished stay finished.

    Issues a StudyWarning where the folder has finished results of another experiment, or in another store.

    Raises ConfigError, PlanError or DataError, saying what to change.
    """
    study = plan_study(source, registry=registry, out=out)
    _log_warnings(study.plan)
    _warn_about_folder(study)
    return study


def plan_study(source: Source, *, registry: Registry | None = None, out: str | Path | None = None) -> Study:
    """:func:`plan` without log messages, for callers that print the plan's notes themselves."""
    registry = registry or installed()
    experiment = _experiment(source, registry)
    folder = study_folder(out, experiment.name)
    experiment = folder.with_own_planner(experiment, registry)
    sweep = make_plan(experiment, expected_params(experiment, registry)).with_replacements(folder.replaced())
    sweep = with_model_check(experiment, sweep, folder.path)
    return Study(sweep, registry, folder, experiment=experiment)


def _warn_about_folder(study: Study) -> None:
    """One StudyWarning for each thing that the owner of an existing folder should know before it is trained on."""
    if study.folder.experiment_file.exists():
        for notice in study.notices:
            warnings.warn(f"{study.folder.shown}: {notice}", StudyWarning, stacklevel=3)


def run(
    source: Source | Study,
    *,
    registry: Registry | None = None,
    out: str | Path | None = None,
    loggers: Sequence[Logger] = (),
    retry_failed: bool = True,
) -> Study:
    """Plan, then train what the study does not have yet.

    A run that fails is a result with its error, and a StudyWarning. Raises UserError as :func:`plan` does,
    StoreError, and SweepFailed where no run completed.
    """
    study = source if isinstance(source, Study) else plan(source, registry=registry, out=out)
    study.train(loggers=loggers, retry_failed=retry_failed)
    return study


def fit(
    source: str | Path | Study | Iterable[Observation],
    *,
    fitter: str | Mapping[str, Any] | Fitter | None = None,
    registry: Registry | None = None,
) -> LawFit:
    """Fit a law to a study, a table of runs (CSV, parquet) that anybody trained, or observations.

    Args:
        source: A Study, a study's folder, a table's file, or observations.
        fitter: Name, table or object; by default the study's, or ``parametric``.
        registry: Where the fitter is found; by default the installed plugins.

    Raises FitError where no law can be fitted, ConfigError for a source that cannot be read.
    """
    from flops_fit_core.fitting import check_grid, fit_table, read_complete_table

    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_dir():
            chosen = _fitter(fitter or DEFAULTS["fitter"], registry or installed())
            return fit_table(chosen, read_complete_table(path))
        source = Study.open(path, registry)
    if isinstance(source, Study):
        chosen = source.fitter if fitter is None else _fitter(fitter, source.registry)
        return source.fit_runs(chosen)
    observations = list(source)
    chosen = _fitter(fitter or DEFAULTS["fitter"], registry or installed())
    return check_grid(chosen.fit(observations), chosen, observations)


def find_optimal(
    model_cls: Callable[..., Any],
    model_size_param: str,
    *,
    dataset: Any,
    compute_budgets: Sequence[float],
    model_kwargs: Mapping[str, Any] | None = None,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    eval_dataset: Any | None = None,
    eval_share: float = 0.1,
    tokens_per_sample: int | None = None,
    unit: str | None = None,
    loss_reduction: str | None = None,
    copy_task: bool = False,
    batch_size: int | None = None,
    sizes: int | Sequence[int] = 6,
    tokens_per_param: float = 20.0,
    seeds: Sequence[int] = (0,),
    repeat: bool = False,
    min_steps: int = 100,
    optimizer: Any = "sgd",
    schedule: Any = None,
    recipe: Any = "default",
    flops: Any = None,
    trainer: Any | None = None,
    device: Any = "auto",
    store: Any = "sqlite",
    executor: Any = "processes",
    fitter: Any = "parametric",
    loggers: Sequence[Any] = (),
    train: bool = True,
    resume: bool = True,
    output_dir: str | Path | None = None,
    name: str = "find-optimal",
    fingerprint: str | None = None,
    registry: Registry | None = None,
    multiple_of: int | None = None,
    size_ratio: float | None = None,
) -> Study:
    """How large a model to train on how much data: plan, train and fit an IsoFLOP sweep of your own model.

    Args:
        model_cls: A class or function that makes the model: ``model_cls(**model_kwargs, size_param=value)``.
            Its ``num_params()`` is N where it has one, otherwise its parameters are counted. A method
            ``parameter_groups()`` says which parameters decay, and which share of them one token uses.
        model_size_param: The integer argument that scales it, such as ``"d_model"``.
        dataset: A torch Dataset, IterableDataset (an endless one too) or DataLoader (whose dataset, collate
            function and batch size are used) of tuples, dicts or tensors; or a function ``make(seed)`` that
            returns a stream in the order of a seed, or a flops-fit Dataset; or the name of a dataset plugin.
        compute_budgets: Training FLOPs C of each IsoFLOP profile, at least three for an interval.
        model_kwargs: Its other arguments.
        loss_fn: ``loss_fn(outputs, targets)`` in nats: a scalar mean or sum, one value for each sample or target,
            or ``(sum, count)``. By default cross-entropy for class numbers (-100 is ignored) and squared error
            for real targets.
        eval_dataset: Data to measure the loss on; by default ``eval_share`` of the dataset.
        tokens_per_sample: What one sample counts for in D; by default the length of a row of class numbers,
            otherwise 1.
        unit: What D counts, for people: ``"tokens"``, ``"images"``.
        loss_reduction: Form of the value of ``loss_fn`` where it cannot be found: ``"mean"``, ``"sum"``,
            ``"sample-mean"``, ``"sample-sum"``, or ``"batch"`` for a loss of whole batches (contrastive,
            regularised), whose batches then all have ``batch_size`` samples.
        copy_task: Whether targets may be inputs that the model is given (masked language models, autoencoders).
        batch_size: Samples a step; by default the DataLoader's, otherwise the recipe's.
        sizes: How many sizes a budget, or a list of values of ``model_size_param``.
        tokens_per_param: A guess of D / N at the optimum, which centres the sizes.
        seeds: As in ``[sweep]``, see docs/reference/options.md.
        repeat: As in ``[sweep]``.
        min_steps: As in ``[sweep]``.
        optimizer: Name, ``{"name": ..., option: ...}``, an OptimizerSpec, or ``make(parameters)`` such as
            ``torch.optim.Adam``. SGD at 0.01 unless said otherwise.
        flops: Name, table, spec, or ``count(module)`` -> training FLOPs a token. By default ``chinchilla``
            (6 N D) for sequences of tokens with a target at each, and ``traced`` for everything else.
        store: Name, table, spec, or a ResultStore.
        device: ``"auto"``, ``"cpu"``, ``"cuda:1"``, a torch.device, table or spec.
        schedule: Name, table or spec; by default the optimizer's, which for most is cosine.
        recipe: Name, table or spec.
        trainer: Name, table or spec.
        executor: Name, table or spec.
        fitter: Name, table or spec.
        loggers: Names, tables or specs.
        train: False to plan only: see ``.plan``, ``.plan.flops`` and ``.seconds()`` of what is returned.
        resume: Whether runs that ``output_dir`` has finished count; False trains them again.
        output_dir: The study's folder; by default ``runs/<name>``.
        fingerprint: Stands for the model, data and loss where they cannot be identified by themselves.
        registry: Further plugins, by default those that are installed.
        multiple_of: Automatic sizes are multiples of this; by default the smallest number whose multiples can be
            built, found by trying values from 1 to 512.
        size_ratio: N of one size over N of the next smaller one, by default 1.6.

    Returns:
        A Study: ``.table()``, ``.predict(flops)``, ``.plot()``, ``.runs``, ``.fit``, ``.report()``.

    Raises:
        ConfigError, PlanError, DataError: Something given has to change; says what.
        SweepFailed: Runs failed and none completed. Where only some failed, there is a StudyWarning.
    """
    base = registry or installed()
    inline = InlinePlugin()
    given = _Objects(inline, fingerprint)
    data, loader_batch = given.dataset(
        dataset,
        eval_dataset=eval_dataset,
        eval_share=eval_share,
        loss_fn=loss_fn,
        tokens_per_sample=tokens_per_sample,
        unit=unit,
        allow_repeat=allow_repeat,
        copy_task=copy_task,
        loss_reduction=loss_reduction,
        batch_size=batch_size,
    )
    tables: dict[str, Any] = {
        "name": name,
        "sweep": {
            "budgets": _listed(compute_budgets, "compute_budgets", "[1e15, 2e15, 4e15]"),
            "sizes": _sizes(sizes, model_size_param),
            "tokens_per_param": tokens_per_param,
            "seeds": _listed(seeds, "seeds", "[0, 1]"),
            "repeat": repeat,
            "min_steps": min_steps,
            "batch_size": batch_size or loader_batch,
            **({} if multiple_of is None else {"multiple_of": multiple_of}),
            **({} if size_ratio is None else {"size_ratio": size_ratio}),
        },
        "model": given.model(model_cls, model_size_param, model_kwargs or {}),
        "dataset": data,
        "optimizer": given.optimizer(optimizer),
        "schedule": given.choice("schedule", schedule),
        "recipe": given.choice("recipe", recipe),
        "flops": given.flops(flops),
        "trainer": given.choice("trainer", trainer),
        "device": given.choice("device", str(device) if type(device).__name__ == "device" else device),
        "store": given.store(store),
        "executor": given.choice("executor", executor),
        "fitter": given.choice("fitter", fitter),
        "loggers": [given.choice("logger", one) for one in loggers],
    }
    whole = base.with_plugins({INLINE: inline})
    if whole.problems and whole.problems[-1].plugin.startswith(INLINE):
        raise ConfigError(str(whole.problems[-1]))
    experiment = make_experiment(
        {key: value for key, value in tables.items() if value is not None}, whole, "find_optimal"
    )
    folder = study_folder(output_dir, name)
    experiment = folder.with_own_planner(experiment, whole)
    sweep = make_plan(experiment)
    if note := compare_model_check(experiment, sweep, folder.path):
        warnings.warn(note, stacklevel=2)
    study = Study(
        sweep,
        whole,
        folder,
        experiment=experiment,
        store=store if isinstance(store, ResultStore) else None,
    )
    _log_warnings(study.plan)
    _warn_about_folder(study)
    if train:
        study.train(again=not resume)
    return study


def _listed(values: Any, name: str, example: str) -> list[Any]:
    """The numbers of a list, a range or an array, as Python's own."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}: give a list of numbers, such as {example} (given: {values!r})")
    return [value.item() if hasattr(value, "item") else value for value in values]


def _sizes(sizes: Any, name: str) -> Any:
    given = sizes.item() if hasattr(sizes, "item") and not getattr(sizes, "shape", ()) else sizes
    if isinstance(given, int):
        return given
    return [{name: size} for size in _listed(given, "sizes", "[64, 128, 256]")]


class _Objects:
    """Turns what was given into tables of an experiment, adding specs to the inline plugin."""

    def __init__(self, inline: InlinePlugin, fingerprint: str | None) -> None:
        self._inline = inline
        self._fingerprint = fingerprint

    def model(self, model_cls: Callable[..., Any], size: str, kwargs: Mapping[str, Any]) -> Any:
        return self._add(*model_entry(model_cls, size, kwargs, self._fingerprint))

    @no_exit()
    def dataset(self, data: Any, **given: Any) -> tuple[Any, int | None]:
        """The dataset's table, and a DataLoader's batch size."""
        loader_batch = getattr(data, "batch_size", None)
        if isinstance(data, Mapping) and "name" not in data:
            raise ConfigError(
                f"dataset holds several parts ({', '.join(map(str, data))}): pass the one to train on, and the "
                "one to measure the loss on as eval_dataset, such as dataset=parts['train'], "
                "eval_dataset=parts['validation']; the "
                'table of a dataset plugin has a name, {"name": ...}'
            )
        if isinstance(data, str | Mapping | Spec):
            if given["loss_fn"] is not None or given["eval_dataset"] is not None:
                raise ConfigError("a dataset that is a plugin has its own loss and held-out part: leave them out")
            named = ("tokens_per_sample", "unit", "loss_reduction")
            if ignored := [name for name in named if given[name] is not None]:
                raise ConfigError(
                    f"{', '.join(ignored)}: a dataset that is a plugin states them itself: leave them out"
                )
            return self.choice("dataset", data), None
        if isinstance(data, Dataset):
            raise ConfigError(
                f"dataset is a {type(data).__name__}, made for one seed, and the sweep makes one per seed: give a "
                f"function make(seed) that returns it"
            )
        is_data = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
        if isinstance(data, type) or (callable(data) and not is_data):
            if isinstance(_made(data), Dataset):
                return self._add(*dataset_entry(data)), None
            data = SeededStream(data)
        opened = open_inline_data(
            data, fingerprint=self._fingerprint, **{**given, "batch_size": given["batch_size"] or loader_batch}
        )
        return self._add(*torch_dataset_entry(opened.open, InlineDataOptions)), loader_batch

    def optimizer(self, value: Any) -> Any:
        if callable(value) and not isinstance(value, Spec):
            return self._add(*optimizer_entry(value, self._fingerprint))
        if hasattr(value, "param_groups"):
            name = type(value).__name__
            raise ConfigError(
                f"optimizer: {name} has been made for one model, and each run makes its own: give the class "
                f"({name}), or functools.partial({name}, lr=0.01)"
            )
        return self.choice("optimizer", value)

    def flops(self, value: Any) -> Any:
        if callable(value) and not isinstance(value, Spec):
            return self._add(*counter_entry(value, self._fingerprint))
        return self.choice("counter", value)

    def store(self, value: Any) -> Any:
        if isinstance(value, ResultStore):
            return self._add(*store_entry())
        if hasattr(value, "add"):
            shown = value.__name__ if isinstance(value, type) else type(value).__name__
            raise ConfigError(
                f"store={shown}: pass an object of a class that inherits flops_fit_core.plugins.ResultStore"
            )
        return self.choice("store", value)

    def choice(self, kind: str, value: Any) -> Any:
        """A name or table as it is; a spec goes into the inline plugin."""
        if isinstance(value, Spec):
            if value.kind != kind:
                raise ConfigError(f"{kind}={value.name!r}: a {value.kind} spec cannot be used as {kind}")
            return self._add(lambda: value, {"name": f"{INLINE}/{value.name}"})
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, Mapping):
            return dict(value)
        raise ConfigError(
            f"{kind}: give a name, a table {{'name': ...}} or a spec, not {type(value).__name__}{_spec_of(value)}"
        )

    def _add(self, make: Callable[[], Spec], table: dict[str, Any]) -> dict[str, Any]:
        self._inline.makers.append(make)
        return table


def _log_warnings(sweep: SweepPlan) -> None:
    for note in sweep.notes:
        if note.startswith(WARNING):
            logger.warning("%s", note.removeprefix(WARNING).strip())


def _made(make: Callable[[int], Any]) -> Any:
    """A dataset made from a seed. Raises ConfigError for what is none."""
    try:
        made = make(0)
    except Exception as error:
        raise ConfigError(
            f"dataset={qualified_name(make)} is called with a seed, and raised {type(error).__name__}: {error}. "
            "Give a dataset, or a function make(seed)"
        ) from error
    if hasattr(made, "task") and hasattr(made, "eval_dataset") and not isinstance(made, Dataset):
        raise ConfigError(
            f"dataset={qualified_name(make)} returned a {type(made).__name__}, which is no flops-fit Dataset: "
            f"write class {type(made).__name__}(Dataset), with Dataset from flops_fit_core.plugins"
        )
    if not isinstance(made, Dataset) and (
        not hasattr(made, "__iter__") or (hasattr(made, "__getitem__") and hasattr(made, "__len__"))
    ):
        raise ConfigError(
            f"dataset={qualified_name(make)} returned a {type(made).__name__}: it must return an IterableDataset "
            "or a flops-fit Dataset. Give a dataset with a length as it is, the sweep shuffles it"
        )
    return made


def _spec_of(value: Any) -> str:
    """Advice for an object that belongs in a spec; empty for other objects."""
    advice = "; wrap it in a spec: {spec}(name={name!r}, build=lambda {arguments}: ...)"
    name = type(value).__name__.lower()
    if isinstance(value, Logger):
        return advice.format(spec="LoggerSpec", name=name, arguments="options, folder")
    if isinstance(value, Fitter):
        return advice.format(spec="FitterSpec", name=name, arguments="options")
    if isinstance(value, Trainer):
        return advice.format(spec="TrainerSpec", name=name, arguments="options")
    return ""


def _experiment(source: Source, registry: Registry) -> Experiment:
    if isinstance(source, Experiment):
        return source
    if isinstance(source, Mapping):
        return make_experiment(source, registry)
    return load_experiment(Path(source), registry)


def _fitter(fitter: str | Mapping[str, Any] | Fitter, registry: Registry) -> Fitter:
    if isinstance(fitter, str | Mapping):
        table = fitter if isinstance(fitter, str) else dict(fitter)
        chosen = _choose("fitter", table, registry, "fit")
        return build_fitter(chosen)
    check_argument("fitter", fitter, Fitter)
    return fitter
