"""The durable lower bound of the number of results."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flops_fit_stores.errors import Damage
from flops_fit_stores.lower_bound import LowerBound


@pytest.fixture
def bound(tmp_path: Path) -> LowerBound:
    return LowerBound(tmp_path / "results.count")


def test_a_missing_file_has_no_bound(bound: LowerBound) -> None:
    assert bound.read() is None


def test_the_bound_rises_and_never_falls(bound: LowerBound) -> None:
    for count in (1, 2, 3, 100, 7, 0):
        bound.raise_to(count)
    assert bound.read() == 100
    bound.reset(4)
    assert bound.read() == 4
    bound.raise_to(5)
    assert LowerBound(bound.path).read() == 5


def test_a_torn_write_leaves_the_previous_bound(bound: LowerBound) -> None:
    for count in range(1, 5):
        bound.raise_to(count)
    content = bound.path.read_bytes()
    bound.raise_to(5)
    after = bound.path.read_bytes()
    changed = [index for index, pair in enumerate(zip(content, after, strict=True)) if pair[0] != pair[1]]
    for end in changed:
        bound.path.write_bytes(after[:end] + content[end:])
        assert bound.read() in (4, 5)
        bound.raise_to(6)
        assert bound.read() == 6


def test_no_flipped_bit_raises_the_bound_or_hides_it(bound: LowerBound) -> None:
    for count in (7, 8):
        bound.raise_to(count)
    content = bound.path.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        bound.path.write_bytes(damaged)
        assert bound.read() in (7, 8)


def test_a_file_without_an_intact_count_is_an_error(bound: LowerBound) -> None:
    bound.raise_to(3)
    for size in (0, 50):
        os.truncate(bound.path, size)
        with pytest.raises(Damage, match=r"results\.count: both counts are damaged"):
            bound.read()
        with pytest.raises(Damage, match=r"results\.count: both counts are damaged"):
            bound.raise_to(4)
        assert bound.path.stat().st_size == size
