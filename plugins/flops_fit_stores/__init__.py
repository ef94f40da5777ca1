"""Where results are kept: ``sqlite`` (a database, the default) and ``json`` (a file that people can read).

Both may be used by several processes at once on one machine, survive SIGKILL and power failure at any
moment, and refuse a file that is damaged or not theirs instead of touching it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flops_fit_core import Options, ResultStore, StoreSpec, hookimpl


class StoreOptions(Options):
    """Options of both stores."""

    wait: Annotated[float, Field(gt=0)] = 60.0
    """Seconds to wait while another process is writing, before giving up with an error."""


def build_sqlite(options: StoreOptions, folder: Path) -> ResultStore:
    """Open ``results.sqlite`` in the study's folder."""
    from flops_fit_stores.sqlite import SqliteStore

    return SqliteStore(folder / "results.sqlite", options.wait)


def build_json(options: StoreOptions, folder: Path) -> ResultStore:
    """Open ``results.json`` in the study's folder."""
    from flops_fit_stores.json_file import JsonStore

    return JsonStore(folder / "results.json", options.wait)


@hookimpl
def flops_fit_stores() -> Iterator[StoreSpec]:
    """Offer ``sqlite`` and ``json``."""
    yield StoreSpec(name="sqlite", options=StoreOptions, build=build_sqlite)
    yield StoreSpec(name="json", options=StoreOptions, build=build_json)
