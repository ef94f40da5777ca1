"""The live view of a sweep: as lines of text, on a terminal of any width, and of a sweep in another process."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from small import formula_table
from test_time_left import PLAN, RECORDED, RUNS, progress_of, result_of

from flops_fit_core import Progress, RunError, RunResult, Study, SweepPlan, run
from flops_fit_core.plugins import Logger
from flops_fit_core.report.run_errors import describe_failures, group_errors
from flops_fit_core.study.heartbeat import Heartbeat, announce_start, drivers, starting_processes, withdraw_start
from flops_fit_core.study.live.displays import LineDisplay, TerminalDisplay, choose_display
from flops_fit_core.study.live.other_drivers import OtherDriversReader
from flops_fit_core.study.live.progress import SWITCH, SweepProgress, is_wanted
from flops_fit_core.study.live.state import SweepState
from flops_fit_core.study.live.text import ASCII_SYMBOLS, RUNNING_SHOWN, view_lines
from flops_fit_core.study.time_left import TimeLeft

RESULTS = [result_of(row, spec) for row, spec in zip(RECORDED, RUNS, strict=True)]
OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate {size} MiB. GPU 0 has a total capacity of 79.10 GiB of which "
    "{free} MiB is free. Including non-PyTorch memory, this process has 79.08 GiB memory in use.\nSee the docs"
)


def failed(result: RunResult, size: float = 2.0, kind: str = "OutOfMemoryError") -> RunResult:
    error = RunError(type=kind, message=OUT_OF_MEMORY.format(size=size, free=size / 2))
    return result.model_copy(update={"status": "failed", "loss": None, "error": error})


def sweep_state(results: list[RunResult], now: float | None = None) -> SweepState:
    """The recorded sweep with these results, and the runs in training ``now`` seconds after its start."""
    state = SweepState(PLAN, "runs/text-gpt", 1000.0, workers=2)
    for result in results:
        state.add_result(result)
    for row, spec in zip(RECORDED, RUNS, strict=True):
        if now is not None and row["ended"] - row["seconds"] < now < row["ended"]:
            state.add_progress(progress_of(row, spec, now))
    return state


# ---------------------------------------------------------------------------- text


def test_the_view_shows_the_time_the_runs_in_training_and_the_best_run() -> None:
    finished = [result for result, row in zip(RESULTS, RECORDED, strict=True) if row["ended"] < 60]
    lines = [line.text for line in view_lines(sweep_state(finished, 60.0).snapshot(1060.0), 79)]
    assert re.match(r"recorded  ━+─+ +\d+%  4 of 23 runs$", lines[0])
    assert re.match(r"elapsed 1 min  remaining about 1 min \d+ s  2 workers$", lines[1])
    assert len([line for line in lines if re.match(r"  C 4e11 size \d+  ━+", line)]) == 2
    best = min(finished, key=lambda result: result.loss)
    assert f"best loss  {best.loss:.4f}  C 4e11  N 27.0K  D 1.85M" in lines


@pytest.mark.parametrize("width", [10, 20, 39, 59, 79, 119, 300])
def test_no_line_of_the_view_is_wider_than_the_terminal(width: int) -> None:
    state = sweep_state([*RESULTS[:9], *map(failed, RESULTS[9:12])], 130.0)
    lines = view_lines(state.snapshot(1130.0), width)
    assert max(len(line.text) for line in lines) <= width
    assert len(lines) >= 4


def test_thousands_of_runs_in_training_take_a_few_lines() -> None:
    runs = [RUNS[0].model_copy(update={"seed": seed}) for seed in range(3000)]
    state = SweepState(PLAN.model_copy(update={"runs": tuple(runs)}), "runs/large", 0.0)
    for spec in runs[:2000]:
        state.add_progress(Progress(run=spec.id, step=1, steps=spec.steps, tokens=spec.tokens_per_step))
    lines = [line.text for line in view_lines(state.snapshot(1.0), 79)]
    assert len(lines) == 3 + RUNNING_SHOWN
    assert lines[-1] == f"  and {2000 - RUNNING_SHOWN} more in training"
    assert "0 of 3000 runs" in lines[0]


def test_a_failed_run_is_done_until_it_is_trained_again() -> None:
    state = sweep_state([failed(RESULTS[0]), RESULTS[1]])
    assert state.snapshot().counts == {"completed": 1, "diverged": 0, "failed": 1, "running": 0, "waiting": 21}
    late = Progress(run=RUNS[0].id, step=5, steps=RUNS[0].steps, tokens=5)
    state.add_progress(late)  # older than the result
    assert state.snapshot().counts["failed"] == 1
    state.add_progress(late.model_copy(update={"attempt": 2}))
    assert state.snapshot().counts == {"completed": 1, "diverged": 0, "failed": 0, "running": 1, "waiting": 21}


def test_the_minima_so_far_are_shown_when_they_can_be_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit_core.study.live.law_so_far.FIRST_COST", 0.0)
    monkeypatch.setattr("flops_fit_core.study.live.law_so_far.LARGEST_SHARE", 1e9)
    ordered = sorted(RESULTS, key=lambda result: result.finished)
    assert sweep_state(ordered[:2]).snapshot().law == ""
    assert re.match(r"N_opt \d+\.\dK at C 4e11, from 1 of 4 budgets$", sweep_state(ordered[:6]).snapshot().law)
    assert re.match(r"N_opt ~ C\^0\.5\d from 4 of 4 budgets, ", sweep_state(ordered).snapshot().law)


def test_an_error_of_the_fit_does_not_reach_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit_core.study.live.law_so_far.FIRST_COST", 0.0)
    broken = [result.model_copy(update={"loss": -1.0}) for result in RESULTS]
    assert sweep_state(broken).snapshot().law == ""


# ---------------------------------------------------------------------------- failures


def test_failures_are_grouped_by_messages_that_differ_in_numbers_only() -> None:
    many = [failed(result, size) for size, result in enumerate(RESULTS[:4], 8)]
    other = failed(RESULTS[4], kind="ValueError")
    groups = group_errors([*many, other, *RESULTS[5:]])
    assert [len(group.ids) for group in groups] == [4, 1]
    lines = describe_failures([*many, other, *RESULTS[5:]], "runs/text-gpt")
    assert lines[0] == "5 runs failed:"
    assert lines[1].startswith("  OutOfMemoryError: CUDA out of memory. Tried to allocate 8 MiB")
    assert lines[-1] == f"  in full: flops-fit show runs/text-gpt {RESULTS[0].id[:6]}"
    assert max(map(len, lines)) <= 80
    assert describe_failures(RESULTS, "runs/text-gpt") == []


# ---------------------------------------------------------------------------- displays


def show(display: LineDisplay | TerminalDisplay, results: list[RunResult]) -> None:
    progress = SweepProgress("runs/text-gpt", workers=2, display=display)
    progress.started(PLAN)
    for result in results:
        progress.finished(result)
    progress.close()
    progress.close()


def test_a_file_gets_a_plain_line_per_result() -> None:
    file = io.StringIO()
    show(LineDisplay(file), [RESULTS[0], failed(RESULTS[1])])
    first, second = file.getvalue().splitlines()
    run_0, run_1 = RUNS[0], RUNS[1]
    assert re.match(
        rf"\[ 1/23\]  C 5e10  size {run_0.size}  loss 2\.\d+  N 4\.41K  D 1\.12M  \S+ s  about ", first
    )
    assert second.startswith(f"[ 2/23]  C 5e10  size {run_1.size}  FAILED {run_1.id[:6]}  OutOfMemoryError: CUDA")
    assert "\x1b" not in file.getvalue()


def test_lines_are_written_to_a_file_that_cannot_encode_them() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    error = RunError(type="ValueError", message="naïve ━")
    show(LineDisplay(file), [failed(RESULTS[0]).model_copy(update={"error": error})])
    assert file.buffer.getvalue().endswith(b"ValueError: na?ve ?\n")


@pytest.mark.parametrize("width", [40, 80])
def test_a_terminal_of_any_width_shows_the_view_below_the_results(width: int) -> None:
    pyte = pytest.importorskip("pyte", reason="pyte is not installed")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=width, height=24)
    display = TerminalDisplay(console)
    state = sweep_state(RESULTS[:3], 130.0)
    display.start(state.snapshot)
    display.show_result(RESULTS[0], 1)
    display.show_result(failed(RESULTS[1]), 2)
    display._live.refresh()
    screen = pyte.Screen(width, 24)
    stream = pyte.Stream(screen)
    stream.feed(file.getvalue().replace("\n", "\r\n"))
    shown = [line.rstrip() for line in screen.display if line.strip()]
    assert shown[0].startswith("[ 1/23]  C 5e10  size 8  loss 2.1")
    assert shown[1].startswith("[ 2/23]  C 5e10  size 12  FAILED")
    assert "3 of 23 runs" in shown[2]
    assert shown[3].startswith("elapsed ")
    display.stop()


def test_a_narrower_terminal_leaves_no_rest_of_wrapped_lines() -> None:
    """The terminal has wrapped the lines of 79 characters into rows of 40."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=80, height=24)
    display = TerminalDisplay(console)
    display.start(sweep_state(RESULTS[:3], 130.0).snapshot)
    console.width = 40
    before = len(file.getvalue())
    wrapped = sum(length > 40 for length in display._lengths)
    display._live.refresh()
    assert wrapped > 0
    assert f"\x1b[{wrapped}A\x1b[0J" in file.getvalue()[before:]
    display.stop()


