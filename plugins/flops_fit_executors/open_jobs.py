"""What every executor here keeps of its jobs: which have not ended, and what it has still to say of them."""

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

    def say(self, *events: Event) -> None:
        """For the driver, in this order."""
        self._events += events

    def end_all(self, reason: str = CLOSED) -> None:
        """End every job that has not ended."""
        ended = {event.job for event in self._events if isinstance(event, JobEnded)}
        self.say(*(JobEnded(job, reason) for job in sorted(self._open - ended)))

    def events(self, timeout: float, listen: Callable[[float], bool]) -> Iterator[Event]:
        """What was said, until no job is open or nothing has come for ``timeout`` seconds.

        ``listen(seconds)`` waits that long at most for something to say; False where nothing came.
        """
        heard = time.monotonic()
        while self._open:
            if self._events:
                event = self._events.popleft()
                if isinstance(event, JobEnded):
                    self._open.discard(event.job)
                yield event
                heard = time.monotonic()
            elif not listen(max(0.0, heard + timeout - time.monotonic())):
                return
