"""A real Ray cluster on this machine for tests: a head without CPUs, and nodes of one CPU each."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

QUICK = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
}
"""Detect the death of a node within two seconds (by default about 14), and tolerate slow answers."""
ENVIRONMENT = {
    **QUICK,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_MEMORY_MONITOR": "1",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
}


class Node:
    """``ray start --block`` and its subprocesses."""

    def __init__(self, *arguments: str) -> None:
        command = Path(sys.executable).with_name("ray")
        self.process = subprocess.Popen(
            [str(command), "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats", *arguments],
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        output = []
        for line in self.process.stdout:  # wait: nodes that start at the same time take each other's names
            output.append(line)
            if "Ray runtime started" in line:
                return
        raise RuntimeError("ray start: " + "".join(output))

    def processes(self) -> list[int]:
        """Ids of the process and of all its descendants, parents before children."""
        return descendants(self.process.pid)

    def kill(self) -> None:
        """Kill all processes at once, the raylet first, as a power failure does. Idempotent."""
        if self.process.returncode is not None:
            return
        pids = self.processes()
        for pid in sorted(pids, key=lambda pid: "raylet/raylet" not in _command(pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()
        deadline = time.monotonic() + 10
        while any(_command(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)


class RayCluster:
    """A head node and worker nodes. :meth:`close` kills them by process id."""

    def __init__(self) -> None:
        self.address = f"127.0.0.1:{_free_port()}"
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a socket's path may not be long
        port = self.address.rpartition(":")[2]
        head = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        self.nodes: list[Node] = [Node(*head, f"--temp-dir={self._folder}", "--object-store-memory=100000000")]

    def add_node(self) -> Node:
        node = Node(f"--address={self.address}", "--num-cpus=1", "--object-store-memory=100000000")
        self.nodes.append(node)
        return node

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def ray_cluster(nodes: int) -> Iterator[RayCluster]:
    cluster = RayCluster()
    try:
        for _ in range(nodes):
            cluster.add_node()
        yield cluster
    finally:
        cluster.close()


def descendants(pid: int) -> list[int]:
    """A process and its descendants, parents before children. Ids are not ordered: they wrap around at 32768."""
    children = defaultdict(list)
    for child, parent in _parents():
        children[parent].append(child)
    pids = [pid]
    for parent in pids:
        pids += children[parent]
    return pids


def _parents() -> Iterator[tuple[int, int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, rest = stat.read_text().split(" (", 1)
            yield int(pid), int(rest.rpartition(") ")[2].split()[1])


def _command(pid: int) -> str:
    """Empty once the process is dead."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
