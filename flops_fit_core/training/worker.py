"""What a worker process does with a job, wherever an executor started it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from flops_fit_core.errors import RunFailed
from flops_fit_core.records import Job, Progress, RunResult
from flops_fit_core.registry import PluginSetup, Registry, registry_from
from flops_fit_core.training.context import WorkerContext


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
        objects: Plugins that are Python objects, ``{name: plugin}``, or these in one cloudpickle blob.
        folder: The study's folder; checkpoints live under it.
        should_stop: Asked between steps; once it is true, unfinished runs end without a result.

    Yields Progress now and then and one RunResult for every run. A run that raises gives the result
    ``failed`` with its error; nothing but KeyboardInterrupt is raised.
    """
    parsed = Job.model_validate_json(job)
    context = WorkerContext(parsed, _registry(plugins, objects), folder, should_stop)
    waiting = {run.id: run for run in parsed.runs}
    try:
        trainer = context.chosen("trainer", parsed.runs[0])
        for event in trainer.spec.build(trainer.options).train(parsed, context):
            if isinstance(event, RunResult):
                waiting.pop(event.id, None)
            yield event
        if waiting and not should_stop():
            raise RunFailed(f"trainer {trainer.name!r} ended without a result for this run")
    except (Exception, SystemExit) as error:
        for run in waiting.values():
            yield context.failed(run, error)
    finally:
        context.release()


def _registry(plugins: str, objects: bytes | Mapping[str, object] | None) -> Registry:
    if not objects:
        return _unpacked(plugins, None)
    if isinstance(objects, bytes):
        return _unpacked(plugins, objects)
    return registry_from(PluginSetup.model_validate_json(plugins), objects)


@functools.lru_cache(maxsize=1)
def _unpacked(plugins: str, objects: bytes | None) -> Registry:
    """Made once a process: a worker takes many jobs of one sweep."""
    import cloudpickle

    return registry_from(PluginSetup.model_validate_json(plugins), cloudpickle.loads(objects) if objects else None)
