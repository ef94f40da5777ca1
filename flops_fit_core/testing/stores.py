"""The conformance kit for result stores.

::

    from flops_fit_core.testing import StoreConformance

    class TestMyStore(StoreConformance):
        name = "mine"
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import JsonValue

from flops_fit_core.errors import StoreError
from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import RunError, RunResult
from flops_fit_core.testing.examples import example_result, example_run, result_of
from flops_fit_core.testing.kit import Kit
from flops_fit_core.testing.processes import build_store
from flops_fit_core.testing.store_claims import ClaimConformance, OpenStore
from flops_fit_core.testing.store_damage import DamageConformance
from flops_fit_core.testing.store_processes import ProcessConformance


class StoreConformance(ClaimConformance, ProcessConformance, DamageConformance, Kit):
    """Tests for every store. Inherit, set ``name``, and run pytest.

    Tests of fencing are skipped for a store that does not check the tokens of claims, tests of damage for a store
    without ``StoreSpec.check``.

    Attributes:
        persistent: Whether a store that is opened again has its results.
        shared: Whether several processes may open the same store. Requires ``persistent``, and claims that other
            processes see. Set it to False for a store with the claims of the base class.
        kills: Number of processes that are killed while they add results.
        moment: Duration of a short claim in seconds. Increase it for a slow store.
    """

    kind: ClassVar[str] = "store"
    persistent = True
    shared = True
    kills = 3
    moment = 0.05

    # ------------------------------------------------------------------ fixtures

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The study's folder."""
        folder = tmp_path / "study"
        folder.mkdir()
        return folder

    @pytest.fixture
    def open_store(
        self, registry: Registry, given_options: Mapping[str, JsonValue], folder: Path
    ) -> Iterator[OpenStore]:
        """A function that opens the store of the study. All are closed at the end."""
        opened: list[ResultStore] = []

        def open_store() -> ResultStore:
            opened.append(build_store(registry, self.name, given_options, folder))
            return opened[-1]

        yield open_store
        for store in opened:
            store.close()

    @pytest.fixture
    def store(self, open_store: OpenStore) -> ResultStore:
        """The store of a new study."""
        return open_store()

    # ------------------------------------------------------------------ results

    def test_what_was_added_comes_back_equal(self, store: ResultStore) -> None:
        """Every field, every digit."""
        result = example_result()
        store.add(result)
        assert list(store.all_attempts()) == [result]
        assert store.get(result.id) == result
        assert store.results() == [result]
        assert store.attempts(result.id) == [result]

    @pytest.mark.parametrize("status", ["completed", "diverged", "failed"])
    def test_every_status_can_be_kept(self, store: ResultStore, status: str) -> None:
        """Also for a result with only the required fields."""
        full, run = result_of(1, status=status), example_run(seed=2)
        minimal = RunResult(run=run, status=status, loss=1.5 if status == "completed" else None)
        store.add(full)
        store.add(minimal)
        assert store.results() == [full, minimal]

    def test_awkward_values_come_back_equal(self, store: ResultStore) -> None:
        """Unusual text, and numbers at the limits of JSON and databases."""
        text = "Ünïcödé \u2028 \U0001f600 'quoted' \"twice\" \\ % ? :name \x00 \r\n\t" + "long " * 20_000
        error = RunError(type="Fehler", message=text, traceback=text)
        result = example_result(
            run=example_run(seed=2**64 - 1, size="wide", params=2**70),
            status="failed",
            error=error,
            metrics={"tiny": 5e-324, "huge": 1.7976931348623157e308, "third": 1 / 3, "": -0.0},
        )
        store.add(result)
        assert changed_fields(store.get(result.id), result) == []

    def test_an_unknown_run_has_no_result(self, store: ResultStore) -> None:
        """``get`` returns None and ``attempts`` an empty list. Neither raises."""
        store.add(result_of(1))
        assert store.get("unknown") is None
        assert store.attempts("unknown") == []

    def test_a_new_store_is_empty(self, store: ResultStore) -> None:
        """Opening a store does not add results."""
        assert list(store.all_attempts()) == []
        assert store.results() == []

    def test_adding_an_attempt_again_replaces_it(self, store: ResultStore) -> None:
        """A result in a worker's outbox may be read twice."""
        store.add(result_of(1))
        store.add(result_of(2))
        store.add(result_of(1))
        assert store.results() == [result_of(1), result_of(2)]
        store.add(result_of(1, loss=1.25))
        assert store.attempts(result_of(1).id) == [result_of(1, loss=1.25)]
        assert store.results() == [result_of(1, loss=1.25), result_of(2)]

    def test_every_attempt_is_kept_and_the_latest_counts(self, store: ResultStore) -> None:
        """The number of an attempt counts, not the order in which attempts are added."""
        first, second, last = result_of(1, 1, status="failed"), result_of(1, 2, status="failed"), result_of(1, 10)
        store.add(first)
        store.add(last)
        store.add(second)
        assert [result.attempt for result in store.attempts(first.id)] == [1, 2, 10]
        assert store.attempts(first.id) == [first, second, last]
        assert store.get(first.id) == last
        assert store.results() == [last]

    def test_all_attempts_come_in_the_order_in_which_they_were_added(self, store: ResultStore) -> None:
        """For all runs, attempt numbers and times. A second call returns the same."""
        order = [(5, 2), (1, 1), (5, 10), (9, 1), (5, 1), (3, 1)]
        added = [
            result_of(seed, attempt, finished=datetime(2026, 11, 1, 23 - index, tzinfo=UTC))
            for index, (seed, attempt) in enumerate(order)
        ]
        for result in added:
            store.add(result)
        assert list(store.all_attempts()) == added
        assert list(store.all_attempts()) == added

    def test_a_replaced_attempt_appears_once_in_its_first_place(self, store: ResultStore) -> None:
        """With its new content."""
        first, second, other = result_of(1, 1, status="failed"), result_of(1, 2), result_of(2)
        for result in (first, other, second):
            store.add(result)
        replaced = result_of(1, 1, status="diverged")
        store.add(replaced)
        assert list(store.all_attempts()) == [replaced, other, second]
        store.add(result_of(3))
        store.add(result_of(2, loss=1.25))
        assert list(store.all_attempts()) == [replaced, result_of(2, loss=1.25), second, result_of(3)]

    def test_methods_that_are_overridden_agree_with_all_attempts(self, store: ResultStore) -> None:
        """``get``, ``results`` and ``attempts`` return the values of the base class, which reads all attempts."""
        for seed, attempt in [(2, 1), (1, 3), (2, 2), (1, 1), (3, 1)]:
            store.add(result_of(seed, attempt))
        assert store.results() == ResultStore.results(store)
        for run_id in (*(result_of(seed).id for seed in (1, 2, 3)), "unknown"):
            assert store.attempts(run_id) == ResultStore.attempts(store, run_id)
            assert store.get(run_id) == ResultStore.get(store, run_id)

    def test_results_come_in_the_order_in_which_runs_were_first_added(self, store: ResultStore) -> None:
        """Neither a later attempt nor the times of results change the order of runs."""
        seeds = [5, 1, 9, 3, 7, 2, 8]
        clocks = {seed: datetime(2026, 11, 1, 23 - seed, tzinfo=UTC) for seed in seeds}
        for seed in seeds:
            store.add(result_of(seed, status="failed", finished=clocks[seed]))
        for seed in sorted(seeds):
            store.add(result_of(seed, attempt=2, finished=clocks[seed]))
        assert [result.run.seed for result in store.results()] == seeds
        assert {result.attempt for result in store.results()} == {2}

    def test_what_a_caller_does_to_a_list_changes_nothing(self, store: ResultStore) -> None:
        """Returned lists are copies."""
        store.add(result_of(1))
        store.results().clear()
        store.attempts(result_of(1).id).clear()
        assert len(store.results()) == len(store.attempts(result_of(1).id)) == 1

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_number_that_is_not_finite_does_not_get_in(self, store: ResultStore, value: float) -> None:
        """``model_copy`` does not validate, so the store must: ``RunResult.model_validate(x.model_dump())``."""
        store.add(result_of(1))
        invalid = result_of(2).model_copy(update={"loss": value})
        with pytest.raises((ValueError, StoreError)):
            store.add(invalid)
        assert store.get(invalid.id) is None
        assert store.results() == [result_of(1)]

    def test_opening_again_finds_everything(self, open_store: OpenStore) -> None:
        """Results, attempts, their order, and the owners of claims, unless claims are those of the base class."""
        if not self.persistent:
            pytest.skip("this store does not claim to be persistent")
        store = open_store()
        added = [result_of(3, status="failed"), result_of(1), result_of(3, attempt=2), result_of(2)]
        for result in added:
            store.add(result)
        store.add(added[1])
        assert store.claim("run", "first driver", 600)
        store.close()
        store = open_store()
        assert list(store.all_attempts()) == added
        assert store.results() == [added[2], added[1], added[3]]
        assert store.attempts(added[0].id) == [added[0], added[2]]
        assert not store.shares_claims or not store.claim("run", "second driver", 600)
        store.add(result_of(4))
        assert store.results()[-1] == result_of(4)

    def test_two_studies_are_kept_apart(
        self, store: ResultStore, registry: Registry, given_options: Mapping[str, JsonValue], folder: Path
    ) -> None:
        """The same plan in two folders, with different devices or code. Neither study sees the results of the
        other."""
        store.add(result_of(1))
        assert store.claim("run", "anna", 600)
        other_folder = folder.with_name("another")
        other_folder.mkdir()
        other = build_store(registry, self.name, given_options, other_folder)
        try:
            assert other.results() == [], "a study has the results of another study"
            assert other.claim("run", "bert", 600), "a claim in a study blocks another study"
        finally:
            other.close()


def changed_fields(stored: RunResult | None, added: RunResult) -> list[str]:
    """Names of the fields that differ.

    Names only, because pytest takes minutes to compare two texts of this size in full (under ``CI``).
    """
    if stored is None:
        return ["all: the store does not have the result"]
    return [name for name in RunResult.model_fields if getattr(stored, name) != getattr(added, name)]
