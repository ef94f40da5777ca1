"""The embedding surface: ``find_optimal``, ``plan``, ``run``, ``fit``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flops_fit_core.config import DEFAULTS, Experiment, load_experiment, make_experiment
from flops_fit_core.config import choose_from_table as _choose
from flops_fit_core.contracts import Dataset, Fitter, Logger, ResultStore
from flops_fit_core.errors import ConfigError
from flops_fit_core.inline import INLINE, InlinePlugin, counter_entry, dataset_entry, model_entry, optimizer_entry
from flops_fit_core.inline_data import InlineData, identify_functions
from flops_fit_core.planning import make_plan
from flops_fit_core.records import LawFit, Observation
from flops_fit_core.registry import Registry, installed
from flops_fit_core.specs import Spec
from flops_fit_core.study import Study, study_folder

Source = Experiment | Mapping[str, Any] | str | Path


def plan(source: Source, *, registry: Registry | None = None, out: str | Path | None = None) -> Study:
    """Plan an experiment; nothing is trained or written.

    Args:
        source: An experiment file, plain data like one, or an Experiment.
        registry: The plugins to use; by default those that are installed.
        out: The study's folder; by default ``runs/<name>``. Runs that it has finished stay finished.

    Raises ConfigError, PlanError or DataError, saying what to change.
    """
    registry = registry or installed()
    experiment = _experiment(source, registry)
    folder = study_folder(out, experiment.name)
    experiment = folder.with_own_planner(experiment, registry)
    sweep = make_plan(experiment, expected_params(experiment, registry)).with_replacements(folder.replaced())
    return Study(sweep, registry, folder, experiment=experiment)


def run(
    source: Source | Study,
    *,
    registry: Registry | None = None,
    out: str | Path | None = None,
    loggers: Sequence[Logger] = (),
    retry_failed: bool = True,
) -> Study:
    """Plan, then train what the study does not have yet.

    Raises UserError as :func:`plan` does, and StoreError. A run that fails is a result with its error.
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
    from flops_fit_core.fitting import read_runs

    if isinstance(source, str | Path):
        path = Path(source)
        source = Study.open(path, registry) if path.is_dir() else read_runs(path)
    if isinstance(source, Study):
        chosen = source.fitter if fitter is None else _fitter(fitter, source.registry)
        return source.fit_with(chosen, source.observations)
    return _fitter(fitter or DEFAULTS["fitter"], registry or installed()).fit(list(source))


