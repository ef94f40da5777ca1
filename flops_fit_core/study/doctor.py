"""What this machine, the plugins, a study's folder and its executor can do, found out by trying."""

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
"""For how long an executor may stay silent over a job that takes no time."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    text: str
    ok: bool = True
    """False where something that was asked for does not work."""


def machine() -> Iterator[Finding]:
    """Processor, memory, GPUs, and what torch can do with them."""
    import torch

    yield Finding("python", f"{platform.python_version()}, {sys.executable}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("processor", f"{cores} of {os.cpu_count()} cores, {_memory()}")
    yield Finding("torch", torch.__version__)
    count = torch.cuda.device_count()
    for index in range(count):
        about = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if about.major >= 8 else "no bfloat16"
        yield Finding(f"GPU {index}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {bf16}")
    if not count:
        yield Finding(
            "GPU", "torch sees none" + (": it is a build without CUDA" if not torch.version.cuda else "")
        )
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    yield Finding(
        "compile", f"a C compiler, {compiler}" if compiler else "no C compiler: compile = true does nothing"
    )


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, ValueError, OSError):
        return "memory unknown"


def plugins(registry: Registry) -> Iterator[Finding]:
    """How many there are, and which are broken."""
    yield Finding("plugins", f"{len(registry.plugins)} plugins, {len(registry.offers())} offers")
    for problem in registry.problems:
        yield Finding("plugins", str(problem), ok=False)


def executors(registry: Registry) -> Iterator[Finding]:
    """Those that are installed, and what each finds here with its default options."""
    for offer in registry.offers("executor"):
        if missing := offer.missing():
            yield Finding(f"executor {offer.spec.name}", offer.install_message(missing))
            continue
        try:
            options = offer.spec.options()
            text = "; ".join(offer.spec.check(options)) or "there"
        except FlopsFitError as error:
            text = str(error)
        yield Finding(f"executor {offer.spec.name}", text)


def study(study: Study) -> Iterator[Finding]:
    """Its folder, its store, and one job by its executor that takes no time. Leaves nothing behind."""
    folder = study.folder.path
    was_there = folder.exists()
    try:
        yield _tried("folder", lambda: _folder(study))
        yield _tried("store", lambda: _store(study))
        assert study.experiment is not None
        yield _tried(f"executor {study.experiment.executor.name}", lambda: _job(study))
    finally:
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)


def _tried(about: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(about, look())
    except Exception as error:
        said = str(error) if isinstance(error, FlopsFitError) else f"{type(error).__name__}: {error}"
        return Finding(about, said, ok=False)


def _folder(study: Study) -> str:
    folder = study.folder.path
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".doctor.json"
    write_atomically(probe, "{}")
    probe.unlink()
    free = shutil.disk_usage(folder).free
    needed = study.plan.checkpoint_bytes
    if free < 2 * needed:
        raise OSError(
            f"{free / 2**30:.1f} GiB are free in {folder}, and checkpoints take {needed / 2**30:.1f} GiB"
        )
    return f"{folder} can be written; {free / 2**30:.1f} GiB free"


def _store(study: Study) -> str:
    with study.store() as store:
        owner = f"doctor:{os.getpid()}"
        if not store.claim("doctor", owner, 5.0):
            raise OSError("a claim cannot be taken")
        store.release("doctor", owner)
        drivers = "several drivers" if store.shares_claims else "one driver at a time"
        return f"{len(store.results())} results; claims work for {drivers}"


def _job(asked: Study) -> str:
    """Have the executor do a job whose result comes from a formula, in a folder of its own beside the results."""
    with tempfile.TemporaryDirectory(dir=asked.folder.path, prefix=".doctor-") as folder:
        return _done(asked, Path(folder))


def _done(asked: Study, folder: Path) -> str:
    assert asked.experiment is not None
    chosen, device = asked.experiment.executor, asked.experiment.device
    registry = asked.registry
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
        why = (
            failed[0].message if failed else ended[0] if ended else f"nothing was heard for {TRIAL_SECONDS:.0f} s"
        )
        raise OSError(f"a trial job gave no result: {why}")
    return f"a trial job came back in {seconds:.1f} s, start and stop included; {executor.capacity} jobs at a time"
