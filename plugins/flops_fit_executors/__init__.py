"""Executors ``processes`` (worker processes of this machine) and ``local`` (this process)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from pydantic import PositiveInt

from flops_fit_core import Executor, ExecutorContext, ExecutorSpec, Options, Runtime, hookimpl


class LocalOptions(Options):
    """In this process, one job after another, where a debugger and a profiler see them."""

    threads: Annotated[PositiveInt, Runtime()] = 1
    """CPU threads."""


class ProcessesOptions(Options):
    """Processes of this machine, one a core or one a GPU, each trains one job after another."""

    workers: Annotated[PositiveInt | None, Runtime()] = None
    """Processes that train at the same time; unset, one a core or one a GPU."""
    threads: Annotated[PositiveInt, Runtime()] = 1
    """CPU threads of each. Single-threaded workers, one a core, train small models fastest."""


def build_local(options: LocalOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.in_process import InProcessExecutor

    return InProcessExecutor(context, options.threads)


def build_processes(options: ProcessesOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.pool import WorkerPool

    return WorkerPool(context, workers_of(options, context.slots), options.threads)


def workers_of(options: ProcessesOptions, slots: Sequence[Mapping[str, str]]) -> int:
    """As many as asked for, or one a place."""
    return options.workers or max(1, len(slots))


@hookimpl
def flops_fit_executors() -> Iterable[ExecutorSpec]:
    """Offer ``processes`` and ``local``."""
    yield ExecutorSpec(name="processes", options=ProcessesOptions, build=build_processes, places=workers_of)
    yield ExecutorSpec(name="local", options=LocalOptions, build=build_local, places=lambda options, slots: 1)
