"""The functions for Python: ``find_optimal``, ``plan``, ``run`` and ``fit``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flops_fit_core.api.argument_tables import ArgumentTables, list_of_numbers, sweep_sizes
from flops_fit_core.api.inline import InlinePlugin
from flops_fit_core.config import (
    DEFAULTS,
    Experiment,
    build_fitter,
    check_argument,
    choose_from_table,
    load_experiment,
    make_experiment,
)
from flops_fit_core.config.secrets import refuse_secrets
from flops_fit_core.errors import ConfigError, StudyWarning
from flops_fit_core.planning import WARNING, make_plan
from flops_fit_core.planning.init_from_fit import expected_params
from flops_fit_core.plugins.protocols import Fitter, Logger, ResultStore
from flops_fit_core.plugins.registry import Registry, installed
from flops_fit_core.records import LawFit, Observation, SweepPlan
from flops_fit_core.study import Study, study_folder
from flops_fit_core.study.directory import INLINE
from flops_fit_core.study.folder_check import damage_notes
from flops_fit_core.study.model_check import compare_model_check, with_model_check
from flops_fit_core.study.trust import replaced_runs

logger = logging.getLogger("flops_fit")

Source = Experiment | Mapping[str, Any] | str | Path


def plan(source: Source, *, registry: Registry | None = None, out: str | Path | None = None) -> Study:
    """Plan an experiment without training or writing anything.

    Args:
        source: Path of an experiment file, its content as a mapping, or an Experiment.
        registry: The plugins to use; by default the installed plugins.
        out: The study's folder; by default ``runs/<name>``. Its finished runs stay finished.

    Issues a StudyWarning if the folder has finished results outside the plan, or in another store.

    Raises ConfigError, PlanError or DataError, with the change to make. A folder with an experiment of another
    name is a ConfigError.
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
    folder.check_same_experiment(experiment)
    replaced = replaced_runs(folder, experiment, registry)
    sweep = make_plan(experiment, expected_params(experiment, registry)).with_replacements(replaced)
    sweep = with_model_check(experiment, sweep, folder.path).with_notes(damage_notes(folder.path))
    return Study(sweep, registry, folder, experiment=experiment)


def _warn_about_folder(study: Study) -> None:
    """Issue a StudyWarning for each notice on an existing folder, for example results in another store."""
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
    progress: bool = True,
) -> Study:
    """Plan, then train the missing runs of the study.

    Args:
        source: As for :func:`plan`, or a Study.
        registry: As for :func:`plan`.
        out: As for :func:`plan`.
        loggers: Further loggers, in addition to those of the experiment.
        retry_failed: Whether runs that failed before are trained again.
        progress: Whether to show the sweep while it trains, on standard error or in the notebook; False, or
            ``FLOPS_FIT_PROGRESS=0`` in the environment, for silence.

    A failed run is a result with its error, and a StudyWarning. Raises UserError as :func:`plan` does,
    StoreError, and SweepFailed if no run completed.
    """
    study = source if isinstance(source, Study) else plan(source, registry=registry, out=out)
    study.train(loggers=loggers, retry_failed=retry_failed, progress=progress)
    return study


