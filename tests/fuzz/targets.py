"""Readers of files and of command lines that anybody may have written, each with valid inputs to start from.

A target accepts an input or raises a FlopsFitError, which the command line prints as a message. Any other
exception is a crash.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tomlkit
import yaml
from hypothesis import strategies as st
from mutations import mutate_bytes, mutate_json

from flops_fit_core.errors import FlopsFitError

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
MAX_EDITS = 8
STUDY = {
    "name": "small",
    "sweep": {"budgets": [1e17, 1e18], "sizes": 4},
    "model": "surface",
    "dataset": {"name": "surface", "noise": 0.005},
    "executor": "local",
}


@dataclass(frozen=True)
class Target:
    """A reader and the inputs to try."""

    name: str
    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    share: float = 1.0
    """Inputs of this target per input of a fast target."""


# ---------------------------------------------------------------------------- inputs


def _from_bytes(corpus: list[bytes]) -> st.SearchStrategy[bytes]:
    seeds, edits = st.integers(0, 2**32 - 1), st.integers(0, MAX_EDITS)
    return st.builds(
        lambda data, seed, edits: mutate_bytes(data, seed, edits, corpus), st.sampled_from(corpus), seeds, edits
    )


def _from_json(corpus: list[bytes]) -> st.SearchStrategy[bytes]:
    seeds, edits = st.integers(0, 2**32 - 1), st.integers(0, MAX_EDITS)
    values = st.builds(mutate_json, st.sampled_from(corpus), seeds, edits)
    return st.one_of(values, _from_bytes(corpus))


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


# ---------------------------------------------------------------------------- readers


def _file(name: str, data: bytes) -> Path:
    path = scratch() / name
    path.write_bytes(data)
    return path


def _experiment_reader(suffix: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        from flops_fit_core.config import load_experiment
        from flops_fit_core.plugins.registry import installed

        return load_experiment(_file(f"experiment{suffix}", data), installed())

    return read


def _table_reader(suffix: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        from flops_fit_core.fitting import read_table

        return read_table(_file(f"runs{suffix}", data))

    return read


def _read_fit(data: bytes) -> object:
    from flops_fit_core.fitting import load_fit, optimum, summary

    law = load_fit(_file("fit.json", data))
    return optimum(law, 1e20), summary(law)


def _study_reader(file: str, store: str = "sqlite") -> Callable[[bytes], object]:
    """Open a copy of the study in which one file has other bytes, and read its results."""

    def read(data: bytes) -> object:
        from flops_fit_core.study import Study

        folder = scratch() / f"study-{store}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template(store), folder, ignore=shutil.ignore_patterns("report"))
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data)
        study = Study.open(folder)
        return study.results, study.notices, study.attempts

    return read


def _read_drivers(data: bytes) -> object:
    from flops_fit_core.study.heartbeat import drivers, remove_dead_drivers

    folder = scratch() / "drivers-of-study"
    (folder / "drivers").mkdir(parents=True, exist_ok=True)
    (folder / "drivers/host-1.json").write_bytes(data)
    return drivers(folder), remove_dead_drivers(folder)


def _read_outbox(data: bytes) -> object:
    from flops_fit_core.plugins import Outbox

    folder = scratch() / "outbox-of-study"
    (folder / "outbox").mkdir(parents=True, exist_ok=True)
    (folder / "outbox/0123456789abcdef.json").write_bytes(data)
    return Outbox(folder).results()


def _read_jobs(data: bytes) -> object:
    from flops_fit_core.plugins import QueuedJobs

    folder = scratch() / "jobs-of-study"
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    (folder / "jobs/0123456789abcdef.json").write_bytes(data)
    return QueuedJobs(folder).all()


@cache
def _checkpoint() -> tuple[Any, Any, bytes]:
    """A model with an optimizer, the folder of its checkpoints, and the bytes of one checkpoint."""
    from types import SimpleNamespace

    import torch

    from flops_fit_core.training.checkpoint_files import TrajectoryFolder
    from flops_fit_core.training.checkpoints import Checkpoints, TrainPosition
    from flops_fit_core.training.distributed import TorchDistributedContext

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    parts = SimpleNamespace(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    model(torch.ones(1, 4)).sum().backward()
    parts.optimizer.step()
    folder = TrajectoryFolder(scratch() / "checkpoints-of-study", "abc")
    checkpoints = Checkpoints(folder, "cpu", TorchDistributedContext())
    checkpoints.save_latest(parts, TrainPosition(step=5, run="r"))
    return checkpoints, parts, folder.latest.read_bytes()


def _read_checkpoint(data: bytes) -> object:
    from types import SimpleNamespace

    checkpoints, parts, _ = _checkpoint()
    checkpoints.folder.latest.write_bytes(data)
    return checkpoints.restore(SimpleNamespace(id="r", branch_step=None, steps=10), parts)


def _read_metadata(files: tuple[bytes, bytes]) -> object:
    """Discover the plugins of a distribution with these files."""
    from flops_fit_core.plugins.registry import discovery

    folder = scratch() / "site"
    info = folder / "other-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_bytes(files[0])
    (info / "entry_points.txt").write_bytes(files[1])
    path, sys.path[:] = list(sys.path), [str(folder)]
    try:
        installed, broken = discovery.entry_points()
        return [(item.version_conflict(), item.missing()) for item in installed], broken
    finally:
        sys.path[:] = path


def _run_command(arguments: list[str]) -> object:
    from flops_fit_core.cli.main import run

    folder = scratch() / "commands"
    if not folder.exists():
        shutil.copytree(template(), folder / "study")
        (folder / "experiment.toml").write_text(tomlkit.dumps(STUDY))
        (folder / "runs.csv").write_bytes(_csv())
        shutil.copy(folder / "study/fit.json", folder / "fit.json")
    os.chdir(folder)
    status = run(arguments)
    if status not in (0, 1, 2):
        raise AssertionError(f"exit status {status}")
    return status


# ---------------------------------------------------------------------------- corpora


def _csv() -> bytes:
    """Four IsoFLOP profiles of the surface of Hoffmann et al. 2022."""
    lines = ["params,tokens,flops,loss,unique_tokens"]
    for flops in (1e18, 1e19, 1e20, 1e21):
        for ratio in (0.2, 0.4, 0.7, 1.0, 1.6, 3.0, 6.0):
            params = ratio * 0.6 * (flops / 6) ** 0.46
            tokens = flops / 6 / params
            loss = 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28
            lines.append(f"{params:.6g},{tokens:.6g},{flops},{loss},{min(tokens, 3e9):.6g}")
    return "\n".join(lines).encode()


def _fits() -> list[bytes]:
    """A fit of each law of N and D, and of each shape of the profiles."""
    from flops_fit_core.fitting import (
        IsoflopFitter,
        JointFitter,
        ParametricFitter,
        fit_table,
        read_table,
    )

    table = read_table(_file("runs.csv", _csv()))
    fitters = [
        *(IsoflopFitter(draws=20, shape=shape) for shape in ("parabola", "cubic", "akima")),
        *(JointFitter(form, draws=20) for form in ("kaplan", "muennighoff")),
        ParametricFitter(draws=20),
    ]
    with quiet():
        return [fit_table(fitter, table).model_dump_json().encode() for fitter in fitters]


def _records() -> list[dict[str, Any]]:
    header, *rows = [line.split(",") for line in _csv().decode().splitlines()]
    return [dict(zip(header, map(float, row), strict=True)) for row in rows]


def _parquet() -> bytes:
    import pandas

    buffer = io.BytesIO()
    pandas.DataFrame(_records()).to_parquet(buffer)
    return buffer.getvalue()


def _experiments() -> list[dict[str, Any]]:
    tables = [tomlkit.parse(file.read_text()).unwrap() for file in sorted(EXAMPLES.glob("*.toml"))]
    return [STUDY, *tables]


def _driver() -> bytes:
    from flops_fit_core.study.heartbeat import Driver

    driver = Driver(owner="a:1:b", host="a", pid=1, machine="a", executor="local", started=1.0, updated=2.0)
    return driver.model_dump_json().encode()


def _queued_job() -> bytes:
    from flops_fit_core.plugins import QueuedJobs
    from flops_fit_core.study import Study

    study = Study.open(template())
    jobs = QueuedJobs(scratch() / "valid-jobs")
    (job, *_) = study.plan.jobs({study.plan.runs[0].id})
    jobs.add(job, study.registry.setup.model_dump_json())
    return (scratch() / f"valid-jobs/jobs/{job.id}.json").read_bytes()


def _result() -> bytes:
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
COMMANDS = (
    "plan",
    "runs",
    "show",
    "status",
    "fit",
    "predict",
    "backtest",
    "report",
    "export",
    "plugins",
    "count-flops",
)
WORDS = (
    *("study", "experiment.toml", "runs.csv", "fit.json", "missing", ".", "", "study/plan.json", "/dev/null"),
    *(
        "--json",
        "--csv",
        "--out",
        "--set",
        "-p",
        "--fitter",
        "--flops",
        "--help",
        "--column",
        "--filter",
        "--units",
    ),
    *(
        "--model",
        "--eval-set",
        "--group-by",
        "--best-of",
        "--decimal",
        "--disable-plugin",
        "--no-estimate",
        "--option",
    ),
    *(
        "1e21",
        "-1",
        "0",
        "nan",
        "inf",
        "1e400",
        "1e17,1e18",
        "sweep.sizes=3",
        "sweep.budgets=[1e17]",
        "model.name=gpt",
    ),
    *(
        "optimizer.lr=x",
        "a.b.c",
        "=",
        "loss=loss",
        "params=1e6",
        "isoflop",
        "parametric",
        "surface",
        "gpt",
        "group",
    ),
    *("draws=20", "draws=-1", "level=2", "\x1b[31m", "\u202e", "é", "a" * 300, "..", "--", "-x"),
)


def all_targets() -> list[Target]:
    """Every target. Builds the valid inputs, which takes a few seconds."""
    experiments = _experiments()
    as_toml = [tomlkit.dumps(table).encode() for table in experiments]
    as_json = [json.dumps(table).encode() for table in experiments]
    as_yaml = [yaml.safe_dump(table).encode() for table in experiments]
    jsonl = "\n".join(json.dumps(record) for record in _records()).encode()
    targets = [
        Target("experiment.toml", _from_bytes(as_toml), _experiment_reader(".toml")),
        Target("experiment.json", _from_json(as_json), _experiment_reader(".json")),
        Target("experiment.yaml", _from_bytes([*as_yaml, *as_json]), _experiment_reader(".yaml"), 0.2),
        Target("table.csv", _from_bytes([_csv(), _csv().replace(b",", b";")]), _table_reader(".csv")),
        Target("table.json", _from_json([json.dumps(_records()).encode()]), _table_reader(".json")),
        Target("table.jsonl", _from_bytes([jsonl]), _table_reader(".jsonl")),
        Target("table.parquet", _from_bytes([_parquet()]), _table_reader(".parquet"), 0.5),
        Target("fit.json", _from_json([(template() / "fit.json").read_bytes(), *_fits()]), _read_fit, 0.3),
        Target("driver", _from_json([_driver()]), _read_drivers),
        Target("outbox", _from_json([_result()]), _read_outbox),
        Target("job", _from_json([_queued_job()]), _read_jobs),
        Target("checkpoint", _from_bytes([_checkpoint()[2]]), _read_checkpoint, 0.3),
        Target(
            "plugin metadata", st.tuples(_from_bytes(METADATA), _from_bytes(ENTRY_POINTS)), _read_metadata, 0.3
        ),
        Target(
            "command line",
            st.builds(
                lambda command, words: [command, *words],
                st.one_of(st.sampled_from(COMMANDS), st.text(max_size=5)),
                st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=6),
            ),
            _run_command,
            0.02,
        ),
    ]
    for store in ("sqlite", "json"):
        for file in sorted(template(store).iterdir()):
            if file.is_file() and (store == "sqlite" or file.name.startswith("results")):
                corpus = [file.read_bytes()]
                inputs = _from_json(corpus) if file.suffix == ".json" else _from_bytes(corpus)
                targets.append(Target(f"study/{file.name}", inputs, _study_reader(file.name, store), 0.05))
    return targets


def accepts_or_refuses(target: Target, data: Any) -> bool:
    """Whether the target accepts the input. Any exception but a FlopsFitError is a crash, and is raised."""
    with quiet():
        try:
            target.read(data)
        except FlopsFitError as error:
            assert str(error), "an error without a message"
            return False
        return True
