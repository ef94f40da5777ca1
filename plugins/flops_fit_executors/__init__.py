"""Executor ``local``: jobs in processes of this machine, or in this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import NonNegativeInt, PositiveInt

from flops_fit_core import Executor, ExecutorContext, ExecutorSpec, Options, Runtime, hookimpl


class LocalOptions(Options):
    """Processes of this machine, one a core or one a GPU; or none: everything in this one."""

    workers: Annotated[NonNegativeInt | None, Runtime()] = None
    """Processes that train at the same time; unset, one a core or one a GPU. 0: no processes, one job after
    another in this one, where a debugger and a profiler see them."""
    threads: Annotated[PositiveInt, Runtime()] = 1
    """CPU threads of each. Single-threaded workers, one a core, train small models fastest."""


def build_local(options: LocalOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.in_process import InProcessExecutor
    from flops_fit_executors.local import LocalExecutor

    if options.workers == 0:
        return InProcessExecutor(context, options.threads)
    slots = context.slots or [{}]
    return LocalExecutor(context, options.workers or len(slots), options.threads)


@hookimpl
def flops_fit_executors() -> Iterable[ExecutorSpec]:
    yield ExecutorSpec(name="local", options=LocalOptions, build=build_local)
