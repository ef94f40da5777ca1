"""A pool of worker processes on this machine. Each worker trains one job at a time."""

from __future__ import annotations

import pickle
import queue
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence

from flops_fit_core import Job
from flops_fit_core.plugins import Executor, ExecutorContext, JobEnded
from flops_fit_executors.messages import Kind, read_record
from flops_fit_executors.open_jobs import CLOSED, Event, OpenJobs
from flops_fit_executors.worker_process import Inbox, WorkerProcess, environment

GRACE = 5.0
"""Seconds that workers have to write their checkpoints when the executor is closed, and again after SIGTERM."""
FAILED_STARTS = 2
"""Give up after this many consecutive workers that died before they were ready."""


class WorkerPool(Executor):
    """Assigns jobs to worker processes in the order of submission.

    Workers start when jobs need them and live until :meth:`close`. A worker that dies is replaced while jobs
    remain. Output of user code goes to ``logs/worker-<n>.log`` in the study. A job on several devices gets a
    worker with that many slots; idle workers are stopped to free them.

    Use from one thread: on Linux a worker dies with the thread that started it. Raises ConfigError for Python
    objects that cannot be pickled.
    """

    def __init__(self, context: ExecutorContext, workers: int, threads: int) -> None:
        self.capacity = workers
        self._context = context
        self._runner = pickle.dumps(context.runner)
        self._threads = threads
        self._slots = context.slots or [{}]
        self._gpus = {slot["CUDA_VISIBLE_DEVICES"] for slot in self._slots if slot.get("CUDA_VISIBLE_DEVICES")}
        self._workers: list[WorkerProcess] = []
        self._waiting: deque[Job] = deque()
        self._jobs = OpenJobs()
        self._inbox: Inbox = queue.SimpleQueue()
        self._failed_starts = 0

    # ------------------------------------------------------------------ interface

    def submit(self, job: Job) -> None:
        """Raises ValueError if the job is submitted already and has not ended, RuntimeError if the executor is
        closed."""
        self._jobs.open(job)
        if self._gpus and job.devices > (available := min(len(self._gpus), self.capacity)):
            self._jobs.add(JobEnded(job.id, f"each run needs {job.devices} GPUs, and {available} are available"))
            return
        self._waiting.append(job)
        self._assign_jobs()

    def events(self, timeout: float) -> Iterator[Event]:
        return self._jobs.events(timeout, self._listen)

    def cancel(self, job_id: str) -> None:
        for job in [job for job in self._waiting if job.id == job_id]:
            self._waiting.remove(job)
            self._jobs.add(JobEnded(job.id, "cancelled"))
        for worker in self._workers:
            if worker.job == job_id:
                worker.dismissed = "cancelled"
                worker.end(force=True)

    def is_alive(self, job_id: str) -> bool:
        """Whether the process of the job lives. True for a job that waits. May be called by another thread."""
        return all(worker.is_alive for worker in list(self._workers) if worker.job == job_id)

    def close(self) -> None:
        """Stop all workers. Those that train have some seconds to write a checkpoint. Open jobs end with an error,
        which :meth:`events` still yields."""
        self._jobs.closed = True
        self._waiting.clear()
        try:
            self._stop_workers()
        finally:
            # Also if a second Ctrl-C interrupts the wait.
            for worker in self._workers:
                worker.end(force=True)
                worker.wait(GRACE)
        while not self._inbox.empty():
            self._handle(*self._inbox.get())
        self._jobs.end_all()

    # ------------------------------------------------------------------ workers

    def _assign_jobs(self) -> None:
        """Send waiting jobs to idle workers, and start workers for the remaining jobs."""
        starting = Counter(len(worker.slots) for worker in self._workers if worker.starting)
        for job in list(self._waiting):
            size = min(job.devices, self.capacity)
            if self._send(job, size):
                continue
            if starting[size]:
                starting[size] -= 1
            elif len(free := self._free_slots(job.devices)) >= size:
                self._start(free[:size])
            else:
                self._stop_idle_workers(size - len(free))
                return

    def _send(self, job: Job, size: int) -> bool:
        """Send the job to an idle worker with ``size`` slots. Returns False if there is none."""
        for worker in self._workers:
            fits = worker.idle and len(worker.slots) == size
            if fits and worker.send(Kind.JOB, job.model_dump_json().encode()):
                worker.job = job.id
                self._waiting.remove(job)
                return True
        return False

    def _free_slots(self, devices: int) -> list[int]:
        """Slots without a worker. For several GPUs, one slot per GPU."""
        taken = {slot for worker in self._workers for slot in worker.slots}
        free = [slot for slot in range(self.capacity) if slot not in taken]
        if devices == 1 or not self._gpus:
            return free
        by_gpu: dict[str | None, int] = {}
        for slot in free:
            by_gpu.setdefault(self._variables(slot).get("CUDA_VISIBLE_DEVICES"), slot)
        return list(by_gpu.values())

    def _variables(self, slot: int) -> Mapping[str, str]:
        """Environment variables of a slot. Workers share slots if there are more workers than slots."""
        return self._slots[slot % len(self._slots)]

    def _stop_idle_workers(self, slots: int) -> None:
        """Stop idle workers until this many slots are free, counting those of workers that are stopping."""
        slots -= sum(len(worker.slots) for worker in self._workers if worker.dismissed)
        for worker in self._workers:
            if slots > 0 and worker.idle:
                worker.dismissed = "its slot is needed"
                worker.send(Kind.STOP)
                slots -= len(worker.slots)

    def _start(self, slots: Sequence[int]) -> None:
        env = environment([self._variables(slot) for slot in slots], self._threads)
        log = self._context.folder / "logs" / f"worker-{slots[0]}.log"
        while self._waiting and self._failed_starts < FAILED_STARTS:
            try:
                self._workers.append(WorkerProcess(slots, self._runner, self._inbox, env=env, log=log))
            except OSError as error:
                self._count_failed_start(str(error))
            else:
                return

    def _count_failed_start(self, error: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS and not self._workers:
            self._jobs.add(*(JobEnded(job.id, f"no worker could be started: {error}") for job in self._waiting))
            self._waiting.clear()
            self._failed_starts = 0

    def _listen(self, seconds: float) -> bool:
        try:
            message = self._inbox.get(timeout=seconds)
        except queue.Empty:
            return False
        self._handle(*message)
        return True

    def _handle(self, worker: WorkerProcess, kind: Kind, payload: bytes) -> None:
        if kind is Kind.READY:
            worker.ready = True
            self._failed_starts = 0
        elif kind is Kind.ENDED and worker.job is not None:
            self._jobs.add(JobEnded(worker.job, payload.decode() or None))
            worker.job = None
        elif kind is Kind.GONE:
            self._remove(worker)
        else:
            self._jobs.add(read_record(kind, payload))
            return
        self._assign_jobs()

    def _remove(self, worker: WorkerProcess) -> None:
        """Remove a dead worker, and end its job."""
        self._workers.remove(worker)
        if worker.job is not None:
            self._jobs.add(JobEnded(worker.job, worker.dismissed or worker.describe_exit()))
        if worker.ready:
            self._failed_starts = 0
        elif worker.dismissed is None:
            self._count_failed_start(worker.describe_exit())

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.dismissed = CLOSED
            if not (worker.ready and worker.send(Kind.STOP)):
                worker.end(force=True)
        self._wait(GRACE)
        for worker in self._workers:
            worker.end(force=False)
        self._wait(GRACE)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.wait(deadline - time.monotonic())
