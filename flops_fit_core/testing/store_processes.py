"""The tests of several processes in the conformance kit for result stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from pydantic import JsonValue

from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import RunResult
from flops_fit_core.testing.examples import result_of
from flops_fit_core.testing.processes import OtherProcess
from flops_fit_core.testing.store_claims import OpenStore


class ProcessConformance:
    """Tests of several processes. A part of ``StoreConformance``, which has the other fixtures."""

    name: str
    persistent: bool
    shared: bool
    kills: int
    moment: float

    @pytest.fixture
    def start_other(
        self, registry: Registry, given_options: Mapping[str, JsonValue], folder: Path
    ) -> Iterator[Callable[[], OtherProcess]]:
        """A function that starts another process with the same store open. All are killed at the end."""
        if not (self.persistent and self.shared):
            pytest.skip("this store does not claim that several processes may share it")
        started: list[OtherProcess] = []

        def start() -> OtherProcess:
            started.append(OtherProcess(registry.setup, self.name, given_options, folder))
            return started[-1]

        yield start
        for process in started:
            process.kill()

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
