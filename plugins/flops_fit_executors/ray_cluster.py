"""A Ray cluster as the executor ``ray`` uses it: joined or started here, and how many jobs it takes."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from flops_fit_core import ConfigError
from flops_fit_executors.worker_process import THREAD_VARIABLES

if TYPE_CHECKING:
    from flops_fit_executors import RayOptions

LEFT_BEHIND = ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "PYTHONBREAKPOINT")
"""Variables that starting Ray sets in this process and leaving it does not unset."""
LOOK_SECONDS = 5.0
"""How long the number of nodes is taken to be what it was."""


class Cluster:
    """The cluster that this process has joined, or a cluster of this machine that it has started.

    Raises ConfigError where no cluster answers.
    """

    def __init__(self, options: RayOptions, slots: Sequence[Mapping[str, str]]) -> None:
        self._options = options
        self._no_gpus = all(slot.get("CUDA_VISIBLE_DEVICES") == "" for slot in slots)
        """The experiment's device is the CPU: its places show no GPU."""
        self.is_own = not options.address
        self._environment_before = {name: os.environ.get(name) for name in LEFT_BEHIND}
        self._ours = join(options, self._environment())
        self._nodes: list[Mapping[str, float]] = []
        self._looked = -math.inf

    def leave(self) -> None:
        """Nothing happens where Ray ran in this process before."""
        if self._ours:
            self._ours = False
            ray.shutdown()
            show_messages(True)
            for name, value in self._environment_before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def needs(self, devices: int) -> dict[str, float]:
        """What a job on so many devices takes of a node."""
        return {
            "CPU": self._options.cpus * devices,
            "GPU": self._gpus() * devices if devices == 1 else math.ceil(self._gpus()) * devices,
            **self._options.resources,
        }

    def task_options(self, devices: int) -> dict[str, Any]:
        """The same for Ray, and a worker's environment."""
        needs = self.needs(devices)
        own = {} if self._ours else {"runtime_env": {"env_vars": self._environment()}}
        return {"num_cpus": needs.pop("CPU"), "num_gpus": needs.pop("GPU"), "resources": needs, **own}

    def places(self, devices: int = 1) -> int:
        """Jobs on so many devices that the cluster as it is now has room for."""
        needs = {name: amount for name, amount in self.needs(devices).items() if amount}
        # A little more than one is one: 0.3 / 0.1 is less than 3.
        return sum(
            int(min(node.get(name, 0.0) / amount for name, amount in needs.items()) + 1e-6)
            for node in self._alive()
        )

    def describe(self) -> str:
        """Its nodes, for messages."""
        return "; ".join(
            ", ".join(f"{amount:g} {name}" for name, amount in sorted(node.items()) if is_asked_for(name))
            for node in self._alive()
        )

    def _gpus(self) -> float:
        if self._options.gpus is not None:
            return self._options.gpus
        return 1.0 if not self._no_gpus and any(node.get("GPU") for node in self._alive()) else 0.0

    def _environment(self) -> dict[str, str]:
        threads = str(max(1, int(self._options.cpus)))
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self._no_gpus else {}
        return {**dict.fromkeys(THREAD_VARIABLES, threads), **hidden, "PYTHONPATH": os.pathsep.join(own_paths())}

    def _alive(self) -> list[Mapping[str, float]]:
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._looked = time.monotonic()
        return self._nodes


def join(options: RayOptions, environment: Mapping[str, str]) -> bool:
    """Join the cluster, or start one, for workers with this environment. False where this process has joined one
    before, which then is used.

    Raises ConfigError where no cluster answers.
    """
    if ray.is_initialized():
        if options.runtime_env:
            raise ConfigError(
                "executor 'ray': this process has joined Ray already, with its own runtime environment: leave out "
                "executor.runtime_env"
            )
        return False
    own: dict[str, Any] = {} if options.address else {"include_dashboard": False}
    asked: dict[str, Any] = dict(options.runtime_env)
    asked["env_vars"] = {**environment, **asked.get("env_vars", {})}
    show_messages(False)
    try:
        with as_before():
            ray.init(
                address=options.address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=asked,
                **own,
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        show_messages(True)
        where = (
            f"no Ray cluster at {options.address!r} could be joined" if options.address else "Ray did not start"
        )
        raise ConfigError(f"executor 'ray': {where}: {error}") from error
    return True


@contextmanager
def as_before() -> Iterator[None]:
    """Start Ray quietly, and keep this process's handler of SIGTERM, which Ray replaces by one that exits."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def show_messages(wanted: bool) -> None:
    """Whether Ray prints to our standard output what its nodes report, such as the death of a worker.

    What a user needs of it is in the job's error; Ray has no public switch for it.
    """
    ray._private.worker._worker_logs_enabled = wanted


def own_paths() -> list[str]:
    """Where this process imports from, beside what is installed: the same on every node."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths = [Path(entry).absolute() for entry in sys.path]
    return [str(path) for path in paths if not any(path.is_relative_to(one) for one in installed)]


def is_asked_for(resource: str) -> bool:
    """Whether people ask for it: not memory and the names that Ray gives each node."""
    return resource not in ("memory", "object_store_memory") and not resource.startswith("node:")
