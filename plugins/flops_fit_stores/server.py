"""Connect to a PostgreSQL server, reconnect after a loss, and explain errors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from flops_fit_core import ConfigError, StoreError
from flops_fit_stores.postgres_schema import NAME, migrate

T = TypeVar("T")
SECRETS = ("password", "sslpassword")
LOST = ("08", "25P03", "57P01", "57P02", "57P03")
"""Prefixes of SQLSTATE codes of a lost connection, of a transaction that the server has ended because the client
was silent, or of a server that starts or stops."""
PERMANENT = {
    "permission denied for database": "ask its owner to type GRANT CONNECT ON DATABASE ... TO ...",
    "authentication failed": "put the correct password into PGPASSWORD, ~/.pgpass or a service file",
    "no password supplied": "put a password into PGPASSWORD, ~/.pgpass or a service file",
    "no pg_hba.conf entry": "the server does not allow this connection: add a line to its pg_hba.conf",
    'database "': "create it with 'createdb NAME', or name another database",
    'role "': "name an existing user with user=... or PGUSER, or create one with 'createuser NAME'",
    "failed to resolve host": "check the name of the host",
    "could not translate host name": "check the name of the host",
    "definition of service": "check PGSERVICE and the service file",
}
"""Part of libpq's message -> hint for the user. Retrying does not help."""
MAX_LOCK_TIMEOUT = 2**31 - 1
"""The server's limit, in milliseconds. 0 would disable the timeout."""
_MAX_SILENCE = 10_000
"""Milliseconds after which the server ends the transaction of a client that is paused or unreachable: its locks
would stop all other drivers."""
_UNREACHABLE = "is the server running, and are host and port correct?"
_KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "connect_timeout": 10,
}
"""Detect a silent loss of the server within half a minute: with keepalives while waiting for an answer, and with
``tcp_user_timeout`` (milliseconds) while a statement is being sent, when TCP sends no keepalives."""


def connection_string(url: str | None, variable: str | None) -> str:
    """The connection string for libpq. Raises ConfigError; its message contains no password."""
    if url is not None and variable is not None:
        raise ConfigError("store.url and store.url_variable: write only one of them")
    if variable is not None and variable not in os.environ:
        raise ConfigError(
            f"store.url_variable: the environment variable {variable} is not set: export {variable}=..."
        )
    source = "store.url" if variable is None else f"${variable}"
    try:
        parts = conninfo_to_dict(url if variable is None else os.environ[variable]) if url or variable else {}
    except psycopg.ProgrammingError:
        raise ConfigError(
            f"{source}: not a PostgreSQL connection string. Write postgresql://USER@HOST:PORT/DATABASE, or "
            f"host=HOST port=PORT dbname=DATABASE user=USER"
        ) from None
    if variable is None and (secret := next((name for name in SECRETS if name in parts), None)):
        raise ConfigError(
            f"store.url contains a {secret}, but the experiment file is copied to the study's folder: remove it "
            f"and put it into PGPASSWORD, ~/.pgpass or a service file, or put the url into an environment "
            f"variable and write the variable's name as store.url_variable"
        )
    return str(make_conninfo(**{**_KEEPALIVE, **parts}))


class Server:
    """A connection that is re-established after a loss. Used by one thread.

    Args:
        conninfo: libpq's connection string.
        reconnect_timeout: Seconds to retry a lost connection, and to wait for a lock that another process holds.
    """

    def __init__(self, conninfo: str, reconnect_timeout: float) -> None:
        self._conninfo, self._reconnect_timeout = conninfo, reconnect_timeout
        parts = conninfo_to_dict(conninfo)
        self.name = _describe(parts.get("user"), parts.get("host"), parts.get("port"), parts.get("dbname"))
        self._connection = self._connect()
        try:
            self.retry(migrate)
        except StoreError:
            self.close()
            raise

    def retry(self, operation: Callable[[Any], T]) -> T:
        """Call ``operation(connection)`` and return its result. It is called again if the connection is lost, so
        it must be idempotent. Raises StoreError."""
        deadline = time.monotonic() + self._reconnect_timeout
        pause = 0.05
        while True:
            try:
                if self._connection.closed:
                    self._connection = self._connect()
                return operation(self._connection)
            except _Unreachable as error:
                if time.monotonic() + pause > deadline:
                    raise StoreError(f"{error}; tried for {self._reconnect_timeout:g} seconds") from None
            except psycopg.Error as error:
                if not self._is_lost(error) or time.monotonic() + pause > deadline:
                    raise self._explain(error) from None
                self._connection.close()
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def close(self) -> None:
        self._connection.close()

    def _connect(self) -> Any:
        try:
            # No prepared statements: a pooler may send each statement through another server connection.
            connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
            lock_timeout = min(max(1, int(self._reconnect_timeout * 1000)), MAX_LOCK_TIMEOUT)
            connection.execute("SELECT set_config('lock_timeout', %s, false)", [str(lock_timeout)])
            silence = min(_MAX_SILENCE, max(1_000, lock_timeout // 2))
            connection.execute(
                "SELECT set_config('idle_in_transaction_session_timeout', %s, false)", [str(silence)]
            )
        except psycopg.Error as error:
            raise self._explain_connection(error) from None
        info = connection.info
        self.name = _describe(info.user, info.host, str(info.port), info.dbname)
        return connection

    def _explain_connection(self, error: psycopg.Error) -> StoreError:
        message = " ".join(str(error).split())
        hint = next((hint for part, hint in PERMANENT.items() if part in message), None)
        kind = StoreError if hint else _Unreachable
        return kind(f"{self.name}: cannot connect: {hint or _UNREACHABLE} (message: {message})")

    def _is_lost(self, error: psycopg.Error) -> bool:
        return bool(self._connection.closed) or (error.sqlstate or "").startswith(LOST)

    def _explain(self, error: psycopg.Error) -> StoreError:
        message = (error.diag.message_primary or " ".join(str(error).split())).strip()
        if isinstance(error, psycopg.errors.InsufficientPrivilege) and "must be owner" in message:
            return StoreError(
                f"{self.name}: its tables are of an earlier version of flops-fit, and only their owner can "
                f"migrate them ({message}). Ask the owner to type 'flops-fit status STUDY' once with this version"
            )
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            user, database = self._connection.info.user, self._connection.info.dbname
            return StoreError(
                f"{self.name}: {message}. To create the tables, ask its owner to type GRANT CREATE ON DATABASE "
                f'"{database}" TO "{user}". If the tables exist: GRANT USAGE ON SCHEMA {NAME} TO "{user}" and '
                f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {NAME} TO "{user}"'
            )
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return StoreError(
                f"{self.name}: locked by another process for {self._reconnect_timeout:g} seconds. Wait for that "
                f"process, or stop it"
            )
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            return StoreError(f"{self.name}: this server is read-only: name the primary server, not a standby")
        return StoreError(f"{self.name}: {message}")


class _Unreachable(StoreError):
    """The server did not answer. A later attempt may succeed."""


def _describe(user: Any, host: Any, port: Any, database: Any) -> str:
    """The server for messages, without unknown parts."""
    address = "@".join(str(part) for part in (user, host) if part) or "server"
    return f"PostgreSQL {address}{f':{port}' if port else ''}{f'/{database}' if database else ''}"
