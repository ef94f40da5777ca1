"""Valid inputs of each target, from which the fuzzer starts, and the folder of its files."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import tomlkit

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
STUDY = {
    "name": "small",
    "sweep": {"budgets": [1e17, 1e18], "sizes": 4},
    "model": "surface",
    "dataset": {"name": "surface", "noise": 0.005},
    "executor": "local",
}


@cache
def scratch() -> Path:
    """A folder in memory where possible; removed when the process ends normally."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="flops-fit-fuzz-", dir=memory if memory.is_dir() else None))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def template(store: str = "sqlite") -> Path:
    """The folder of a finished study, with a saved fit."""
    from flops_fit_core import run

    folder = scratch() / f"template-{store}"
    with quiet():
        study = run({**STUDY, "store": store}, out=folder)
        study.folder.save_fit(study.fit)
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, log messages and output."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def write_input(name: str, data: bytes) -> Path:
    path = scratch() / name
    path.write_bytes(data)
    return path


def csv_table() -> bytes:
    """Four IsoFLOP profiles of the surface of Hoffmann et al. 2022."""
    lines = ["params,tokens,flops,loss,unique_tokens"]
    for flops in (1e18, 1e19, 1e20, 1e21):
        for ratio in (0.2, 0.4, 0.7, 1.0, 1.6, 3.0, 6.0):
            params = ratio * 0.6 * (flops / 6) ** 0.46
            tokens = flops / 6 / params
            loss = 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28
            lines.append(f"{params:.6g},{tokens:.6g},{flops},{loss},{min(tokens, 3e9):.6g}")
    return "\n".join(lines).encode()


def fits() -> list[bytes]:
    """A fit of several laws of N and D, of their average, and of each shape of the profiles."""
    from flops_fit_core.fitting import (
        AverageFitter,
        IsoflopFitter,
        LawFitter,
        ParametricFitter,
        fit_table,
        read_table,
    )

    table = read_table(write_input("runs.csv", csv_table()))
    fitters = [
        *(IsoflopFitter(draws=20, shape=shape) for shape in ("parabola", "cubic", "akima")),
        *(LawFitter(law=law, draws=20) for law in ("kaplan", "muennighoff")),
        AverageFitter(draws=20),
        ParametricFitter(draws=20),
    ]
    with quiet():
        return [fit_table(fitter, table).model_dump_json().encode() for fitter in fitters]


def records() -> list[dict[str, Any]]:
    header, *rows = [line.split(",") for line in csv_table().decode().splitlines()]
    return [dict(zip(header, map(float, row), strict=True)) for row in rows]


def parquet_table() -> bytes:
    import pandas

    buffer = io.BytesIO()
    pandas.DataFrame(records()).to_parquet(buffer)
    return buffer.getvalue()


def experiments() -> list[dict[str, Any]]:
    tables = [tomlkit.parse(file.read_text()).unwrap() for file in sorted(EXAMPLES.glob("*.toml"))]
    return [STUDY, *tables]


def driver() -> bytes:
    from flops_fit_core.study.heartbeat import Driver

    driver = Driver(owner="a:1:b", host="a", pid=1, machine="a", executor="local", started=1.0, updated=2.0)
    return driver.model_dump_json().encode()


def queued_job() -> bytes:
    from flops_fit_core.plugins import QueuedJobs
    from flops_fit_core.study import Study

    study = Study.open(template())
    jobs = QueuedJobs(scratch() / "valid-jobs")
    (job, *_) = study.plan.jobs({study.plan.runs[0].id})
    jobs.add(job, study.registry.setup.model_dump_json())
    return (scratch() / f"valid-jobs/jobs/{job.id}.json").read_bytes()


def result() -> bytes:
    from flops_fit_core.plugins import Outbox
    from flops_fit_core.study import Study

    result = Study.open(template()).results[0]
    Outbox(scratch() / "valid-outbox").put(result)
    (file,) = (scratch() / "valid-outbox/outbox").glob("*.json")
    return file.read_bytes()


_HEAD = b"Metadata-Version: 2.1\nName: other\nVersion: 1.0\n"
METADATA = [
    _HEAD + b"Requires-Dist: flops-fit>=0.1\nRequires-Dist: torch; extra == 'x'\n",
    _HEAD + b"Requires-Dist: numpy (>=1) ; python_version > '3'\n\nText\n",
]
ENTRY_POINTS = [
    b"[flops_fit]\nother = other_module\n",
    b"[console_scripts]\nx = a:b\n\n[flops_fit]\na = b.c:d [extra]\n",
]
_COMMANDS = "plan runs show status fit predict backtest report export plugins count-flops"
COMMANDS = _COMMANDS.split()
_WORDS = """
study experiment.toml runs.csv fit.json missing . .. study/plan.json /dev/null
--json --csv --out --set -p --fitter --flops --help --column --filter --units --model --eval-set --group-by
--best-of --decimal --disable-plugin --no-estimate --option -- -x
1e21 -1 0 nan inf 1e400 1e17,1e18 sweep.sizes=3 sweep.budgets=[1e17] model.name=gpt optimizer.lr=x a.b.c
= loss=loss params=1e6 isoflop parametric surface gpt group draws=20 draws=-1 level=2 é
"""
WORDS = [*_WORDS.split(), "", "\x1b[31m", "\u202e", "a" * 300]