def find_optimal(
    model_cls: Callable[..., Any],
    model_size_param: str,
    *,
    dataset: Any,
    compute_budgets: Sequence[float],
    model_kwargs: Mapping[str, Any] | None = None,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    heldout: Any | None = None,
    heldout_share: float = 0.1,
    tokens_per_sample: int | None = None,
    unit: str | None = None,
    batch_size: int | None = None,
    sizes: int | Sequence[int] = 6,
    tokens_per_param: float = 20.0,
    seeds: Sequence[int] = (0,),
    repeat: bool = False,
    min_steps: int = 100,
    optimizer: Any = "sgd",
    schedule: Any = None,
    recipe: Any = "default",
    flops: Any = "chinchilla",
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
            function and batch size are used) of tuples, dicts or tensors; or a flops-fit Dataset factory
            ``make(seed)``, or the name of a dataset plugin.
        compute_budgets: Training FLOPs C of each IsoFLOP profile, at least three for an interval.
        model_kwargs: Its other arguments.
        loss_fn: ``loss_fn(outputs, targets)``, a mean or one value a sample, in nats. By default
            cross-entropy for class numbers and squared error for real targets.
        heldout: Data to measure the loss on; by default ``heldout_share`` of the dataset.
        tokens_per_sample: What one sample counts for in D; by default the length of a row of class numbers,
            otherwise 1.
        unit: What D counts, for people: ``"tokens"``, ``"images"``.
        batch_size: Samples a step; by default the DataLoader's, otherwise the recipe's.
        sizes: How many sizes a budget, or a list of values of ``model_size_param``.
        tokens_per_param: A guess of D / N at the optimum, which centres the sizes.
        seeds, repeat, min_steps: See ``[sweep]`` in docs/experiment-file.md.
        optimizer: Name, ``{"name": ..., option: ...}``, an OptimizerSpec, or ``make(parameters)`` such as
            ``torch.optim.Adam``. SGD at 0.01 unless said otherwise.
        flops: Name, table, spec, or ``count(module)`` -> training FLOPs a token.
        store: Name, table, spec, or a ResultStore.
        device: ``"auto"``, ``"cpu"``, ``"cuda:1"``, a torch.device, table or spec.
        schedule: Name, table or spec; by default the optimizer's, which for most is cosine.
        recipe, trainer, executor, fitter, loggers: Name, table or spec.
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
    """
    base = registry or installed()
    inline = InlinePlugin()
    given = _Objects(inline, fingerprint)
    data, loader_batch = given.dataset(dataset, heldout, heldout_share, loss_fn, tokens_per_sample, unit)
    tables: dict[str, Any] = {
        "name": name,
        "sweep": {
            "budgets": list(compute_budgets),
            "sizes": sizes if isinstance(sizes, int) else [{model_size_param: size} for size in sizes],
            "tokens_per_param": tokens_per_param,
            "seeds": list(seeds),
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
        "store": "stores/sqlite" if _is_store(store) else given.choice("store", store),
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
    study = Study(
        make_plan(experiment),
        whole,
        folder,
        experiment=experiment,
        store=store if _is_store(store) else None,
    )
    if train:
        study.train(again=not resume)
    return study


class _Objects:
    """Turns what was given into tables of an experiment, adding specs to the inline plugin."""

    def __init__(self, inline: InlinePlugin, fingerprint: str | None) -> None:
        self._inline = inline
        self._fingerprint = fingerprint

    def model(self, model_cls: Callable[..., Any], size: str, kwargs: Mapping[str, Any]) -> Any:
        return self._add(*model_entry(model_cls, size, kwargs, self._fingerprint))

    def dataset(
        self,
        data: Any,
        heldout: Any | None,
        share: float,
        loss_fn: Callable[[Any, Any], Any] | None,
        tokens_per_sample: int | None,
        unit: str | None,
    ) -> tuple[Any, int | None]:
        """The dataset's table, and a DataLoader's batch size."""
        if isinstance(data, str | Mapping | Spec):
            if loss_fn is not None or heldout is not None:
                raise ConfigError("a dataset that is a plugin has its own loss and held-out part: leave them out")
            return self.choice("dataset", data), None
        if callable(data) and not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            make: Callable[[int], Dataset] = data
        else:
            make = InlineData(
                training=data,
                heldout=heldout,
                heldout_share=share,
                loss_fn=loss_fn,
                tokens_per_sample=tokens_per_sample,
                unit=unit,
                fingerprint=self._fingerprint,
                functions=() if self._fingerprint else identify_functions(data, loss_fn),
            ).open
        return self._add(*dataset_entry(make)), getattr(data, "batch_size", None)

    def optimizer(self, value: Any) -> Any:
        if callable(value) and not isinstance(value, Spec):
            return self._add(*optimizer_entry(value, self._fingerprint))
        return self.choice("optimizer", value)

    def flops(self, value: Any) -> Any:
        if callable(value) and not isinstance(value, Spec):
            return self._add(*counter_entry(value, self._fingerprint))
        return self.choice("flops", value)

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
        raise ConfigError(f"{kind}: give a name, a table {{'name': ...}} or a spec, not {type(value).__name__}")

    def _add(self, make: Callable[[], Spec], table: dict[str, Any]) -> dict[str, Any]:
        self._inline.makers.append(make)
        return table


def _is_store(value: Any) -> bool:
    return isinstance(value, ResultStore)


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
        built: Fitter = chosen.calling("build", chosen.options)
        return built
    return fitter


def expected_params(experiment: Experiment, registry: Registry) -> Callable[[float], float] | None:
    """N_opt(C) of ``sweep.previous_fit``; None where there is none."""
    if experiment.sweep.previous_fit is None:
        return None
    from flops_fit_core.fitting import load_fit

    law = load_fit(Path(experiment.sweep.previous_fit))
    fitter = fitter_of(law, registry)
    return lambda flops: fitter.optimum(law, flops).params.value


def fitter_of(law: LawFit, registry: Registry) -> Fitter:
    """The fitter that made a fit, with its options. Raises ConfigError where it is not installed."""
    return _fitter({"name": law.fitter.name, **law.fitter.options}, registry)
