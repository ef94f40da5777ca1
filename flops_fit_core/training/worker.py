"""What a worker process does with a job, wherever an executor started it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.registry import PluginSetup, Registry, registry_from
from flops_fit_core.records import Job, Progress, RunResult
from flops_fit_core.training.context import WorkerContext
from flops_fit_core.training.distributed import Processes
from flops_fit_core.training.peers import peers


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
        with _all_of_them(context, plugins, objects) as context.together:
            for event in _trained(context):
                if isinstance(event, RunResult):
                    waiting.pop(event.id, None)
                yield event if isinstance(event, RunResult) else _numbered(event, parsed)
        if waiting and not should_stop():
            name = context.chosen("trainer", parsed.runs[0]).name
            raise RunFailed(f"trainer {name!r} ended without a result for this run")
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit, and what libraries derive to get past `except Exception`
        for run in waiting.values():
            yield context.failed(run, error)
    finally:
        context.release()


def _numbered(progress: Progress, job: Job) -> Progress:
    attempt = job.attempts.get(progress.run, 1)
    return progress if attempt == 1 else progress.model_copy(update={"attempt": attempt})


def train_along(job: str, plugins: str, objects: bytes | None, folder: Path, together: Processes) -> None:
    """Be a further process of a job: the same way, of which the first process tells."""
    context = WorkerContext(Job.model_validate_json(job), _registry(plugins, objects), folder)
    context.together = together
    for _ in _trained(context):
        pass


def _trained(context: WorkerContext) -> Iterator[Progress | RunResult]:
    trainer = context.chosen("trainer", context.job.runs[0])
    yield from trainer.spec.build(trainer.options).train(context.job, context)


@contextmanager
def _all_of_them(
    context: WorkerContext, plugins: str, objects: bytes | Mapping[str, object] | None
) -> Iterator[Processes]:
    """The process itself, and those that train the job with it where it needs several devices and its trainer does
    not launch what uses them."""
    job = context.job
    if job.devices == 1 or "launch" in context.chosen("trainer", job.runs[0]).spec.can:
        yield Processes()
        return
    import cloudpickle

    blob = cloudpickle.dumps(dict(objects)) if isinstance(objects, Mapping) and objects else objects or None
    assert not isinstance(blob, Mapping)
    with peers(job.devices, job.model_dump_json(), plugins, blob, context.checkpoints.parent) as together:
        yield together


def _registry(plugins: str, objects: bytes | Mapping[str, object] | None) -> Registry:
    if isinstance(objects, Mapping) and objects:
        return registry_from(PluginSetup.model_validate_json(plugins), objects)
    return _unpacked(plugins, objects if isinstance(objects, bytes) else None)


@functools.lru_cache(maxsize=1)
def _unpacked(plugins: str, objects: bytes | None) -> Registry:
    """Made once a process: a worker takes many jobs of one sweep."""
    import cloudpickle

    return registry_from(PluginSetup.model_validate_json(plugins), cloudpickle.loads(objects) if objects else None)
