"""Read files of a database outside SQLite, in another process.

A process that closes such a file loses the POSIX locks of all its SQLite connections to it. Another process may
then delete the log that they use (https://sqlite.org/howtocorrupt.html, section 2.2).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_COPY = """
import shutil, sys
for source, copy in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        shutil.copyfile(source, copy)
    except FileNotFoundError:
        pass
"""
_HEADER = "import sys; sys.stdout.buffer.write(open(sys.argv[1], 'rb').read(20))"


def copy_files(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Copy files, (source, copy) each. A source that does not exist is left out. Raises OSError."""
    _run(_COPY, *(str(path.absolute()) for pair in pairs for path in pair))


def is_in_log_mode(path: Path) -> bool:
    """Whether the header of a database states that it has a write-ahead log. Raises OSError."""
    return 2 in _run(_HEADER, str(path.absolute()))[18:]


def _run(code: str, *arguments: str) -> bytes:
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, *arguments], capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(lines[-1] if lines else f"a process that reads files ended with status {done.returncode}")
    return done.stdout
