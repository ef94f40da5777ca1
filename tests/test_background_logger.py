"""The background logger: the sweep never waits for the server, and no result is lost."""

from __future__ import annotations

import threading

from test_loggers import RUN, plan_of, progress_at

from flops_fit_core import RunResult
from flops_fit_core.testing import example_result


class Unsteady:
    """Runs on a server that answers once ``up`` is set."""

    def __init__(self):
        self.up, self.called = threading.Event(), threading.Event()
        self.done = []

    def _do(self, call):
        self.called.set()
        if not self.up.is_set():
            raise ConnectionError("no answer")
        self.done.append(call)

    def open(self, plan):
        self._do("open")

    def progress(self, progress, timestamp):
        self._do(progress.step)

    def finished(self, result):
        if result.seconds == 0:
            raise ValueError("no run takes 0 seconds")
        self._do(result.attempt)

    def close(self):
        self._do("close")


def background_logger(runs, folder, flush_timeout=20.0):
    from flops_fit_loggers.background import BackgroundLogger

    return BackgroundLogger("unsteady", runs, folder, points=1000, flush_timeout=flush_timeout)


def test_unsent_events_are_sent_in_order_once_the_server_answers_again(tmp_path, caplog):
    runs = Unsteady()
    logger = background_logger(runs, tmp_path)
    logger.started(plan_of(RUN))
    for step in (100, 200):
        logger.progress(progress_at(RUN, step))
    assert runs.called.wait(20)
    logger.finished(example_result())
    runs.up.set()
    logger.close()
    assert runs.done == ["open", 100, 200, 1, "close"]
    assert [record.getMessage() for record in caplog.records] == [
        "logger unsteady: the server does not answer, will retry; the sweep continues: ConnectionError: no answer",
        "logger unsteady: the server answers again",
    ]
    assert not list((tmp_path / "loggers").glob("*.jsonl"))


def unsent(folder):
    return list((folder / "loggers").glob("*.jsonl"))


class Silent(Unsteady):
    """A server that accepts calls and does not answer for five seconds."""

    def _do(self, call):
        self.up.wait(5)
        super()._do(call)


def test_results_are_on_disk_until_they_are_sent(tmp_path):
    runs = Silent()
    logger = background_logger(runs, tmp_path, flush_timeout=0.0)
    logger.started(plan_of(RUN))
    logger.finished(example_result(attempt=1, status="failed"))
    logger.finished(example_result(attempt=2))
    (file,) = unsent(tmp_path)
    assert len(file.read_text().splitlines()) == 2, "before close, and before the first call has failed"
    logger.close()
    with file.open("a") as incomplete:
        incomplete.write('{"run": ')
    runs = Unsteady()
    runs.up.set()
    logger = background_logger(runs, tmp_path)
    logger.started(plan_of(RUN))
    logger.close()
    assert runs.done == ["open", 1, 2, "close"]
    assert unsent(tmp_path) == []


def test_two_drivers_of_a_study_keep_each_other_s_unsent_results(tmp_path):
    down, up = Unsteady(), Unsteady()
    up.up.set()
    failing, working = background_logger(down, tmp_path, flush_timeout=0.0), background_logger(up, tmp_path)
    failing.started(plan_of(RUN))
    working.started(plan_of(RUN))
    failing.finished(example_result(attempt=1))
    working.finished(example_result(attempt=2))
    working.close()
    assert up.done == ["open", 2, "close"]
    (file,) = unsent(tmp_path)  # exists before the failing logger is closed, so it survives SIGKILL
    assert [RunResult.model_validate_json(line).attempt for line in file.read_text().splitlines()] == [1]
    failing.close()
    assert unsent(tmp_path) == [file]


def test_a_message_explains_the_wait_for_a_server_at_the_end_of_a_sweep(tmp_path, caplog):
    logger = background_logger(Unsteady(), tmp_path, flush_timeout=2.1)
    logger.started(plan_of(RUN))
    logger.close()
    assert [record.getMessage() for record in caplog.records][1:] == [
        "logger unsteady: the sweep has ended, waiting up to 2.1 s to send the rest"
    ]


def test_an_event_that_the_server_rejects_is_reported_and_skipped(tmp_path, caplog):
    runs = Unsteady()
    runs.up.set()
    logger = background_logger(runs, tmp_path)
    logger.started(plan_of(RUN))
    logger.finished(example_result(seconds=0.0))
    logger.finished(example_result(attempt=2))
    logger.close()
    assert runs.done == ["open", 2, "close"]
    assert [record.getMessage() for record in caplog.records] == [
        "logger unsteady: a call cannot succeed and is skipped: ValueError: no run takes 0 seconds"
    ]