def test_a_terminal_without_unicode_gets_ascii() -> None:
    lines = view_lines(sweep_state(RESULTS[:3], 130.0).snapshot(), 79, symbols=ASCII_SYMBOLS)
    assert all(line.text.isascii() for line in lines)
    assert "  ##---" in lines[0].text


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = SimpleNamespace(isatty=lambda: True, encoding="utf-8", write=len, flush=lambda: None)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_display(terminal), LineDisplay)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose_display(terminal), TerminalDisplay)


def test_no_color_and_columns_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "50")
    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        terminal = Terminal()
        show(choose_display(terminal), [failed(result) for result in RESULTS[:3]])
        text = terminal.getvalue()
        assert ("\x1b[31m" in text) is not no_color
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        assert max(map(len, re.split(r"[\r\n]", plain))) <= 50


def test_progress_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    assert is_wanted(True)
    assert not is_wanted(False)
    monkeypatch.setenv("RANK", "1")
    assert not is_wanted(True)
    monkeypatch.delenv("RANK")
    monkeypatch.setenv(SWITCH, "0")
    assert not is_wanted(True)


def test_run_prints_a_line_per_result_to_standard_error_by_default(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    study = run(formula_table(), out=tmp_path / "shown")
    output, error = capfd.readouterr()
    assert len(re.findall(r"^\[ *\d+/\d+\]  C ", error, re.MULTILINE)) == len(study.plan.runs)
    assert output == ""
    run(formula_table(), out=tmp_path / "silent", progress=False)
    monkeypatch.setenv(SWITCH, "0")
    run(formula_table(), out=tmp_path / "switched")
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------- several drivers of a study


class SlowLogger(Logger):
    def finished(self, result: RunResult) -> None:
        time.sleep(0.4)


class OpenStore:
    """The results of a study's store, as a driver reads them."""

    def __init__(self) -> None:
        self.stored: list[RunResult] = []

    def results(self) -> list[RunResult]:
        return self.stored


def test_the_view_of_a_driver_shows_the_runs_of_all_drivers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("flops_fit_core.study.live.other_drivers.READ_SECONDS", 0.0)
    monkeypatch.setattr("flops_fit_core.study.live.other_drivers.SHARE_OF_READING", float("inf"))
    file, store = io.StringIO(), OpenStore()
    view = SweepProgress(
        "runs/text-gpt",
        RESULTS[:2],
        ignored=[failed(RESULTS[2])],
        workers=2,
        other_drivers=OtherDriversReader(tmp_path, "this driver"),
        display=LineDisplay(file),
    )
    view.started(PLAN)
    store.stored = [*RESULTS[:2], failed(RESULTS[2]), *RESULTS[3:9]]
    view.observe(store)
    assert file.getvalue() == "", "without another driver, the store is not read"

    other = Heartbeat(tmp_path, "another driver", "processes", workers=3)
    speed = RUNS[10].tokens / 60
    other.progress(Progress(run=RUNS[10].id, step=1, steps=RUNS[10].steps, tokens=1, tokens_per_second=speed))
    other.write()
    view.observe(store)
    view.finished(RESULTS[8])  # read from the store a moment before: it is shown once
    view._state._estimated = -float("inf")  # an estimate is due
    snapshot = view._state.snapshot()
    assert snapshot.counts == {"completed": 8, "diverged": 0, "failed": 0, "running": 1, "waiting": 14}
    assert (snapshot.workers, snapshot.processes) == (5, 2)
    lines = file.getvalue().splitlines()
    assert [line[:8] for line in lines] == [f"[{place:>2}/23] " for place in range(3, 9)]
    assert all("  other process" in line for line in lines)
    assert "5 workers in 2 processes" in view_lines(snapshot, 79)[1].text
    alone = TimeLeft(PLAN).estimate(RESULTS[:9], {item.id for item in [*RESULTS[:2], *RESULTS[3:9]]}, (), 2)
    assert snapshot.estimate.seconds < 0.6 * alone.seconds, "five workers are faster than two"

    store.stored = [*RESULTS[:2], RESULTS[2].model_copy(update={"attempt": 2}), *RESULTS[3:]]
    other.close()
    view.observe(store)  # its last results count, also after its end
    assert view._state.snapshot().done == 23
    assert view._state.snapshot().workers == 2
    view.close()


def test_two_drivers_both_show_the_progress_of_the_study(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flops_fit_core.study.live.other_drivers.READ_SECONDS", 0.1)
    monkeypatch.delenv(SWITCH, raising=False)
    folder = tmp_path / "shared"
    arguments = [sys.executable, "-c", SLOW, str(Path(__file__).parent), str(folder), "sqlite"]
    with subprocess.Popen(arguments) as sweep:
        until = time.monotonic() + 60
        while not (folder / "plan.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
        study = run(formula_table(), out=folder, loggers=[SlowLogger()])
        assert sweep.wait(60) == 0
    error = capfd.readouterr().err
    total = len(study.plan.runs)
    positions = [int(text) for text in re.findall(rf"^\[ *(\d+)/{total}\]  C ", error, re.MULTILINE)]
    assert positions == list(range(total - len(positions) + 1, total + 1))
    elsewhere = error.count("other process")
    assert 0 < elsewhere < len(positions), error


# ---------------------------------------------------------------------------- watching another process


SLOW = """
import sys, time
from flops_fit_core import run
from flops_fit_core.plugins import Logger
sys.path.insert(0, sys.argv[1])
from small import formula_table


class Slow(Logger):
    def finished(self, result):
        time.sleep(0.4)


run(formula_table(store=sys.argv[3]), out=sys.argv[2], loggers=[Slow()], progress=False)
"""


@pytest.mark.parametrize("store", ["sqlite", "json"])
def test_watch_shows_a_sweep_of_another_process_until_it_ends(tmp_path: Path, call, store: str) -> None:
    folder = tmp_path / "slow"
    arguments = [sys.executable, "-c", SLOW, str(Path(__file__).parent), str(folder), store]
    with subprocess.Popen(arguments) as sweep:
        until = time.monotonic() + 60
        while not (folder / "plan.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert [driver.pid for driver in drivers(folder)] == [sweep.pid], "a plan has its driver"
        assert "no process trains it" not in call("status", folder)[1]
        status, output, error = call("watch", folder)
        assert sweep.wait(60) == 0
    total = len(Study.open(folder).plan.runs)
    assert status == 0, error
    assert re.search(rf"^\[{total}/{total}\]  C ", error, re.MULTILINE)
    assert f"{total} completed of {total} runs" in output


def test_watch_prints_a_finished_study_and_changes_nothing(tmp_path: Path, call) -> None:
    run(formula_table(store="json"), out=tmp_path / "study", progress=False)
    before = {file: file.read_bytes() for file in (tmp_path / "study").rglob("*") if file.is_file()}
    status, output, error = call("watch", tmp_path / "study")
    assert (status, error) == (0, "")
    assert " completed of " in output
    after = {file: file.read_bytes() for file in (tmp_path / "study").rglob("*") if file.is_file()}
    assert after == before


def test_ctrl_c_ends_the_view_and_leaves_the_sweep_alone(tmp_path: Path, call, monkeypatch) -> None:
    run(formula_table(), out=tmp_path / "study", progress=False)
    heartbeat = Heartbeat(tmp_path / "study", "a driver that trains", "local", workers=1)
    heartbeat.write()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flops_fit_core.study.live.watching.time.sleep", interrupt)
    status, _, error = call("watch", tmp_path / "study")
    assert status == 0
    assert "no longer watching; to look again: flops-fit watch " in error
    assert len(drivers(tmp_path / "study")) == 1
    heartbeat.close()


CONTROLLED = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from flops_fit_core.cli.main import main
main()
"""
"""flops-fit with standard input as its controlling terminal, whose end sends SIGHUP."""


def start_in_terminal(*arguments: str | Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start flops-fit in a pseudo-terminal. Returns the process and the terminal."""
    terminal, inner = pty.openpty()
    command = [sys.executable, "-c", CONTROLLED, *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm"}
    streams = {"stdin": inner, "stdout": inner, "stderr": inner}
    process = subprocess.Popen(command, start_new_session=True, env=environment, **streams)
    os.close(inner)
    return process, terminal


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_restores_the_cursor_of_a_terminal(tmp_path: Path, name: str) -> None:
    run(formula_table(), out=tmp_path / "study", progress=False)
    heartbeat = Heartbeat(tmp_path / "study", "a driver that trains", "local", workers=1)
    heartbeat.write()
    process, terminal = start_in_terminal("watch", tmp_path / "study")
    screen = read_until(terminal, b"elapsed ")
    process.send_signal(getattr(signal, name))
    screen += read_until(terminal, b"no longer watching; to look again: ")
    assert process.wait(60) == 0
    os.close(terminal)
    assert screen.count(b"\x1b[?25l") == screen.count(b"\x1b[?25h") == 1, "the cursor is hidden, and shown again"
    heartbeat.close()


def read_until(terminal: int, text: bytes) -> bytes:
    """The output of a terminal up to a text. The rest of a chunk is included."""
    screen, deadline = b"", time.monotonic() + 60
    while text not in screen and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.5)[0]:
            screen += os.read(terminal, 65536)
    assert text in screen, screen
    return screen


def test_the_end_of_the_terminal_ends_a_sweep_cleanly(tmp_path: Path) -> None:
    """SIGHUP of a closed terminal. The driver leaves no file, so that the next driver starts at once."""
    (tmp_path / "slow.json").write_text(json.dumps(formula_table()))
    (tmp_path / "slow.py").write_text(
        "import time\nfrom flops_fit_core.plugins import hookimpl\n\n\n"
        "@hookimpl\ndef flops_fit_run_finished(run, result):\n    time.sleep(1)\n"
    )
    files = [tmp_path / name for name in ("slow.json", "study", "slow.py")]
    process, terminal = start_in_terminal("run", files[0], "--out", files[1], "-p", files[2])
    read_until(terminal, b"elapsed ")
    os.close(terminal)
    assert process.wait(60) == 130
    assert not (tmp_path / "study" / "drivers").exists()


def test_a_process_that_plans_a_study_again_is_visible_and_is_no_driver(tmp_path: Path, call) -> None:
    folder = tmp_path / "study"
    announce_start(folder)  # not a study yet: nothing is written
    assert not folder.exists()
    study = run(
        {**formula_table(), "sweep": {"budgets": [1e17, 1e18, 1e19], "sizes": 5}}, out=folder, progress=False
    )
    with study.store() as store:
        store.add(study.results[0].model_copy(update={"status": "failed", "loss": None, "attempt": 2}))
    announce_start(folder)
    assert [process.pid for process in starting_processes(folder)] == [os.getpid()]
    assert drivers(folder) == []
    output = call("status", folder)[1]
    assert f"process {os.getpid()} on " in output
    assert "is about to train it" in output
    assert "To continue" not in output
    withdraw_start(folder)
    assert "no process trains it now. To continue: " in call("status", folder)[1]
    assert not (folder / "drivers").exists()


def test_run_is_visible_while_it_plans_an_existing_study(tmp_path: Path, call, monkeypatch) -> None:
    from flops_fit_core.api import functions

    folder = tmp_path / "study"
    run(formula_table(), out=folder, progress=False)
    plan, seen = functions.make_plan, []

    def watched_plan(*arguments: Any) -> SweepPlan:
        seen.append([process.pid for process in starting_processes(folder)])
        return plan(*arguments)

    monkeypatch.setattr(functions, "make_plan", watched_plan)
    assert call("plan", folder)[0] == 0
    assert call("run", folder)[0] == 0
    assert seen == [[], [os.getpid()]]
    assert not (folder / "drivers").exists()
