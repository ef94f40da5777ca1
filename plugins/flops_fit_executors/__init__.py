"""Executors ``processes`` (worker processes on this machine), ``local`` (this process), ``ray`` and ``slurm``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt

from flops_fit_core import Job
from flops_fit_core.plugins import Executor, ExecutorContext, ExecutorSpec, Options, RunsCode, Runtime, hookimpl
from flops_fit_executors.slurm_options import SlurmOptions


class LocalOptions(Options):
    """Runs jobs in this process, one after another, so that debuggers and profilers work."""

    threads: Annotated[PositiveInt, Runtime()] = 1
    """Number of CPU threads."""


class ProcessesOptions(Options):
    """Worker processes on this machine, one per GPU or one per CPU core. Each trains one job after another."""

    workers: Annotated[PositiveInt | None, Runtime()] = None
    """Number of worker processes. Unset: one per GPU, or one per CPU core if there is no GPU."""
    threads: Annotated[PositiveInt, Runtime()] = 1
    """CPU threads per worker. For small models, single-threaded workers, one per core, are fastest."""


def _validate_address(address: str) -> str:
    if address.startswith("ray://"):
        raise ValueError(
            "Ray Client cannot stream results: start flops-fit on a node of the cluster with address = "
            '"auto", or start it there with ray job submit'
        )
    return address


def _validate_gpus(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("write a whole number of GPUs, or a fraction below 1")
    return gpus


class RayOptions(Options):
    """One Ray task per job, on a running cluster or on this machine alone."""

    address: Annotated[Annotated[str, AfterValidator(_validate_address)] | None, Runtime(), RunsCode()] = None
    """Address of a running cluster: ``"auto"`` on one of its nodes, or ``"host:port"``. Unset: Ray is started on
    this machine for this sweep only."""
    cpus: Annotated[PositiveFloat, Runtime()] = 1
    """CPUs per device of a job. The integer part is also the number of threads, at least 1."""
    gpus: Annotated[Annotated[float, Field(ge=0), AfterValidator(_validate_gpus)] | None, Runtime()] = None
    """GPUs, or the fraction of a GPU, per device of a job. Unset: 1 if the cluster has GPUs and the experiment's
    device is not ``cpu``, else 0."""
    resources: Annotated[dict[str, PositiveFloat], Runtime()] = {}
    """Custom resources of the cluster that each job takes: name -> amount."""
    retries: Annotated[NonNegativeInt, Runtime()] = 3
    """How many times a job is restarted from its checkpoints after its node is lost."""
    runtime_env: Annotated[dict[str, JsonValue], Runtime(), RunsCode()] = {}
    """Ray's runtime environment for the workers: ``working_dir``, ``pip``, ``env_vars`` and so on.
    ``{ env_vars = { API_TOKEN = { from_env = "API_TOKEN" } } }`` takes a secret from the environment of this
    process."""


def build_local(options: LocalOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.in_process import InProcessExecutor

    return InProcessExecutor(context, options.threads)


def build_processes(options: ProcessesOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.pool import WorkerPool

    return WorkerPool(context, count_workers(options, context.slots), options.threads)


def build_ray(options: RayOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.ray_tasks import RayExecutor

    return RayExecutor(context, options)


def build_slurm(options: SlurmOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.slurm_queue import SlurmQueue

    return SlurmQueue(context, options)


def check_processes(options: ProcessesOptions) -> Sequence[str]:
    return [f"{options.workers} workers" if options.workers else "one worker per GPU, or per CPU core if no GPU"]


def check_ray(options: RayOptions) -> Sequence[str]:
    from importlib.metadata import version

    target = f"joins {options.address}" if options.address else "no address: starts Ray on this machine"
    return [f"ray {version('ray')}", target]


def check_slurm(options: SlurmOptions) -> Sequence[str]:
    from flops_fit_executors.slurm_commands import describe_partitions

    return describe_partitions()


def describe_slurm_jobs(options: SlurmOptions, jobs: Sequence[Job], study: Path) -> str:
    from flops_fit_executors.slurm_script import describe_jobs

    return describe_jobs(options, jobs, study)


def count_ray_workers(options: RayOptions, slots: Sequence[Mapping[str, str]]) -> int | None:
    """Workers on this machine. None for a cluster: its size is unknown until it is joined."""
    return None if options.address else max(1, int(len(slots) / max(1.0, options.cpus)))


def count_workers(options: ProcessesOptions, slots: Sequence[Mapping[str, str]]) -> int:
    """Number of worker processes."""
    return options.workers or max(1, len(slots))


@hookimpl
def flops_fit_executors() -> Iterable[ExecutorSpec]:
    """Offer ``processes``, ``local``, ``ray`` and ``slurm``."""
    yield ExecutorSpec(
        name="processes",
        options=ProcessesOptions,
        build=build_processes,
        places=count_workers,
        check=check_processes,
    )
    yield ExecutorSpec(name="local", options=LocalOptions, build=build_local, places=lambda options, slots: 1)
    yield ExecutorSpec(
        name="ray",
        options=RayOptions,
        build=build_ray,
        places=count_ray_workers,
        check=check_ray,
        requires=("ray>=2.40",),
        extra="ray",
    )
    yield ExecutorSpec(
        name="slurm",
        options=SlurmOptions,
        build=build_slurm,
        check=check_slurm,
        describe_jobs=describe_slurm_jobs,
        requires=("submitit>=1.5",),
        extra="slurm",
    )
