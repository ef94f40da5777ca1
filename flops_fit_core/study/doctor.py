"""Diagnose this machine, the plugins, and a study's folder, store and executor by trying them."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flops_fit_core.config import build_executor, list_slots, make_experiment
from flops_fit_core.errors import FlopsFitError
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.protocols import JobEnded
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import RunResult
from flops_fit_core.study import Study
from flops_fit_core.training.executor_context import StudyExecutorContext

TRIAL_SECONDS = 300.0
"""The longest wait for an event of a trial job, which needs no training time."""


@dataclass(frozen=True)
class Finding:
    """One item of the diagnosis."""

    subject: str
    text: str
    ok: bool = True
    """False if something that the user needs does not work."""


def machine() -> Iterator[Finding]:
    """Python, processor, memory, torch, GPUs and C compiler."""
    import torch

    yield Finding("python", f"{platform.python_version()}, {sys.executable}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("processor", f"{cores} of {os.cpu_count()} cores, {_memory()}")
    yield Finding("torch", torch.__version__)
    count = torch.cuda.device_count()
    for index in range(count):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if device.major >= 8 else "no bfloat16"
        yield Finding(f"GPU {index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}")
    if not count:
        reason = "" if torch.version.cuda else ": torch is built without CUDA"
        yield Finding("GPU", f"torch finds no GPU{reason}")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    text = f"C compiler {compiler}" if compiler else "no C compiler: compile = true has no effect"
    yield Finding("compile", text)


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, ValueError, OSError):
        return "memory unknown"


def plugins(registry: Registry) -> Iterator[Finding]:
    """The number of plugins, and each broken plugin."""
    yield Finding("plugins", f"{len(registry.plugins)} plugins, {len(registry.offers())} offers")
    for problem in registry.problems:
        yield Finding("plugins", str(problem), ok=False)


def executors(registry: Registry) -> Iterator[Finding]:
    """Each installed executor, checked with its default options."""
    for offer in registry.offers("executor"):
        if missing := offer.missing():
            yield Finding(f"executor {offer.spec.name}", offer.install_message(missing))
            continue
        try:
            options = offer.spec.options()
            text = "; ".join(offer.spec.check(options)) or "available"
        except FlopsFitError as error:
            text = str(error)
        yield Finding(f"executor {offer.spec.name}", text)


def study(study: Study) -> Iterator[Finding]:
    """The study's folder, its store, and a trial job by its executor. Leaves no files."""
    folder = study.folder.path
    existed = folder.exists()
    try:
        yield _check("folder", lambda: _check_folder(study))
        yield _check("store", lambda: _check_store(study))
        assert study.experiment is not None
        yield _check(f"executor {study.experiment.executor.name}", lambda: _check_executor(study))
    finally:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)


def _check(subject: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, check())
    except Exception as error:
        message = str(error) if isinstance(error, FlopsFitError) else f"{type(error).__name__}: {error}"
        return Finding(subject, message, ok=False)


def _check_folder(study: Study) -> str:
    folder = study.folder.path
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".doctor.json"
    write_atomically(probe, "{}")
    probe.unlink()
    free = shutil.disk_usage(folder).free
    needed = study.plan.checkpoint_bytes
    if free < 2 * needed:
        raise OSError(f"{folder} has {free / 2**30:.1f} GiB free, and checkpoints need {needed / 2**30:.1f} GiB")
    return f"{folder} is writable; {free / 2**30:.1f} GiB free"


def _check_store(study: Study) -> str:
    with study.store() as store:
        owner = f"doctor:{os.getpid()}"
        if not store.claim("doctor", owner, 5.0):
            raise OSError("the store refuses a claim of a run")
        store.release("doctor", owner)
        drivers = "several drivers" if store.shares_claims else "one driver at a time"
        return f"{len(store.results())} results; claims work for {drivers}"


def _check_executor(study: Study) -> str:
    """Run a job with a formula as its loss, in a temporary folder inside the study's folder."""
    with tempfile.TemporaryDirectory(dir=study.folder.path, prefix=".doctor-") as folder:
        return _run_trial_job(study, Path(folder))


def _run_trial_job(study: Study, folder: Path) -> str:
    assert study.experiment is not None
    chosen, device = study.experiment.executor, study.experiment.device
    registry = study.registry
    table = {"sweep": {"budgets": [1e18], "sizes": 1}, "model": "surface/surface", "dataset": "surface/surface"}
    plan = make_plan(make_experiment({**table, "device": device.name}, registry))
    (job,) = plan.jobs({plan.runs[0].id})
    context = StudyExecutorContext(
        folder=folder,
        plugins=registry.setup.model_dump_json(),
        live=registry.objects,
        slots=list_slots(device),
    )
    started = time.monotonic()
    executor = build_executor(chosen, context)
    try:
        executor.submit(job)
        events = list(executor.events(TRIAL_SECONDS))
    finally:
        executor.close()
    seconds = time.monotonic() - started
    done = [event for event in events if isinstance(event, RunResult) and event.status == "completed"]
    ended = [event.error for event in events if isinstance(event, JobEnded)]
    if not done or ended != [None]:
        failed = [event.error for event in events if isinstance(event, RunResult) and event.error]
        reason = failed[0].message if failed else ended[0] if ended else f"no event in {TRIAL_SECONDS:.0f} s"
        raise OSError(f"a trial job gave no result: {reason}")
    return f"a trial job took {seconds:.1f} s with start and stop; {executor.capacity} jobs at a time"
