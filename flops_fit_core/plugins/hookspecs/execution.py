"""Hooks for stores, devices, executors and loggers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flops_fit_core.plugins.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from flops_fit_core.plugins.specs import DeviceSpec, ExecutorSpec, LoggerSpec, StoreSpec


@hookspec
def flops_fit_stores() -> Iterable[StoreSpec]:
    """Offer result stores: ``[store]`` in an experiment.

    ::

        from flops_fit_core import RunResult
        from flops_fit_core.plugins import ResultStore, StoreSpec, hookimpl

        class LineStore(ResultStore):
            # One file with one line of JSON per call of add.
            def __init__(self, path):
                self.path = path
                path.touch()

            def add(self, result):
                result = RunResult.model_validate(result.model_dump())  # refuses NaN
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(result.model_dump_json() + "\\n")

            def all_attempts(self):
                attempts = {}
                with self.path.open(encoding="utf-8") as file:
                    for line in file:
                        result = RunResult.model_validate_json(line)
                        attempts[result.id, result.attempt] = result  # a replaced attempt keeps its place
                return attempts.values()

        @hookimpl
        def flops_fit_stores():
            yield StoreSpec(
                name="lines",
                build=lambda options, folder: LineStore(folder / "results.jsonl"),
                file="results.jsonl",
            )
    """
    return ()


@hookspec
def flops_fit_devices() -> Iterable[DeviceSpec]:
    """Offer devices: ``[device]`` in an experiment.

    ::

        from flops_fit_core.plugins import Device, DeviceSpec, hookimpl

        class AMX(Device):
            torch_device, name, precision = "cpu", "CPU with AMX units", "bfloat16"

        @hookimpl
        def flops_fit_devices():
            yield DeviceSpec(name="amx", build=lambda options: AMX(), slots=lambda options: [{}])
    """
    return ()


@hookspec
def flops_fit_executors() -> Iterable[ExecutorSpec]:
    """Offer executors, which run jobs: ``[executor]`` in an experiment.

    ::

        from collections import deque

        from flops_fit_core.plugins import Executor, ExecutorSpec, JobEnded, hookimpl

        class OneAfterAnother(Executor):
            def __init__(self, context):
                self.context, self.waiting, self.running, self.cancelled = context, deque(), None, set()

            def submit(self, job):
                self.cancelled.discard(job.id)
                self.waiting.append(job)

            def events(self, timeout):
                while self.running or self.waiting:
                    self.running = self.running or self.train(self.waiting.popleft())
                    for event in self.running:  # the reader may stop here and call events again
                        yield event
                    self.running = None

            def train(self, job):
                yield from self.context.task(job)(lambda: job.id in self.cancelled)
                yield JobEnded(job.id, "cancelled" if job.id in self.cancelled else None)

            def cancel(self, job_id):
                self.cancelled.add(job_id)

        @hookimpl
        def flops_fit_executors():
            yield ExecutorSpec(name="one-after-another", build=lambda options, context: OneAfterAnother(context))
    """
    return ()


@hookspec
def flops_fit_loggers() -> Iterable[LoggerSpec]:
    """Offer loggers: ``loggers = ["..."]`` in an experiment.

    ::

        from flops_fit_core.plugins import Logger, LoggerSpec, hookimpl

        class LineLogger(Logger):
            def __init__(self, folder):
                self.path = folder / "log.txt"

            def started(self, plan):
                self.write(f"{plan.name}: {len(plan.runs)} runs")

            def finished(self, result):
                self.write(f"{result.id} {result.status} {result.loss}")

            def write(self, line):
                with self.path.open("a") as file:
                    file.write(line + "\\n")

        @hookimpl
        def flops_fit_loggers():
            yield LoggerSpec(name="lines", build=lambda options, folder: LineLogger(folder))
    """
    return ()
