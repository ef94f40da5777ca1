"""Join or start a Ray cluster, and count the jobs that fit on it."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from pydantic import TypeAdapter
from ray.job_config import JobConfig

from flops_fit_core import ConfigError
from flops_fit_core.plugins import EnvironmentValue, resolve_value
from flops_fit_executors.worker_process import THREAD_VARIABLES

if TYPE_CHECKING:
    from flops_fit_executors import RayOptions

LEAKED_VARIABLES = ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "PYTHONBREAKPOINT")
"""Environment variables that ``ray.init`` sets in this process and ``ray.shutdown`` does not unset."""
REFRESH_SECONDS = 5.0
"""Age at which the cached list of nodes is read anew."""


class Cluster:
    """The Ray cluster that this process has joined, or has started on this machine.

    Raises ConfigError if no cluster answers.
    """

    def __init__(self, options: RayOptions, slots: Sequence[Mapping[str, str]]) -> None:
        self._options = options
        self._no_gpus = all(slot.get("CUDA_VISIBLE_DEVICES") == "" for slot in slots)
        """The experiment's device is the CPU: its slots hide all GPUs."""
        self.is_local = not options.address
        self._previous_variables = {name: os.environ.get(name) for name in LEAKED_VARIABLES}
        self._must_leave = join(options, self._environment())
        """False if Ray was initialized in this process before."""
        self._nodes: list[Mapping[str, float]] = []
        self._refreshed = -math.inf

    def leave(self) -> None:
        """Shut Ray down in this process, unless it was initialized before."""
        if self._must_leave:
            self._must_leave = False
            ray.shutdown()
            show_messages(True)
            for name, value in self._previous_variables.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def resources(self, devices: int) -> dict[str, float]:
        """Resources that a job on ``devices`` devices takes of its node: name -> amount."""
        return {
            "CPU": self._options.cpus * devices,
            "GPU": self._gpus() * devices if devices == 1 else math.ceil(self._gpus()) * devices,
            **self._options.resources,
        }

    def task_options(self, devices: int) -> dict[str, Any]:
        """Resources and, if Ray was initialized before, the environment of a job, as Ray's task options."""
        resources = self.resources(devices)
        environment = {} if self._must_leave else {"runtime_env": {"env_vars": self._environment()}}
        return {
            "num_cpus": resources.pop("CPU"),
            "num_gpus": resources.pop("GPU"),
            "resources": resources,
            **environment,
        }

    def count_jobs(self, devices: int = 1) -> int:
        """Jobs on ``devices`` devices that fit on the cluster's current nodes."""
        resources = {name: amount for name, amount in self.resources(devices).items() if amount}
        # 1e-6 corrects rounding: 0.3 / 0.1 is less than 3.
        return sum(
            int(min(node.get(name, 0.0) / amount for name, amount in resources.items()) + 1e-6)
            for node in self._alive_nodes()
        )

    def describe(self) -> str:
        """Resources of each node, for messages."""
        return "; ".join(
            ", ".join(f"{amount:g} {name}" for name, amount in sorted(node.items()) if is_user_resource(name))
            for node in self._alive_nodes()
        )

    def _gpus(self) -> float:
        if self._options.gpus is not None:
            return self._options.gpus
        return 1.0 if not self._no_gpus and any(node.get("GPU") for node in self._alive_nodes()) else 0.0

    def _environment(self) -> dict[str, str]:
        threads = str(max(1, int(self._options.cpus)))
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self._no_gpus else {}
        return {
            **dict.fromkeys(THREAD_VARIABLES, threads),
            **hidden,
            "PYTHONPATH": os.pathsep.join(extra_import_paths()),
        }

    def _alive_nodes(self) -> list[Mapping[str, float]]:
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._refreshed = time.monotonic()
        return self._nodes


def join(options: RayOptions, environment: Mapping[str, str]) -> bool:
    """Join or start a cluster for workers with this environment. Returns False if Ray is already initialized in
    this process; that cluster is then used.

    Raises ConfigError if no cluster answers.
    """
    if ray.is_initialized():
        if options.runtime_env:
            raise ConfigError(
                "executor 'ray': Ray is already initialized in this process with another runtime environment: "
                "leave out executor.runtime_env"
            )
        return False
    start_options: dict[str, Any] = {} if options.address else {"include_dashboard": False}
    runtime_env: dict[str, Any] = dict(options.runtime_env)
    runtime_env["env_vars"] = {**environment, **resolve_variables(runtime_env.get("env_vars", {}))}
    show_messages(False)
    try:
        with keep_sigterm_handler():
            ray.init(
                address=options.address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=runtime_env,
                job_config=job_config(),
                **start_options,
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        show_messages(True)
        failure = f"cannot join a Ray cluster at {options.address!r}" if options.address else "Ray did not start"
        raise ConfigError(f"executor 'ray': {failure}: {error}") from error
    return True


def resolve_variables(variables: Mapping[str, Any]) -> dict[str, str]:
    """The variables of ``env_vars``, with the values of references. Raises ConfigError for a missing variable."""
    option = "executor.runtime_env.env_vars"
    return {
        name: resolve_value(TypeAdapter(EnvironmentValue).validate_python(value), f"{option}.{name}")
        for name, value in variables.items()
    }


def job_config() -> JobConfig:
    """A configuration that does not put the driver's working directory first in the workers' Python path.

    Ray does so by default, and a ``numpy.py`` in a folder of another user would replace the installed module. Ray
    has no public switch. Workers get the driver's import paths in ``PYTHONPATH``.
    """
    config = JobConfig()
    config._py_driver_sys_path = _NoPaths()
    return config


class _NoPaths(list[str]):
    def extend(self, paths: Iterable[str]) -> None:
        """Add nothing."""


@contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Restore this process's SIGTERM handler after ``ray.init``, which installs a handler that exits. Also turn
    off Ray's usage statistics and their notice."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main_thread else None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def show_messages(enabled: bool) -> None:
    """Let Ray print reports of its nodes, for example the death of a worker, to standard output.

    The job's error already has this information. Ray has no public switch for these messages.
    """
    ray._private.worker._worker_logs_enabled = enabled


def extra_import_paths() -> list[str]:
    """Entries of ``sys.path`` outside the Python installation, which every node has."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths = [Path(entry).absolute() for entry in sys.path]
    return [str(path) for path in paths if not any(path.is_relative_to(folder) for folder in installed)]


def is_user_resource(resource: str) -> bool:
    """False for memory and for the resource that Ray names after each node."""
    return resource not in ("memory", "object_store_memory") and not resource.startswith("node:")
