"""Slurm's commands, as a driver uses them; submitit writes the batch scripts."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flops_fit_core import ConfigError
from flops_fit_executors.slurm_options import SlurmOptions

ALIVE = frozenset(
    (
        "CONFIGURING",
        "COMPLETING",
        "PENDING",
        "PREEMPTED",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RESIZING",
        "RUNNING",
        "SIGNALING",
        "SPECIAL_EXIT",
        "STAGE_OUT",
        "STOPPED",
        "SUSPENDED",
    )
)
"""States of a job that is, or may be again, in the queue."""
SECONDS = 60
"""For how long a command may take."""
AT_ONCE = 500
"""Jobs that one scancel names."""

logger = logging.getLogger("flops_fit")


class Refused(Exception):
    """sbatch did not take the jobs; says what it said."""


def need_commands() -> None:
    """Raises ConfigError where this machine has no Slurm."""
    if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
        raise ConfigError(
            f"executor 'slurm': no {', '.join(missing)} here: run flops-fit on a login node of the cluster"
        )


def what_there_is() -> list[str]:
    """The partitions of this machine's Slurm, in words. Raises ConfigError where there is none or none answers."""
    need_commands()
    said = _answer("sinfo", "--noheader", "--format=%P, %D nodes, %a, at most %l")
    if said is None:
        raise ConfigError("executor 'slurm': its commands are here, and no Slurm answers them")
    return [f"partition {line.strip()}" for line in said.splitlines()]


class Slurm:
    """The jobs of one study. Raises ConfigError where this machine has no Slurm."""

    def __init__(self, study: Path, logs: Path, options: SlurmOptions) -> None:
        need_commands()
        self._logs = logs
        self._options = options
        place = hashlib.sha256(str(study.resolve()).encode()).hexdigest()[:8]
        self._name = f"flops-fit-{re.sub(r'[^A-Za-z0-9_.-]', '_', study.name)}-{place}"

    def queue(self) -> dict[str, str] | None:
        """State by id of the study's jobs and of those that ended lately; None where Slurm does not answer."""
        said = _answer(
            "squeue",
            "--noheader",
            "--array",
            "--states=all",
            f"--user={os.getuid()}",
            f"--name={self._name}",
            "--format=%i|%T",
        )
        if said is None:
            return None
        return dict(line.strip().split("|", 1) for line in said.splitlines() if "|" in line)

    def cancel(self, jobs: Iterable[str]) -> None:
        """Those that run get SIGTERM and some seconds; nothing happens to those that have ended."""
        ids = list(jobs)
        for first in range(0, len(ids), AT_ONCE):
            _answer("scancel", "--quiet", *ids[first : first + AT_ONCE])

    def submit(self, calls: Sequence[Callable[[], Any]], devices: int, gpus: int) -> list[str]:
        """Submit calls, each for so many devices with so many GPUs each, as one array. Gives Slurm's ids.

        Raises Refused.
        """
        from submitit import SlurmExecutor

        try:
            executor = SlurmExecutor(self._logs, max_num_timeout=self._options.max_requeues)
            executor.update_parameters(**self._parameters(devices, gpus))
            with outside_any_allocation(), executor.batch():
                jobs = [executor.submit(call) for call in calls]
            return [job.job_id for job in jobs]
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise Refused(str(error)) from error

    def has_gpus(self) -> bool:
        """Whether nodes where the jobs would run have GPUs."""
        partition = [f"--partition={self._options.partition}"] if self._options.partition else []
        return "gpu" in (_answer("sinfo", "--noheader", "--format=%G", *partition) or "")

    def _parameters(self, devices: int, gpus: int) -> dict[str, Any]:
        options = self._options
        named = {
            "partition": options.partition,
            "mem": options.memory,
            "account": options.account,
            "qos": options.qos,
            "constraint": options.constraint,
            "gpus_per_node": gpus * devices or None,
        }
        return {
            **{name: value for name, value in named.items() if value is not None},
            "job_name": self._name,
            "time": options.limit,
            "cpus_per_task": options.cpus * devices,
            "signal_delay_s": options.grace_period,
            "array_parallelism": options.array_parallelism,
            "setup": list(options.setup),
            "additional_parameters": {"requeue": True}
            | {name: value if value else True for name, value in options.extra.items()},
        }


@contextmanager
def outside_any_allocation() -> Iterator[None]:
    """Where the driver is in a Slurm job itself: without that job's variables. Its own jobs would inherit them,
    and srun hold them against what is asked for."""
    names = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
    taken = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(taken)


def state_of_this_job() -> str | None:
    """Asked in a Slurm job: its state; None where Slurm does not answer."""
    said = _answer("squeue", "--noheader", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%T")
    return said.strip() if said else None


def _answer(*command: str) -> str | None:
    """What a command prints; None, with a word in the log, where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        logger.debug("%s: %s", command[0], error.stderr.strip())
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("%s: %s", command[0], error)
    else:
        return done.stdout
    return None
