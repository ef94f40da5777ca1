"""Readers of files and of command lines that anybody may have written, each with valid inputs to start from.

A target accepts an input or raises a FlopsFitError, which the command line prints as a message. Any other
exception is a crash.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import tomlkit
import valid_inputs as valid
import yaml
from hypothesis import strategies as st
from mutations import mutate_bytes, mutate_json

from flops_fit_core.errors import FlopsFitError

MAX_EDITS = 8


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


# ---------------------------------------------------------------------------- readers


def _experiment_reader(suffix: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        from flops_fit_core.config import load_experiment
        from flops_fit_core.plugins.registry import installed

        return load_experiment(valid.write_input(f"experiment{suffix}", data), installed())

    return read


def _table_reader(suffix: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        from flops_fit_core.fitting import read_table

        return read_table(valid.write_input(f"runs{suffix}", data))

    return read


def _read_fit(data: bytes) -> object:
    from flops_fit_core.fitting import load_fit, optimum, summary

    law = load_fit(valid.write_input("fit.json", data))
    return optimum(law, 1e20), summary(law)


def _study_reader(file: str, store: str = "sqlite") -> Callable[[bytes], object]:
    """Open a copy of the study in which one file has other bytes, and read its results."""

    def read(data: bytes) -> object:
        from flops_fit_core.study import Study

        folder = valid.scratch() / f"study-{store}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(valid.template(store), folder, ignore=shutil.ignore_patterns("report"))
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data)
        study = Study.open(folder)
        return study.results, study.notices, study.attempts

    return read


def _read_drivers(data: bytes) -> object:
    from flops_fit_core.study.heartbeat import drivers, remove_dead_drivers

    folder = valid.scratch() / "drivers-of-study"
    (folder / "drivers").mkdir(parents=True, exist_ok=True)
    (folder / "drivers/host-1.json").write_bytes(data)
    return drivers(folder), remove_dead_drivers(folder)


def _read_outbox(data: bytes) -> object:
    from flops_fit_core.plugins import Outbox

    folder = valid.scratch() / "outbox-of-study"
    (folder / "outbox").mkdir(parents=True, exist_ok=True)
    (folder / "outbox/0123456789abcdef.json").write_bytes(data)
    return Outbox(folder).results()


def _read_jobs(data: bytes) -> object:
    from flops_fit_core.plugins import QueuedJobs

    folder = valid.scratch() / "jobs-of-study"
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
    folder = TrajectoryFolder(valid.scratch() / "checkpoints-of-study", "abc")
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

    folder = valid.scratch() / "site"
    info = folder / "other-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "valid.METADATA").write_bytes(files[0])
    (info / "entry_points.txt").write_bytes(files[1])
    path, sys.path[:] = list(sys.path), [str(folder)]
    try:
        installed, broken = discovery.entry_points()
        return [(item.version_conflict(), item.missing()) for item in installed], broken
    finally:
        sys.path[:] = path


def _run_command(arguments: list[str]) -> object:
    from flops_fit_core.cli.main import run

    folder = valid.scratch() / "commands"
    if not folder.exists():
        shutil.copytree(valid.template(), folder / "study")
        (folder / "experiment.toml").write_text(tomlkit.dumps(valid.STUDY))
        (folder / "runs.csv").write_bytes(valid.csv_table())
        shutil.copy(folder / "study/fit.json", folder / "fit.json")
    os.chdir(folder)
    status = run(arguments)
    if status not in (0, 1, 2):
        raise AssertionError(f"exit status {status}")
    return status


def all_targets() -> list[Target]:
    """Every target. Builds the valid inputs, which takes a few seconds."""
    experiments = valid.experiments()
    as_toml = [tomlkit.dumps(table).encode() for table in experiments]
    as_json = [json.dumps(table).encode() for table in experiments]
    as_yaml = [yaml.safe_dump(table).encode() for table in experiments]
    jsonl = "\n".join(json.dumps(record) for record in valid.records()).encode()
    targets = [
        Target("experiment.toml", _from_bytes(as_toml), _experiment_reader(".toml")),
        Target("experiment.json", _from_json(as_json), _experiment_reader(".json")),
        Target("experiment.yaml", _from_bytes([*as_yaml, *as_json]), _experiment_reader(".yaml"), 0.2),
        Target(
            "table.csv",
            _from_bytes([valid.csv_table(), valid.csv_table().replace(b",", b";")]),
            _table_reader(".csv"),
        ),
        Target("table.json", _from_json([json.dumps(valid.records()).encode()]), _table_reader(".json")),
        Target("table.jsonl", _from_bytes([jsonl]), _table_reader(".jsonl")),
        Target("table.parquet", _from_bytes([valid.parquet_table()]), _table_reader(".parquet"), 0.5),
        Target(
            "fit.json", _from_json([(valid.template() / "fit.json").read_bytes(), *valid.fits()]), _read_fit, 0.3
        ),
        Target("driver", _from_json([valid.driver()]), _read_drivers),
        Target("outbox", _from_json([valid.result()]), _read_outbox),
        Target("job", _from_json([valid.queued_job()]), _read_jobs),
        Target("checkpoint", _from_bytes([_checkpoint()[2]]), _read_checkpoint, 0.3),
        Target(
            "plugin metadata",
            st.tuples(_from_bytes(valid.METADATA), _from_bytes(valid.ENTRY_POINTS)),
            _read_metadata,
            0.3,
        ),
        Target(
            "command line",
            st.builds(
                lambda command, words: [command, *words],
                st.one_of(st.sampled_from(valid.COMMANDS), st.text(max_size=5)),
                st.lists(st.one_of(st.sampled_from(valid.WORDS), st.text(max_size=6)), max_size=6),
            ),
            _run_command,
            0.02,
        ),
    ]
    for store in ("sqlite", "json"):
        for file in sorted(valid.template(store).iterdir()):
            if file.is_file() and (store == "sqlite" or file.name.startswith("results")):
                corpus = [file.read_bytes()]
                inputs = _from_json(corpus) if file.suffix == ".json" else _from_bytes(corpus)
                targets.append(Target(f"study/{file.name}", inputs, _study_reader(file.name, store), 0.05))
    return targets


def accepts_or_refuses(target: Target, data: Any) -> bool:
    """Whether the target accepts the input. Any exception but a FlopsFitError is a crash, and is raised."""
    with valid.quiet():
        try:
            target.read(data)
        except FlopsFitError as error:
            assert str(error), "an error without a message"
            return False
        return True
