"""Jobs as tasks of a Ray cluster."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flops_fit_core import Job, RunResult
from flops_fit_core.plugins import Executor, ExecutorContext, JobEnded, Outbox, read_log_tail
from flops_fit_executors.messages import Kind, read_record
from flops_fit_executors.open_jobs import CLOSED, Event, OpenJobs
from flops_fit_executors.ray_cluster import Cluster
from flops_fit_executors.ray_worker import Stopper, train
from flops_fit_executors.worker_process import TAIL

if TYPE_CHECKING:
    from flops_fit_executors import RayOptions

GRACE = 5.0
"""Seconds that jobs get to write their checkpoints when the executor is closed, and to die after that."""
MOST_TASKS = 1_000_000
"""That wait for a word of the driver at the same time."""
LOST = (exceptions.NodeDiedError, exceptions.ObjectLostError)
"""What Ray says where a node has gone, and what was on it."""

logger = logging.getLogger("flops_fit")


@dataclass
class Task:
    """One job, and the Ray task that trains it now."""

    job: Job
    starts: int = 1
    answered: set[str] = field(default_factory=set)
    """Runs whose results have come."""
    where: dict[str, Any] = field(default_factory=dict)
    """What it said of its place when it began: ``host``, ``pid``, ``log``, ``start``."""
    dismissed: str | None = None
    """Why the driver wants it to end."""

    @property
    def left(self) -> Job | None:
        """The job without the runs that have results; None where all have."""
        return self.job.only(lambda run: run.id not in self.answered)


class RayExecutor(Executor):
    """One Ray task a job. Ray decides where and when; what a task says arrives as it says it.

    A task whose node is lost is started again elsewhere with the runs that have no result, which go on from their
    checkpoints. A worker that dies alone ends its job. Ray is joined when the executor is first asked for its
    capacity or given a job.

    Raises ConfigError for Python objects that cannot be pickled; later, where no cluster answers.
    """

    def __init__(self, context: ExecutorContext, options: RayOptions) -> None:
        self._context = context
        self._options = options
        self._pickled_runner = pickle.dumps(context.runner)
        self._outbox = Outbox(context.folder)
        self._tasks: dict[Any, Task] = {}
        """By what Ray can wait for: the stream of what a task says; of one that was cancelled, its end."""
        self._jobs = OpenJobs()
        self._joined: Cluster | None = None

    # ------------------------------------------------------------------ the contract

    @property
    def capacity(self) -> int:  # type: ignore[override]  # read from the cluster
        """Jobs on one device that the whole cluster has room for, whoever uses it; nodes may come and go."""
        return max(1, self._cluster.places())

    def submit(self, job: Job) -> None:
        """Raises ValueError for a job that has been submitted and has not ended, RuntimeError once closed."""
        self._jobs.take(job)
        (self._context.folder / "logs").mkdir(parents=True, exist_ok=True)
        for run in job.runs:
            self._outbox.forget(run.id)  # of an earlier attempt
        self._start(Task(job))

    def events(self, timeout: float) -> Iterator[Event]:
        return self._jobs.events(timeout, self._listen)

    def cancel(self, job_id: str) -> None:
        for stream in [stream for stream, task in self._tasks.items() if task.job.id == job_id]:
            self._cancel(stream, "cancelled")

    def close(self) -> None:
        """Ask tasks to stop, give those that train some seconds for it, end the others, leave Ray. A job that has
        not ended ends with an error, which :meth:`events` still gives."""
        self._jobs.closed = True
        try:
            if self._tasks:
                self._dismiss()
        finally:
            # Also where a second Ctrl-C cuts the grace short: Ray ends the tasks of a driver that leaves.
            self._tasks.clear()
            if self._joined is not None:
                self._joined.leave()
                self._joined = None
        self._jobs.end_all()

    # ------------------------------------------------------------------ tasks

    @property
    def _cluster(self) -> Cluster:
        if self._joined is None:
            if self._jobs.closed:
                raise RuntimeError(CLOSED)
            self._joined = Cluster(self._options, self._context.slots)
        return self._joined

    @cached_property
    def _remote(self) -> Any:
        return ray.remote(num_returns="streaming", max_retries=0)(train)

    @cached_property
    def _runner(self) -> Any:
        """In Ray's memory once, however many tasks read it."""
        return ray.put(self._pickled_runner)

    @cached_property
    def _stopper(self) -> Any:
        """On this node, so that it goes only when this process does."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(num_cpus=0, max_concurrency=MOST_TASKS)(Stopper)
        return actor.options(scheduling_strategy=here).remote()

    def _start(self, task: Task) -> None:
        job = task.left
        if job is None:
            self._jobs.add(JobEnded(task.job.id))
            return
        if not self._cluster.places(job.devices):
            needs = ", ".join(f"{amount:g} {name}" for name, amount in self._cluster.needs(job.devices).items())
            message = f"a job needs {needs} on one node, and the nodes have: {self._cluster.describe()}"
            if self._cluster.is_own:
                self._jobs.add(JobEnded(job.id, message))
                return
            logger.warning("%s; it waits until such a node joins", message)
        stream = self._remote.options(**self._cluster.task_options(job.devices)).remote(
            job, self._runner, str(self._context.folder.absolute()), self._stopper
        )
        self._tasks[stream] = task

    def _listen(self, seconds: float) -> bool:
        """Hear all that has been said, waiting for it; whether there was anything."""
        if not self._tasks:
            return False
        streams = list(self._tasks)
        ready, _ = ray.wait(streams, num_returns=1, timeout=max(0.0, seconds))
        if ready and len(streams) > 1:
            ready, _ = ray.wait(streams, num_returns=len(streams), timeout=0)
        for stream in ready:
            self._hear(stream)
        return bool(ready)

    def _hear(self, stream: Any) -> None:
        task = self._tasks[stream]
        if task.dismissed is not None:
            del self._tasks[stream]
            self._jobs.add(JobEnded(task.job.id, task.dismissed))
            return
        try:
            kind, payload = ray.get(next(stream))
        except StopIteration:
            del self._tasks[stream]
            self._jobs.add(JobEnded(task.job.id))
        except exceptions.RayError as error:
            del self._tasks[stream]
            self._failed(task, error)
        else:
            if kind == Kind.READY:
                task.where = json.loads(payload)
                return
            record = read_record(kind, payload)
            if isinstance(record, RunResult):
                task.answered.add(record.id)
            self._jobs.add(record)

    def _failed(self, task: Task, error: exceptions.RayError) -> None:
        self._find_unheard(task)
        if isinstance(error, LOST) and task.starts <= self._options.retries:
            logger.warning(
                "job %s: the node %s was lost; it is started again", task.job.id, task.where.get("host")
            )
            task.starts += 1
            task.where = {}
            self._start(task)
        else:
            self._jobs.add(JobEnded(task.job.id, describe(error, task)))

    def _find_unheard(self, task: Task) -> None:
        """Results that its worker wrote down and Ray lost with it."""
        for run in task.left.runs if task.left is not None else ():
            if (result := self._outbox.get(run.id)) is not None:
                task.answered.add(run.id)
                self._jobs.add(result)

    def _cancel(self, stream: Any, why: str) -> None:
        """Kill a task's worker, or take the task off the queue, after hearing what it has said."""
        while stream in self._tasks and ray.wait([stream], timeout=0)[0]:
            self._hear(stream)
        if (task := self._tasks.pop(stream, None)) is not None:
            task.dismissed = why
            with suppress(exceptions.RayError):
                ray.cancel(stream, force=True)
            # Its stream ends at once, its process a little later.
            self._tasks[stream.completed()] = task

    def _dismiss(self) -> None:
        for stream, task in list(self._tasks.items()):
            if not task.where and not task.dismissed:
                self._cancel(stream, CLOSED)
        self._stopper.stop.remote()
        self._wait(GRACE)
        for stream, task in list(self._tasks.items()):
            if not task.dismissed:
                self._cancel(stream, CLOSED)
        self._wait(GRACE)
        ray.kill(self._stopper)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._tasks and time.monotonic() < until:
            self._listen(until - time.monotonic())


def describe(error: exceptions.RayError, task: Task) -> str:
    """Why a task ended, in words."""
    where = "on {host} (process {pid})".format(**task.where) if task.where else "before it began"
    said = read_log_tail(Path(task.where["log"]), TAIL, task.where["start"]).strip() if task.where else ""
    if isinstance(error, LOST):
        return f"the node under it was lost, {task.starts} times in all: {first_line(error)}"
    if isinstance(error, exceptions.OutOfMemoryError):
        return f"killed by Ray {where}, where memory was running out: {first_line(error)}"
    if isinstance(error, exceptions.WorkerCrashedError):
        return f"the worker died {where}" + (f": {said}" if said else "")
    if isinstance(error, exceptions.TaskCancelledError):
        return "cancelled by somebody else"
    if isinstance(error, exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return f"{type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
