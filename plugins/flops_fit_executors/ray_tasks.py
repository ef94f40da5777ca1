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
"""Seconds that jobs have to write their checkpoints when the executor is closed, and then to exit."""
MAX_TASKS = 1_000_000
"""Tasks that can wait for the :class:`Stopper` at the same time."""
NODE_LOST = (exceptions.NodeDiedError, exceptions.ObjectLostError)
"""Ray's errors after a node and its objects are lost."""

logger = logging.getLogger("flops_fit")


@dataclass
class Task:
    """A job, and the state of the Ray task that trains it."""

    job: Job
    starts: int = 1
    done: set[str] = field(default_factory=set)
    """Ids of runs with results."""
    process: dict[str, Any] = field(default_factory=dict)
    """Content of its READY message: ``host``, ``pid``, ``log``, ``start``. Empty until the task begins."""
    dismissed: str | None = None
    """Why the driver has stopped it; None while it may work."""

    @property
    def remaining(self) -> Job | None:
        """The job without the runs that have results; None if all have."""
        return self.job.only(lambda run: run.id not in self.done)


class RayExecutor(Executor):
    """Runs one Ray task per job. Ray decides when and on which node; events arrive as the task yields them.

    If a node is lost, its tasks restart on other nodes with the runs that have no result, from their checkpoints.
    If only a worker dies, its job ends. Ray is joined when the capacity is first read or the first job is
    submitted.

    Raises ConfigError for Python objects that cannot be pickled, and, when Ray is joined, if no cluster answers.
    """

    def __init__(self, context: ExecutorContext, options: RayOptions) -> None:
        self._context = context
        self._options = options
        self._pickled_runner = pickle.dumps(context.runner)
        self._outbox = Outbox(context.folder)
        self._tasks: dict[Any, Task] = {}
        """By the object that Ray waits for: the task's message stream or, after a cancel, its completion."""
        self._jobs = OpenJobs()
        self._joined: Cluster | None = None

    # ------------------------------------------------------------------ interface

    @property
    def capacity(self) -> int:  # type: ignore[override]  # read from the cluster
        """Single-device jobs that fit on the cluster, including parts that other users occupy. Changes as nodes
        join and leave."""
        return max(1, self._cluster.count_jobs())

    def submit(self, job: Job) -> None:
        """Raises ValueError if the job is submitted already and has not ended, RuntimeError if the executor is
        closed."""
        self._jobs.open(job)
        (self._context.folder / "logs").mkdir(parents=True, exist_ok=True)
        for run in job.runs:
            self._outbox.remove(run.id, job.claim_tokens.get(run.id))  # a result of an earlier attempt
        self._start(Task(job))

    def events(self, timeout: float) -> Iterator[Event]:
        return self._jobs.events(timeout, self._listen)

    def cancel(self, job_id: str) -> None:
        for stream in [stream for stream, task in self._tasks.items() if task.job.id == job_id]:
            self._cancel(stream, "cancelled")

    def is_alive(self, job_id: str) -> bool:
        """False once Ray reports that the task has ended. May be called by another thread."""
        for stream, task in list(self._tasks.items()):
            if task.job.id == job_id and task.dismissed is None:
                return not ray.wait([stream.completed()], timeout=0)[0]
        return True

    def close(self) -> None:
        """Stop all tasks and leave Ray. Tasks that train have some seconds to write a checkpoint. Open jobs end
        with an error, which :meth:`events` still yields."""
        self._jobs.closed = True
        try:
            if self._tasks:
                self._stop_tasks()
        finally:
            # Also if a second Ctrl-C interrupts the wait: Ray kills the tasks of a driver that leaves.
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
        """The pickled runner in Ray's object store: stored once for all tasks."""
        return ray.put(self._pickled_runner)

    @cached_property
    def _stopper(self) -> Any:
        """The stop signal. It runs on this node, so that losing another node does not stop all tasks."""
        this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(num_cpus=0, max_concurrency=MAX_TASKS)(Stopper)
        return actor.options(scheduling_strategy=this_node).remote()

    def _start(self, task: Task) -> None:
        job = task.remaining
        if job is None:
            self._jobs.add(JobEnded(task.job.id))
            return
        if not self._cluster.count_jobs(job.devices):
            resources = self._cluster.resources(job.devices).items()
            needs = ", ".join(f"{amount:g} {name}" for name, amount in resources)
            message = f"a job needs {needs} on one node, and the nodes have: {self._cluster.describe()}"
            if self._cluster.is_local:
                self._jobs.add(JobEnded(job.id, message))
                return
            logger.warning("%s; it waits until a larger node joins", message)
        stream = self._remote.options(**self._cluster.task_options(job.devices)).remote(
            job, self._runner, str(self._context.folder.absolute()), self._stopper
        )
        self._tasks[stream] = task

    def _listen(self, seconds: float) -> bool:
        """Wait for messages and handle all that have arrived. Returns whether any arrived."""
        if not self._tasks:
            return False
        streams = list(self._tasks)
        ready, _ = ray.wait(streams, num_returns=1, timeout=max(0.0, seconds))
        if ready and len(streams) > 1:
            ready, _ = ray.wait(streams, num_returns=len(streams), timeout=0)
        for stream in ready:
            self._handle(stream)
        return bool(ready)

    def _handle(self, stream: Any) -> None:
        """Handle the next message of a stream, or its end."""
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
            self._restart_or_end(task, error)
        else:
            if kind == Kind.READY:
                task.process = json.loads(payload)
                return
            record = read_record(kind, payload)
            if isinstance(record, RunResult):
                task.done.add(record.id)
            self._jobs.add(record)

    def _restart_or_end(self, task: Task, error: exceptions.RayError) -> None:
        self._read_outbox(task)
        if isinstance(error, NODE_LOST) and task.starts <= self._options.retries:
            logger.warning("job %s: node %s was lost; the job restarts", task.job.id, task.process.get("host"))
            task.starts += 1
            task.process = {}
            self._start(task)
        else:
            self._jobs.add(JobEnded(task.job.id, describe_failure(error, task)))

    def _read_outbox(self, task: Task) -> None:
        """Add results that the worker wrote to the outbox and Ray lost with it."""
        for run in task.remaining.runs if task.remaining is not None else ():
            result = self._outbox.get(run.id, task.job.claim_tokens.get(run.id))
            if result is not None and result.attempt >= task.job.attempts.get(run.id, 1):
                task.done.add(run.id)
                self._jobs.add(result)

    def _cancel(self, stream: Any, reason: str) -> None:
        """Handle the messages that have arrived, then kill the task's worker or remove the task from the queue."""
        while stream in self._tasks and ray.wait([stream], timeout=0)[0]:
            self._handle(stream)
        if (task := self._tasks.pop(stream, None)) is not None:
            task.dismissed = reason
            with suppress(exceptions.RayError):
                ray.cancel(stream, force=True)
            # The stream ends before the process does.
            self._tasks[stream.completed()] = task

    def _stop_tasks(self) -> None:
        for stream, task in list(self._tasks.items()):
            if not task.process and not task.dismissed:
                self._cancel(stream, CLOSED)
        self._stopper.stop.remote()
        self._wait(GRACE)
        for stream, task in list(self._tasks.items()):
            if not task.dismissed:
                self._cancel(stream, CLOSED)
        self._wait(GRACE)
        ray.kill(self._stopper)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._tasks and time.monotonic() < deadline:
            self._listen(deadline - time.monotonic())


def describe_failure(error: exceptions.RayError, task: Task) -> str:
    """The error of a job that ended, for its JobEnded."""
    process = task.process
    location = "on {host} (process {pid})".format(**process) if process else "before it began"
    log_tail = read_log_tail(Path(process["log"]), TAIL, process["start"]).strip() if process else ""
    if isinstance(error, NODE_LOST):
        return f"its node was lost, {task.starts} times in total: {first_line(error)}"
    if isinstance(error, exceptions.OutOfMemoryError):
        return f"killed by Ray {location} because memory was low: {first_line(error)}"
    if isinstance(error, exceptions.WorkerCrashedError):
        return f"the worker died {location}" + (f": {log_tail}" if log_tail else "")
    if isinstance(error, exceptions.TaskCancelledError):
        return "cancelled outside flops-fit"
    if isinstance(error, exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return f"{type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
