"""The batch scripts that a sweep would submit, and the resources of its jobs."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from flops_fit_core import Job
from flops_fit_executors.slurm_commands import START, job_name, job_parameters
from flops_fit_executors.slurm_options import SlurmOptions


def describe_jobs(options: SlurmOptions, jobs: Sequence[Job], study: Path) -> str:
    """A script per array of jobs with equal resources, and the resources of a job. Slurm need not be installed."""
    by_resources: dict[tuple[int, int | None], list[Job]] = defaultdict(list)
    for job in jobs:
        by_resources[job.devices, gpus_per_device(options, job)].append(job)
    return "\n\n".join(
        "\n".join(_describe_array(options, group, study, devices, gpus))
        for (devices, gpus), group in by_resources.items()
    )


def gpus_per_device(options: SlurmOptions, job: Job) -> int | None:
    """GPUs per device of a job; None if they depend on the nodes of the partition."""
    if options.gpus is not None:
        return options.gpus
    return {"cuda": 1, "cpu": 0}.get(job.device.name.rpartition("/")[2])


def _describe_array(
    options: SlurmOptions, jobs: Sequence[Job], study: Path, devices: int, gpus: int | None
) -> Iterator[str]:
    from submitit.slurm.slurm import _make_sbatch_string  # the text that SlurmExecutor submits

    cores = options.cpus * devices
    resources = [f"{cores} CPU core{'s' if cores > 1 else ''}", f"time limit {options.limit} min"]
    count = devices if gpus is None else gpus * devices
    condition = " if the partition has GPUs (not in this script)" if gpus is None else ""
    resources.insert(1, f"{count} GPU{'' if count == 1 else 's'}{condition}")
    resources += [f"memory {options.memory}"] if options.memory else []
    yield f"# {len(jobs)} jobs in one array, at most {options.array_parallelism} at a time"
    yield f"# each job: {', '.join(resources)}"
    logs = study / "slurm" / "logs"
    command = f"{START} -u -m submitit.core._submit {shlex.quote(str(logs))}"
    parameters = job_parameters(options, job_name(study), devices, gpus or 0)
    yield _make_sbatch_string(command=command, folder=logs, map_count=len(jobs), **parameters).rstrip()
