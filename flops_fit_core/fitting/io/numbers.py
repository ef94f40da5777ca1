"""Parses numbers in common notations: decimal commas, thousands, 1.2B, 6 x 10^18.

The decimal sign is decided once per file, from unambiguous cells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from flops_fit_core.errors import FitError

Decimal = Literal[".", ","]

BLANKS = frozenset(
    ("", "nan", "na", "n/a", "<na>", "#n/a", "#na", "null", "none", "-", "--", "\N{EN DASH}", "\N{EM DASH}", "?")
)
"""Texts of blank cells, in lower case."""

_SUFFIXES = {
    "k": 1e3,
    "m": 1e6,
    "mn": 1e6,
    "mln": 1e6,
    "mio": 1e6,
    "b": 1e9,
    "bn": 1e9,
    "bln": 1e9,
    "g": 1e9,
    "t": 1e12,
    "tn": 1e12,
    "p": 1e15,
}
_WORDS = {
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "trillion": 1e12,
    "thousands": 1e3,
    "millions": 1e6,
    "billions": 1e9,
    "trillions": 1e12,
    "pf-days": 8.64e19,
    "pfs-days": 8.64e19,
    "pf-day": 8.64e19,
    "pflop/s-days": 8.64e19,
    "petaflop/s-days": 8.64e19,
    "petaflop/s-day": 8.64e19,
    "pf days": 8.64e19,
    "petaflop-days": 8.64e19,
}
_FLOP_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_POWER = re.compile(
    rf"(?:({_NUMBER})\s*(?:x|\*|\u00d7|\u00b7|\\times|\\cdot)\s*)?"  # 6 x, 6 *, 6 \N{MULTIPLICATION SIGN}
    r"10\s*(?:\^|\*\*)\s*\{?([-+]?\d+)\}?"
)
_WITH_UNIT = re.compile(rf"({_NUMBER})\s*([a-z]+(?: [a-z]+)?)")
_HAS_UNIT = re.compile(r"\d\.?\s*(?!e[-+]?\d|x\s*10)[a-z]", re.IGNORECASE)
_ERROR = re.compile(r"\u00b1|\+/-|\\pm")
_SUPERSCRIPT = re.compile("10([\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)")
_SUPERSCRIPT_DIGITS = str.maketrans(
    "\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "+-0123456789"
)
_SPACES = str.maketrans(
    "", "", " _'\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}\N{RIGHT SINGLE QUOTATION MARK}"
)
_SPACED_GROUPS = re.compile(r"[-+]?\d{1,3}(?:[ _'\u00a0\u202f\u2009\u2019]\d{3})+(?!\d)")
_NUMBER_WITH_MARKS = re.compile(r"[-+]?(\d*[.,][\d.,]*)(e[-+]?\d+)?(?![\d.,])", re.IGNORECASE)
"""A number with a comma or a point: its digits and marks, and its exponent."""


@dataclass(frozen=True)
class NumberFormat:
    """The number format of a file."""

    decimal: Decimal = "."

    def number(self, key: str, cell: Any) -> float:
        """The finite number in a cell. Raises ValueError, naming ``key``, if the cell has none."""
        if is_blank(cell):
            raise ValueError(f"{key} is missing")
        number = self._parse(cell)
        if number is None:
            raise ValueError(f"{key} is not a number: {str(cell)[:40]!r}")
        if not math.isfinite(number):
            raise ValueError(f"{key} is {number}")
        return number

    def number_or_nan(self, cell: Any) -> float:
        """The finite number in a cell, otherwise NaN."""
        try:
            return self.number("", cell)
        except ValueError:
            return math.nan

    def _parse(self, cell: Any) -> float | None:
        if not isinstance(cell, str):
            try:
                return None if type(cell).__name__ in ("bool", "bool_") else float(cell)
            except OverflowError:
                return math.inf
            except (TypeError, ValueError):
                return None
        text = re.sub(r"^\$(.*)\$$", r"\1", cell.strip()).replace("\N{MINUS SIGN}", "-")
        text = _ERROR.split(text, maxsplit=1)[0].rstrip()
        text = _SUPERSCRIPT.sub(lambda match: "10^" + match[1].translate(_SUPERSCRIPT_DIGITS), text)
        if _SPACED_GROUPS.match(text):
            text = text.translate(_SPACES)
        text = text.replace("_", "").lower()
        separator = "," if self.decimal == "." else "."
        if separator in text:
            if _thousands_pattern(separator).match(text) is None:
                return None
            text = text.replace(separator, "")
        return _parse_plain(text.replace(self.decimal, "."))

    def has_unit(self, cell: Any) -> bool:
        """Whether the number in a cell has a unit, as ``44M``."""
        return isinstance(cell, str) and _HAS_UNIT.search(cell) is not None

    def has_thousands(self, cell: Any) -> bool:
        """Whether a cell contains the thousands separator of this format."""
        return isinstance(cell, str) and ("," if self.decimal == "." else ".") in cell


def _thousands_pattern(separator: str) -> re.Pattern[str]:
    """Pattern of integers in groups joined by ``separator``; Indian groups have two digits."""
    mark = re.escape(separator)
    return re.compile(rf"[-+]?\d{{1,3}}(?:{mark}\d{{2,3}})*{mark}\d{{3}}(?![\d{mark}])")


def _parse_plain(text: str) -> float | None:
    """Parse lower-case text with a decimal point and without thousands separators."""
    try:
        return float(text)
    except ValueError:
        pass
    if match := _POWER.fullmatch(text):
        return float(match[1] or 1) * float(f"1e{match[2]}")
    if match := _WITH_UNIT.fullmatch(text):
        scale = _unit_scale(match[2])
        return None if scale is None else float(match[1]) * scale
    return None


def _unit_scale(unit: str) -> float | None:
    """Factor of ``b``, ``million``, ``btokens``, ``pflop``; None for any other word."""
    if match := re.fullmatch(r"([kmgtpezy]?)flops?", unit):
        return _FLOP_PREFIXES[match[1]]
    prefix = re.sub(r"(?:tokens?|toks?|params?|parameters?)$", "", unit).strip()
    prefix = prefix[0] if prefix in ("bt", "mt", "tt") else prefix  # 10BT: billions of tokens
    return 1.0 if not prefix else _SUFFIXES.get(prefix, _WORDS.get(prefix))


def parse_scale(text: str) -> float | None:
    """Parse a factor such as ``1e6``, ``M`` or ``billion``; None for any other text."""
    number = _parse_plain(text.strip().lower())
    number = _unit_scale(text.strip().lower()) if number is None else number
    return number if number is not None and math.isfinite(number) and number > 0 else None


def is_blank(cell: Any) -> bool:
    """Whether a cell is blank: empty, NaN, None, or a text such as ``n/a``."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return isinstance(cell, str) and cell.strip().lower() in BLANKS


