"""A study in the hand: its plan, its results, its fit, its figures. What ``find_optimal`` returns."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import (
    Experiment,
    PluginConfig,
    build_executor,
    build_fitter,
    build_logger,
    check_argument,
    choose_from_table,
    list_slots,
)
from flops_fit_core.errors import ConfigError, FitError, StudyWarning, SweepFailed, raised_at
from flops_fit_core.planning.family_flops import count_family, is_proportional, load_family, record_family
from flops_fit_core.plugins.protocols import Executor, Fitter, Logger, ResultStore
from flops_fit_core.plugins.protocols.stores import group_by_run
from flops_fit_core.plugins.registry import Registry, registry_from
from flops_fit_core.plugins.specs import FitterSpec
from flops_fit_core.records import Diagnostic, LawFit, Observation, Optimum, RunResult, SweepPlan
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.heartbeat import Heartbeat
from flops_fit_core.study.model_check import record_model_check
from flops_fit_core.study.other_results import OtherRuns, describe, find_other_runs
from flops_fit_core.study.other_stores import (
    OtherStore,
    check_no_other_driver,
    check_single_driver,
    find_other_stores,
)
from flops_fit_core.study.sweep import Sweep, forget_checkpoints
from flops_fit_core.training.checkpoint_files import TrajectoryFolder
from flops_fit_core.training.executor_context import StudyExecutorContext

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flops_fit_core.report import DataTable

ISOFLOP = "fitters/isoflop"


class Study:
    """One experiment, planned; trained as far as its store says.

    Made by :func:`flops_fit_core.plan`, :func:`~flops_fit_core.run`, :func:`~flops_fit_core.find_optimal` or
    :meth:`open`. Nothing is written before :meth:`train`.
    """

    def __init__(
        self,
        plan: SweepPlan,
        registry: Registry,
        folder: StudyFolder,
        *,
        experiment: Experiment | None = None,
        store: ResultStore | None = None,
        eval_set: str | None = None,
    ) -> None:
        self.plan = plan
        self.registry = registry
        self.folder = folder
        self.experiment = experiment
        self.eval_set = eval_set
        """Name of the held-out set whose losses are fitted; None for the dataset's main one."""
        self._given_store = store

    def on(self, eval_set: str | None) -> Study:
        """The same study, its law fitted to the losses on this held-out set of its dataset."""
        return Study(
            self.plan,
            self.registry,
            self.folder,
            experiment=self.experiment,
            store=self._given_store,
            eval_set=eval_set,
        )

    @classmethod
    def open(cls, path: str | Path, registry: Registry | None = None) -> Study:
        """A study that was run before, from its folder.

        Raises ConfigError where there is none, its store was removed, or a plugin module that it was made with
        cannot be imported.
        """
        folder = StudyFolder.existing(Path(path))
        folder.check_store_exists()
        return cls(folder.plan(), registry or registry_from(folder.setup()), folder)

    # ------------------------------------------------------------------ training

    def train(
        self,
        *,
        loggers: Sequence[Logger] = (),
        retry_failed: bool = True,
        again: bool = False,
        only: Collection[str] | None = None,
        save: bool = True,
        check: bool = True,
    ) -> list[RunResult]:
        """Train what the store does not have yet, and write the study down first. Returns all results.

        Args:
            loggers: Told of everything beside the experiment's own.
            retry_failed: Whether runs that failed before are tried again.
            again: Whether finished runs are trained again, as further attempts.
            only: Ids of the runs to train; None: all.
            save: False where the folder says already what the study is.
            check: Whether failed runs are an error, or a StudyWarning; False where the caller reports them.

        Raises UserError for what the user has to change; SweepFailed where runs failed and none is completed;
        KeyboardInterrupt stops the workers and loses nothing.
        """
        experiment = self._experiment()
        for logger in loggers:
            check_argument("loggers", logger, Logger)
        own = self._loggers(experiment)
        check_no_other_driver(self.folder, experiment.store, self.registry)
        with self.store() as store:
            check_single_driver(self.folder, store)
            self._copy_from_other_stores(store)
            if save:
                self.folder.save(experiment, self.plan, self.registry.setup)
                record_model_check(experiment, self.plan, self.folder.path)
                record_family(experiment, self.plan, self.folder.path)
            sweep = Sweep(
                self.plan,
                store,
                self._executor(experiment),
                self.registry,
                loggers=[*loggers, *own],
                retry_failed=retry_failed,
                again=again,
                only=only,
                folder=self.folder.path,
            )
            sweep.loggers.append(Heartbeat(self.folder.path, sweep.owner, experiment.executor.name))
            results = sweep.run()
        self.forget()
        if check:
            self.check_runs()
        return results

    def check_runs(self) -> None:
        """Raise SweepFailed where runs failed and none is completed; issue a StudyWarning where only some failed,
        or all diverged."""
        unfinished = [result for result in self.results if result.status == "failed"]
        diverged = sum(result.status == "diverged" for result in self.results)
        completed = sum(result.status == "completed" for result in self.results)
        if not unfinished:
            if diverged and not completed:
                warnings.warn(f"all {diverged} runs of {self.folder.shown} diverged", StudyWarning, stacklevel=3)
            return
        message = (
            f"{len(unfinished)} of {len(self.plan.runs)} runs of {self.folder.shown} failed, the first with "
            f"{_reason(unfinished[0])}; 'flops-fit show {self.folder.shown} {unfinished[0].id[:6]}' shows "
            f"its traceback"
        )
        if not completed:
            raise SweepFailed(message)
        warnings.warn(message, StudyWarning, stacklevel=3)

    def prune_checkpoints(self, *, unfinished: bool = False) -> int:
        """Delete checkpoints that are kept for further branches of finished runs; with ``unfinished``, also those
        from which interrupted runs would go on. Returns the bytes that were freed."""
        with self.store() as store:
            check_single_driver(self.folder, store)
            return forget_checkpoints(self.plan, store, self.folder.path, unfinished=unfinished)

    @property
    def checkpoint_bytes(self) -> int:
        """What the study's checkpoints take on disk now."""
        return sum(TrajectoryFolder(self.folder.path, one.id).bytes for one in self.plan.trajectories)

    def seconds(self) -> float | None:
        """Estimated wall time of the runs that are left, from real steps on this machine; None where unknown."""
        from flops_fit_core.training import estimate_seconds

        experiment = self._experiment()
        executor = experiment.executor
        places = executor.call(executor.spec.places, executor.options, list_slots(experiment.device))
        return None if places is None else estimate_seconds(self.plan, self.registry, places, self.results)

    def _experiment(self) -> Experiment:
        if self.experiment is None:
            self.experiment = self.folder.experiment(self.registry)
        return self.experiment

    def _executor(self, experiment: Experiment) -> Executor:
        context = StudyExecutorContext(
            folder=self.folder.path,
            plugins=self.registry.setup.model_dump_json(),
            live=self.registry.objects,
            slots=list_slots(experiment.device),
        )
        return build_executor(experiment.executor, context)

    def _loggers(self, experiment: Experiment) -> list[Logger]:
        return [build_logger(chosen, self.folder.path) for chosen in experiment.loggers]

    # ------------------------------------------------------------------ results

    @contextlib.contextmanager
    def store(self) -> Iterator[ResultStore]:
        """The study's result store, open. Raises StoreError for a file that is damaged or not ours."""
        if self._given_store is not None:
            yield self._given_store
            return
        store = self.folder.open_store(self._choice("store"))
        try:
            yield store
        finally:
            store.close()

    @cached_property
    def results(self) -> list[RunResult]:
        """The latest result of every run of the plan that has one, in the plan's order."""
        kept = dict(self._stored)
        for other in self._other_stores:
            kept |= other.latest
        return [kept[run.id] for run in self.plan.runs if run.id in kept]

    @property
    def attempts(self) -> list[RunResult]:
        """Every attempt at every run in the study's stores, also at runs that are not of its plan.

        Runs come in the order in which they were first added, the attempts at a run from first to last.
        """
        with self.store() as store:
            stored = [attempt for group in group_by_run(store.all_attempts()).values() for attempt in group]
        return [*stored, *(attempt for other in self._other_stores for attempt in other.attempts)]

    @cached_property
    def _stored(self) -> dict[str, RunResult]:
        """The latest result of every run in the study's store, whichever plan asked for it."""
        if self._given_store is None and not self.folder.path.exists():
            return {}
        with self.store() as store:
            return {result.id: result for result in store.results()}

    @cached_property
    def _other_stores(self) -> list[OtherStore]:
        if self.experiment is None and not self.folder.experiment_file.exists():
            return []
        return find_other_stores(self.folder, self._choice("store"), self.registry, self._stored)

    def _copy_from_other_stores(self, store: ResultStore) -> None:
        stored = {result.id: result for result in store.results()}
        for other in find_other_stores(self.folder, self._choice("store"), self.registry, stored):
            for result in other.attempts:
                store.add(result)

    @cached_property
    def other_runs(self) -> tuple[OtherRuns, ...]:
        """Finished results in the folder that are not of the plan, grouped by the fields in which they differ."""
        kept = dict(self._stored)
        for other in self._other_stores:
            kept |= other.latest
        return find_other_runs(kept.values(), self.plan, self.registry)

    @property
    def notices(self) -> list[str]:
        """What the owner should know about the folder: results of other experiments, results in other stores."""
        planned = {run.id for run in self.plan.runs}
        counts = {other.name: len(planned.intersection(other.latest)) for other in self._other_stores}
        elsewhere = [
            f"{count} results of this plan are in {name}, not in {self._choice('store').name}: they count, and "
            f"training copies them"
            for name, count in counts.items()
            if count
        ]
        return [*elsewhere, *filter(None, [describe(self.other_runs)])]

    def forget(self) -> None:
        """Read results and fit anew when they are next asked for."""
        for name in ("_stored", "_other_stores", "other_runs", "results", "fit", "_isoflop"):
            self.__dict__.pop(name, None)

    @property
    def runs(self) -> DataTable:
        """Every run as a table, with those that are still to be trained."""
        from flops_fit_core.report import runs_table

        return runs_table(self.results, self.plan)

    @property
    def observations(self) -> list[Observation]:
        """The completed runs as a fit sees them. Raises FitError where none was measured on :attr:`eval_set`."""
        from flops_fit_core.fitting import observations

        return observations(self.results, self.eval_set)

    def _choice(self, kind: str) -> PluginConfig[Any]:
        if self.experiment is not None:
            chosen: PluginConfig[Any] = getattr(self.experiment, kind)
            return chosen
        return self.folder.choice(kind, self.registry)

    # ------------------------------------------------------------------ the law

    @property
    def fitter_choice(self) -> PluginConfig[FitterSpec]:
        """Which fitter the experiment names, with its options."""
        return self._choice("fitter")

    @cached_property
    def fitter(self) -> Fitter:
        """The experiment's fitter."""
        return build_fitter(self.fitter_choice)

    @cached_property
    def fit(self) -> LawFit:
        """The law through the completed runs. Raises FitError, saying what to train, where there is none."""
        return self.fit_runs(self.fitter)

    def fit_runs(self, fitter: Fitter) -> LawFit:
        """The law through the completed runs by this fitter, with all that is known about the runs among its
        diagnostics: edges of the grid, optima outside it, mixed versions, other results in the folder.

        Raises FitError, with the same.
        """
        from flops_fit_core.fitting import check_grid, grid_edges
        from flops_fit_core.fitting.diagnostics import check_versions

        observations = self.observations
        try:
            fit = self._with_family_flops(self.fit_with(fitter, observations), observations)
            fit = check_grid(fit, fitter, observations)
        except FitError as error:
            # The IsoFLOP fitter's own error names its budgets already.
            edges = [edge.message for edge in grid_edges(observations)]
            edges = [message for message in edges if message.partition(":")[0] not in str(error)]
            raise FitError("\n".join([str(error), *edges, *self.notices])) from None
        others = [Diagnostic(code="other-results", message=notice) for notice in self.notices]
        found = (*fit.diagnostics, *check_versions(self.results), *others)
        return fit.model_copy(update={"diagnostics": found})

    def _with_family_flops(self, fit: LawFit, observations: Sequence[Observation]) -> LawFit:
        """The fit with its optima along the family's own FLOPs per token, where it counts them."""
        from flops_fit_core.fitting import follow_family

        return follow_family(fit, self._family_flops, observations) if fit.flops_per_token else fit

    @cached_property
    def _family_flops(self) -> tuple[tuple[float, float], ...]:
        if is_proportional(self.plan):
            return ()
        recorded = load_family(self.plan, self.folder.path)
        if recorded is None:
            return () if self.experiment is None else count_family(self.experiment, self.plan)
        return recorded

    @cached_property
    def _isoflop(self) -> tuple[LawFit | None, str]:
        """The IsoFLOP law, or why there is none."""
        chosen = choose_from_table("fitter", ISOFLOP, self.registry, "isoflop")
        try:
            return self.fit_with(build_fitter(chosen), self.observations), ""
        except FitError as error:
            return None, str(error)

    @property
    def isoflop(self) -> LawFit | None:
        """The IsoFLOP law through the same runs, to hold beside :attr:`fit`: another method with other faults.

        None where it is the experiment's own, or cannot be fitted; :attr:`no_isoflop` gives the reason.
        """
        return None if self.fitter_choice.name == ISOFLOP else self._isoflop[0]

    @property
    def no_isoflop(self) -> str:
        """Why :attr:`isoflop` cannot be fitted; empty where it can, or where it is the experiment's own law."""
        return "" if self.fitter_choice.name == ISOFLOP else self._isoflop[1]

    def fit_with(self, fitter: Fitter, observations: Sequence[Observation]) -> LawFit:
        """Fit these runs, and record by which conventions they were counted."""
        return fitter.fit(observations).model_copy(
            update={
                "params_name": self.plan.params_name,
                "flops_name": self.plan.flops_name,
                "unit": self.plan.unit,
                "eval_set": self.eval_set,
            }
        )

    def predict(self, flops: float) -> Optimum:
        """N_opt, D_opt and L_opt for a training budget, with intervals. Raises FitError."""
        from flops_fit_core.fitting import flag_outside

        return flag_outside(self.fit, self.fitter.optimum(self.fit, flops))

    def table(self, budgets: Sequence[float] | None = None) -> DataTable:
        """What to train for each budget: those of the sweep, and 10 and 100 times the largest."""
        from flops_fit_core.report import predictions_table

        wanted = budgets or [*self.plan.budgets, 10 * self.plan.budgets[-1], 100 * self.plan.budgets[-1]]
        return predictions_table(self.fit, [self.predict(flops) for flops in wanted])

    chinchilla_table = table
    """Table 3 of Hoffmann et al. 2022, for this study's models and data."""

    def minima(self) -> DataTable:
        """The minimum of each IsoFLOP profile, by the study's law, or where it has none by a parabola in ln N."""
        from flops_fit_core.fitting import profile_minima
        from flops_fit_core.report import minima_table
        from flops_fit_core.report.datatable import conventions
        from flops_fit_core.report.tables import table_of_minima

        try:
            if self.fit.minima:
                return minima_table(self.fit)
        except FitError:
            pass  # the profiles need no law
        minima, diagnostics = profile_minima(self.observations)
        plan = self.plan
        about = conventions(plan.params_name, plan.flops_name, plan.unit, self.eval_set)
        return table_of_minima(minima, about, diagnostics)

    def plot(self, path: str | Path | None = None) -> Figure:
        """The IsoFLOP profiles with their minima starred; the runs alone where no law can be fitted.

        Saved as well where a path is given (PNG, SVG, PDF).
        """
        from flops_fit_core.report import isoflop_figure, runs_figure

        figure: Figure
        try:
            figure = isoflop_figure(self.observations, self.fit, synthetic=self.synthetic)
        except FitError:
            figure = runs_figure(
                self.observations,
                params_name=self.plan.params_name,
                flops_name=self.plan.flops_name,
                unit=self.plan.unit,
                eval_set=self.eval_set,
                synthetic=self.synthetic,
            )
        if path is not None:
            figure.savefig(path)
        return figure

    def report(self, folder: str | Path | None = None) -> list[Path]:
        """Write figures, tables and the page. Returns the files, the page first."""
        from flops_fit_core.report import write_report

        named = self.folder.report if self.eval_set is None else self.folder.report / self.eval_set
        target = Path(folder) if folder is not None else named
        return write_report(
            target,
            observations=self.observations,
            fit=self.fit,
            optimum=self.predict,
            results=self.results,
            plan=self.plan,
        )

    @property
    def synthetic(self) -> bool:
        """Whether any loss was computed from a formula."""
        return any(result.synthetic for result in self.results)

    def __repr__(self) -> str:
        done = sum(result.status == "completed" for result in self.results)
        return f"<Study {self.plan.name!r}: {done} of {len(self.plan.runs)} runs completed, in {self.folder.path}>"


def _reason(result: RunResult) -> str:
    """The error of a failed run, with the user's own line that raised it."""
    if result.error is None:
        return "no error"
    where = raised_at(result.error.traceback)
    return result.error.line + (f" ({where})" if where else "")


def study_folder(out: str | Path | None, name: str) -> StudyFolder:
    """``out``, or ``runs/<name>`` in the working directory. Raises ConfigError where a file is in the way."""
    path = Path(out) if out is not None else Path("runs") / name
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(
                f"{place} is a file; a study needs a folder: write --out FOLDER (in Python, output_dir= or out=)"
            )
    return StudyFolder(path.absolute())
