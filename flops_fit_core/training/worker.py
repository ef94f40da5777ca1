"""What a worker process does with a job, in every executor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flops_fit_core.errors import ClaimLost, RunFailed
from flops_fit_core.plugins.registry import PluginSetup, Registry, registry_from
from flops_fit_core.records import Job, Progress, RunResult
from flops_fit_core.training.context import WorkerContext
from flops_fit_core.training.distributed import TorchDistributedContext
from flops_fit_core.training.launch import launch_processes, run_process

PROCESS_CODE = "from flops_fit_core.training.worker import main; main()"
"""Code of the further processes of a job on several devices."""


def work(
    job: str,
    plugins: str,
    *,
    objects: bytes | Mapping[str, object] | None = None,
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Progress | RunResult]:
    """Train the runs of a job in this process.

    Args:
        job: A :class:`Job` as JSON.
        plugins: A :class:`PluginSetup` as JSON.
        objects: Plugins that are Python objects, ``{name: plugin}``, or the same mapping pickled by cloudpickle.
        folder: The study's folder. Checkpoints are written under it.
        should_stop: Called between steps. Once it returns True, unfinished runs end without a result.

    Yields Progress about twice a second and one RunResult per run. A run that raises gives the result ``failed``
    with its error. Only KeyboardInterrupt leaves this function, and ClaimLost if another driver trains the runs.
    """
    parsed_job = Job.model_validate_json(job)
    context = WorkerContext(parsed_job, _registry(plugins, objects), folder, should_stop)
    unfinished = {run.id: run for run in parsed_job.runs}
    try:
        with _distributed_context(context, plugins, objects) as context.distributed:
            for event in train_job(context):
                if isinstance(event, RunResult):
                    unfinished.pop(event.id, None)
                    yield event
                else:
                    yield _with_attempt(event, parsed_job)
        if unfinished and not should_stop():
            trainer = context.chosen("trainer", parsed_job.runs[0]).name
            raise RunFailed(f"trainer {trainer!r} ended without a result for this run")
    except (KeyboardInterrupt, GeneratorExit, ClaimLost):
        raise
    except BaseException as error:  # also SystemExit, and exceptions of libraries that evade `except Exception`
        for run in unfinished.values():
            yield context.failed(run, error)
    finally:
        context.release()


def train_job(context: WorkerContext) -> Iterator[Progress | RunResult]:
    """Build the job's trainer and train. Called in every process of the job."""
    trainer = context.chosen("trainer", context.job.runs[0])
    yield from trainer.spec.build(trainer.options).train(context.job, context)


def _with_attempt(progress: Progress, job: Job) -> Progress:
    attempt = job.attempts.get(progress.run, 1)
    return progress if attempt == 1 else progress.model_copy(update={"attempt": attempt})


# ---------------------------------------------------------------------------- several processes


@contextmanager
def _distributed_context(
    context: WorkerContext, plugins: str, objects: bytes | Mapping[str, object] | None
) -> Iterator[TorchDistributedContext]:
    """One process, or several if the job needs several devices and its trainer does not use them itself."""
    job = context.job
    if job.devices == 1 or "launch" in context.chosen("trainer", job.runs[0]).spec.can:
        yield TorchDistributedContext()
        return
    import cloudpickle

    blob = cloudpickle.dumps(dict(objects)) if isinstance(objects, Mapping) and objects else objects or None
    assert not isinstance(blob, Mapping)
    message = {"job": job.model_dump_json(), "plugins": plugins, "folder": str(context.checkpoints.parent)}
    with launch_processes(job.devices, PROCESS_CODE, message, blob) as distributed:
        yield distributed


def main() -> None:
    """Be a further process of a job. The first process yields the results and writes the checkpoints."""
    run_process(_train_in_process)


def _train_in_process(
    message: dict[str, Any], objects: bytes | None, distributed: TorchDistributedContext
) -> None:
    job = Job.model_validate_json(message["job"])
    context = WorkerContext(job, _registry(message["plugins"], objects), Path(message["folder"]))
    context.distributed = distributed
    for _ in train_job(context):
        pass


# ---------------------------------------------------------------------------- plugins


def _registry(plugins: str, objects: bytes | Mapping[str, object] | None) -> Registry:
    if isinstance(objects, Mapping) and objects:
        return registry_from(PluginSetup.model_validate_json(plugins), objects)
    return _registry_of_bytes(plugins, objects if isinstance(objects, bytes) else None)


@functools.lru_cache(maxsize=1)
def _registry_of_bytes(plugins: str, objects: bytes | None) -> Registry:
    """Cached: a worker process gets many jobs of one sweep."""
    import cloudpickle

    return registry_from(PluginSetup.model_validate_json(plugins), cloudpickle.loads(objects) if objects else None)
