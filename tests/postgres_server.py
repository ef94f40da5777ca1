"""A real PostgreSQL server on this machine, in a temporary folder, on a free port and a new socket.

Needs the server's programs, for example Debian's package ``postgresql``. PostgreSQL does not run as root: if the
tests do, the server runs as the user ``postgres``, which the package creates.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

OWNER = "postgres"
PASSWORD = "a secret of the tests"
TIMEOUT = 30.0
"""Seconds for the server to start or stop."""


def missing_requirement() -> str | None:
    """A missing requirement of the server; None if it can start."""
    if programs() is None:
        return "no initdb and postgres: apt-get install -y --no-install-recommends postgresql"
    if os.geteuid() == 0 and OWNER not in {user.pw_name for user in pwd.getpwall()}:
        return f"PostgreSQL does not run as root, and the user {OWNER} does not exist"
    return None


def programs() -> Path | None:
    """The folder with the server's programs: on the PATH, or in Debian's folder."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "postgres").exists()), None)


class PostgresServer:
    """A server that can be restarted. It trusts all users of the socket. Over TCP, user :data:`OWNER` needs
    :data:`PASSWORD`."""

    def __init__(self, base: Path, programs: Path) -> None:
        self.base, self.port = base, free_port()
        self._programs = programs
        self._user = OWNER if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    def initialise(self) -> None:
        if self._user:
            shutil.chown(self.base, self._user, pwd.getpwnam(self._user).pw_gid)
        (self.base / "password").write_text(PASSWORD)
        subprocess.run(
            [
                *(self._programs / "initdb", "-D", self.base / "data", "-U", OWNER, "--no-sync"),
                *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={self.base / 'password'}"),
                *("--encoding=UTF8", "--locale=C"),
            ],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=self.base,
        )

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        with (self.base / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._programs / "postgres", "-D", self.base / "data", "-p", str(self.port)),
                    *("-c", f"unix_socket_directories={self.base}", "-c", "listen_addresses=127.0.0.1"),
                    *("-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=40"),
                ],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self.base,
            )
        deadline = time.monotonic() + TIMEOUT
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise TimeoutError((self.base / "server.log").read_text())
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop at once. Clients lose their connection; committed data is kept. Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=TIMEOUT)
            self._process = None

    def kill(self) -> None:
        """Kill the server with SIGKILL, and wait until its processes have ended."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._process.kill()
        self._process.wait(timeout=TIMEOUT)
        self._process = None
        deadline = time.monotonic() + TIMEOUT
        while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
            time.sleep(0.01)

    def url(self, database: str = OWNER, user: str = OWNER) -> str:
        """Url of the socket, without a password."""
        return f"postgresql://{user}@/{database}?host={self.base}&port={self.port}"

    def tcp_url(self, database: str = OWNER, user: str = OWNER) -> str:
        """Url for TCP, without a password."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def query(self, sql: str, *values: Any, database: str = OWNER) -> list[Sequence[Any]]:
        """Rows of one statement, executed as the server's owner."""
        import psycopg

        with closing(psycopg.connect(self.url(database), autocommit=True)) as connection:
            cursor = connection.execute(sql, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        import psycopg

        try:
            self.query("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Create and start a server, and delete it and its folder at the end."""
    folder = programs()
    assert folder is not None
    base = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))  # a socket's path may not be long
    server = PostgresServer(base, folder)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(base, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
