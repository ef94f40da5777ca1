"""Worker processes on this machine: one job each at a time, one job after another."""

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
"""Seconds that workers get to write their checkpoints when the executor is closed, and again after SIGTERM."""
FAILED_STARTS = 2
"""Workers that died in a row before they were ready; after that, trying again is not worth it."""


class WorkerPool(Executor):
    """Gives jobs to worker processes in the order in which they were submitted.

    Workers are started when there are jobs for them and live until :meth:`close`. One that dies is replaced
    while jobs are left. Each writes what its user code prints to ``logs/worker-<n>.log`` in the study. A job that
    needs several devices gets a worker that has as many places; idle workers make room for it.

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
        self._staff: list[WorkerProcess] = []
        self._waiting: deque[Job] = deque()
        self._jobs = OpenJobs()
        self._inbox: Inbox = queue.SimpleQueue()
        self._failed_starts = 0

    # ------------------------------------------------------------------ the contract

    def submit(self, job: Job) -> None:
        """Raises ValueError for a job that has been submitted and has not ended, RuntimeError once closed."""
        self._jobs.take(job)
        if self._gpus and job.devices > (there := min(len(self._gpus), self.capacity)):
            self._jobs.add(JobEnded(job.id, f"its runs need {job.devices} GPUs each, and there are {there} here"))
            return
        self._waiting.append(job)
        self._employ()

    def events(self, timeout: float) -> Iterator[Event]:
        return self._jobs.events(timeout, self._listen)

    def cancel(self, job_id: str) -> None:
        for job in [job for job in self._waiting if job.id == job_id]:
            self._waiting.remove(job)
            self._jobs.add(JobEnded(job.id, "cancelled"))
        for worker in self._staff:
            if worker.job == job_id:
                worker.dismissed = "cancelled"
                worker.end(force=True)

    def close(self) -> None:
        """Ask workers to stop, give those that train some seconds for it, end the others. A job that has not ended
        ends with an error, which :meth:`events` still gives."""
        self._jobs.closed = True
        self._waiting.clear()
        try:
            self._dismiss()
        finally:
            # Also where a second Ctrl-C cuts the grace short.
            for worker in self._staff:
                worker.end(force=True)
                worker.wait(GRACE)
        while not self._inbox.empty():
            self._hear(*self._inbox.get())
        self._jobs.end_all()

    # ------------------------------------------------------------------ workers

    def _employ(self) -> None:
        """Give waiting jobs to idle workers, and start workers for the jobs that are left."""
        starting = Counter(len(worker.places) for worker in self._staff if worker.starting)
        for job in list(self._waiting):
            size = min(job.devices, self.capacity)
            if self._give(job, size):
                continue
            if starting[size]:
                starting[size] -= 1
            elif len(free := self._free_places(job.devices)) >= size:
                self._start(free[:size])
            else:
                self._make_room(size - len(free))
                return

    def _give(self, job: Job, size: int) -> bool:
        for worker in self._staff:
            fits = worker.idle and len(worker.places) == size
            if fits and worker.tell(Kind.JOB, job.model_dump_json().encode()):
                worker.job = job.id
                self._waiting.remove(job)
                return True
        return False

    def _free_places(self, devices: int) -> list[int]:
        """Those of which no worker has one; for several GPUs, one place a GPU."""
        taken = {place for worker in self._staff for place in worker.places}
        free = [place for place in range(self.capacity) if place not in taken]
        if devices == 1 or not self._gpus:
            return free
        by_gpu: dict[str | None, int] = {}
        for place in free:
            by_gpu.setdefault(self._slot(place).get("CUDA_VISIBLE_DEVICES"), place)
        return list(by_gpu.values())

    def _slot(self, place: int) -> Mapping[str, str]:
        return self._slots[place % len(self._slots)]

    def _make_room(self, places: int) -> None:
        """Let idle workers go until so many places will be free; what they leave is heard of as any other end."""
        places -= sum(len(worker.places) for worker in self._staff if worker.dismissed)
        for worker in self._staff:
            if places > 0 and worker.idle:
                worker.dismissed = "its place is needed"
                worker.tell(Kind.STOP)
                places -= len(worker.places)

    def _start(self, places: Sequence[int]) -> None:
        env = environment([self._slot(place) for place in places], self._threads)
        log = self._context.folder / "logs" / f"worker-{places[0]}.log"
        while self._waiting and self._failed_starts < FAILED_STARTS:
            try:
                self._staff.append(WorkerProcess(places, self._runner, self._inbox, env=env, log=log))
            except OSError as error:
                self._start_failed(str(error))
            else:
                return

    def _start_failed(self, error: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS and not self._staff:
            self._jobs.add(*(JobEnded(job.id, f"no worker could be started: {error}") for job in self._waiting))
            self._waiting.clear()
            self._failed_starts = 0

    def _listen(self, seconds: float) -> bool:
        try:
            message = self._inbox.get(timeout=seconds)
        except queue.Empty:
            return False
        self._hear(*message)
        return True

    def _hear(self, worker: WorkerProcess, kind: Kind, payload: bytes) -> None:
        if kind is Kind.READY:
            worker.ready = True
            self._failed_starts = 0
        elif kind is Kind.ENDED and worker.job is not None:
            self._jobs.add(JobEnded(worker.job, payload.decode() or None))
            worker.job = None
        elif kind is Kind.GONE:
            self._mourn(worker)
        else:
            self._jobs.add(read_record(kind, payload))
            return
        self._employ()

    def _mourn(self, worker: WorkerProcess) -> None:
        self._staff.remove(worker)
        if worker.job is not None:
            self._jobs.add(JobEnded(worker.job, worker.dismissed or worker.fate()))
        if worker.ready:
            self._failed_starts = 0
        elif worker.dismissed is None:
            self._start_failed(worker.fate())

    def _dismiss(self) -> None:
        for worker in self._staff:
            worker.dismissed = CLOSED
            if not (worker.ready and worker.tell(Kind.STOP)):
                worker.end(force=True)
        self._wait(GRACE)
        for worker in self._staff:
            worker.end(force=False)
        self._wait(GRACE)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for worker in self._staff:
            worker.wait(until - time.monotonic())
