"""A PostgreSQL server: how it is reached, tried again when it is lost, and what went wrong in plain words."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from flops_fit_core import ConfigError, StoreError
from flops_fit_stores.schema import NAME, migrate

T = TypeVar("T")
SECRETS = ("password", "sslpassword")
LOST = ("08", "57P01", "57P02", "57P03")
"""How the SQLSTATE begins when a connection was lost or the server is about to start or stop."""
HOPELESS = {
    "permission denied for database": "its owner can allow it: GRANT CONNECT ON DATABASE ... TO ...",
    "authentication failed": "give the right password in PGPASSWORD, ~/.pgpass or a service file",
    "no password supplied": "put a password into PGPASSWORD, ~/.pgpass or a service file",
    "no pg_hba.conf entry": "the server lets nobody in like that: a line in its pg_hba.conf has to allow it",
    'database "': "make it with 'createdb NAME', or name another one",
    'role "': "name a user that the server has (user=..., or PGUSER), or make it with 'createuser NAME'",
    "failed to resolve host": "look at the host's name",
    "could not translate host name": "look at the host's name",
    "definition of service": "look at PGSERVICE and the service file",
}
"""What libpq's message contains -> what to do. Trying again does not help."""
LONGEST_TIMEOUT = 2**31 - 1
"""Milliseconds; 0 would be for ever."""
_AWAY = "is the server up, and are host and port right?"
_KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "connect_timeout": 10,
}
"""A machine that is gone without a word is noticed within half a minute: by keepalives while an answer is awaited,
by ``tcp_user_timeout`` (milliseconds) while a statement is on its way, when no keepalives are sent."""


def connection_string(url: str | None, variable: str | None) -> str:
    """What libpq is to be given. Raises ConfigError, naming no password."""
    if url is not None and variable is not None:
        raise ConfigError("store.url and store.url_variable: give one of them")
    if variable is not None and variable not in os.environ:
        raise ConfigError(
            f"store.url_variable: there is no environment variable {variable}: export {variable}=..."
        )
    source = "store.url" if variable is None else f"${variable}"
    try:
        parts = conninfo_to_dict(url if variable is None else os.environ[variable]) if url or variable else {}
    except psycopg.ProgrammingError:
        raise ConfigError(
            f"{source}: not a connection string of PostgreSQL. Write postgresql://USER@HOST:PORT/DATABASE, or "
            f"host=HOST port=PORT dbname=DATABASE user=USER"
        ) from None
    if variable is None and (secret := next((name for name in SECRETS if name in parts), None)):
        raise ConfigError(
            f"store.url has a {secret}, and the experiment file is kept in the study's folder: leave it out and "
            f"put it into PGPASSWORD, ~/.pgpass or a service file, or the whole url into an environment variable "
            f"whose name store.url_variable has"
        )
    return str(make_conninfo(**{**_KEEPALIVE, **parts}))


class Server:
    """A connection that is made again when it was lost. Used by one thread.

    Args:
        conninfo: What libpq is given.
        reconnect_timeout: Seconds to try again, and to wait for a lock that somebody else holds.
    """

    def __init__(self, conninfo: str, reconnect_timeout: float) -> None:
        self._conninfo, self._reconnect_timeout = conninfo, wait
        known = conninfo_to_dict(conninfo)
        self.name = _shown(known.get("user"), known.get("host"), known.get("port"), known.get("dbname"))
        self._connection = self._connect()
        try:
            self.do(migrate)
        except StoreError:
            self.close()
            raise

    def do(self, what: Callable[[Any], T]) -> T:
        """What ``what(connection)`` gives. It may be called again where the connection is lost meanwhile, so twice
        has to be as good as once. Raises StoreError."""
        until = time.monotonic() + self._reconnect_timeout
        pause = 0.05
        while True:
            try:
                if self._connection.closed:
                    self._connection = self._connect()
                return what(self._connection)
            except _Away as away:
                if time.monotonic() + pause > until:
                    raise StoreError(f"{away}; tried for {self._reconnect_timeout:g} seconds") from None
            except psycopg.Error as error:
                if not self._is_lost(error) or time.monotonic() + pause > until:
                    raise self._explained(error) from None
                self._connection.close()
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def close(self) -> None:
        self._connection.close()

    def _connect(self) -> Any:
        try:
            # Nothing is prepared: a pooler may give each statement to another connection of its own.
            connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
            patience = min(max(1, int(self._reconnect_timeout * 1000)), LONGEST_TIMEOUT)
            connection.execute("SELECT set_config('lock_timeout', %s, false)", [str(patience)])
        except psycopg.Error as error:
            raise self._no_connection(error) from None
        info = connection.info
        self.name = _shown(info.user, info.host, str(info.port), info.dbname)
        return connection

    def _no_connection(self, error: psycopg.Error) -> StoreError:
        said = " ".join(str(error).split())
        hint = next((hint for part, hint in HOPELESS.items() if part in said), None)
        kind = StoreError if hint else _Away
        return kind(f"{self.name}: cannot connect: {hint or _AWAY} (it said: {said})")

    def _is_lost(self, error: psycopg.Error) -> bool:
        return bool(self._connection.closed) or (error.sqlstate or "").startswith(LOST)

    def _explained(self, error: psycopg.Error) -> StoreError:
        said = (error.diag.message_primary or " ".join(str(error).split())).strip()
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            user, database = self._connection.info.user, self._connection.info.dbname
            return StoreError(
                f'{self.name}: {said}. Its owner can allow it: GRANT CREATE ON DATABASE "{database}" TO "{user}" '
                f'to make the tables, or, where they are there, GRANT USAGE ON SCHEMA {NAME} TO "{user}" and '
                f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {NAME} TO "{user}"'
            )
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return StoreError(
                f"{self.name}: another process has kept it locked for {self._reconnect_timeout:g} seconds. Wait for it, or "
                f"stop it"
            )
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            return StoreError(
                f"{self.name}: this server only lets one read: name the primary server, not a standby"
            )
        return StoreError(f"{self.name}: {said}")


class _Away(StoreError):
    """Nobody answered, which may change."""


def _shown(user: Any, host: Any, port: Any, database: Any) -> str:
    """The server for people; what is not known yet is left out."""
    at = "@".join(str(part) for part in (user, host) if part)
    where = f"{at or 'server'}{f':{port}' if port else ''}{f'/{database}' if database else ''}"
    return f"PostgreSQL {where}"
