"""Complete command-line drivers, forked from a process that has imported everything: 0.2 seconds each.

A forked driver calls ``flops_fit_core.cli.main.main`` as the program ``flops-fit`` does, with its output in a
file. Its workers are real: they are started with exec. All processes of a trial have its folder's name in the
variable TORTURE_TRIAL, so that no process escapes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flops_fit_core.cli.main import main, run
from torture import experiments, plugin, shim

PLUGIN = ("-p", "torture.plugin")
MARK = "TORTURE_TRIAL"
CRASH = 70
"""Exit status of a driver that ended with an exception."""


@dataclass
class Ended:
    """How a process ended: an exit status, a signal, or neither if it was killed after a time limit."""

    status: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {signal.Signals(self.signal).name}"
        return "hung" if self.status is None else f"exit {self.status}"


@dataclass
class Driver:
    """A forked driver. ``output`` is its standard output and error."""

    pid: int
    output: Path
    ended: Ended | None = None

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                killed = os.WIFSIGNALED(status)
                self.ended = Ended(None, os.WTERMSIG(status)) if killed else Ended(os.WEXITSTATUS(status))
        return self.ended is not None

    def wait(self, seconds: float = 120.0) -> Ended:
        """Wait for its end. After the time limit, it is killed and has hung."""
        end = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.ended = Ended()
                break
            time.sleep(0.002)
        assert self.ended is not None
        return self.ended

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if not self.poll():
            os.kill(self.pid, number)

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


@dataclass
class Trial:
    """One study, its drivers and their outputs, in a new folder."""

    table: dict[str, Any]
    name: str = "trial"
    lease: float | None = None
    """Seconds after which claims expire; None for the default."""
    report: bool = False
    """Whether drivers write the report, which takes a second."""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=base()))
        self.study = self.folder / "study"
        self.experiment = experiments.save(self.table, self.folder)
        self.acknowledged_file = self.folder / "acknowledged.jsonl"
        self.trained_file = self.folder / "trained.txt"
        self.faults = shim.SharedState(self.folder / "state")
        self.drivers: list[Driver] = []
        self.earlier_outputs: list[str] = []
        """Outputs of drivers of which this study is the remainder."""

    @property
    def outputs(self) -> list[str]:
        """Standard output and error of each driver."""
        return [*self.earlier_outputs, *(driver.text for driver in self.drivers)]

    def start(self, *arguments: str, before: Callable[[], None] = lambda: None) -> Driver:
        """Start ``flops-fit run EXPERIMENT --out STUDY``, or another command. It calls ``before`` first."""
        words = arguments or ("run", str(self.experiment), "--out", str(self.study), *PLUGIN)
        output = self.folder / f"output-{len(self.drivers)}.txt"
        pid = os.fork()
        if pid == 0:
            self._become_driver(words, output, before)
        driver = Driver(pid, output)
        self.drivers.append(driver)
        return driver

    def run(self, *arguments: str, seconds: float = 120.0) -> Driver:
        """Start a driver and wait for its end."""
        driver = self.start(*arguments)
        driver.wait(seconds)
        return driver

    def _become_driver(self, words: Sequence[str], output: Path, before: Callable[[], None]) -> None:
        status = CRASH
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            redirect_output(output)
            os.environ.update(
                {
                    MARK: str(self.folder),
                    plugin.ACKNOWLEDGED: str(self.acknowledged_file),
                    plugin.TRAINED: str(self.trained_file),
                    "TORTURE_STATE": str(self.faults.file),
                    "FLOPS_FIT_REPORT": str(int(self.report)),
                    **self.environment,
                }
            )
            shim.attach(self.faults.file, "driver")
            if self.lease is not None:
                set_lease(self.lease)
            before()
            status = call_main(words)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(status)

    def remove(self) -> None:
        """Stop the trial, and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self) -> None:
        """Kill all remaining processes of the trial."""
        for driver in self.drivers:
            driver.send(signal.SIGKILL)
            driver.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Live processes of the trial: its drivers, their sessions, and everything started with its mark."""
        drivers = {driver.pid for driver in self.drivers}
        mark = f"{MARK}={self.folder}".encode()
        pids = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                marked = mark in (entry / "environ").read_bytes().split(b"\0")
                if state != "Z" and (marked or int(session) in drivers):
                    pids.append(pid)
        return pids

    def workers(self) -> list[int]:
        """Live worker processes."""
        drivers = {driver.pid for driver in self.drivers}
        return [pid for pid in self.processes() if pid not in drivers]


def redirect_output(output: Path) -> None:
    """Send standard output and error to a file, and read nothing."""
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((0, nothing), (1, handle), (2, handle)):
        os.dup2(target, number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115


def call_main(words: Sequence[str]) -> int:
    """Call ``flops-fit WORDS``. Returns its exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["flops-fit", *words]
    try:
        main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    else:
        status = 0
    sys.stdout.flush()
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
    return status


def set_lease(seconds: float) -> None:
    """Shorten the claims in this process, and the wait for damaged claims."""
    from flops_fit_core.study import sweep
    from flops_fit_stores import claims, leases

    assert seconds < sweep.LEASE_SECONDS
    sweep.LEASE_SECONDS = claims.UNKNOWN_SECONDS = leases.UNKNOWN_SECONDS = seconds
    sweep.TURN_SECONDS = min(sweep.TURN_SECONDS, seconds / 8)


@dataclass(frozen=True)
class Answer:
    """Exit status and outputs of a command."""

    status: int
    output: str
    messages: str

    @property
    def json(self) -> Any:
        return json.loads(self.output)


def ask(
    commands: Sequence[Sequence[str]],
    before: Callable[[], None] = lambda: None,
    follow: Callable[[list[Answer]], Sequence[Sequence[str]]] = lambda answers: (),
    seconds: float = 60.0,
) -> list[Answer]:
    """The answers to several commands, in one forked process. ``follow`` derives more commands from the answers.

    Returns fewer answers if the process dies or hangs.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            before()
            answers = [_answer(words) for words in commands]
            answers += [_answer(words) for words in follow(answers)]
            with open(writing, "w") as pipe:  # noqa: PTH123
                json.dump([(answer.status, answer.output, answer.messages) for answer in answers], pipe)
        finally:
            os._exit(0)
    os.close(writing)
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    timer.start()
    with open(reading) as pipe:  # noqa: PTH123
        text = pipe.read()
    timer.cancel()
    timer.join()
    os.waitpid(pid, 0)
    return [Answer(*fields) for fields in json.loads(text)] if text else []


def _answer(words: Sequence[str]) -> Answer:
    output, messages = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(messages):
        try:
            status = run(list(words))
        except BaseException:
            traceback.print_exc()
            status = CRASH
    return Answer(status, output.getvalue(), messages.getvalue())


def warm_up() -> None:
    """Import everything that drivers use, so that forked drivers need not."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    for table in (experiments.noisy("json"), experiments.gpt(base() / "text")):
        trial = Trial({**table, "loggers": []})
        words = ["run", str(trial.experiment), "--out", str(trial.study), *PLUGIN]
        assert _answer(words).status == 0, _answer(words)
        trial.remove()


def base() -> Path:
    """The folder of all trials."""
    return Path(os.environ["TORTURE_BASE"])
