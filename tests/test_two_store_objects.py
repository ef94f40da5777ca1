"""Several store objects of one study in one process: a thread renews claims with its own, a notebook reads."""

import subprocess
import sys

import pytest

from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing import example_result, example_run

OTHER_PROCESS = """
import sys
from pathlib import Path
from flops_fit_core.plugins.registry import installed
spec = installed().find("store", sys.argv[1]).spec
store = spec.build(spec.options(), Path(sys.argv[2]))
print(len(store.results()))
store.close()
"""


def open_store(kind, folder):
    spec = installed().find("store", f"stores/{kind}").spec
    return spec.build(spec.options(), folder)


def results_elsewhere(kind, folder):
    """Number of results that another process reads. It is the last one to close the store, as far as it sees."""
    command = [sys.executable, "-c", OTHER_PROCESS, f"stores/{kind}", str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("kind", ["sqlite", "json"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_second_store_object_of_a_process_takes_no_result_and_no_claim_from_the_first(tmp_path, kind, closed):
    first = open_store(kind, tmp_path)
    first.add(example_result(run=example_run(seed=0)))
    second = open_store(kind, tmp_path)
    second.results()
    if closed:
        second.close()
    assert results_elsewhere(kind, tmp_path) == 1
    first.add(example_result(run=example_run(seed=1)))
    assert first.claim("run", "first", 60.0)
    assert results_elsewhere(kind, tmp_path) == 2
    third = open_store(kind, tmp_path)
    assert not third.claim("run", "third", 60.0)
    assert len(third.results()) == 2
    for store in (first, third) if closed else (first, second, third):
        store.close()
    assert results_elsewhere(kind, tmp_path) == 2
