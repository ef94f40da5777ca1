"""The jobs of an executor that have not ended, and the events that have not been read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from flops_fit_core import Job, Progress, RunResult
from flops_fit_core.plugins import JobEnded

Event = Progress | RunResult | JobEnded
CLOSED = "the executor was closed"


class OpenJobs:
    """The jobs that an executor has taken and whose JobEnded has not been given out."""

    def __init__(self) -> None:
        self.closed = False
        self._open: set[str] = set()
        self._events: deque[Event] = deque()

    def take(self, job: Job) -> None:
        """Raises ValueError for a job that has been submitted and has not ended, RuntimeError once closed."""
        if self.closed:
            raise RuntimeError(CLOSED)
        if job.id in self._open:
            raise ValueError(f"job {job.id} has been submitted already and has not ended")
        self._open.add(job.id)

    def add(self, *events: Event) -> None:
        """Events for the driver, in this order."""
        self._events += events

    def end_all(self, error: str = CLOSED) -> None:
        """End every job that has not ended."""
        ended = {event.job for event in self._events if isinstance(event, JobEnded)}
        self.add(*(JobEnded(job, error) for job in sorted(self._open - ended)))

    def events(self, timeout: float, listen: Callable[[float], bool]) -> Iterator[Event]:
        """Events, until no job is open or nothing has come for ``timeout`` seconds.

        ``listen(seconds)`` waits up to that long for news, and returns False if there were none.
        """
        last_event = time.monotonic()
        while self._open:
            if self._events:
                event = self._events.popleft()
                if isinstance(event, JobEnded):
                    self._open.discard(event.job)
                yield event
                last_event = time.monotonic()
            elif not listen(max(0.0, last_event + timeout - time.monotonic())):
                return
