"""``Study``: a plan with its folder, results, fit and figures. ``find_optimal`` returns one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import Experiment, PluginConfig
from flops_fit_core.plugins.protocols import Fitter, Logger, ResultStore
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.specs import FitterSpec
from flops_fit_core.records import LawFit, Observation, Optimum, RunResult, SweepPlan
from flops_fit_core.study import outputs
from flops_fit_core.study.checkpoints import delete_checkpoints
from flops_fit_core.study.comparison import Recipe, compare_recipes
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.jobs import describe_jobs
from flops_fit_core.study.law import StudyLaw
from flops_fit_core.study.opening import registry_of_folder
from flops_fit_core.study.other_results import OtherRuns
from flops_fit_core.study.other_stores import check_single_driver
from flops_fit_core.study.overlay import file_name, fit_side, study_side, write_overlay_page
from flops_fit_core.study.planned_time import PlannedTime
from flops_fit_core.study.results import StudyResults
from flops_fit_core.study.settings import StudySettings
from flops_fit_core.study.train import check_outcome, train_missing
from flops_fit_core.training.checkpoint_files import TrajectoryFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flops_fit_core.fitting import Comparison
    from flops_fit_core.report import DataTable
    from flops_fit_core.report.answer import Answer
    from flops_fit_core.report.overlay import Side


class Study:
    """A planned experiment with the results in its store.

    :func:`flops_fit_core.plan`, :func:`~flops_fit_core.run`, :func:`~flops_fit_core.find_optimal` and :meth:`open`
    return one. Nothing is written before :meth:`train`. Results and fits are read and computed when first needed,
    and cached until :meth:`train` or :meth:`refresh`.
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
        trust: bool = False,
    ) -> None:
        self.plan = plan
        self.registry = registry
        self.folder = folder
        self.eval_set = eval_set
        """Name of the held-out set with the losses to fit; None for the dataset's main set."""
        self._store = store
        self._settings = StudySettings(folder, registry, experiment, plan=plan, trust=trust)
        self._trust = trust
        self._time = PlannedTime(plan, self._settings, registry)
        self._results = StudyResults(plan, self._settings, store)
        self._law = StudyLaw(plan, self._settings, self._results, eval_set)

    @classmethod
    def open(
        cls,
        path: str | Path,
        registry: Registry | None = None,
        *,
        plugins: Iterable[str | ModuleType] = (),
        trust: bool = False,
    ) -> Study:
        """The study in a folder. Runs no code that the folder names, unless you name it or ``trust`` the folder.

        Args:
            path: The study's folder.
            registry: The plugins to use; by default the installed plugins and ``plugins``.
            plugins: Modules, or their import names, to use as plugins.
            trust: Whether to import the modules that the folder names, and to let :meth:`train` run the functions
                and programs that it names. Without it, :meth:`train` needs the consent that ``flops-fit trust``
                and training your own experiment file record.

        Raises ConfigError if there is no study, if it has another folder format, or if a plugin module cannot be
        imported.
        """
        folder = StudyFolder.existing(Path(path))
        if registry is None:
            registry = registry_of_folder(folder, plugins, trust=trust)
        return cls(folder.plan(), registry, folder, trust=trust)

    def on(self, eval_set: str | None) -> Study:
        """The same study, with its law fitted to the losses on this held-out set."""
        return Study(
            self.plan,
            self.registry,
            self.folder,
            experiment=self.experiment,
            store=self._store,
            eval_set=eval_set,
            trust=self._trust,
        )

    @property
    def experiment(self) -> Experiment | None:
        """The experiment; None until the folder's is needed."""
        return self._settings.experiment

    # ------------------------------------------------------------------ training

    def train(
        self,
        *,
        loggers: Sequence[Logger] = (),
        retry_failed: bool = True,
        retrain: bool = False,
        only: Collection[str] | None = None,
        save: bool = True,
        check: bool = True,
        progress: bool = False,
    ) -> list[RunResult]:
        """Write the plan to the folder, train the runs that the store lacks, and return all results of the plan.

        Args:
            loggers: Loggers in addition to the experiment's.
            retry_failed: Whether to retry runs that failed before.
            retrain: Whether to train finished runs again, as further attempts.
            only: Ids of the runs to train; None for all.
            save: False if the folder has this plan already.
            check: Whether to call :meth:`check_runs` at the end.
            progress: Whether to show the sweep while it trains: in a terminal, in a notebook, or as a line per
                finished run on standard error. The environment variable ``FLOPS_FIT_PROGRESS=0`` turns it off.

        Raises UserError for a mistake that you can correct, SweepFailed if runs failed and none is completed.
        KeyboardInterrupt stops the workers; finished results and checkpoints are kept.
        """
        results = train_missing(
            self.plan,
            self._settings,
            self._results,
            loggers=loggers,
            retry_failed=retry_failed,
            retrain=retrain,
            only=only,
            save=save,
            progress=progress,
            timings=self._time.timings or {},
        )
        self.refresh()
        if check:
            self.check_runs()
        return results

    def check_runs(self) -> None:
        """Raise SweepFailed if runs failed and none is completed.

        Issue a StudyWarning if some runs failed, or if all runs diverged.
        """
        check_outcome(self.plan, self.results, self.folder)

    def consented_table(self) -> dict[str, Any]:
        """The experiment in the folder as plain data. Raises ConfigError if training would run code that only the
        folder names, without your consent."""
        return dict(self._settings.consented_content().table)

    def prune_checkpoints(self, *, unfinished: bool = False) -> int:
        """Delete the checkpoints from which longer runs could branch off finished ones. Returns the bytes freed.

        ``unfinished`` also deletes the checkpoints from which interrupted runs would continue.
        """
        with self.store() as store:
            check_single_driver(self.folder, store)
            return delete_checkpoints(self.plan, store, self.folder.path, unfinished=unfinished)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the study's checkpoints on disk."""
        return sum(TrajectoryFolder(self.folder.path, item.id).bytes for item in self.plan.trajectories)

    def seconds(self) -> float | None:
        """Estimated wall time of the missing runs; None if unknown.

        It comes from finished runs if there are any, otherwise from real steps of a few sizes on this machine.
        """
        return self._time.seconds(self.results)

    def describe_jobs(self) -> str:
        """The scripts that the executor would submit for the missing runs, and the resources per job.

        Raises ConfigError if the executor submits no scripts.
        """
        return describe_jobs(self._settings.load(), self.plan, self.results, self.folder.path)

    # ------------------------------------------------------------------ results

    def store(self) -> AbstractContextManager[ResultStore]:
        """The study's result store, open. Raises StoreError for a file that is damaged or not from flops-fit."""
        return self._results.store()

    @property
    def results(self) -> list[RunResult]:
        """The latest result of every run of the plan that has a result, in the plan's order."""
        return self._results.planned

    @property
    def attempts(self) -> list[RunResult]:
        """Every attempt at every run in the study's stores, also at runs outside its plan.

        Runs are in the order in which they were first added, the attempts at a run from first to last.
        """
        return self._results.attempts()

    @property
    def other_runs(self) -> tuple[OtherRuns, ...]:
        """Finished results in the folder outside the plan, grouped by the fields in which they differ from it."""
        return self._results.other_runs

    @property
    def notices(self) -> list[str]:
        """Warnings about the folder: results of other experiments, results in other stores."""
        return self._results.notices

    @property
    def runs(self) -> DataTable:
        """Every run of the plan as a table, trained or not."""
        from flops_fit_core.report import runs_table

        return runs_table(self.results, self.plan)

    @property
    def synthetic(self) -> bool:
        """Whether any loss was computed from a formula."""
        return any(result.synthetic for result in self.results)

    def refresh(self) -> None:
        """Read results and fit again at the next access."""
        self._results.clear()
        self._law.clear()

    # ------------------------------------------------------------------ the law

    @property
    def observations(self) -> list[Observation]:
        """The completed runs as data of a fit. Raises FitError if no run has a loss on :attr:`eval_set`."""
        return self._law.observations

    @property
    def fitter_choice(self) -> PluginConfig[FitterSpec]:
        """The experiment's fitter by name, with its options."""
        return self._law.fitter_choice

    @property
    def fitter(self) -> Fitter:
        """The experiment's fitter."""
        return self._law.fitter

    @property
    def fit(self) -> LawFit:
        """The law through the completed runs. Raises FitError, which names the runs to train."""
        return self._law.fit

    def fit_runs(self, fitter: Fitter) -> LawFit:
        """The law by another fitter, with diagnostics about the grid, versions and other results in the folder.

        Raises FitError with the same diagnostics in its message.
        """
        return self._law.fit_runs(fitter)

    def fit_with(self, fitter: Fitter, observations: Sequence[Observation]) -> LawFit:
        """Fit these observations, and record the conventions by which the plan counts N, D and C."""
        return self._law.fit_with(fitter, observations)

    @property
    def isoflop(self) -> LawFit | None:
        """The IsoFLOP law through the same runs, for comparison with :attr:`fit`.

        None if it is the experiment's law, or if it cannot be fitted: see :attr:`no_isoflop`.
        """
        return self._law.isoflop[0]

    @property
    def no_isoflop(self) -> str:
        """Why :attr:`isoflop` cannot be fitted; empty if it can, or if it is the experiment's law."""
        return self._law.isoflop[1]

    def predict(self, flops: float, *, new_run: bool = False) -> Optimum:
        """N_opt, D_opt and L_opt of a training budget, with intervals of the law.

        ``new_run`` of the result has the interval for the loss of one further run. With ``new_run=True``, a fit
        without it is an error. Raises FitError.
        """
        return self._law.predict(flops, new_run=new_run)

    def compare(
        self, second: Study, flops: Sequence[float] = (), *, gate: float = 1.0, allow_differences: bool = False
    ) -> Comparison:
        """The compute-equivalent gain of a second study's recipe over this study's.

        Args:
            second: A study with the same data and conventions.
            flops: Budgets; by default the largest that both studies have.
            gate: Gain that the second recipe must exceed to be promoted.
            allow_differences: Compare studies with different data or conventions, with a warning.

        Raises FitError if the studies cannot be compared.
        """
        return compare_recipes(
            self.recipe(),
            second.recipe(),
            flops,
            gate=gate,
            allow_differences=allow_differences,
            registry=self.registry,
        )

    def recipe(self) -> Recipe:
        """The study as one side of a comparison."""
        path = self.folder.path
        return Recipe(path.name, self.observations, self.plan, self.results, self.eval_set)

    # ------------------------------------------------------------------ tables and figures

    def answer(
        self, flops: float | None = None, *, fit: LawFit | None = None, fitter: Fitter | None = None
    ) -> Answer:
        """The answer in at most 16 lines, as ``flops-fit run`` prints it: ``print(study.answer())``.

        ``flops`` is the budget C in training FLOPs, by default 10 times the plan's largest. ``fit`` and ``fitter``
        are another fit of the runs, by :meth:`fit_runs`, and its fitter. Raises FitError.
        """
        law = self.fit if fit is None else fit
        return outputs.answer(self._law, self.results, self.folder, law, fitter or self.fitter, flops)

    def answer_title(self, fit: LawFit) -> str:
        """The first line of an answer: the study's name, the state of its runs, and the time they took."""
        return outputs.describe_runs(self._law, self.results, fit)

    def table(self, budgets: Sequence[float] | None = None) -> DataTable:
        """The optimum of each budget; by default of the sweep's budgets and of 10 and 100 times the largest."""
        return outputs.predictions(self._law, budgets)

    chinchilla_table = table
    """Table 3 of Hoffmann et al. 2022, for this study's models and data."""

    def minima(self) -> DataTable:
        """The minimum of each IsoFLOP profile by the study's law; by a parabola in ln N if the law has none."""
        return outputs.profile_minima(self._law)

    def plot(
        self,
        kind: str = "isoflop",
        *,
        ax: Any = None,
        style: str | None = None,
        width: str | None = None,
        path: str | Path | None = None,
    ) -> Figure:
        """A figure of the study, which notebooks display.

        Args:
            kind: ``isoflop``, ``optimum``, ``tokens-per-param``, ``frontier``, ``contours``, ``predicted``,
                ``residuals``, ``training`` or ``draws``. Without a law, ``isoflop`` shows the runs alone.
            ax: Axes of matplotlib to draw into; a pair for ``optimum``, and for ``isoflop`` with its residuals.
            style: ``light``, ``dark``, or None for the background of your matplotlib style.
            width: ``column`` (3.3 in) or ``page`` (7 in); None for ``page``, or for your ``figure.figsize``.
            path: Also save the figure there: PNG, SVG or PDF.

        Raises ConfigError for an unknown kind, style or width, FitError if the study lacks what the kind shows.
        """
        from flops_fit_core.report.figures import draw_figure
        from flops_fit_core.study.figures import figure_data

        data = figure_data(self._law, self.folder.path)
        return draw_figure(data, kind, ax=ax, style=style, width=width, path=path)

    def report(
        self,
        folder: str | Path | None = None,
        *,
        against: Study | LawFit | None = None,
        allow_differences: bool = False,
    ) -> list[Path]:
        """Write figures, tables and the page. Returns the files, the page first.

        Works during the sweep, too. Without a law, the page names what a law still needs.

        Args:
            folder: By default ``report/`` of the study; with ``against``, ``report/against-NAME/``.
            against: A second study, or a fit. The page then overlays both: this study is A, the other is B.
            allow_differences: Compare numbers of the two even if their data or conventions differ, with a warning
                on the page. Without it, the page does not compare such numbers.

        Raises ConfigError if the fitter of a fit is not installed.
        """
        default = self.folder.report if self.eval_set is None else self.folder.report / self.eval_set
        if against is None:
            return outputs.write_page(self._law, self.results, Path(folder or default), self.folder)
        second = against.side() if isinstance(against, Study) else fit_side(against, self.registry)
        target = Path(folder or default / f"against-{file_name(second.name)}")
        return write_overlay_page(target, self.side(), second, self.registry, allow_differences=allow_differences)

    def side(self) -> Side:
        """The study as one side of a page that overlays two."""
        return study_side(self._law, self.results, self.folder)

    def _repr_html_(self) -> str:
        """For notebooks: the runs by state, failures, and the answer or the reason why there is none."""
        return outputs.study_html(self._law, self.results, self.folder.shown)

    def __repr__(self) -> str:
        done = sum(result.status == "completed" for result in self.results)
        return f"<Study {self.plan.name!r}: {done} of {len(self.plan.runs)} runs completed, in {self.folder.path}>"
