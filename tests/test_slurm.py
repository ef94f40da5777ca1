"""The executor ``slurm`` on a real Slurm of one node, which the tests bring up and take down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError
from slurm_cluster import Cluster, cluster, wait_until, why_not

import flops_fit_core
from flops_fit_core import ConfigError, ExecutorContext, JobEnded, Progress, Registry, RunResult
from flops_fit_core.registry import installed
from flops_fit_core.testing import ExecutorConformance, tiny
from flops_fit_core.testing.executors import CRAWL, DIE, LEARN, is_running, tiny_jobs, tiny_registry, traced

MISSING = why_not()
on_slurm = [
    pytest.mark.slurm,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.usefixtures("on_the_cluster"),
]
QUICK = {"poll": 0.5, "memory": "1G"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("submitit")
    with cluster(tmp_path_factory.mktemp("slurm")) as up:
        yield up


@pytest.fixture
def on_the_cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    yield running
    left = running.queue()
    running.command("scancel", *left, "--quiet") if left else None
    assert left == {}, "jobs are left in the queue"


class TestSlurm(ExecutorConformance):
    pytestmark = on_slurm
    name = "slurm"
    options = {**QUICK, "max_jobs": 2}
