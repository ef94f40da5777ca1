"""What another process reads from a dataset, for the kit. Imports no pytest."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any

from pydantic import JsonValue

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.protocols import Dataset
from flops_fit_core.plugins.registry import PluginSetup, registry_from
from flops_fit_core.testing.batches import samples_of


def dataset_elsewhere(
    setup: PluginSetup, name: str, options: Mapping[str, JsonValue], seed: int, samples: int
) -> dict[str, Any]:
    """The ``fingerprint`` and digests of the first ``samples`` of a dataset that another process has built; or
    the ``error`` that it met, or what it ``cannot`` import."""
    plugins = setup.model_copy(update={"paths": tuple(sys.path)}).model_dump_json()
    process = _another()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([plugins, name, dict(options), seed, samples]) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        _another.cache_clear()
        raise RuntimeError("the other process has ended; its error is on standard error")
    answer: dict[str, Any] = json.loads(line)
    return answer


@functools.cache
def _another() -> subprocess.Popen[str]:
    """One for all tests of this process, for it takes seconds to begin; it ends with this one."""
    code = "from flops_fit_core.testing.elsewhere import serve; serve()"
    here = os.environ.get("PYTHONHASHSEED")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "2" if here == "1" else "1"},
    )
    atexit.register(process.communicate)
    return process


def serve() -> None:
    """What the other process runs: one line of JSON for each that it is sent."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a dataset prints is no answer
    for line in sys.stdin:
        try:
            answer = _look(*json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _look(plugins: str, name: str, options: dict[str, JsonValue], seed: int, samples: int) -> dict[str, Any]:
    try:
        spec = registry_from(PluginSetup.model_validate_json(plugins)).find("dataset", name).spec
    except ConfigError as error:
        return {"cannot": str(error)}
    dataset: Dataset = spec.build(spec.options.model_validate(options), seed)
    return {"fingerprint": dataset.fingerprint, "samples": sample_digests(dataset, samples)}


def sample_digests(dataset: Dataset, samples: int) -> list[str]:
    """Of the first training samples."""
    read = samples_of(islice(dataset.batches(1), samples))
    return [hashlib.sha256(one).hexdigest() for one in read]