def decide_format(
    cells: Iterable[tuple[str, str, Any]], decimal: str | None = None, loss: str | None = None
) -> NumberFormat:
    """Decide the format of a file from its (place, column, cell) triples, unless the user gives ``decimal``.

    If no other cell decides, a comma in the column ``loss`` is a decimal comma: losses are not in thousands.

    Raises FitError if cells contradict each other, or every comma is ambiguous.
    """
    if decimal is not None:
        if decimal not in (".", ","):
            raise FitError(f"decimal = {decimal!r}: write '.' or ','")
        return NumberFormat(decimal)  # type: ignore[arg-type]
    evidence: dict[Decimal, str] = {}
    ambiguous_cell, has_ambiguous_loss = "", False
    for place, column, cell in cells:
        if isinstance(cell, str) and (number := _NUMBER_WITH_MARKS.match(cell.strip())):
            location = f"{place}, {column} = {cell.strip()!r}"
            sign = _decimal_sign(number[1], has_exponent=number[2] is not None)
            if sign is not None:
                evidence.setdefault(sign, location)
            elif "," in cell:
                ambiguous_cell, has_ambiguous_loss = (
                    ambiguous_cell or location,
                    has_ambiguous_loss or column == loss,
                )
    if len(evidence) == 2:
        raise FitError(
            f"the table uses two decimal signs, a point in {evidence['.']} and a comma in "
            f"{evidence[',']}: use the same sign in all cells"
        )
    if not evidence and has_ambiguous_loss:
        return NumberFormat(",")
    if not evidence and ambiguous_cell:
        raise FitError(
            f"{ambiguous_cell} is ambiguous, and no other cell decides: write --decimal , if the comma is a "
            "decimal comma, or --decimal . if commas separate thousands"
        )
    return NumberFormat(next(iter(evidence), "."))


def _decimal_sign(number: str, *, has_exponent: bool) -> Decimal | None:
    """The decimal sign of a number with digits, commas and points; None if ambiguous."""
    commas, points = number.count(","), number.count(".")
    if commas and points:
        return "." if number.rindex(".") > number.rindex(",") else ","
    if commas > 1 or points > 1:
        return "." if commas else ","
    before, mark, after = number.partition("," if commas else ".")
    is_group = re.fullmatch(r"[1-9]\d{0,2}", before) and re.fullmatch(r"\d{3}", after)
    if is_group and not has_exponent:
        return None
    return "," if mark == "," else "."
