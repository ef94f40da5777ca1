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
"""Files of a study that are not a logger's."""


class LoggerConformance(Kit):
    """What every ``Logger`` must do. Inherit, set ``name`` (and ``shown``), and run pytest.

    Attributes:
        name: The logger's name, as in ``loggers = ["..."]``.
        options: Its options.
        plugins: Plugins that are not installed, as for ``Registry``: name -> module.
        keeps: Of what :meth:`shown` gives, what must be there for every result: of ``attempt``, ``status``,
            ``loss``, ``params``, ``tokens``, ``flops``, ``eval``, ``error``.
        keeps_training: Whether ``shown`` gives the training curve as ``training``; points of it may be missing.
        keeps_attempts: Whether every attempt at a run is shown beside the others.
        prints: Whether it writes on standard output.
        writes_elsewhere: Whether it writes files outside of the study's folder.
        exit_timeout: Seconds after ``close`` in which threads and processes may come to their end.
        library_threads: How the names of threads begin that a library keeps for as long as the process lives.
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
        """Override it: what the logger kept of the study in ``folder``, read back after it was closed.

        One mapping for each result: ``run`` (its id) and what is kept of ``attempt``, ``status``, ``loss``,
        ``params`` (N), ``tokens`` (D that was trained), ``flops``, ``eval`` and ``training`` (lists of
        ``(tokens, loss)``), ``error`` (text with the message in it). None, as here: it cannot be read back,
        and only what the logger does is tested.
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
        said = capfd.readouterr().out
        if not self.prints:
            assert said == "", "standard output is for what a command was asked for"

    # ------------------------------------------------------------------ a sweep

    def test_it_follows_a_sweep_from_its_start_to_its_end(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Runs one after another, each with progress, evaluations and a result."""
        runs = _runs(2)
        results = [_result(run) for run in runs]
        logger = _opened(chosen, folder, runs)
        for result in results:
            for progress in _progress(result.run):
                logger.progress(progress)
            logger.finished(result)
        logger.close()
        self._check(folder, results, _training(*runs))

    def test_runs_that_train_at_the_same_time_are_kept_apart(
        self, chosen: PluginConfig[Any], folder: Path
    ) -> None:
        """Their progress comes interleaved; they end in another order than they began."""
        runs = _runs(3)
        results = [_result(run) for run in runs]
        logger = _opened(chosen, folder, runs)
        for turn in zip(*(_progress(run) for run in runs), strict=True):
            for progress in turn:
                logger.progress(progress)
        for result in reversed(results):
            logger.finished(result)
        logger.close()
        self._check(folder, results, _training(*runs))

    def test_a_result_needs_no_progress_before_it(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Another driver trained it, or it was over before anybody looked."""
        runs = _runs(2)
        results = [_result(run) for run in runs]
        logger = _opened(chosen, folder, runs)
        for result in results:
            logger.finished(result)
        logger.close()
        self._check(folder, results)

    def test_runs_that_fail_or_diverge_are_shown(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """In the middle of training, or before it began; with errors of any text and length."""
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
        logger = _opened(chosen, folder, runs)
        for result in results:
            for progress in _progress(result.run) if result.curve else ():
                logger.progress(progress)
            logger.finished(result)
        logger.close()
        self._check(folder, results)

    def test_numbers_may_be_missing(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Progress without a loss, evaluations that were not finite, a result that has nothing but its loss."""
        runs = _runs(2)
        curve = (Evaluation(step=1, tokens=100, loss=None), Evaluation(step=2, tokens=200, loss=3.5))
        results = [_result(runs[0], curve=curve), RunResult(run=runs[1], status="completed", loss=1.5)]
        logger = _opened(chosen, folder, runs)
        for result in results:
            for progress in _progress(result.run):
                logger.progress(progress.model_copy(update={"loss": None, "tokens_per_second": None}))
            logger.finished(result)
        logger.close()
        self._check(folder, results)

    def test_metrics_may_be_called_anything(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Tasks and datasets name them."""
        (run,) = _runs(1)
        odd = {"top-5 accuracy": 0.5, "a/b": 1.0, "../up": 2.0, "": 3.0, "größe": 4.0, "x" * 300: 5.0}
        result = _result(run, metrics=odd, losses={"deutsch/ß": 2.0})
        logger = _opened(chosen, folder, [run])
        logger.finished(result)
        logger.close()
        self._check(folder, [result])

    def test_every_attempt_at_a_run_is_followed(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """A worker was lost, the run is tried again at once; much later, it is trained once more."""
        (run,) = _runs(1)
        results = [_result(run, attempt=1, status="failed"), _result(run, attempt=2), _result(run, attempt=3)]
        logger = _opened(chosen, folder, [run])
        for result in results[:2]:
            for progress in _progress(run, attempt=result.attempt):
                logger.progress(progress)
            logger.finished(result)
        logger.close()
        logger = _opened(chosen, folder, [run])
        for progress in _progress(run, attempt=3):
            logger.progress(progress)
        logger.finished(results[2])
        logger.close()
        self._check(folder, results if self.keeps_attempts else results[-1:], _training(run))

    def test_a_sweep_without_anything_to_train_is_no_error(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """All of its runs were finished before."""
        _opened(chosen, folder, _runs(2)).close()

    # ------------------------------------------------------------------ a study that goes on

    def test_opening_again_keeps_what_was_there(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """The next sweep of a study trains what is left, and tells of nothing that was finished."""
        runs = _runs(3)
        results = [_result(run) for run in runs]
        for result in results:
            logger = _opened(chosen, folder, runs)
            for progress in _progress(result.run):
                logger.progress(progress)
            logger.finished(result)
            logger.close()
        _opened(chosen, folder, runs).close()
        self._check(folder, results, _training(*runs))

    def test_a_run_that_was_interrupted_goes_on(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Ctrl-C in the middle of a run; the next sweep trains it from its last checkpoint, an earlier step."""
        (run,) = _runs(1)
        progress = list(_progress(run))
        logger = _opened(chosen, folder, [run])
        for one in progress[:3]:
            logger.progress(one)
        logger.close()
        logger = _opened(chosen, folder, [run])
        for one in progress[1:]:
            logger.progress(one)
        logger.finished(_result(run))
        logger.close()
        self._check(folder, [_result(run)], _training(run))

    # ------------------------------------------------------------------ its surroundings

    def test_closing_twice_leaves_no_thread_and_no_process(self, chosen: PluginConfig[Any], folder: Path) -> None:
        """Nor does closing one that was never started, where a sweep could not begin."""
        before = self._at_work()
        runs = _runs(2)
        logger = _opened(chosen, folder, runs)
        for progress in _progress(runs[0]):
            logger.progress(progress)
        logger.finished(_result(runs[1]))
        logger.close()
        logger.close()
        build_logger(chosen, folder).close()
        until = time.monotonic() + self.exit_timeout
        while (left := self._at_work() - before) and time.monotonic() < until:
            time.sleep(0.05)
        assert left == set(), "close() must end what it started"

    def test_it_writes_into_the_study_s_folder_only(
        self, chosen: PluginConfig[Any], folder: Path, elsewhere: Path
    ) -> None:
        """Not into the working directory, not beside the folder, and over none of the study's own files."""
        if self.writes_elsewhere:
            pytest.skip("this logger says that it writes elsewhere")
        runs = _runs(1)
        for name, text in STUDY.items():
            (folder / name).write_text(text)
        logger = _opened(chosen, folder, runs)
        for progress in _progress(runs[0]):
            logger.progress(progress)
        logger.finished(_result(runs[0]))
        logger.close()
        assert list(elsewhere.iterdir()) == [], "it has written into the working directory"
        assert sorted(folder.parent.iterdir()) == [elsewhere, folder], "it has written beside the study's folder"
        for name, text in STUDY.items():
            assert (folder / name).read_text() == text, f"it has changed the study's {name}"

    def _at_work(self) -> set[str]:
        """Threads and child processes by name and number; a zombie is none."""
        known = tuple(self.library_threads)
        threads = {one for one in threading.enumerate() if not one.name.startswith(known)}
        return {*(f"thread {one.name} {one.ident}" for one in threads), *_children(os.getpid())}

    # ------------------------------------------------------------------ what was kept

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
        expected = {(one.id, one.attempt if self.keeps_attempts else 1): one for one in results}
        assert sorted(by_key) == sorted(expected), "one row a result"
        assert len(rows) == len(by_key), "one row a result"
        for key, result in expected.items():
            self._check_row(by_key[key], result)
            if self.keeps_training and training is not None:
                _are_among(by_key[key]["training"], training[result.id])

    def _check_row(self, row: Mapping[str, Any], result: RunResult) -> None:
        """Numbers to six digits: TensorBoard keeps single precision."""
        for key, wanted in _wanted(result).items():
            if key in row or (key in self.keeps and wanted is not None):
                near = wanted if wanted is None or isinstance(wanted, str) else pytest.approx(wanted, rel=1e-6)
                assert row[key] == near, f"{key} of run {result.id}"
        if "eval" in self.keeps:
            curve = [(one.tokens, one.loss) for one in result.curve if one.loss is not None]
            assert len(row["eval"]) == len(curve), f"held-out evaluations of run {result.id}"
            _are_among(row["eval"], curve)
        if "error" in self.keeps and result.error is not None:
            assert result.error.message[:20] in row["error"]


def _wanted(result: RunResult) -> dict[str, Any]:
    return {
        "attempt": result.attempt,
        "status": result.status,
        "loss": result.loss,
        "params": result.run.params,
        "tokens": result.tokens,
        "flops": result.flops,
    }


def _are_among(points: Sequence[tuple[int, float]], given: Sequence[tuple[int, float]]) -> None:
    expected = dict(given)
    assert points or not given, "no point of the curve"
    for tokens, loss in points:
        assert loss == pytest.approx(expected[tokens], rel=1e-6), f"loss at {tokens} tokens"


def _opened(chosen: PluginConfig[Any], folder: Path, runs: Sequence[RunSpec]) -> Logger:
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
    """Runs of which no two numbers are equal."""
    return [
        example_run(seed=seed, params=10_000 + 7 * seed, tokens=400 * (1024 + seed), budget=(1.2 + seed) * 1e11)
        for seed in range(count)
    ]


def _result(run: RunSpec, **changes: Any) -> RunResult:
    loss = 2.0 + run.seed / 8 + changes.get("attempt", 1) / 64
    tokens = changes.get("tokens", run.tokens)
    given = {
        "loss": loss if changes.get("status", "completed") == "completed" else None,
        "curve": (
            Evaluation(step=100, tokens=tokens // 4, loss=loss + 1.5),
            Evaluation(step=400, tokens=tokens, loss=loss),
        ),
        "flops": run.flops_per_token * tokens,
    }
    return example_result(run=run, **{**given, **changes})


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
    return {run.id: [(one.tokens, one.loss or 0.0) for one in _progress(run)] for run in runs}


def _children(parent: int) -> set[str]:
    """Child processes where the system has /proc; elsewhere nothing can be seen."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(") ")
        except OSError:  # it has just ended
            continue
        state, its_parent = rest.split()[:2]
        if int(its_parent) == parent and state != "Z":
            found.add(f"process {name})")
    return found
