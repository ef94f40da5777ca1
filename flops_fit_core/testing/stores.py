"""The conformance kit for result stores.

::

    from flops_fit_core.testing import StoreConformance

    class TestMyStore(StoreConformance):
        name = "mine"
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
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
from flops_fit_core.testing.processes import OtherProcess, build_store

OpenStore = Callable[[], ResultStore]


class StoreConformance(Kit):
    """Tests for every store. Inherit, set ``name``, and run pytest.

    Tests of fencing are skipped for a store that does not check the tokens of claims.

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

    @pytest.fixture
    def start_other(
        self, registry: Registry, given_options: Mapping[str, JsonValue], folder: Path
    ) -> Iterator[Callable[[], OtherProcess]]:
        """A function that starts another process with the same store open. All are killed at the end."""
        if not (self.persistent and self.shared):
            pytest.skip("this store does not claim that several processes may share it")
        setup = registry.setup.model_copy(update={"paths": tuple(sys.path)})
        started: list[OtherProcess] = []

        def start() -> OtherProcess:
            started.append(OtherProcess(setup, self.name, given_options, folder))
            return started[-1]

        yield start
        for process in started:
            process.kill()

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

    # ------------------------------------------------------------------ claims

    def test_a_claim_excludes_others(self, store: ResultStore) -> None:
        """For a single run. The owner may claim it again."""
        assert store.claim("run", "anna", 600)
        assert not store.claim("run", "bert", 600)
        assert store.claim("run", "anna", 600)
        assert not store.claim("run", "bert", 600)
        assert store.claim("another run", "bert", 600)

    def test_a_released_claim_can_be_taken(self, store: ResultStore) -> None:
        """A second release is not an error."""
        assert store.claim("run", "anna", 600)
        store.release("run", "anna")
        store.release("run", "anna")
        assert store.claim("run", "bert", 600)
        assert not store.claim("run", "anna", 600)

    def test_only_the_holder_can_release(self, store: ResultStore) -> None:
        """A release by another owner does nothing."""
        store.release("run", "bert")
        assert store.claim("run", "anna", 600)
        store.release("run", "bert")
        assert not store.claim("run", "bert", 600)

    def test_a_claim_ends_by_itself(self, store: ResultStore) -> None:
        """A killed driver blocks a run only until its claim ends."""
        assert store.claim("run", "anna", self.moment)
        time.sleep(2 * self.moment)
        assert store.claim("run", "bert", 600), f"still held after twice its {self.moment} seconds"
        assert not store.renew("run", "anna", 600)
        store.release("run", "anna")
        assert not store.claim("run", "anna", 600)

    def test_a_renewed_claim_lasts_longer(self, store: ResultStore) -> None:
        """From the time of the call, not from the end of the claim."""
        assert store.claim("run", "anna", 10 * self.moment)
        assert store.renew("run", "anna", 600)
        time.sleep(12 * self.moment)
        assert not store.claim("run", "bert", 600), "a renewed claim ended at its original time"
        assert store.renew("run", "anna", self.moment)
        time.sleep(2 * self.moment)
        assert store.claim("run", "bert", 600), "a claim renewed for a shorter time is still held after this time"

    def test_another_object_in_the_driver_renews_its_claim(self, open_store: OpenStore) -> None:
        """The driver renews claims in a thread, which opens the store again. Tokens stay valid."""
        if not (self.persistent and self.shared):
            pytest.skip("this store does not claim that several processes may share it")
        store, thread, other = open_store(), open_store(), open_store()
        result = result_of(1)
        token = store.claim(result.id, "anna", 10 * self.moment)
        assert thread.renew(result.id, "anna", 600)
        time.sleep(12 * self.moment)
        assert not other.claim(result.id, "bert", 600), "a claim renewed by another object ended at its first time"
        if store.fenced and isinstance(token, str):
            store.add(result)
            again = store.add(result_of(1, attempt=2), token)
            assert again is not None
            assert not again.superseded
        thread.release(result.id, "anna")
        assert other.claim(result.id, "bert", 600)

    def test_only_the_holder_can_renew(self, store: ResultStore) -> None:
        """Renewing a run that is unclaimed, or claimed by another owner, does not claim it."""
        assert not store.renew("run", "bert", 600)
        assert store.claim("run", "anna", 600)
        assert not store.renew("run", "bert", 600)
        assert store.renew("run", "anna", 600)
        store.release("run", "anna")
        assert not store.renew("run", "anna", 600)

    def test_claims_are_no_results(self, store: ResultStore) -> None:
        """A result neither requires nor ends a claim."""
        result = result_of(1)
        assert store.claim(result.id, "anna", 600)
        assert store.get(result.id) is None
        assert store.results() == []
        store.add(result)
        assert not store.claim(result.id, "bert", 600)

    def test_a_store_for_several_machines_has_shared_claims(self, store: ResultStore) -> None:
        """A store with ``shared_between_machines`` implements ``claim``, ``renew`` and ``release``."""
        inherited = [
            name
            for name in ("claim", "renew", "release")
            if getattr(type(store), name) is getattr(ResultStore, name)
        ]
        if store.shared_between_machines or store.shares_claims:
            assert inherited == []

    # ------------------------------------------------------------------ fencing

    @pytest.fixture
    def fenced(self, store: ResultStore) -> ResultStore:
        """The store, which checks the tokens of claims."""
        if not store.fenced:
            pytest.skip("not fenced: a driver that lost its claim may replace a result of another driver")
        return store

    def test_every_claim_has_another_token(self, fenced: ResultStore) -> None:
        """Also a repeated claim of the same owner, and a claim after a release."""
        tokens = [claim_token(fenced, "run", "anna"), claim_token(fenced, "run", "anna")]
        fenced.release("run", "anna")
        tokens += [claim_token(fenced, "run", "bert"), claim_token(fenced, "another run", "bert")]
        fenced.release("run", "bert")
        tokens.append(claim_token(fenced, "run", "anna"))
        assert len(set(tokens)) == len(tokens)
        assert fenced.claim("run", "bert", 600) is False

    def test_a_result_of_the_holder_counts_and_its_claim_stays(self, fenced: ResultStore) -> None:
        """Also as a further attempt at a finished run, after ``renew``."""
        first = result_of(1, loss=1.25)
        token = claim_token(fenced, first.id, "anna")
        assert fenced.add(first, token) == first
        assert fenced.renew(first.id, "anna", 600)
        again = result_of(1, attempt=2, loss=1.5)
        assert fenced.add(again, token) == again
        assert fenced.attempts(first.id) == [first, again]
        assert fenced.get(first.id) == again
        assert not fenced.claim(first.id, "bert", 600)

    def test_a_stale_result_replaces_nothing(self, fenced: ResultStore) -> None:
        """It is stored as a superseded attempt with another number. The claim of the other driver stays."""
        accepted, late = result_of(1, loss=1.25), result_of(1, loss=1.5)
        stale = claim_token(fenced, late.id, "anna", self.moment)
        time.sleep(2 * self.moment)
        fenced.add(accepted, claim_token(fenced, late.id, "bert"))
        stored = fenced.add(late, stale)
        assert stored == late.model_copy(update={"attempt": 2, "superseded": True})
        assert fenced.attempts(late.id) == [accepted, stored]
        assert list(fenced.all_attempts()) == [accepted, stored]
        assert fenced.get(late.id) == accepted
        assert fenced.results() == [accepted]
        assert fenced.renew(late.id, "bert", 600)

    def test_a_superseded_attempt_never_counts(self, fenced: ResultStore) -> None:
        """Whatever its number, whether it was added with a token, and also if no other attempt is stored."""
        accepted = result_of(1, loss=1.25)
        fenced.add(accepted)
        late = fenced.add(result_of(1, attempt=7, loss=1.5), "no token")
        assert late is not None
        assert late.superseded
        copied = result_of(2, superseded=True)
        fenced.add(copied)
        assert fenced.get(accepted.id) == accepted
        assert fenced.get(copied.id) is None
        assert fenced.results() == [accepted]
        assert fenced.attempts(copied.id) == [copied]
        assert list(fenced.all_attempts()) == [accepted, late, copied]

    @pytest.mark.parametrize("status", ["completed", "diverged"])
    def test_a_stale_result_counts_if_nothing_has_finished(self, fenced: ResultStore, status: str) -> None:
        """The other driver's claim ends, so that its next ``renew`` returns False. Its result is superseded."""
        late, second = result_of(1, status=status), result_of(1, loss=1.5)
        stale = claim_token(fenced, late.id, "anna", self.moment)
        fenced.add(result_of(1, status="failed"), stale)
        time.sleep(2 * self.moment)
        token = claim_token(fenced, late.id, "bert")
        stored = fenced.add(late, stale)
        assert stored == late.model_copy(update={"attempt": 2})
        assert fenced.get(late.id) == stored
        assert not fenced.renew(late.id, "bert", 600)
        last = fenced.add(second, token)
        assert last == second.model_copy(update={"attempt": 3, "superseded": True})
        assert fenced.get(late.id) == stored

    def test_a_stale_failure_ends_no_claim(self, fenced: ResultStore) -> None:
        """The other driver continues, and its result counts."""
        failed, result = result_of(1, status="failed"), result_of(1)
        stale = claim_token(fenced, failed.id, "anna", self.moment)
        time.sleep(2 * self.moment)
        token = claim_token(fenced, failed.id, "bert")
        assert fenced.add(failed, stale) == failed
        assert fenced.renew(failed.id, "bert", 600)
        stored = fenced.add(result, token)
        assert stored == result.model_copy(update={"attempt": 2})
        assert fenced.results() == [stored]

    def test_a_token_of_an_earlier_claim_is_stale(self, fenced: ResultStore) -> None:
        """Also of the same owner, after a release, and the token of another run."""
        accepted = result_of(1, loss=1.25)
        earlier = claim_token(fenced, accepted.id, "anna")
        token = claim_token(fenced, accepted.id, "anna")
        other = claim_token(fenced, result_of(2).id, "anna")
        fenced.add(accepted, token)
        fenced.release(accepted.id, "anna")
        for attempt, stale in enumerate((earlier, token, other, "no token"), 2):
            stored = fenced.add(result_of(1, attempt=attempt, loss=1.5 + attempt), stale)
            assert stored is not None
            assert stored.superseded
        assert fenced.results() == [accepted]

    def test_an_equal_result_is_stored_once(self, fenced: ResultStore) -> None:
        """A driver repeats ``add`` after a lost connection. Later attempts and claims change nothing."""
        result, late = result_of(1, loss=1.25), result_of(1, loss=1.5)
        token = claim_token(fenced, result.id, "anna")
        assert fenced.add(result, token) == fenced.add(result, token) == result
        fenced.release(result.id, "anna")
        assert fenced.add(result, token) == result
        superseded = fenced.add(late, token)
        claim_token(fenced, result.id, "bert")
        assert fenced.add(late, token) == superseded
        assert fenced.add(result, token) == result
        assert fenced.attempts(result.id) == [result, superseded]

    def test_a_fenced_store_refuses_a_number_that_is_not_finite(self, fenced: ResultStore) -> None:
        """Under a claim, too."""
        invalid = result_of(1).model_copy(update={"loss": math.nan})
        token = claim_token(fenced, invalid.id, "anna")
        with pytest.raises((ValueError, StoreError)):
            fenced.add(invalid, token)
        assert fenced.attempts(invalid.id) == []

    # ------------------------------------------------------------------ several processes

    def test_two_processes_never_hold_one_claim(self, start_other: Callable[[], OtherProcess]) -> None:
        """Both claim each of 50 runs at the same time, and exactly one succeeds."""
        processes = [start_other(), start_other()]
        answers = []
        for run in range(50):
            for number, process in enumerate(processes):
                process.send("claim", f"run {run}", f"driver {number}", 600)
            answers.append([process.answer() for process in processes])
        assert [sorted(bool(answer) for answer in pair) for pair in answers] == [[False, True]] * 50

    def test_two_processes_adding_at_once_lose_nothing(
        self, store: ResultStore, start_other: Callable[[], OtherProcess]
    ) -> None:
        """And a third process with the same store open sees all results."""
        writers = [start_other(), start_other()]
        for index in range(25):
            for number, writer in enumerate(writers):
                writer.send("add", result_of(100 * number + index).model_dump_json())
        for _ in range(25):
            for writer in writers:
                writer.answer()
        expected = {100 * number + index for number in (0, 1) for index in range(25)}
        assert {result.run.seed for result in store.results()} == expected
        assert len(store.results()) == 50

    def test_two_drivers_of_one_run_keep_the_first_finished_result(
        self, fenced: ResultStore, start_other: Callable[[], OtherProcess]
    ) -> None:
        """Training is not deterministic: two processes add different results of each run at the same time."""
        drivers = [start_other(), start_other()]
        for run in range(10):
            results = [result_of(run, loss=1.25 + number) for number in range(2)]
            tokens: list[str] = []
            for number, driver in enumerate(drivers):
                while len(tokens) == number:
                    driver.send("claim", results[0].id, f"driver {number}", self.moment)
                    tokens += [token for token in [driver.answer()] if token]
            for driver, result, token in zip(drivers, results, tokens, strict=True):
                driver.send("add", result.model_dump_json(), token)
            stored = [RunResult.model_validate_json(driver.answer()) for driver in drivers]
            assert sorted(result.superseded for result in stored) == [False, True]
            assert sorted(result.attempt for result in stored) == [1, 2]
            assert fenced.get(results[0].id) == next(result for result in stored if not result.superseded)
            assert sorted(fenced.attempts(results[0].id), key=str) == sorted(stored, key=str)

    def test_a_killed_process_loses_nothing_that_was_added(
        self, open_store: OpenStore, start_other: Callable[[], OtherProcess]
    ) -> None:
        """SIGKILL during a series of ``add`` calls. Every result for which ``add`` had returned is complete."""
        acknowledged: list[int] = []
        for kill in range(self.kills):
            writer = start_other()
            writer.send("stream", 1000 * kill)
            acknowledged += [writer.answer() for _ in range(5)]
            time.sleep(0.007 * kill)
            acknowledged += writer.kill()
            store = open_store()
            seeds = [result.run.seed for result in store.results()]
            assert set(acknowledged) <= set(seeds)
            assert store.get(result_of(acknowledged[-1]).id) == result_of(acknowledged[-1])
            store.add(result_of(-1 - kill))
            store.close()


def claim_token(store: ResultStore, run_id: str, owner: str, seconds: float = 600) -> str:
    """The token of a new claim."""
    token = store.claim(run_id, owner, seconds)
    assert isinstance(token, str), f"claim returned {token!r}; a fenced store returns a token, as text"
    return token


def changed_fields(stored: RunResult | None, added: RunResult) -> list[str]:
    """Names of the fields that differ.

    Names only, because pytest takes minutes to compare two texts of this size in full (under ``CI``).
    """
    if stored is None:
        return ["all: the store does not have the result"]
    return [name for name in RunResult.model_fields if getattr(stored, name) != getattr(added, name)]
