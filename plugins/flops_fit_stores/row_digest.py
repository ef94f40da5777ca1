"""The checksum of a row in ``results.sqlite``."""

from __future__ import annotations

import hashlib


def row_digest(run_id: str, attempt: int, record: str | bytes) -> str:
    """SHA-256, in hex, of run id, attempt and record. A record in the row of another run does not match."""
    text = record.encode() if isinstance(record, str) else record
    return hashlib.sha256(f"{run_id}\n{attempt}\n".encode() + text).hexdigest()
