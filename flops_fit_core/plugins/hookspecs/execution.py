"""Hooks for where runs are trained, and where what comes of them is kept and shown."""

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

        import json
        import time

        from flops_fit_core import RunResult
        from flops_fit_core.plugins import StoreSpec, hookimpl

        class LineStore:
            # One file, with a result or a claim in each line.
            def __init__(self, path):
                self.path, self.kept, self.claims = path, {}, {}
                for line in path.read_text().splitlines() if path.exists() else ():
                    self.take(line)

            def take(self, line):
                if line.startswith("["):
                    run_id, *claim = json.loads(line)
                    self.claims[run_id] = claim
                else:
                    result = RunResult.model_validate_json(line)
                    self.kept.setdefault(result.id, {})[result.attempt] = result

            def write(self, line):
                with self.path.open("a") as file:
                    file.write(line + "\\n")
                self.take(line)

            def add(self, result):
                result = RunResult.model_validate(result.model_dump())  # refuses NaN
                if self.kept.get(result.id, {}).get(result.attempt) != result:
                    self.write(result.model_dump_json())

            def attempts(self, run_id):
                return [result for _, result in sorted(self.kept.get(run_id, {}).items())]

            def get(self, run_id):
                return next(reversed(self.attempts(run_id)), None)

            def results(self):
                return [self.get(run_id) for run_id in self.kept]

            def claim(self, run_id, owner, seconds):
                holder, until = self.claims.get(run_id, (owner, 0))
                if holder != owner and until > time.time():
                    return False
                self.write(json.dumps([run_id, owner, time.time() + seconds]))
                return True

            def renew(self, run_id, owner, seconds):
                holder, _ = self.claims.get(run_id, (None, 0))
                return holder == owner and self.claim(run_id, owner, seconds)

            def release(self, run_id, owner):
                holder, _ = self.claims.get(run_id, (None, 0))
                if holder == owner:
                    self.write(json.dumps([run_id, None, 0]))

            def close(self):
                pass

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
    """Offer executors, which run jobs somewhere: ``[executor]`` in an experiment.

    ::

        from collections import deque

        from flops_fit_core.plugins import ExecutorSpec, JobEnded, hookimpl

        class OneAfterAnother:
            capacity = 1

            def __init__(self, context):
                self.context, self.waiting, self.running, self.cancelled = context, deque(), None, set()

            def submit(self, job):
                self.waiting.append(job)

            def events(self, timeout):
                while self.running or self.waiting:
                    self.running = self.running or self.work_on(self.waiting.popleft())
                    for event in self.running:  # whoever reads may stop here, and come back
                        yield event
                    self.running = None

            def work_on(self, job):
                from flops_fit_core.training import work  # and torch with it

                yield from work(job.model_dump_json(), self.context.plugins,
                                objects=self.context.live, folder=self.context.folder,
                                should_stop=lambda: job.id in self.cancelled)
                yield JobEnded(job.id, "cancelled" if job.id in self.cancelled else None)

            def cancel(self, job_id):
                self.cancelled.add(job_id)

            def close(self):
                self.waiting.clear()
                self.running = None

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
