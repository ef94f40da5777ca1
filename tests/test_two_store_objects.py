"""Several store objects of one study in one process: a thread renews claims with its own, a notebook reads."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from test_stores import FILES, in_another_python, open_store

from flops_fit_core.testing.examples import result_of

COUNT_RESULTS = """
import sys
from pathlib import Path
from flops_fit_core.plugins.registry import installed
spec = installed().find("store", sys.argv[1]).spec
store = spec.build(spec.options(), Path(sys.argv[2]))
print(len(store.results()))
store.close()
"""


def results_elsewhere(name: str, folder: Path) -> int:
    """Number of results that another process reads. It is the last one to close the store, as far as it sees."""
    return int(in_another_python(COUNT_RESULTS, f"stores/{name}", str(folder)).stdout)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("closed", [True, False])
def test_a_second_store_object_of_a_process_takes_no_result_and_no_claim_from_the_first(
    name: str, closed: bool, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(closing(open_store(name, tmp_path)))
        first.add(result_of(0))
        second = stack.enter_context(closing(open_store(name, tmp_path)))
        second.results()
        if closed:
            second.close()
        assert results_elsewhere(name, tmp_path) == 1
        first.add(result_of(1))
        assert first.claim("run", "first", 60.0)
        assert results_elsewhere(name, tmp_path) == 2
        third = stack.enter_context(closing(open_store(name, tmp_path)))
        assert not third.claim("run", "third", 60.0)
        assert len(third.results()) == 2
    assert results_elsewhere(name, tmp_path) == 2
