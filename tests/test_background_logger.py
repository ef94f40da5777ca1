"""What stands between a sweep and a logger's server: nothing waits, and no result is lost."""

from __future__ import annotations

import threading

from test_loggers import RUN, heard, plan_of

from flops_fit_core import RunResult
from flops_fit_core.testing import example_result


class Unsteady:
    """Runs on a server that is there when it is told to be."""

    def __init__(self):
        self.there, self.asked = threading.Event(), threading.Event()
        self.done = []

    def _do(self, what):
        self.asked.set()
        if not self.there.is_set():
            raise ConnectionError("nobody answers")
        self.done.append(what)

    def open(self, plan):
        self._do("open")

    def progress(self, progress, when):
        self._do(progress.step)

    def finished(self, result):
        if result.seconds == 0:
            raise ValueError("no run takes 0 seconds")
        self._do(result.attempt)

    def close(self):
        self._do("close")


def courier(runs, folder, flush_timeout=20.0):
    from flops_fit_loggers.background import BackgroundLogger

    return BackgroundLogger("unsteady", runs, folder, points=1000, flush_timeout=flush_timeout)


def test_what_could_not_be_sent_is_sent_in_order_once_the_server_is_back(tmp_path, caplog):
    runs = Unsteady()
    logger = courier(runs, tmp_path)
    logger.started(plan_of(RUN))
    for step in (100, 200):
        logger.progress(heard(RUN, step))
    assert runs.asked.wait(20)
    logger.finished(example_result())
    runs.there.set()
    logger.close()
    assert runs.done == ["open", 100, 200, 1, "close"]
    assert [record.getMessage() for record in caplog.records] == [
        "logger unsteady waits and tries again; the sweep goes on: ConnectionError: nobody answers",
        "logger unsteady goes on",
    ]
    assert not list((tmp_path / "loggers").glob("*.jsonl"))


def unsent(folder):
    return list((folder / "loggers").glob("*.jsonl"))


class Silent(Unsteady):
    """It takes what it is told, and does not answer."""

    def _do(self, what):
        self.there.wait(5)
        super()._do(what)


def test_results_are_on_disk_until_they_are_sent(tmp_path):
    runs = Silent()
    logger = courier(runs, tmp_path, flush_timeout=0.0)
    logger.started(plan_of(RUN))
    logger.finished(example_result(attempt=1, status="failed"))
    logger.finished(example_result(attempt=2))
    (file,) = unsent(tmp_path)
    assert len(file.read_text().splitlines()) == 2, "before close, and before the server is known to be away"
    logger.close()
    with file.open("a") as torn:
        torn.write('{"run": ')
    runs = Unsteady()
    runs.there.set()
    logger = courier(runs, tmp_path)
    logger.started(plan_of(RUN))
    logger.close()
    assert runs.done == ["open", 1, 2, "close"]
    assert unsent(tmp_path) == []


def test_two_drivers_of_a_study_keep_each_other_s_unsent_results(tmp_path):
    away, there = Unsteady(), Unsteady()
    there.there.set()
    one, other = courier(away, tmp_path, flush_timeout=0.0), courier(there, tmp_path)
    one.started(plan_of(RUN))
    other.started(plan_of(RUN))
    one.finished(example_result(attempt=1))
    other.finished(example_result(attempt=2))
    other.close()
    assert there.done == ["open", 2, "close"]
    (file,) = unsent(tmp_path)  # before the first one closes, which may be killed
    assert [RunResult.model_validate_json(line).attempt for line in file.read_text().splitlines()] == [1]
    one.close()
    assert unsent(tmp_path) == [file]


def test_waiting_for_a_server_at_the_end_of_a_sweep_is_said(tmp_path, caplog):
    logger = courier(Unsteady(), tmp_path, flush_timeout=2.1)
    logger.started(plan_of(RUN))
    logger.close()
    assert [record.getMessage() for record in caplog.records][1:] == [
        "logger unsteady: the sweep is over, what has not been sent is waited for (2.1 s at most)"
    ]


def test_what_a_server_will_never_take_is_said_and_holds_nothing_up(tmp_path, caplog):
    runs = Unsteady()
    runs.there.set()
    logger = courier(runs, tmp_path)
    logger.started(plan_of(RUN))
    logger.finished(example_result(seconds=0.0))
    logger.finished(example_result(attempt=2))
    logger.close()
    assert runs.done == ["open", 2, "close"]
    assert [record.getMessage() for record in caplog.records] == [
        "logger unsteady cannot show something: ValueError: no run takes 0 seconds"
    ]
