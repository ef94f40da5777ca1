"""Bundled stores that were removed. ``flops-fit store copy`` still reads their results; nothing writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flops_fit_core.plugins.parquet_results import read_parquet_results
from flops_fit_core.records import RunResult

RETIRED: Mapping[str, Callable[[Path], Iterator[RunResult]]] = {"stores/parquet": read_parquet_results}
"""Qualified name -> function of the study's folder that yields every attempt, runs in the order of their first."""


def retired_store(choice: Any) -> str | None:
    """The qualified name of a removed store in ``[store]`` (a name or a table); None for other stores."""
    name = choice.get("name") if isinstance(choice, dict) else choice
    qualified = name if isinstance(name, str) and "/" in name else f"stores/{name}"
    return qualified if qualified in RETIRED else None


def store_removed(name: str, study: str = "STUDY") -> str:
    """The error message for a removed store, for all commands except ``store copy``."""
    return (
        f"the {name.rpartition('/')[2]} store was removed: type "
        f"'flops-fit store copy {study} {study} --store sqlite' to move a study's results, and "
        f"'flops-fit export {study} --parquet FILE' to write a Parquet file"
    )
