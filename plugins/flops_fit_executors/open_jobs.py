"""The open jobs of an executor and its unread events."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from flops_fit_core import Job, Progress, RunResult
from flops_fit_core.plugins import JobEnded

Event = Progress | RunResult | JobEnded
CLOSED = "the executor was closed"


class OpenJobs:
    """Submitted jobs. A job is open until the driver has read its JobEnded."""

    def __init__(self) -> None:
        self.closed = False
        self._open: set[str] = set()
        self._events: deque[Event] = deque()

    def open(self, job: Job) -> None:
        """Raises ValueError if the job is open already, RuntimeError if the executor is closed."""
        if self.closed:
            raise RuntimeError(CLOSED)
        if job.id in self._open:
            raise ValueError(f"job {job.id} is submitted already and has not ended")
        self._open.add(job.id)

    def add(self, *events: Event) -> None:
        """Append events for the driver."""
        self._events += events

    def end_all(self, error: str = CLOSED) -> None:
        """End every open job with an error."""
        ended = {event.job for event in self._events if isinstance(event, JobEnded)}
        self.add(*(JobEnded(job, error) for job in sorted(self._open - ended)))

    def events(self, timeout: float, listen: Callable[[float], bool]) -> Iterator[Event]:
        """Events, until no job is open or none has arrived for ``timeout`` seconds.

        ``listen(seconds)`` waits up to that long for new events, and returns False if none arrived.
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
