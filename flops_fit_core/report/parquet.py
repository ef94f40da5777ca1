"""A study's attempts as one Parquet file, for pandas, polars and DuckDB."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins import latest_attempts
from flops_fit_core.plugins.utilities import replacing
from flops_fit_core.records import RunResult

MARK = {b"flops_fit": b"attempts 1"}
"""Metadata of the file's schema. Only a file with this mark is overwritten."""


def write_parquet(path: Path, attempts: Sequence[RunResult], planned: Collection[str]) -> None:
    """Write one row per attempt. The file appears complete, or an earlier export stays as it is.

    Columns: ``id``, ``attempt``, ``latest`` (whether it is the attempt at its run that counts), ``superseded``,
    ``planned`` (whether the study's plan has the run), ``status``, ``model``, ``params``, ``tokens``, ``flops``,
    ``loss`` (nats), ``seed``, ``budget``, ``seconds``, ``finished`` (UTC) and ``record``, the RunResult as JSON.

    Args:
        path: An earlier export, or a new file in a folder that exists.
        attempts: The rows, in order.
        planned: Ids of the plan's runs.

    Raises ConfigError if pyarrow is not installed, ``path`` is anything else, or it cannot be written.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(f"writing Parquet needs pyarrow ({error}): pip install 'flops-fit[parquet]'") from None
    _refuse_other_files(path)
    table = _table(attempts, planned)
    try:
        with replacing(path, durable=False) as file:
            pq.write_table(table, file, compression="zstd")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write: {error.strerror or error}") from None


def _refuse_other_files(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not path.exists():
        return
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        metadata = {}
    if not metadata.items() >= MARK.items():
        raise ConfigError(
            f"{path} exists and was not written by 'flops-fit export', so it is not overwritten: name another "
            f"file, or delete it"
        )


def _table(attempts: Sequence[RunResult], planned: Collection[str]) -> Any:
    import pyarrow as pa

    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("attempt", pa.int64(), nullable=False),
            pa.field("latest", pa.bool_(), nullable=False),
            pa.field("superseded", pa.bool_(), nullable=False),
            pa.field("planned", pa.bool_(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("params", pa.int64()),
            pa.field("tokens", pa.int64()),
            pa.field("flops", pa.float64()),
            pa.field("loss", pa.float64()),
            pa.field("seed", pa.int64()),
            pa.field("budget", pa.float64()),
            pa.field("seconds", pa.float64()),
            pa.field("finished", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("record", pa.string(), nullable=False),
        ],
        metadata=MARK,
    )
    latest = {(result.id, result.attempt) for result in latest_attempts(attempts)}
    rows = [_row(result, (result.id, result.attempt) in latest, result.id in planned) for result in attempts]
    return pa.Table.from_pylist(rows, schema)


def _row(result: RunResult, latest: bool, planned: bool) -> dict[str, Any]:
    return {
        "id": result.id,
        "attempt": result.attempt,
        "latest": latest,
        "superseded": result.superseded,
        "planned": planned,
        "status": result.status,
        "model": result.run.model.name,
        "params": _int64(result.run.params),
        "tokens": _int64(result.tokens),
        "flops": result.flops,
        "loss": result.loss,
        "seed": _int64(result.run.seed),
        "budget": result.run.budget,
        "seconds": result.seconds,
        "finished": result.finished,
        "record": result.model_dump_json(),
    }


def _int64(value: int) -> int | None:
    """None for an integer of more than 64 bits: its digits are in the record."""
    return value if -(2**63) <= value < 2**63 else None
