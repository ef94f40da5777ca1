"""Slurm's commands for a driver. Submitit writes the batch scripts."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
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
"""States of a job that is in the queue or may return to it."""
COMMAND_TIMEOUT = 60
"""Seconds that a command may take."""
START = f"{shlex.quote(sys.executable)} -P -m flops_fit_executors.slurm_start"
"""Replaces the interpreter in submitit's command line, so that its arguments are this program's."""
CANCEL_BATCH = 500
"""Jobs per call of scancel."""

logger = logging.getLogger("flops_fit")


class SubmissionError(Exception):
    """sbatch rejected the jobs. The message is its output."""


def require_commands() -> None:
    """Raises ConfigError if this machine has no Slurm commands."""
    if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
        raise ConfigError(
            f"executor 'slurm': {', '.join(missing)} not found: run flops-fit on a login node of the cluster"
        )


def describe_partitions() -> list[str]:
    """One line per partition. Raises ConfigError if this machine has no Slurm or Slurm does not answer."""
    require_commands()
    output = _run_command("sinfo", "--noheader", "--format=%P, %D nodes, %a, at most %l")
    if output is None:
        raise ConfigError("executor 'slurm': Slurm is installed but sinfo fails: is the controller running?")
    return [f"partition {line.strip()}" for line in output.splitlines()]


class Slurm:
    """The Slurm jobs of one study. Raises ConfigError if this machine has no Slurm commands."""

    def __init__(self, study: Path, logs: Path, options: SlurmOptions) -> None:
        require_commands()
        self._logs = logs
        self._options = options
        self._name = job_name(study)

    def queue(self) -> dict[str, str] | None:
        """Slurm id -> state of the study's jobs, including recently ended ones. None if Slurm does not answer."""
        output = _run_command(
            "squeue",
            "--noheader",
            "--array",
            "--states=all",
            f"--user={os.getuid()}",
            f"--name={self._name}",
            "--format=%i|%T",
        )
        if output is None:
            return None
        return dict(line.strip().split("|", 1) for line in output.splitlines() if "|" in line)

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs by Slurm id. Running jobs get SIGTERM and some seconds; ended jobs are ignored."""
        ids = list(jobs)
        for first in range(0, len(ids), CANCEL_BATCH):
            _run_command("scancel", "--quiet", *ids[first : first + CANCEL_BATCH])

    def submit(self, calls: Sequence[Callable[[], Any]], devices: int, gpus: int) -> list[str]:
        """Submit calls as one array. ``devices`` is per call, ``gpus`` per device. Returns Slurm's ids.

        Raises SubmissionError.
        """
        from submitit import SlurmExecutor

        try:
            executor = SlurmExecutor(self._logs, max_num_timeout=self._options.max_requeues, python=START)
            executor.update_parameters(**job_parameters(self._options, self._name, devices, gpus))
            with without_slurm_variables(), executor.batch():
                jobs = [executor.submit(call) for call in calls]
            return [job.job_id for job in jobs]
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise SubmissionError(str(error)) from error

    def has_gpus(self) -> bool:
        """Whether nodes of the partition have GPUs; without a partition, any node."""
        partition = [f"--partition={self._options.partition}"] if self._options.partition else []
        return "gpu" in (_run_command("sinfo", "--noheader", "--format=%G", *partition) or "")


def job_name(study: Path) -> str:
    """The name of a study's Slurm jobs."""
    path_hash = hashlib.sha256(str(study.resolve()).encode()).hexdigest()[:8]
    return f"flops-fit-{re.sub(r'[^A-Za-z0-9_.-]', '_', study.name)}-{path_hash}"


def job_parameters(options: SlurmOptions, name: str, devices: int, gpus: int) -> dict[str, Any]:
    """Submitit's parameters of an array. ``devices`` is per job, ``gpus`` per device."""
    optional = {
        "partition": options.partition,
        "mem": options.memory,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "gpus_per_node": gpus * devices or None,
    }
    return {
        **{name: value for name, value in optional.items() if value is not None},
        "job_name": name,
        "time": options.limit,
        "cpus_per_task": options.cpus * devices,
        "signal_delay_s": options.grace_period,
        "array_parallelism": options.array_parallelism,
        "setup": list(options.setup),
        "additional_parameters": {"requeue": True}
        | {name: value if value else True for name, value in options.extra.items()},
    }


@contextmanager
def without_slurm_variables() -> Iterator[None]:
    """Hide the variables of a Slurm job in which the driver itself runs. Submitted jobs would inherit them, and
    srun would check the requested resources against them."""
    names = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
    removed = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(removed)


def state_of_this_job() -> str | None:
    """State of the Slurm job that this process runs in. None if Slurm does not answer."""
    output = _run_command("squeue", "--noheader", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%T")
    return output.strip() if output else None


def _run_command(*command: str) -> str | None:
    """Output of a command. None, with a debug message, if it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=True)
    except subprocess.CalledProcessError as error:
        logger.debug("%s: %s", command[0], error.stderr.strip())
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("%s: %s", command[0], error)
    else:
        return result.stdout
    return None
