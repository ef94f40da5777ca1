"""The clock of leases: never the time of day, which an administrator or a time server may set.

``time.monotonic`` counts from the start of the machine and is the same in all its processes. Two values are
comparable only if they come from one machine between two of its starts, which :func:`machine` identifies.
"""

from __future__ import annotations

import functools
import time
import uuid
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = Path("/proc/self/ns/time")
"""A container may shift ``time.monotonic``. It then has another time namespace."""


def now() -> float:
    """Seconds since an unknown moment, the same for all processes with the same :func:`machine`."""
    return time.monotonic()


@functools.cache
def machine() -> str:
    """An identifier of this machine since its last start.

    Without Linux's boot id, it identifies this process: leases of other processes are then observed, as leases of
    other machines are.
    """
    try:
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return f"process {uuid.uuid4().hex}"
    try:
        return f"{boot_id} {_TIME_NAMESPACE.readlink()}"
    except OSError:  # Linux before 5.6 has no time namespaces
        return boot_id
