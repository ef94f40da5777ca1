"""Reads Parquet files within the limits of a table. Their columns may be compressed a millionfold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.io.extent import check_extent, check_text

if TYPE_CHECKING:
    import pandas

_TEXTS = ("string", "large_string", "binary", "large_binary")
"""Arrow's types of text."""


def read_frame(path: Path) -> pandas.DataFrame:
    """The columns of a Parquet file. Raises FitError for a file that cannot be read or is above a limit."""
    try:
        import pandas  # noqa: F401  pyarrow makes its tables
        import pyarrow.parquet
    except ImportError as error:
        raise FitError(
            f"{path}: reading parquet needs pandas and pyarrow ({error}): pip install 'flops-fit[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            text_columns = _check_metadata(path, file)
        # A text that repeats is stored once. Read as a dictionary, it also takes memory only once.
        with pyarrow.parquet.ParquetFile(path, read_dictionary=text_columns) as file:
            table = file.read()
        check_text(path, sum(map(_text_bytes, table.itercolumns())))
        return table.to_pandas()
    except FitError:
        raise
    except FileNotFoundError:
        raise FitError(f"{path}: no such file") from None
    except Exception as error:
        raise FitError(f"{path}: {error}") from None


def _check_metadata(path: Path, file: Any) -> list[str]:
    """The columns of text to read as dictionaries. Raises FitError for a table above the limits."""
    metadata = file.metadata
    check_extent(path, metadata.num_rows, metadata.num_columns)
    for number in range(metadata.num_row_groups):
        # Metadata that does not fit the schema raises an error here, and ends the process in ``column`` below.
        next(file.iter_batches(batch_size=1, row_groups=[number]), None)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    text_columns, cells, size = [], 0, 0
    for number in range(metadata.num_columns):
        chunks = [group.column(number) for group in groups]
        values = sum(chunk.num_values for chunk in chunks)
        stored = sum(chunk.total_uncompressed_size for chunk in chunks)
        column = metadata.schema.column(number)
        is_flat = column.path in file.schema_arrow.names
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
            stored = values * column.length
        elif column.physical_type == "BYTE_ARRAY":
            if is_flat and not any("DELTA_BYTE_ARRAY" in chunk.encodings for chunk in chunks):
                text_columns.append(column.path)
            else:  # each value may be as long as the column
                stored *= values
        cells, size = cells + values, size + stored
    check_extent(path, cells=cells)
    check_text(path, size)
    return text_columns


def _text_bytes(column: Any) -> int:
    """The bytes of a dictionary column with every repeated text; 0 for any other column."""
    import pyarrow
    import pyarrow.compute as pc

    if not pyarrow.types.is_dictionary(column.type) or str(column.type.value_type) not in _TEXTS:
        return 0
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(pc.sum(pc.cast(length, "int64")).as_py() or 0 for length in lengths)
