"""Reads ``trainer_state.json`` of the Hugging Face Trainer: one run per output folder."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flops_fit_core import FitError
from flops_fit_core.plugins import LoggedRun, RunReader, find_run_files, read_run_file

_CHECKPOINT = re.compile(r"checkpoint-\d+")
_PART = re.compile(r"-of-(\d+)\.safetensors$")
_SETTINGS = ("config.json", "training_args.json", "training_args.yaml", "args.json")
"""``training_args.bin`` is a pickle, which could execute code, so it is not read."""
_HEADER_BYTES = 100_000_000
_TOKENS = "num_input_tokens_seen"


class TrainerStateReader(RunReader):
    """The last state of each output folder: of the folder itself, otherwise of its latest checkpoint."""

    def read(self, path: Path) -> Iterator[LoggedRun]:
        root = path.parent if path.is_file() else path
        files = [path] if path.is_file() else list(find_run_files(path, "trainer_state.json"))
        folders: dict[Path, list[Path]] = {}
        for file in files:
            parent = file.parent
            folders.setdefault(parent.parent if _CHECKPOINT.fullmatch(parent.name) else parent, []).append(file)
        for folder, states in folders.items():
            # A state lists all values since the start of the run, so the one with the most steps is complete.
            last = max(((_read_state(file), file) for file in states), key=lambda pair: _step(pair[0]))
            yield _run(folder, root, *last)


def _run(folder: Path, root: Path, state: Mapping[str, Any], file: Path) -> LoggedRun:
    entries = state.get("log_history")
    history = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    final = {key: state[key] for key in ("total_flos", _TOKENS) if _number(state.get(key)) > 0}
    config: dict[str, Any] = {key: state[key] for key in ("train_batch_size", "max_steps") if key in state}
    facts = {"total_params": _count_parameters(file.parent) or _count_parameters(folder)}
    facts["non_embedding_params"] = _non_embedding_params(state)
    is_complete = _step(state) >= _number(state.get("max_steps")) > 0
    return LoggedRun(
        id=folder.name if folder == root else folder.relative_to(root).as_posix(),
        history=[*history, {"step": state.get("global_step"), **final}],
        config={**config, **{name: count for name, count in facts.items() if count}},
        config_files=[place / name for place in (folder, file.parent) for name in _SETTINGS],
        folder=folder,
        status="finished" if is_complete else "unfinished",
    )


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(read_run_file(file))
    except (ValueError, RecursionError) as error:
        raise FitError(f"{file} is damaged: {error or 'its values are nested too deeply'}") from None
    if not isinstance(state, dict):
        raise FitError(f"{file} is no state of a Trainer: it holds no object")
    return state


def _step(state: Mapping[str, Any]) -> float:
    return _number(state.get("global_step"))


def _number(value: Any) -> float:
    """A finite number, otherwise 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else 0.0


def _non_embedding_params(state: Mapping[str, Any]) -> int | None:
    """N without embeddings, from the Trainer's own count: total_flos = 6 x tokens x N.

    None if the quotient is no integer: then the Trainer counted other tokens, such as those without padding.
    """
    tokens, flops = _number(state.get(_TOKENS)), _number(state.get("total_flos"))
    if tokens < 1 or flops < 1:
        return None
    params = flops / 6 / tokens
    return round(params) if abs(params - round(params)) < 1e-3 and params >= 1 else None


def _count_parameters(folder: Path) -> int | None:
    """The number of values in the model's safetensors files, from their headers; None if a file is missing."""
    if (file := folder / "model.safetensors").is_file():
        return _count_values(file)
    parts = [file for file in sorted(folder.glob("model-*-of-*.safetensors")) if file.is_file()]
    total = {int(match[1]) for file in parts if (match := _PART.search(file.name))}
    return sum(map(_count_values, parts)) if total == {len(parts)} else None


def _count_values(file: Path) -> int:
    """The number of values in a safetensors file. Reads its header only: 8 bytes with a length, and JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _HEADER_BYTES:
                raise FitError(f"{file} is damaged: its header has {length:,} bytes")
            header = json.loads(stream.read(length))
        return sum(
            math.prod(int(size) for size in tensor["shape"])
            for name, tensor in header.items()
            if name != "__metadata__"
        )
    except (OSError, struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FitError(f"{file} is damaged: {error}") from None
