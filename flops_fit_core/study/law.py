"""The law of a study: fits through its completed runs, with diagnostics about these runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from flops_fit_core.config import PluginConfig, build_fitter, choose_from_table
from flops_fit_core.errors import FitError
from flops_fit_core.planning.family_flops import count_family, is_proportional, load_family
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.specs import FitterSpec
from flops_fit_core.records import Diagnostic, LawFit, Observation, Optimum, SweepPlan
from flops_fit_core.study.results import StudyResults
from flops_fit_core.study.settings import StudySettings

ISOFLOP = "fitters/isoflop"


class StudyLaw:
    """Fits the completed runs of a study. A fit is made when it is first needed and cached until :meth:`clear`.

    Args:
        plan: The study's plan.
        settings: The study's experiment, which names the fitter.
        results: The study's results.
        eval_set: Name of the held-out set with the losses to fit; None for the dataset's main set.
    """

    def __init__(
        self, plan: SweepPlan, settings: StudySettings, results: StudyResults, eval_set: str | None
    ) -> None:
        self.plan = plan
        self.results = results
        self.eval_set = eval_set
        self._settings = settings

    @property
    def registry(self) -> Registry:
        """Where plugins are looked up."""
        return self._settings.registry

    @property
    def observations(self) -> list[Observation]:
        """The completed runs as data of a fit. Raises FitError if no run has a loss on :attr:`eval_set`."""
        from flops_fit_core.fitting import observations

        return observations(self.results.planned, self.eval_set)

    @property
    def fitter_choice(self) -> PluginConfig[FitterSpec]:
        """The experiment's fitter by name, with its options."""
        return self._settings.choice("fitter")

    @cached_property
    def fitter(self) -> Fitter:
        """The experiment's fitter."""
        return build_fitter(self.fitter_choice)

    @cached_property
    def fit(self) -> LawFit:
        """The law by the experiment's fitter. Raises FitError."""
        return self.fit_runs(self.fitter).with_observations(self.observations)

    def fit_runs(self, fitter: Fitter) -> LawFit:
        """The law by any fitter, with diagnostics about the grid, the versions and other results in the folder.

        Raises FitError with the same diagnostics in its message.
        """
        from flops_fit_core.fitting import check_grid, grid_edges
        from flops_fit_core.fitting.diagnostics import check_versions

        observations = self.observations
        try:
            fit = self._follow_family(self.fit_with(fitter, observations), observations)
            fit = check_grid(fit, fitter, observations)
        except FitError as error:
            # The IsoFLOP fitter's error names its budgets already.
            edges = [edge.message for edge in grid_edges(observations)]
            edges = [message for message in edges if message.partition(":")[0] not in str(error)]
            raise FitError("\n".join([str(error), *edges, *self.results.notices])) from None
        other_results = [Diagnostic(code="other-results", message=text) for text in self.results.notices]
        diagnostics = (*fit.diagnostics, *check_versions(self.results.planned), *other_results)
        return fit.model_copy(update={"diagnostics": diagnostics})

    def fit_with(self, fitter: Fitter, observations: Sequence[Observation]) -> LawFit:
        """Fit these observations, and record the conventions by which the plan counts N, D and C."""
        return fitter.fit(observations).model_copy(
            update={
                "params_name": self.plan.params_name,
                "flops_name": self.plan.flops_name,
                "unit": self.plan.unit,
                "eval_set": self.eval_set,
            }
        )

    @cached_property
    def isoflop(self) -> tuple[LawFit | None, str]:
        """The IsoFLOP law of the same runs and an empty text, or None and the reason.

        None and an empty text if IsoFLOP is the experiment's fitter.
        """
        if self.fitter_choice.name == ISOFLOP:
            return None, ""
        chosen = choose_from_table("fitter", ISOFLOP, self._settings.registry, "isoflop")
        try:
            return self.fit_with(build_fitter(chosen), self.observations), ""
        except FitError as error:
            return None, str(error)

    def predict(self, flops: float, *, new_run: bool = False) -> Optimum:
        """The optimum of a training budget. Raises FitError; with ``new_run``, also without its interval."""
        from flops_fit_core.fitting import flag_outside, require_new_run

        if new_run:
            require_new_run(self.fit)
        return flag_outside(self.fit, self.fitter.optimum(self.fit, flops))

    def clear(self) -> None:
        """Fit again at the next access."""
        for name in ("fit", "isoflop"):
            self.__dict__.pop(name, None)

    def _follow_family(self, fit: LawFit, observations: Sequence[Observation]) -> LawFit:
        """Move the optima to the FLOPs per token that the model family counts between the trained sizes."""
        from flops_fit_core.fitting import follow_family

        return follow_family(fit, self._family_flops, observations) if fit.flops_per_token else fit

    @cached_property
    def _family_flops(self) -> tuple[tuple[float, float], ...]:
        """(N, C / D) of further sizes of the family; empty if C is 6 N D or if nothing is recorded."""
        if is_proportional(self.plan):
            return ()
        recorded = load_family(self.plan, self._settings.folder.path)
        if recorded is not None:
            return recorded
        experiment = self._settings.experiment
        return () if experiment is None else count_family(experiment, self.plan)
