"""The stored results of a study: in its store, in other stores of its folder, and of other plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial

from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.plugins.protocols.stores import group_by_run
from flops_fit_core.records import RunResult, SweepPlan
from flops_fit_core.study.other_results import OtherRuns, describe, find_other_runs
from flops_fit_core.study.other_stores import OtherStore, find_other_stores
from flops_fit_core.study.settings import StudySettings


class StudyResults:
    """Reads the stores of one study. Everything that was read is cached until :meth:`clear`.

    Args:
        plan: The study's plan.
        settings: The study's experiment, which names its store.
        store: An open store to use instead. It stays open.
    """

    def __init__(self, plan: SweepPlan, settings: StudySettings, store: ResultStore | None) -> None:
        self._plan = plan
        self._settings = settings
        self._folder = settings.folder
        self._open_store = store

    @contextmanager
    def store(self) -> Iterator[ResultStore]:
        """The study's store, open. Raises StoreError for a file that is damaged or not from flops-fit."""
        if self._open_store is not None:
            yield self._open_store
            return
        store = self._folder.open_store(self._settings.choice("store"))
        try:
            yield store
        finally:
            store.close()

    @property
    def open_again(self) -> Callable[[], ResultStore] | None:
        """Opens the study's store once more, for another thread. None for a store that is a Python object."""
        if self._open_store is not None:
            return None
        return partial(self._folder.open_store, self._settings.choice("store"))

    @cached_property
    def planned(self) -> list[RunResult]:
        """The latest result of every run of the plan that has a result, in the plan's order."""
        latest = self._latest()
        return [latest[run.id] for run in self._plan.runs if run.id in latest]

    def attempts(self) -> list[RunResult]:
        """Every attempt at every run, also at runs outside the plan.

        Runs are in the order in which they were first added, the attempts at a run from first to last.
        """
        with self.store() as store:
            stored = [attempt for group in group_by_run(store.all_attempts()).values() for attempt in group]
        return [*stored, *(attempt for other in self._other_stores for attempt in other.attempts)]

    @cached_property
    def other_runs(self) -> tuple[OtherRuns, ...]:
        """Finished results of runs outside the plan, grouped by the fields in which they differ from it."""
        return find_other_runs(self._latest().values(), self._plan, self._settings.registry)

    @property
    def notices(self) -> list[str]:
        """A sentence for each other store with results of this plan, and one for the results of other plans."""
        planned = {run.id for run in self._plan.runs}
        counts = {other.name: len(planned.intersection(other.latest)) for other in self._other_stores}
        elsewhere = [
            f"{count} results of this plan are in {name}, not in {self._settings.choice('store').name}. They are "
            f"used, and the next training copies them"
            for name, count in counts.items()
            if count
        ]
        return [*elsewhere, *filter(None, [describe(self.other_runs)])]

    def copy_from_other_stores(self, store: ResultStore) -> None:
        """Add the results of the folder's other stores to the open store of the study."""
        stored = {result.id: result for result in store.results()}
        for other in find_other_stores(
            self._folder, self._settings.choice("store"), self._settings.registry, stored
        ):
            for result in other.attempts:
                present = store.attempts(result.id)
                if any(attempt.model_copy(update={"attempt": result.attempt}) == result for attempt in present):
                    continue  # another driver has copied it meanwhile
                numbers = [attempt.attempt for attempt in present]
                is_taken = result.attempt in numbers  # by a superseded attempt: `stored` has only those that count
                store.add(result.model_copy(update={"attempt": max(numbers) + 1}) if is_taken else result)

    def clear(self) -> None:
        """Read the stores again at the next access."""
        for name in ("_stored", "_other_stores", "planned", "other_runs"):
            self.__dict__.pop(name, None)

    def _latest(self) -> dict[str, RunResult]:
        """The latest result of every run in any store, by run id. Results of other stores come last."""
        latest = dict(self._stored)
        for other in self._other_stores:
            latest |= other.latest
        return latest

    @cached_property
    def _stored(self) -> dict[str, RunResult]:
        """The latest result of every run in the study's store, planned or not."""
        if self._open_store is None and not self._folder.path.exists():
            return {}
        with self.store() as store:
            return {result.id: result for result in store.results()}

    @cached_property
    def _other_stores(self) -> list[OtherStore]:
        if not self._settings.exist:
            return []
        return find_other_stores(
            self._folder, self._settings.choice("store"), self._settings.registry, self._stored
        )