def fit(
    source: str | Path | Study | Iterable[Observation],
    *,
    fitter: str | Mapping[str, Any] | Fitter | None = None,
    registry: Registry | None = None,
) -> LawFit:
    """Fit a law to a study, a table of runs (CSV, parquet) from any source, or observations.

    Args:
        source: A Study, a study's folder, the file of a table, logs that a reader plugin recognises, or
            observations.
        fitter: Name, table or object; by default the study's, or ``average``.
        registry: The plugins that contain the fitter; by default the installed plugins.

    Raises FitError if no law can be fitted, ConfigError for a source that cannot be read.
    """
    from flops_fit_core.fitting import check_grid, fit_table, is_table, read_complete_table

    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_dir() or is_table(path, registry):
            table_fitter = _build_fitter(fitter or DEFAULTS["fitter"], registry or installed())
            table = read_complete_table(path, registry=registry)
            return fit_table(table_fitter, table).with_observations(table.observations)
        source = Study.open(path, registry)
    if isinstance(source, Study):
        study_fitter = source.fitter if fitter is None else _build_fitter(fitter, source.registry)
        return source.fit_runs(study_fitter).with_observations(source.observations)
    observations = list(source)
    fitter = _build_fitter(fitter or DEFAULTS["fitter"], registry or installed())
    return check_grid(fitter.fit(observations), fitter, observations).with_observations(observations)


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
    allow_repeat: bool = False,
    min_steps: int = 100,
    optimizer: Any = "sgd",
    schedule: Any = None,
    recipe: Any = "width-scaled",
    counter: Any = None,
    trainer: Any | None = None,
    device: Any = "auto",
    store: Any = "sqlite",
    executor: Any = "processes",
    fitter: Any = "average",
    loggers: Sequence[Any] = (),
    train: bool = True,
    resume: bool = True,
    output_dir: str | Path | None = None,
    name: str = "find-optimal",
    fingerprint: str | None = None,
    registry: Registry | None = None,
    multiple_of: int | None = None,
    size_ratio: float | None = None,
    progress: bool = True,
) -> Study:
    """Plan, train and fit an IsoFLOP sweep of your model: its optimal size and amount of data for a budget.

    Args:
        model_cls: A class or function that makes the model: ``model_cls(**model_kwargs, size_param=value)``.
            N is its ``num_params()`` if it has this method, otherwise its parameters are counted. A method
            ``parameter_groups()`` defines the parameters that decay and the share of them that a token uses.
        model_size_param: The integer argument that scales the model, such as ``"d_model"``.
        dataset: A torch Dataset, IterableDataset (also endless) or DataLoader (its dataset, collate function and
            batch size are used) of tuples, dicts or tensors; a function ``make(seed)`` that returns a stream in
            the order of a seed, or a flops-fit Dataset; or the name of a dataset plugin.
        compute_budgets: Training FLOPs C of each IsoFLOP profile, at least three for an interval.
        model_kwargs: The other arguments of ``model_cls``.
        loss_fn: ``loss_fn(outputs, targets)`` in nats: a scalar mean or sum, a value per sample or target, or
            ``(sum, count)``. By default cross-entropy for class numbers (-100 is ignored) and squared error for
            real targets.
        eval_dataset: Data to measure the loss on; by default ``eval_share`` of the dataset.
        tokens_per_sample: Tokens that a sample adds to D; by default the length of a row of class numbers,
            otherwise 1.
        unit: The unit of D, for display: ``"tokens"``, ``"images"``.
        loss_reduction: Form of the value of ``loss_fn`` if it cannot be determined: ``"mean"``, ``"sum"``,
            ``"sample-mean"``, ``"sample-sum"``, or ``"batch"`` for a loss of complete batches (contrastive,
            regularised). With ``"batch"``, all batches have ``batch_size`` samples.
        copy_task: Whether targets may be inputs of the model (masked language models, autoencoders).
        batch_size: Samples per step; by default the DataLoader's, otherwise the recipe's.
        sizes: Number of sizes per budget, or a list of values of ``model_size_param``.
        tokens_per_param: A guess of D / N at the optimum, which centres the sizes.
        seeds: As in ``[sweep]``, see docs/reference/options.md.
        allow_repeat: As in ``[sweep]``.
        min_steps: As in ``[sweep]``.
        optimizer: Name, ``{"name": ..., option: ...}``, an OptimizerSpec, or ``make(parameters)`` such as
            ``torch.optim.Adam``. By default SGD with a learning rate of 0.01.
        counter: Name, table, spec, or ``count(module)`` -> training FLOPs per token. By default ``chinchilla``
            (6 N D) for token sequences with a target at each position, otherwise ``traced``.
        store: Name, table, spec, or a ResultStore.
        device: ``"auto"``, ``"cpu"``, ``"cuda:1"``, a torch.device, table or spec.
        schedule: Name, table or spec; by default the optimizer's, which for most is cosine.
        recipe: Name, table or spec.
        trainer: Name, table or spec.
        executor: Name, table or spec.
        fitter: Name, table or spec.
        loggers: Names, tables or specs.
        train: False to plan only: see ``.plan``, ``.plan.flops`` and ``.seconds()`` of the study.
        resume: Whether finished runs in ``output_dir`` count; False trains them again.
        output_dir: The study's folder; by default ``runs/<name>``.
        fingerprint: Identifies the model, data and loss if they cannot be fingerprinted.
        registry: The plugins to use; by default the installed plugins.
        multiple_of: Automatic sizes are multiples of this number; by default the smallest number with multiples
            that can be built, determined by trying values from 1 to 512.
        size_ratio: Ratio of N between neighbouring sizes, by default 1.6.
        progress: Whether to show the sweep while it trains, on standard error or in the notebook; False, or
            ``FLOPS_FIT_PROGRESS=0`` in the environment, for silence.

    Returns:
        A Study: ``.table()``, ``.predict(flops)``, ``.plot()``, ``.runs``, ``.fit``, ``.report()``.

    Raises:
        ConfigError, PlanError, DataError: An argument must change; the message names the change.
        SweepFailed: No run completed. If only some runs failed, there is a StudyWarning.
    """
    inline = InlinePlugin()
    arguments = ArgumentTables(inline, fingerprint)
    data, loader_batch = arguments.dataset(
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
            "budgets": list_of_numbers(compute_budgets, "compute_budgets", "[1e15, 2e15, 4e15]"),
            "sizes": sweep_sizes(sizes, model_size_param),
            "tokens_per_param": tokens_per_param,
            "seeds": list_of_numbers(seeds, "seeds", "[0, 1]"),
            "allow_repeat": allow_repeat,
            "min_steps": min_steps,
            "batch_size": batch_size or loader_batch,
            **({} if multiple_of is None else {"multiple_of": multiple_of}),
            **({} if size_ratio is None else {"size_ratio": size_ratio}),
        },
        "model": arguments.model(model_cls, model_size_param, model_kwargs or {}),
        "dataset": data,
        "optimizer": arguments.optimizer(optimizer),
        "schedule": arguments.choice("schedule", schedule),
        "recipe": arguments.choice("recipe", recipe),
        "counter": arguments.counter(counter),
        "trainer": arguments.choice("trainer", trainer),
        "device": arguments.choice("device", str(device) if type(device).__name__ == "device" else device),
        "store": arguments.store(store),
        "executor": arguments.choice("executor", executor),
        "fitter": arguments.choice("fitter", fitter),
        "loggers": [arguments.choice("logger", value) for value in loggers],
    }
    plugins = (registry or installed()).with_plugins({INLINE: inline})
    if plugins.problems and plugins.problems[-1].plugin.startswith(INLINE):
        raise ConfigError(str(plugins.problems[-1]))
    experiment = make_experiment(
        {key: value for key, value in tables.items() if value is not None}, plugins, "find_optimal"
    )
    folder = study_folder(output_dir, name)
    folder.check_same_experiment(experiment)
    sweep = make_plan(experiment).with_notes(damage_notes(folder.path))
    if note := compare_model_check(experiment, sweep, folder.path):
        warnings.warn(note, stacklevel=2)
    study = Study(
        sweep,
        plugins,
        folder,
        experiment=experiment,
        store=store if isinstance(store, ResultStore) else None,
    )
    _log_warnings(study.plan)
    _warn_about_folder(study)
    if train:
        study.train(retrain=not resume, progress=progress)
    return study


def _log_warnings(sweep: SweepPlan) -> None:
    for note in sweep.notes:
        if note.startswith(WARNING):
            logger.warning("%s", note.removeprefix(WARNING).strip())


def _experiment(source: Source, registry: Registry) -> Experiment:
    if isinstance(source, Experiment):
        refuse_secrets(source.model_dump(mode="json"), "experiment")
        return source
    if isinstance(source, Mapping):
        return make_experiment(source, registry)
    return load_experiment(Path(source), registry)


def _build_fitter(fitter: str | Mapping[str, Any] | Fitter, registry: Registry) -> Fitter:
    if isinstance(fitter, str | Mapping):
        table = fitter if isinstance(fitter, str) else dict(fitter)
        return build_fitter(choose_from_table("fitter", table, registry, "fit"))
    check_argument("fitter", fitter, Fitter)
    return fitter
