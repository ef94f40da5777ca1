"""Read rows from the pages of a damaged SQLite database or write-ahead log, without its B-trees.

The formats are those of https://sqlite.org/fileformat2.html. Every candidate is a guess: the caller compares each
row with its checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

Cell = tuple[int, list[Any]]
"""Row id and the values of a row. Texts are bytes."""
_LEAF = 0x0D
"""Type of a page with the rows of a table."""
_WAL_HEADER, _FRAME_HEADER = 32, 24
_POINTERS = 64
"""Cell pointers to try on each page: the number of cells on the page may be damaged."""
_LONGEST = 1 << 28
"""The longest row, in bytes. A larger length is damaged."""


def rows_in(database: bytes, log: bytes) -> Iterator[Cell]:
    """Candidates for rows of a database and its log, newest first. Versions of one row may differ.

    Args:
        database: Content of the database file.
        log: Content of the write-ahead log; empty if there is none. Checksums of its frames are ignored.
    """
    page_size = _page_size(database, log)
    base = {
        number: database[start : start + page_size]
        for number, start in enumerate(range(0, len(database) - page_size + 1, page_size), 1)
    }
    current, stale = _frames(log, page_size)
    pages = {**base, **dict(current)}
    for _, page in [*reversed(current), *base.items(), *reversed(stale)]:
        yield from _rows_of_page(page, pages)


def _page_size(database: bytes, log: bytes) -> int:
    sizes = [int.from_bytes(database[16:18], "big"), int.from_bytes(log[8:12], "big")]
    valid = [size for size in sizes if 512 <= size <= 32768 and size.bit_count() == 1]
    return valid[0] if valid and (len(set(valid)) == 1) else 4096


def _frames(log: bytes, page_size: int) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
    """Frames of the present log, and older ones. Each is (page number, content), in the order of the log."""
    current: list[tuple[int, bytes]] = []
    stale: list[tuple[int, bytes]] = []
    size = _FRAME_HEADER + page_size
    for start in range(_WAL_HEADER, len(log) - size + 1, size):
        (number,) = struct.unpack_from(">I", log, start)
        frame = number, log[start + _FRAME_HEADER : start + size]
        (current if log[start + 8 : start + 16] == log[16:24] else stale).append(frame)
    return current, stale


def _rows_of_page(page: bytes, pages: Mapping[int, bytes]) -> Iterator[Cell]:
    num_cells = min(struct.unpack_from(">H", page, 3)[0], _POINTERS)
    pointers = struct.unpack_from(f">{_POINTERS}H", page, 8)
    damaged = page[0] != _LEAF
    for index, pointer in enumerate(pointers):
        cell = _cell(page, pointer, pages)
        if cell is not None:
            yield cell
        elif index < num_cells:
            damaged = True
    if damaged and page[0] == _LEAF:  # a pointer is damaged: try every position
        for position in range(8, len(page) - 4):
            cell = _cell(page, position, pages)
            if cell is not None:
                yield cell


def _cell(page: bytes, position: int, pages: Mapping[int, bytes]) -> Cell | None:
    if not 8 <= position < len(page) - 4:
        return None
    try:
        length, start = _varint(page, position)
        rowid, start = _varint(page, start)
        payload = _payload(page, start, length, pages) if length <= _LONGEST else None
        values = _values(payload) if payload is not None else None
    except (IndexError, struct.error):
        return None
    return (rowid, values) if values is not None else None


def _payload(page: bytes, start: int, length: int, pages: Mapping[int, bytes]) -> bytes | None:
    """The content of a row, from its page and the chain of overflow pages."""
    usable = len(page)
    longest, shortest = usable - 35, (usable - 12) * 32 // 255 - 23
    local = shortest + (length - shortest) % (usable - 4)
    local = length if length <= longest else local if local <= longest else shortest
    if start + local > usable:
        return None
    parts, missing = [page[start : start + local]], length - local
    number = struct.unpack_from(">I", page, start + local)[0] if missing else 0
    while missing > 0:
        overflow = pages.get(number)
        if overflow is None or len(parts) > length // (usable - 4) + 2:
            return None
        parts.append(overflow[4 : 4 + missing])
        missing -= len(parts[-1])
        (number,) = struct.unpack_from(">I", overflow, 0)
    return b"".join(parts)


def _values(payload: bytes) -> list[Any] | None:
    """The values of a record; None if its header is not valid."""
    header_size, position = _varint(payload, 0)
    if not 2 <= header_size <= 100:
        return None
    types = []
    while position < header_size:
        kind, position = _varint(payload, position)
        types.append(kind)
    values, position = [], header_size
    for kind in types:
        size = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)[kind] if kind < 12 else (kind - 12) // 2
        content = payload[position : position + size]
        if len(content) < size:
            return None
        position += size
        values.append(_value(kind, content))
    return values


def _value(kind: int, content: bytes) -> Any:
    if kind >= 12:
        return content
    if kind == 7:
        return struct.unpack(">d", content)[0]
    if kind in (8, 9):
        return kind - 8
    return int.from_bytes(content, "big", signed=True) if content else None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of variable length, and the position after it."""
    value = 0
    for index in range(8):
        byte = data[position + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position + index + 1
    return value << 8 | data[position + 8], position + 9
