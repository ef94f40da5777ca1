"""Options of the executor ``slurm``."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from flops_fit_core.plugins import Options, Runtime

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d)(?::(?P<seconds>\d\d))?")
_OURS = {
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
"""Parameters of sbatch that an option of ours sets."""
_FIXED = {"clusters", "error", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "requeue"}
"""Parameters of sbatch without which jobs would not be found again."""


def minutes(time: int | str) -> int:
    """Minutes of ``90``, ``"1:30:00"``, ``"1:30"`` (hours and minutes) or ``"2-12:00:00"``, rounded up.

    Raises ValueError for anything else.
    """
    if isinstance(time, int):
        return time
    found = _TIME.fullmatch(time)
    if found is None:
        raise ValueError("write minutes, or HH:MM:SS, or DAYS-HH:MM:SS")
    days, hours, left, seconds = (int(part or 0) for part in found.groups())
    total = (24 * days + hours) * 60 + left + (seconds > 0)
    if total == 0:
        raise ValueError("a time limit of nothing")
    return total


def known_parameters(extra: dict[str, str]) -> dict[str, str]:
    """Raises ValueError for a parameter that is not the user's to set, or not here."""
    for name in extra:
        if name in _OURS:
            raise ValueError(f"{name}: write executor.{_OURS[name]} instead")
        if name in _FIXED:
            raise ValueError(f"{name}: flops-fit sets it itself, to find its jobs again")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ValueError(f"{name!r}: write the long name of an option of sbatch without its dashes: 'nice'")
    return extra


class SlurmOptions(Options):
    """Jobs of a Slurm cluster. They go on when the driver is gone, and on from their checkpoint when Slurm stops
    them; the next ``flops-fit run`` finds them."""

    partition: Annotated[str | None, Runtime()] = None
    """Where jobs run. Unset: the cluster's default, as for all that is unset here."""
    time: Annotated[PositiveInt | str, AfterValidator(minutes), Runtime()] = 60
    """Time limit of a job: minutes, or ``HH:MM:SS``, or ``DAYS-HH:MM:SS``. A job that needs longer goes on in
    a further turn."""
    cpus: Annotated[PositiveInt, Runtime()] = 1
    """Cores for each device of a job; as many threads."""
    gpus: Annotated[NonNegativeInt | None, Runtime()] = None
    """GPUs for each device of a job. Unset: 1 with the device ``cuda``; none with ``cpu``; otherwise 1 where
    nodes of the partition have GPUs."""
    memory: Annotated[str | None, Runtime()] = None
    """Of a job, as sbatch takes it: ``16G``."""
    account: Annotated[str | None, Runtime()] = None
    """Whom the time is charged to."""
    qos: Annotated[str | None, Runtime()] = None
    """Quality of service."""
    constraint: Annotated[str | None, Runtime()] = None
    """Features that the nodes must have."""
    array_parallelism: Annotated[PositiveInt, Runtime()] = 64
    """Jobs of an array that run at the same time."""
    max_jobs: Annotated[PositiveInt, Field(le=1000), Runtime()] = 1000
    """Jobs in the queue at the same time; lower it where the cluster lets a user have fewer."""
    max_requeues: Annotated[NonNegativeInt, Runtime()] = 100
    """How often a job that reached its time limit goes on in a further turn."""
    grace_period: Annotated[PositiveInt, Runtime()] = 90
    """Seconds before its time limit at which a job writes its checkpoint; Slurm may be a minute early."""
    keep_jobs: Annotated[bool, Runtime()] = False
    """Whether Ctrl-C leaves the jobs in the queue, for the next ``flops-fit run`` to find. Otherwise they write
    their checkpoints and are cancelled."""
    poll: Annotated[PositiveFloat, Runtime()] = 2.0
    """Seconds between two looks at what jobs have written; the queue is asked every fifth time."""
    setup: Annotated[tuple[str, ...], Runtime()] = ()
    """Lines of shell that run on the node before the job: ``module load cuda``."""
    extra: Annotated[dict[str, str], AfterValidator(known_parameters), Runtime()] = {}
    """Further options of sbatch by their long name: ``{nice = "100", exclude = "node7"}``; an empty text for one
    without a value."""

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
