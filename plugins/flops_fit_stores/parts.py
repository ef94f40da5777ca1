"""The parts of a study in the ``parquet`` store: files with a row an attempt, which any reader of Parquet
takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flops_fit_core import StoreError
from flops_fit_stores.checks import START_ANEW, flat, from_record, is_long
from flops_fit_stores.files import replace_file

Key = tuple[str, int]
"""Run and attempt."""
FORMAT = {b"flops_fit": b"results 1"}
"""In the schema of every part: whose it is, and which version of its format."""
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("attempt", pa.int64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("model", pa.string()),
        pa.field("params", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("flops", pa.float64()),
        pa.field("loss", pa.float64()),
        pa.field("seed", pa.int64()),
        pa.field("budget", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("finished", pa.timestamp("us", tz="UTC")),
        pa.field("record", pa.string(), nullable=False),
    ],
    metadata=FORMAT,
)
"""An integer of more than 64 bits is missing in its column; the record keeps every digit."""
_NAME = re.compile(r"part-(\d{6,})\.parquet")


class Parts:
    """The files ``part-000001.parquet`` and so on of a folder, each read once for as long as it does not change.

    A part stays whole while it is replaced. Every method raises StoreError for a part that is damaged, not ours or
    of another version; such a part is never replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[int, dict[Key, str]] = {}
        """Of each part by its number: the records."""
        self._seen: dict[int, tuple[int, int, int]] = {}

    def read(self, at_least: int) -> None:
        """Look at the parts again. Raises StoreError where one of the first ``at_least`` is missing."""
        found = {int(name[1]): file for file in self._files() if (name := _NAME.fullmatch(file.name))}
        for number in range(1, max([at_least, *found]) + 1):
            if number not in found:
                raise StoreError(f"{self.path_of(number)}: missing. Put it back: it has results of this study")
        for number, file in sorted(found.items()):
            with _explained(file):
                status = file.stat()
                seen = status.st_ino, status.st_mtime_ns, status.st_size
                if seen != self._seen.get(number):
                    self.rows[number] = _records(file)
                    self._seen[number] = seen

    def write(self, number: int, changes: Mapping[Key, str]) -> None:
        """Make a part anew with these records in the place of what it had of them, or behind. Lock held."""
        path = self.path_of(number)
        with _explained(path):
            table = pq.read_table(path, partitioning=None).to_pylist() if number in self.rows else []
        rows = {(row["id"], row["attempt"]): row for row in table}
        rows.update({key: self._row(key, record) for key, record in changes.items()})
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.Table.from_pylist(list(rows.values()), SCHEMA), sink, compression="zstd", write_page_checksum=True
        )
        status = replace_file(path, memoryview(sink.getvalue()))
        self.rows[number] = {key: row["record"] for key, row in rows.items()}
        self._seen[number] = status.st_ino, status.st_mtime_ns, status.st_size

    def path_of(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def _row(self, key: Key, record: str) -> dict[str, Any]:
        values = flat(from_record(record, self.folder, *key))
        return {name: None if is_long(value) else value for name, value in values.items()} | {"record": record}

    def _files(self) -> Sequence[Path]:
        with _explained(self.folder):
            return list(self.folder.iterdir())


def _records(path: Path) -> dict[Key, str]:
    file = pq.ParquetFile(path, page_checksum_verification=True)
    found = (file.schema_arrow.metadata or {}).get(b"flops_fit")
    if found is None:
        raise StoreError(f"{path}: a Parquet file of another program. {START_ANEW}")
    if found != FORMAT[b"flops_fit"]:
        raise StoreError(
            f"{path}: its format is {found.decode(errors='replace')!r}, and this flops-fit knows "
            f"{FORMAT[b'flops_fit'].decode()!r}: a newer one wrote it; pip install -U flops-fit"
        )
    columns = file.read(columns=["id", "attempt", "record"]).to_pydict()
    keys = zip(columns["id"], columns["attempt"], strict=True)
    return dict(zip(keys, columns["record"], strict=True))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise StoreError(f"{path}: moved or deleted while in use. Put it back and run again") from None
    except (pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(
            f"{path}: damaged, or cannot be read ({what}). It was left as it is: put a copy back. {START_ANEW}"
        ) from None
