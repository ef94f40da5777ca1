"""Executors ``processes`` (worker processes of this machine), ``local`` (this process), ``ray`` and ``slurm``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt

from flops_fit_core.plugins import Executor, ExecutorContext, ExecutorSpec, Options, Runtime, hookimpl
from flops_fit_executors.slurm_options import SlurmOptions


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


def _of_a_cluster(address: str) -> str:
    if address.startswith("ray://"):
        raise ValueError(
            "Ray Client does not carry what tasks say: start flops-fit on a node of the cluster, with address = "
            '"auto" (from outside: ray job submit)'
        )
    return address


def _whole_or_a_share(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("whole GPUs, or a share of one")
    return gpus


class RayOptions(Options):
    """Tasks of a Ray cluster, one a job: on a cluster that runs, or on this machine alone."""

    address: Annotated[Annotated[str, AfterValidator(_of_a_cluster)] | None, Runtime()] = None
    """Of a running cluster: ``"auto"`` on one of its nodes, or ``"host:port"``; unset, Ray is started on this
    machine for this sweep alone."""
    cpus: Annotated[PositiveFloat, Runtime()] = 1
    """CPUs that a job takes, each of its devices; whole ones are threads."""
    gpus: Annotated[Annotated[float, Field(ge=0), AfterValidator(_whole_or_a_share)] | None, Runtime()] = None
    """GPUs, or the share of one, that a job takes, each of its devices; unset, 1 where the cluster has GPUs and
    the experiment's device is not ``cpu``."""
    resources: Annotated[dict[str, PositiveFloat], Runtime()] = {}
    """What else a job takes: resources of the cluster's own, by name."""
    retries: Annotated[NonNegativeInt, Runtime()] = 3
    """How often a job is started again, from its checkpoints, when the node under it is lost."""
    runtime_env: Annotated[dict[str, JsonValue], Runtime()] = {}
    """Ray's runtime environment of the workers: ``working_dir``, ``pip``, ``env_vars`` and so on."""


def build_local(options: LocalOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.in_process import InProcessExecutor

    return InProcessExecutor(context, options.threads)


def build_processes(options: ProcessesOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.pool import WorkerPool

    return WorkerPool(context, workers_of(options, context.slots), options.threads)


def build_ray(options: RayOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.ray_tasks import RayExecutor

    return RayExecutor(context, options)


def build_slurm(options: SlurmOptions, context: ExecutorContext) -> Executor:
    from flops_fit_executors.slurm_queue import SlurmQueue

    return SlurmQueue(context, options)


def check_processes(options: ProcessesOptions) -> Sequence[str]:
    return [f"{options.workers} workers" if options.workers else "one worker a GPU, or one a core"]


def check_ray(options: RayOptions) -> Sequence[str]:
    from importlib.metadata import version

    where = f"joins {options.address}" if options.address else "without an address, one of this machine alone"
    return [f"ray {version('ray')}", where]


def check_slurm(options: SlurmOptions) -> Sequence[str]:
    from flops_fit_executors.slurm_commands import what_there_is

    return what_there_is()


def ray_places(options: RayOptions, slots: Sequence[Mapping[str, str]]) -> int | None:
    """Of this machine; nobody knows those of a cluster before it is joined."""
    return None if options.address else max(1, int(len(slots) / max(1.0, options.cpus)))


def workers_of(options: ProcessesOptions, slots: Sequence[Mapping[str, str]]) -> int:
    """As many as asked for, or one a place."""
    return options.workers or max(1, len(slots))


@hookimpl
def flops_fit_executors() -> Iterable[ExecutorSpec]:
    """Offer ``processes``, ``local``, ``ray`` and ``slurm``."""
    yield ExecutorSpec(
        name="processes", options=ProcessesOptions, build=build_processes, places=workers_of, check=check_processes
    )
    yield ExecutorSpec(name="local", options=LocalOptions, build=build_local, places=lambda options, slots: 1)
    yield ExecutorSpec(
        name="ray",
        options=RayOptions,
        build=build_ray,
        places=ray_places,
        check=check_ray,
        requires=("ray>=2.40",),
        extra="ray",
    )
    yield ExecutorSpec(
        name="slurm",
        options=SlurmOptions,
        build=build_slurm,
        check=check_slurm,
        requires=("submitit>=1.5",),
        extra="slurm",
    )
