"""The conformance kit for loggers.

::

    from flops_fit_core.testing import LoggerConformance

    class TestMyLogger(LoggerConformance):
        name = "mine"
        keeps = ("status", "loss")

        def shown(self, folder):
            lines = (folder / "mine.jsonl").read_text().splitlines()
            return [json.loads(line) for line in lines]
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flops_fit_core.config import PluginConfig, build_logger
from flops_fit_core.plugins.protocols import Logger
from flops_fit_core.records import Evaluation, PluginChoice, Progress, RunError, RunResult, RunSpec, SweepPlan
from flops_fit_core.testing.examples import example_result, example_run
from flops_fit_core.testing.kit import Kit

STUDY = dict.fromkeys(
    ("experiment.json", "plan.json", "plugins.json", "fit.json", "results.sqlite"), "of the study"
)
"""Files of a study that a logger must not change, with their content."""


class LoggerConformance(Kit):
    """Tests for every ``Logger``. Inherit, set ``name`` (and override ``shown``), and run pytest.

    Attributes:
        name: The logger's name, as in ``loggers = ["..."]``.
        options: The logger's options.
        plugins: Plugins that are not installed, as for ``Registry``: name -> module.
        keeps: Keys that :meth:`shown` must return for every result: any of ``attempt``, ``status``, ``loss``,
            ``params``, ``tokens``, ``flops``, ``eval``, ``error``.
        keeps_training: Whether ``shown`` returns the training curve as ``training``. Points may be missing.
        keeps_attempts: Whether ``shown`` returns every attempt at a run, or only the last.
        prints: Whether the logger writes to standard output.
        writes_elsewhere: Whether the logger writes files outside of the study's folder.
        exit_timeout: Seconds after ``close`` in which threads and processes may end.
        library_threads: Prefixes of the names of threads that a library keeps until the process ends.
    """

    kind: ClassVar[str] = "logger"
    keeps: ClassVar[Sequence[str]] = ("status", "loss")
    keeps_training: ClassVar[bool] = False
    keeps_attempts: ClassVar[bool] = True
    prints: ClassVar[bool] = False
    writes_elsewhere: ClassVar[bool] = False
    exit_timeout: ClassVar[float] = 3.0
    library_threads: ClassVar[Sequence[str]] = ()

    def shown(self, folder: Path) -> Sequence[Mapping[str, Any]] | None:
        """Override this: read the logged results of the study in ``folder``, after the logger was closed.

        Return one mapping per result: ``run`` (its id) and the logged keys among ``attempt``, ``status``,
        ``loss``, ``params`` (N), ``tokens`` (trained D), ``flops``, ``eval`` and ``training`` (lists of
        ``(tokens, loss)``), and ``error`` (text that contains the message). The default, None, means that the log
        cannot be read. The kit then tests only that the logger works.
        """
        return None

    # ------------------------------------------------------------------ fixtures

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The study's folder."""
        folder = tmp_path / "study"
        folder.mkdir()
        return folder

    @pytest.fixture
    def elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The working directory, empty."""
        working = tmp_path / "elsewhere"
        working.mkdir()
        monkeypatch.chdir(working)
        return working

    @pytest.fixture(autouse=True)
    def _quiet(self, elsewhere: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
        yield
        output = capfd.readouterr().out
        if not self.prints:
            assert output == "", "standard output must contain only the output of a command"

    # ------------------------------------------------------------------ a sweep

    def test_it_follows_a_sweep_from_its_start_to_its_end(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Sequential runs, each with progress, evaluations and a result."""
        runs = _runs(2)
        results = [_result(run) for run in runs]
        logger = _start_logger(chosen, folder, runs)
        for result in results:
            for progress in _progress(result.run):
                logger.progress(progress)
            logger.finished(result)
        logger.close()
        self._check(folder, results, _training(*runs))

    def test_runs_that_train_at_the_same_time_are_kept_apart(
        self, chosen: PluginConfig[Any], folder: Path
    ) -> None:
        """Their progress is interleaved, and they end in another order than they started."""
        runs = _runs(3)
        results = [_result(run) for run in runs]
        logger = _start_logger(chosen, folder, runs)
        for simultaneous in zip(*(_progress(run) for run in runs), strict=True):
            for progress in simultaneous:
                logger.progress(progress)
        for result in reversed(results):
            logger.finished(result)
        logger.close()
        self._check(folder, results, _training(*runs))

    def test_a_result_needs_no_progress_before_it(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Another driver trained the run, or it was too short for progress."""
        runs = _runs(2)
        results = [_result(run) for run in runs]
        logger = _start_logger(chosen, folder, runs)
        for result in results:
            logger.finished(result)
        logger.close()
        self._check(folder, results)

    def test_runs_that_fail_or_diverge_are_shown(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """In the middle of training, or before it started, with errors of any text and length."""
        runs = _runs(4)
        text = "Ünïcödé \U0001f600 'quoted' \"twice\" % {x} \\ \r\n\t<b>`x`" + "long " * 3000
        results = [
            _result(runs[0], status="diverged", tokens=runs[0].tokens // 2),
            _result(runs[1], status="failed", tokens=runs[1].tokens // 2),
            RunResult(
                run=runs[2], status="failed", error=RunError(type="WorkerLost", message="killed by SIGKILL")
            ),
            _result(runs[3], status="failed", error=RunError(type="Fehler", message=text, traceback=text)),
        ]
        logger = _start_logger(chosen, folder, runs)
        for result in results:
            for progress in _progress(result.run) if result.curve else ():
                logger.progress(progress)
            logger.finished(result)
        logger.close()
        self._check(folder, results)

    def test_numbers_may_be_missing(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Progress without a loss, evaluations that were not finite, a result with only a loss."""
        runs = _runs(2)
        curve = (Evaluation(step=1, tokens=100, loss=None), Evaluation(step=2, tokens=200, loss=3.5))
        results = [_result(runs[0], curve=curve), RunResult(run=runs[1], status="completed", loss=1.5)]
        logger = _start_logger(chosen, folder, runs)
        for result in results:
            for progress in _progress(result.run):
                logger.progress(progress.model_copy(update={"loss": None, "tokens_per_second": None}))
            logger.finished(result)
        logger.close()
        self._check(folder, results)

    def test_metrics_may_be_called_anything(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Tasks and datasets choose the names."""
        (run,) = _runs(1)
        odd = {"top-5 accuracy": 0.5, "a/b": 1.0, "../up": 2.0, "": 3.0, "größe": 4.0, "x" * 300: 5.0}
        result = _result(run, metrics=odd, losses={"deutsch/ß": 2.0})
        logger = _start_logger(chosen, folder, [run])
        logger.finished(result)
        logger.close()
        self._check(folder, [result])

    def test_every_attempt_at_a_run_is_followed(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """A worker was lost and the run was retried immediately. Much later, the run is trained once more."""
        (run,) = _runs(1)
        results = [_result(run, attempt=1, status="failed"), _result(run, attempt=2), _result(run, attempt=3)]
        logger = _start_logger(chosen, folder, [run])
        for result in results[:2]:
            for progress in _progress(run, attempt=result.attempt):
                logger.progress(progress)
            logger.finished(result)
        logger.close()
        logger = _start_logger(chosen, folder, [run])
        for progress in _progress(run, attempt=3):
            logger.progress(progress)
        logger.finished(results[2])
        logger.close()
        self._check(folder, results if self.keeps_attempts else results[-1:], _training(run))

    def test_a_sweep_without_anything_to_train_is_no_error(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """All runs have finished before the sweep."""
        _start_logger(chosen, folder, _runs(2)).close()

    # ------------------------------------------------------------------ a study that is continued

    def test_opening_again_keeps_what_was_there(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """The next sweep of a study trains the remaining runs. It reports no finished runs."""
        runs = _runs(3)
        results = [_result(run) for run in runs]
        for result in results:
            logger = _start_logger(chosen, folder, runs)
            for progress in _progress(result.run):
                logger.progress(progress)
            logger.finished(result)
            logger.close()
        _start_logger(chosen, folder, runs).close()
        self._check(folder, results, _training(*runs))

    def test_a_run_that_was_interrupted_goes_on(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Ctrl-C in the middle of a run. The next sweep continues at an earlier step, that of the last
        checkpoint."""
        (run,) = _runs(1)
        updates = list(_progress(run))
        logger = _start_logger(chosen, folder, [run])
        for progress in updates[:3]:
            logger.progress(progress)
        logger.close()
        logger = _start_logger(chosen, folder, [run])
        for progress in updates[1:]:
            logger.progress(progress)
        logger.finished(_result(run))
        logger.close()
        self._check(folder, [_result(run)], _training(run))

    # ------------------------------------------------------------------ threads, processes and files

    def test_closing_twice_leaves_no_thread_and_no_process(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Also if the logger was never started, because the sweep could not start."""
        before = self._threads_and_children()
        runs = _runs(2)
        logger = _start_logger(chosen, folder, runs)
        for progress in _progress(runs[0]):
            logger.progress(progress)
        logger.finished(_result(runs[1]))
        logger.close()
        logger.close()
        build_logger(chosen, folder).close()
        deadline = time.monotonic() + self.exit_timeout
        while (remaining := self._threads_and_children() - before) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert remaining == set(), "close() must end the threads and processes of the logger"

    def test_it_writes_into_the_study_s_folder_only(
        self, chosen: PluginConfig[Any], folder: Path, elsewhere: Path
    ) -> None:
        """Not into the working directory, not next to the folder, and not over files of the study."""
        if self.writes_elsewhere:
            pytest.skip("this logger declares that it writes outside of the study's folder")
        runs = _runs(1)
        for name, text in STUDY.items():
            (folder / name).write_text(text)
        logger = _start_logger(chosen, folder, runs)
        for progress in _progress(runs[0]):
            logger.progress(progress)
        logger.finished(_result(runs[0]))
        logger.close()
        assert list(elsewhere.iterdir()) == [], "the logger wrote into the working directory"
        assert sorted(folder.parent.iterdir()) == [elsewhere, folder], (
            "the logger wrote next to the study's folder"
        )
        for name, text in STUDY.items():
            assert (folder / name).read_text() == text, f"the logger changed the study's {name}"

    def _threads_and_children(self) -> set[str]:
        """Threads and child processes (without zombies), with their names and numbers."""
        prefixes = tuple(self.library_threads)
        threads = {thread for thread in threading.enumerate() if not thread.name.startswith(prefixes)}
        return {*(f"thread {thread.name} {thread.ident}" for thread in threads), *_children(os.getpid())}

    # ------------------------------------------------------------------ logged results

    def _check(
        self,
        folder: Path,
        results: Sequence[RunResult],
        training: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    ) -> None:
        rows = self.shown(folder)
        if rows is None:
            return
        by_key = {(row["run"], row.get("attempt", 1)): row for row in rows}
        expected = {(result.id, result.attempt if self.keeps_attempts else 1): result for result in results}
        assert sorted(by_key) == sorted(expected), "one row per result"
        assert len(rows) == len(by_key), "one row per result"
        for key, result in expected.items():
            self._check_row(by_key[key], result)
            if self.keeps_training and training is not None:
                _check_points(by_key[key]["training"], training[result.id])

    def _check_row(self, row: Mapping[str, Any], result: RunResult) -> None:
        """Compare numbers to six digits, because TensorBoard stores single precision."""
        for key, value in _expected_row(result).items():
            if key in row or (key in self.keeps and value is not None):
                close = value if value is None or isinstance(value, str) else pytest.approx(value, rel=1e-6)
                assert row[key] == close, f"{key} of run {result.id}"
        if "eval" in self.keeps:
            curve = [(point.tokens, point.loss) for point in result.curve if point.loss is not None]
            assert len(row["eval"]) == len(curve), f"held-out evaluations of run {result.id}"
            _check_points(row["eval"], curve)
        if "error" in self.keeps and result.error is not None:
            assert result.error.message[:20] in row["error"]


def _expected_row(result: RunResult) -> dict[str, Any]:
    return {
        "attempt": result.attempt,
        "status": result.status,
        "loss": result.loss,
        "params": result.run.params,
        "tokens": result.tokens,
        "flops": result.flops,
    }


def _check_points(points: Sequence[tuple[int, float]], curve: Sequence[tuple[int, float]]) -> None:
    """Check that all points are on the curve."""
    losses = dict(curve)
    assert points or not curve, "no point of the curve"
    for tokens, loss in points:
        assert loss == pytest.approx(losses[tokens], rel=1e-6), f"loss at {tokens} tokens"


def _start_logger(chosen: PluginConfig[Any], folder: Path, runs: Sequence[RunSpec]) -> Logger:
    logger = build_logger(chosen, folder)
    logger.started(
        SweepPlan(
            name="a study",
            runs=tuple(runs),
            params_name="matmul parameters (without lookup tables)",
            flops_name="6 N D",
            device=PluginChoice(name="devices/cpu"),
        )
    )
    return logger


def _runs(count: int) -> list[RunSpec]:
    """Runs that differ in all numbers."""
    return [
        example_run(seed=seed, params=10_000 + 7 * seed, tokens=400 * (1024 + seed), budget=(1.2 + seed) * 1e11)
        for seed in range(count)
    ]


def _result(run: RunSpec, **changes: Any) -> RunResult:
    loss = 2.0 + run.seed / 8 + changes.get("attempt", 1) / 64
    tokens = changes.get("tokens", run.tokens)
    defaults = {
        "loss": loss if changes.get("status", "completed") == "completed" else None,
        "curve": (
            Evaluation(step=100, tokens=tokens // 4, loss=loss + 1.5),
            Evaluation(step=400, tokens=tokens, loss=loss),
        ),
        "flops": run.flops_per_token * tokens,
    }
    return example_result(run=run, **{**defaults, **changes})


def _progress(run: RunSpec, attempt: int = 1) -> Iterator[Progress]:
    for step in (1, 100, 200, 300, 400):
        yield Progress(
            run=run.id,
            step=step,
            steps=run.steps,
            tokens=step * run.tokens_per_step,
            loss=5.0 + run.seed - step / 200,
            tokens_per_second=1000.0 + run.seed,
            attempt=attempt,
        )


def _training(*runs: RunSpec) -> dict[str, list[tuple[int, float]]]:
    return {run.id: [(progress.tokens, progress.loss or 0.0) for progress in _progress(run)] for run in runs}


def _children(parent: int) -> set[str]:
    """Child processes without zombies; an empty set on systems without /proc."""
    children = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(") ")
        except OSError:  # the process has just ended
            continue
        state, parent_id = rest.split()[:2]
        if int(parent_id) == parent and state != "Z":
            children.add(f"process {name})")
    return children
