"""A real Slurm cluster of one node on this machine: munged, slurmctld and slurmd, without accounting.

Needs root and Debian's packages ``slurm-wlm`` and ``munge``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
TIMEOUT = 30.0
"""Seconds for a daemon to start."""


def missing_requirement() -> str | None:
    """A missing requirement of the cluster; None if it can start."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install -y --no-install-recommends slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd starts jobs as root only"
    return None


class Cluster:
    """A running Slurm cluster. With ``SLURM_CONF`` from :attr:`environment`, Slurm's commands use it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.environment = {"SLURM_CONF": str(base / "slurm.conf")}

    def command(self, *words: str) -> str:
        """Output of a Slurm command. Raises CalledProcessError if it fails."""
        env = {**os.environ, **self.environment}
        return subprocess.run(words, env=env, check=True, capture_output=True, text=True).stdout

    def queue(self) -> dict[str, str]:
        """Slurm id -> state of every job that has not ended."""
        lines = self.command("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)  # type: ignore[misc]

    def start_now(self, job: str) -> None:
        """Start a requeued job without Slurm's delay of two minutes."""
        time.sleep(2)  # slurmd cannot start a job in the second in which it was requeued
        self.command("scontrol", "update", f"jobid={job}", "starttime=now")


@contextmanager
def cluster(base: Path, cpus: int = 2) -> Iterator[Cluster]:
    """Start a cluster in the folder ``base``, and stop it at the end."""
    daemons: list[subprocess.Popen[bytes]] = []
    up = Cluster(base)
    key = base / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    write_configuration(base, cpus)
    env = {**os.environ, **up.environment, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}

    def start(*command: str) -> None:
        with (base / f"{command[0]}.out").open("wb") as output:
            daemons.append(subprocess.Popen(command, env=env, stdout=output, stderr=output, cwd=base))

    try:
        start("munged", "--foreground", "--force", *munge_files(base))
        wait_until(lambda: (base / "munge.sock").exists(), "munged")
        start("slurmctld", "-D", "-c")
        start("slurmd", "-D")
        wait_until(lambda: is_idle(up), "slurmd")
        yield up
    finally:
        take_down(up, daemons)


def is_idle(up: Cluster) -> bool:
    try:
        return up.command("sinfo", "--noheader", "--states=idle", "--format=%D").strip() == "1"
    except subprocess.CalledProcessError:
        return False


def take_down(up: Cluster, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Cancel the jobs before the daemons: processes of a job would outlive slurmd."""
    try:
        up.command("scancel", f"--user={os.getuid()}")
        wait_until(lambda: not up.queue(), "the end of all jobs")
    except subprocess.CalledProcessError:
        pass  # it never started
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def wait_until(is_true: Callable[[], bool], condition: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {TIMEOUT:.0f} seconds for {condition}")
        time.sleep(0.1)


def munge_files(base: Path) -> list[str]:
    endings = {"socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "key-file": "key"}
    return [f"--{option}={base / 'munge'}.{ending}" for option, ending in endings.items()]


def write_configuration(base: Path, cpus: int) -> None:
    host = socket.gethostname().partition(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 // 2
    for folder in ("state", "spool"):
        (base / folder).mkdir()
    (base / "slurm.conf").write_text(
        f"""\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge.sock
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=512
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
MinJobAge=60
KillWait=5
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=20
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={cpus} CoresPerSocket={cpus} RealMemory={memory}
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
