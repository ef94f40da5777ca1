"""Relative numbers in sentences."""

from __future__ import annotations

import pytest

from flops_fit_core.plugins.percentages import format_change, format_share


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.042, "+4.2%"),
        (0.88, "-12.0%"),
        (1.9996, "+100.0%"),
        (370.664, "a factor of 371"),
        (1234567.0, "a factor of 1.23e6"),
        (0.0027, "a factor of 0.0027"),
        (float("inf"), "a factor of inf"),
    ],
)
def test_a_large_or_small_ratio_is_a_factor(ratio: float, text: str) -> None:
    assert format_change(ratio) == text


@pytest.mark.parametrize(("share", "text"), [(0.042, "4.2%"), (1.5, "150.0%"), (12.3, "12.3 times")])
def test_a_large_share_is_a_factor(share: float, text: str) -> None:
    assert format_share(share) == text
