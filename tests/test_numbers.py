"""Numbers as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops_fit_core import Interval, numbers
from flops_fit_core.report.datatable import show_exponent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (7, "7"), (999, "999"), (0.5, "0.500"), (12.34, "12.3"), (1000, "1.00K"), (12_345, "12.3K")),
        *((999_400, "999K"), (999_600, "1.00M"), (1.234e9, "1.23B"), (4.5e12, "4.50T"), (9.996e14, "1e15")),
        *((4.5e18, "4.5e18"), (None, "–"), (float("nan"), "–")),
    ],
)
def test_counts_have_three_digits_and_a_unit(value, text):
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e21, "1e21"), (4.5e18, "4.5e18"), (2.346e10, "2.35e10"), (9.999e9, "1e10"), (2.5e-3, "2.5e-3"), (0, "0")],
)
def test_flops_are_written_as_a_power_of_ten(value, text):
    assert numbers.scientific(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.44, "0.4 s"), (9.96, "10 s"), (59.4, "59 s"), (59.9, "1 min"), (200, "3 min 20 s"), (3600, "1 h")),
        *((3600 * 5 + 12 * 60 + 8, "5 h 12 min"), (86400 * 3 + 3600 * 4 + 5, "3 d 4 h"), (None, "–")),
    ],
)
def test_durations_have_their_two_largest_units(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(20.34, "20.3"), (0.5234, "0.523"), (1234.0, "1234"), (12345, "1.23e4")]
)
def test_ratios_are_plain_below_ten_thousand(value, text):
    assert numbers.ratio(value) == text


def test_an_exponent_without_interval_is_a_bare_number():
    assert show_exponent(Interval(value=0.5134)) == "0.513"
    assert show_exponent(Interval(value=0.5134, low=0.48, high=0.5432)) == "0.513 (0.480 to 0.543)"


def test_an_interval_without_ends_is_a_dash():
    assert numbers.span(None, None) == "–"
    assert numbers.span(1e9, 2.5e9) == "1.00B to 2.50B"


@given(st.floats(min_value=1e-3, max_value=1e30))
def test_a_formatted_count_is_within_half_a_percent(value):
    text = numbers.count(value)
    unit = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1])
    shown = float(text[:-1]) * unit if unit else float(text)
    assert shown == pytest.approx(value, rel=5.01e-3)


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
    assert numbers.change(ratio) == text


@pytest.mark.parametrize(("share", "text"), [(0.042, "4.2%"), (1.5, "150.0%"), (12.3, "12.3 times")])
def test_a_large_share_is_a_factor(share: float, text: str) -> None:
    assert numbers.share(share) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.00312, "0.31%"), (0.042, "4.2%"), (1.234, "120%"), (12.3, "12.3 times")]
)
def test_a_short_share_has_two_digits(share: float, text: str) -> None:
    assert numbers.short_share(share) == text
