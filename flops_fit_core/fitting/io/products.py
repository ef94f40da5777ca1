"""Columns that are a product of other columns and numbers: ``--column tokens=step*config.batch_size*2048``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.files import RawTable
from flops_fit_core.fitting.io.numbers import NumberFormat, decide_format, is_blank, parse_scale


def named_columns(user_columns: Mapping[str, str]) -> set[str]:
    """The columns that the user names, also as factors of a product."""
    return {factor.strip() for column in user_columns.values() for factor in (column, *column.split("*"))}


def add_products(
    path: Path, raw: RawTable, user_columns: Mapping[str, str], decimal: str | None = None
) -> RawTable:
    """Add a column for each product among ``user_columns``, called as the user wrote it.

    Raises FitError for a factor that is neither a column nor a number, and for a cell that is not a number.
    """
    products = [column for column in user_columns.values() if "*" in column and column not in raw.header]
    if not products:
        return raw
    rows = [(place, dict(cells)) for place, cells in raw.rows]
    for product in products:
        scale, columns = _split_factors(path, raw.header, product)
        try:
            numbers = decide_format(
                ((place, column, row.get(column)) for place, row in rows for column in columns), decimal
            )
            for place, row in rows:
                row[product] = _multiply(numbers, place, row, scale, columns)
        except (FitError, ValueError) as error:
            raise FitError(f"{path}: {product}: {error}") from None
    return replace(raw, header=[*raw.header, *products], rows=rows)


def _split_factors(path: Path, header: Sequence[str], product: str) -> tuple[float, list[str]]:
    """The product of the numbers, and the columns."""
    by_name = {name.strip().lower(): name for name in reversed(header)}
    scale, columns = 1.0, []
    for text in (factor.strip() for factor in product.split("*")):
        column = text if text in header else by_name.get(text.lower())
        number = parse_scale(text) if column is None else None
        if column is not None:
            columns.append(column)
        elif number is not None:
            scale *= number
        else:
            close = difflib.get_close_matches(text, header, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise FitError(f"{path}: {product}: {text!r} is neither a column nor a positive number{hint}")
    if not columns:
        raise FitError(f"{path}: {product}: a product needs at least one column")
    return scale, columns


def _multiply(
    numbers: NumberFormat, place: str, row: Mapping[str, Any], scale: float, columns: Sequence[str]
) -> float | None:
    """The product, None if a factor is missing. Raises ValueError for a cell that is not a number."""
    if any(is_blank(row.get(column)) for column in columns):
        return None
    return scale * math.prod(numbers.number(f"{place}, {column}", row.get(column)) for column in columns)
