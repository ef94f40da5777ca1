"""Options of the executor ``slurm``."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from flops_fit_core.plugins import Options, RunsCode, Runtime

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d)(?::(?P<seconds>\d\d))?")
_SET_BY_OPTION = {
    "account": "account",
    "array": "array_parallelism",
    "constraint": "constraint",
    "cpus-per-task": "cpus",
    "gpus-per-node": "gpus",
    "mem": "memory",
    "partition": "partition",
    "qos": "qos",
    "signal": "grace_period",
    "time": "time",
}
"""sbatch parameter -> the executor's option that sets it."""
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Text without control characters: after a line break in an ``#SBATCH`` line, the shell would run the rest."""
_FIXED = {"clusters", "error", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "requeue"}
"""Parameters of sbatch that the executor sets to find its jobs later."""


def minutes(time: int | str) -> int:
    """Convert ``90``, ``"1:30:00"``, ``"1:30"`` (hours and minutes) or ``"2-12:00:00"`` to minutes, rounded up.

    Raises ValueError for other formats, and for a time of 0.
    """
    if isinstance(time, int):
        return time
    match = _TIME.fullmatch(time)
    if match is None:
        raise ValueError("write minutes, HH:MM:SS or DAYS-HH:MM:SS")
    days, hours, rest, seconds = (int(part or 0) for part in match.groups())
    total = (24 * days + hours) * 60 + rest + (seconds > 0)
    if total == 0:
        raise ValueError("the time limit is 0: write at least 1 minute")
    return total


def validate_extra(extra: dict[str, str]) -> dict[str, str]:
    """Raises ValueError for a parameter that users cannot set, or that has an option."""
    for name in extra:
        if name in _SET_BY_OPTION:
            raise ValueError(f"{name}: write executor.{_SET_BY_OPTION[name]} instead")
        if name in _FIXED:
            raise ValueError(f"{name}: flops-fit sets this parameter to find its jobs later; remove it")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ValueError(f"{name!r}: write the long name of an sbatch option without dashes, such as 'nice'")
    return extra


class SlurmOptions(Options):
    """One Slurm job per job. Jobs continue after the driver exits, and resume from their checkpoints after Slurm
    stops them. The next ``flops-fit run`` collects them."""

    partition: Annotated[Line | None, Runtime()] = None
    """Partition of the jobs. Unset, as for every unset option here: the cluster's default."""
    time: Annotated[PositiveInt | str, AfterValidator(minutes), Runtime()] = 60
    """Time limit per job: minutes, ``HH:MM:SS`` or ``DAYS-HH:MM:SS``. A longer job is requeued and resumes from
    its checkpoint."""
    cpus: Annotated[PositiveInt, Runtime()] = 1
    """CPU cores, and threads, per device of a job."""
    gpus: Annotated[NonNegativeInt | None, Runtime()] = None
    """GPUs per device of a job. Unset: 1 with device ``cuda``, 0 with ``cpu``; with other devices, 1 if nodes of
    the partition have GPUs."""
    memory: Annotated[Line | None, Runtime()] = None
    """Memory per job, in sbatch's format: ``16G``."""
    account: Annotated[Line | None, Runtime()] = None
    """Account to charge."""
    qos: Annotated[Line | None, Runtime()] = None
    """Quality of service."""
    constraint: Annotated[Line | None, Runtime()] = None
    """Features that the nodes must have."""
    array_parallelism: Annotated[PositiveInt, Runtime()] = 64
    """Jobs per array that run at the same time."""
    max_jobs: Annotated[PositiveInt, Field(le=1000), Runtime()] = 1000
    """Jobs in the queue at the same time. Lower it if the cluster allows fewer per user."""
    max_requeues: Annotated[NonNegativeInt, Runtime()] = 100
    """How many times a job that reaches its time limit is requeued."""
    grace_period: Annotated[PositiveInt, Runtime()] = 90
    """Seconds before its time limit at which a job writes its checkpoint. Slurm may be a minute early."""
    keep_jobs: Annotated[bool, Runtime()] = False
    """Leave the jobs in the queue on Ctrl-C; the next ``flops-fit run`` collects them. By default they write their
    checkpoints and are cancelled."""
    poll: Annotated[PositiveFloat, Runtime()] = 2.0
    """Seconds between two reads of the jobs' files. squeue runs at every fifth read."""
    setup: Annotated[tuple[str, ...], Runtime(), RunsCode()] = ()
    """Shell lines to run on the node before the job: ``module load cuda``."""
    extra: Annotated[dict[str, str], AfterValidator(validate_extra), Runtime(), RunsCode()] = {}
    """Further sbatch options by long name: ``{nice = "100", exclude = "node7"}``. The value of a flag is an empty
    string."""

    @model_validator(mode="after")
    def _grace_is_shorter_than_time(self) -> Self:
        if self.grace_period >= 60 * self.limit:
            raise ValueError(
                f"grace_period ({self.grace_period} seconds) must be shorter than time ({self.limit} minutes)"
            )
        return self

    @property
    def limit(self) -> int:
        """The time limit in minutes."""
        return minutes(self.time)
