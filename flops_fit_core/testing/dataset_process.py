"""Another process that builds a dataset, for the kit. Imports no pytest."""

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
from flops_fit_core.testing.processes import extend_path


def build_in_other_process(
    setup: PluginSetup, name: str, options: Mapping[str, JsonValue], seed: int, samples: int
) -> dict[str, Any]:
    """Build a dataset in another process.

    Returns its ``fingerprint`` and the digests of its first ``samples``; or the ``error`` of the build, or under
    ``cannot`` the reason why the process cannot import the plugin.
    """
    process = _start_process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([setup.model_dump_json(), sys.path, name, dict(options), seed, samples]) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        _start_process.cache_clear()
        raise RuntimeError("the other process has ended; its error is on standard error")
    answer: dict[str, Any] = json.loads(line)
    return answer


@functools.cache
def _start_process() -> subprocess.Popen[str]:
    """One process for all tests, because it starts in seconds. It ends with this process."""
    code = "from flops_fit_core.testing.dataset_process import serve; serve()"
    hash_seed = os.environ.get("PYTHONHASHSEED")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "2" if hash_seed == "1" else "1"},
    )
    atexit.register(process.communicate)
    return process


def serve() -> None:
    """Main function of the other process: answers each line of JSON on standard input with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a dataset must not mix with the answers
    for line in sys.stdin:
        try:
            answer = _describe_dataset(*json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _describe_dataset(
    plugins: str, path: list[str], name: str, options: dict[str, JsonValue], seed: int, samples: int
) -> dict[str, Any]:
    extend_path(path)
    try:
        spec = registry_from(PluginSetup.model_validate_json(plugins)).find("dataset", name).spec
    except ConfigError as error:
        return {"cannot": str(error)}
    dataset: Dataset = spec.build(spec.options.model_validate(options), seed)
    return {"fingerprint": dataset.fingerprint, "samples": sample_digests(dataset, samples)}


def sample_digests(dataset: Dataset, samples: int) -> list[str]:
    """Digests of the first training samples."""
    first_samples = samples_of(islice(dataset.batches(1), samples))
    return [hashlib.sha256(sample).hexdigest() for sample in first_samples]
