"""The state of a sweep that another process drives, from the stored results and the drivers' files."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flops_fit_core.errors import StoreError
from flops_fit_core.records import RunResult
from flops_fit_core.study.heartbeat import Driver, drivers, starting_processes
from flops_fit_core.study.live.displays import Display
from flops_fit_core.study.live.other_drivers import count_workers, current_progress
from flops_fit_core.study.live.state import SweepState
from flops_fit_core.study.study import Study

POLL_SECONDS = 1.0
"""The shortest time between two reads of a study."""
MAX_POLL_SECONDS = 15.0
"""The longest time between two reads."""
SHARE_OF_READING = 0.1
"""The largest share of the time in which the study is read."""
FAILED_READS = 5
"""A store that cannot be read so many times in a row is an error."""
ENDED_POLLS = 2
"""A sweep has ended if no driver was there in so many reads: a driver may replace its file between two reads."""


def read_state(study: Study, active: Sequence[Driver]) -> SweepState:
    """The study's state. A failed run counts as done if it failed while a present driver has trained."""
    state = SweepState(
        study.plan,
        study.folder.shown,
        min((driver.started for driver in active), default=time.time()),
        workers=count_workers(active),
        timings={run: speed for driver in active for run, speed in driver.timings.items()},
    )
    update_state(state, study, active, set())
    return state


def update_state(
    state: SweepState, study: Study, active: Sequence[Driver], seen: set[tuple[str, int]]
) -> list[RunResult]:
    """Take over the study's results. Returns those not in ``seen`` (run id and attempt), and adds them to it."""
    results = study.results
    state.workers, state.processes = count_workers(active), len(active)
    if active:
        state.started = min(driver.started for driver in active)
    running = current_progress(active, results)
    started = min((driver.started for driver in active), default=float("inf"))
    done = [result for result in results if result.is_finished or result.finished.timestamp() >= started]
    state.replace(done, running)
    new = [result for result in done if (result.id, result.attempt) not in seen]
    seen.update((result.id, result.attempt) for result in new)
    return sorted(new, key=lambda result: result.finished)


def watch(study: Study, display: Display, poll_seconds: float = POLL_SECONDS) -> None:
    """Show the sweep until no process trains the study, or is about to. Nothing is written.

    Raises StoreError if the store cannot be read several times in a row.
    """
    path = study.folder.path
    active = drivers(path)
    state = read_state(study, active)
    seen = {(result.id, result.attempt) for result in study.results}
    absent = failures = 0
    display.start(state.snapshot)
    try:
        while absent < ENDED_POLLS:
            started = time.monotonic()
            present = drivers(path)
            active = present or active
            absent = 0 if present or starting_processes(path) else absent + 1
            try:
                study.refresh()
                new = update_state(state, study, active, seen)
                failures = 0
            except StoreError:  # its driver may have replaced a file between two reads
                failures += 1
                if failures == FAILED_READS:
                    raise
                new = []
            done = state.snapshot().done
            for position, result in enumerate(new, 1 + done - len(new)):
                display.show_result(result, position)
            display.refresh()
            reading = time.monotonic() - started
            time.sleep(min(MAX_POLL_SECONDS, max(poll_seconds, reading / SHARE_OF_READING)))
    finally:
        display.stop()
