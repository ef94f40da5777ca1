"""Training batches: read in order, on GPUs ahead of the steps that need them."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.protocols import Batch, Device
from flops_fit_core.training.batches import pinned
from flops_fit_core.training.run_state import RunState


class BatchLoader:
    """Loads the batches of runs that are trained together. Leave its ``with`` block to stop its thread.

    Args:
        runs: Runs at one step.
        steps: Steps that the batches are for.
        device: On CUDA, a thread makes the batches in page-locked memory while the device computes.
    """

    def __init__(self, runs: Sequence[RunState], steps: range, device: Device) -> None:
        self._runs = runs
        self.wait_seconds = 0.0
        """Time that the last call of :meth:`next_batches` took."""
        batch_size = runs[0].spec.batch_size
        sources = [run.parts.dataset.batches(batch_size, steps.start * batch_size) for run in runs]
        batches = itertools.islice(map(list, zip(*sources, strict=True)), len(steps))
        self._batches: Iterator[list[Batch]] = batches
        self._prefetcher: Prefetcher | None = None
        if device.torch_device.startswith("cuda"):
            self._batches = self._prefetcher = Prefetcher(batches)

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._prefetcher is not None:
            self._prefetcher.stop()

    def next_batches(self) -> list[Batch]:
        """The batch of every run for the next step. Raises RunFailed if the training data have ended."""
        started = time.perf_counter()
        try:
            return next(self._batches)
        except StopIteration:
            raise RunFailed(_data_ended(self._runs[0])) from None
        finally:
            self.wait_seconds = time.perf_counter() - started


def _data_ended(run: RunState) -> str:
    unit = run.parts.dataset.task.unit
    return (
        f"the training data ended after {run.position.tokens:,} of the {run.spec.tokens:,} {unit} of this run: "
        "give more data or a smaller budget, or allow the data to be read again (allow_repeat=True, sweep.allow_repeat = true)"
    )


class Prefetcher(Iterator[Any]):
    """Iterates over batches that a thread makes ahead of time, in page-locked memory.

    An exception in the thread is raised by ``next`` in its place.

    Args:
        batches: Read by the thread only.
        ahead: Number of batches that wait in memory at most.
    """

    def __init__(self, batches: Iterator[Any], ahead: int = 3) -> None:
        self._batches = batches
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(ahead)
        self._stopping = threading.Event()
        threading.Thread(target=self._fill, daemon=True, name="batches").start()

    def __next__(self) -> Any:
        batch, error = self._queue.get()
        if error is not None:
            self._put(None, error)  # so that a further call raises, too, and does not wait for ever
            raise error
        return batch

    def stop(self) -> None:
        """End the thread after the batch that it is making."""
        self._stopping.set()

    def _fill(self) -> None:
        try:
            for batch in self._batches:
                self._put(pinned(batch), None)
                if self._stopping.is_set():
                    return
            self._put(None, StopIteration())
        except BaseException as error:
            self._put(None, error)

    def _put(self, batch: Any, error: BaseException | None) -> None:
        """Wait until there is room, or until the batches are not needed any more."""
        while not self._stopping.is_set():
            try:
                self._queue.put((batch, error), timeout=0.2)
            except queue.Full:
                continue
            return
