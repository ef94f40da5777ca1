"""Writes small logs of training runs in the layouts of several trackers, with the losses of one law."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STEPS = 100
SEQUENCE = 1024


def loss(params: float, tokens: float) -> float:
    """The law of the runs: approach 3 of Hoffmann et al. 2022, as rounded in the paper."""
    return float(1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28)


def grid(budgets: tuple[float, ...] = (1e18, 1e19, 1e20)) -> list[tuple[str, int, int]]:
    """(id, N, tokens per step) of five sizes per budget; every run has 100 steps."""
    runs = []
    for budget in budgets:
        for k in (-1.0, -0.5, 0.0, 0.5, 1.0):
            params = round((budget / 120) ** 0.5 * 2**k)
            batch = max(1, round(budget / 6 / params / STEPS / SEQUENCE))
            runs.append((f"run-{len(runs):02d}", params, batch * SEQUENCE))
    return runs


def points(params: int, tokens_per_step: int) -> Iterator[tuple[int, int, float]]:
    """(step, D, loss) at every tenth step. Before the end of the run, the loss lies above the law."""
    for step in range(10, STEPS + 1, 10):
        tokens = step * tokens_per_step
        yield step, tokens, loss(params, tokens) + 0.3 * (step < STEPS)


def expected(runs: list[tuple[str, int, int]]) -> dict[str, tuple[float, float, float]]:
    """Id -> N, D and the final held-out loss."""
    return {
        name: (float(params), float(STEPS * batch), loss(params, STEPS * batch)) for name, params, batch in runs
    }


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


# ---------------------------------------------------------------------------- trainer_state.json


def trainer_state(params: int, tokens_per_step: int, *, with_tokens: bool = True) -> dict[str, Any]:
    """The state of a finished run of the Hugging Face Trainer."""
    history: list[dict[str, Any]] = []
    for step, tokens, value in points(params, tokens_per_step):
        seen = {"num_input_tokens_seen": tokens} if with_tokens else {}
        common = {"epoch": step / 1000, "step": step, **seen}
        history.append({**common, "loss": round(value - 0.2, 4), "learning_rate": 1e-3, "grad_norm": 0.5})
        history.append({**common, "eval_loss": value, "eval_runtime": 1.5, "eval_samples_per_second": 20.1})
    tokens = STEPS * tokens_per_step
    flops = 6.0 * params * tokens
    history.append({"step": STEPS, "total_flos": flops, "train_loss": 5.0, "train_runtime": 12.0})
    return {
        "best_metric": None,
        "epoch": 0.1,
        "global_step": STEPS,
        "is_world_process_zero": True,
        "log_history": history,
        "max_steps": STEPS,
        "num_input_tokens_seen": tokens if with_tokens else 0,
        "total_flos": flops,
        "train_batch_size": 8,
        "trial_name": None,
    }


def write_trainer_states(folder: Path, runs: list[tuple[str, int, int]]) -> None:
    for name, params, batch in runs:
        state = trainer_state(params, batch)
        write_json(folder / name / "trainer_state.json", state)
        half = {**state, "global_step": 50, "log_history": state["log_history"][:10]}
        write_json(folder / name / "checkpoint-50" / "trainer_state.json", half)
        write_json(folder / name / "config.json", {"model_type": "llama", "hidden_size": 64, "vocab_size": 512})


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file with zeros: a length, a JSON header, and the values."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))


# ---------------------------------------------------------------------------- W&B


def write_wandb(
    folder: Path, run_id: str, config: dict[str, Any], history: list[dict[str, Any]], *, exit_code: int | None = 0
) -> Path:
    """A ``.wandb`` file of an offline run, in LevelDB's log format, as W&B 0.31 writes it."""
    from wandb.proto.wandb_internal_pb2 import Record

    records = []
    start = Record()
    start.run.run_id, start.run.display_name = run_id, f"name of {run_id}"
    for key, value in config.items():
        start.run.config.update.add(key=key, value_json=json.dumps(value))
    records.append(start)
    for point in history:
        record = Record()
        for key, value in point.items():
            record.history.item.add(nested_key=key.split("|"), value_json=json.dumps(value))
        record.history.step.num = point.get("_step", 0)
        records.append(record)
    if exit_code is not None:
        end = Record()
        end.exit.exit_code = exit_code
        records.append(end)
    file = folder / f"offline-run-20260101_000000-{run_id}" / f"run-{run_id}.wandb"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_log(record.SerializeToString() for record in records))
    return file


def _log(records: Iterator[bytes]) -> bytes:
    data = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for record in records:
        start, first = 0, True
        while first or start < len(record):
            if (rest := 32768 - len(data) % 32768) < 7:
                data += bytes(rest)
                rest = 32768
            part = record[start : start + rest - 7]
            last = start + len(part) == len(record)
            kind = (1 if last else 2) if first else (4 if last else 3)
            data += struct.pack("<IHB", zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            start, first = start + len(part), False
    return bytes(data)


def write_wandb_runs(folder: Path, runs: list[tuple[str, int, int]]) -> None:
    """Evaluations have rows apart from those of the training steps, without the count of tokens."""
    for name, params, batch in runs:
        history = []
        for step, tokens, value in points(params, batch):
            history.append({"_step": step - 1, "train/loss": value - 0.2, "tokens_seen": tokens - batch})
            history.append({"_step": step, "eval/loss": value, "tokens_seen": tokens})
        write_wandb(folder, name, {"n_params": params, "_wandb": {"cli_version": "0.31.0"}}, history)


# ---------------------------------------------------------------------------- other trackers


def write_event_files(folder: Path, runs: list[tuple[str, int, int]]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for name, params, batch in runs:
        writer = EventFileWriter(str(folder / name))
        for step, tokens, value in points(params, batch):
            for tag, number in (("train/loss", value - 0.2), ("eval/loss", value), ("tokens", tokens)):
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=number)])
                writer.add_event(Event(wall_time=1.0, step=step, summary=summary))
        writer.close()
        write_json(folder / name / "config.json", {"n_params": params})


def write_lightning(folder: Path, runs: list[tuple[str, int, int]]) -> None:
    """Rows of training steps have empty cells for validation, and the reverse."""
    for name, params, batch in runs:
        run = folder / name / "version_0"
        run.mkdir(parents=True)
        lines = ["epoch,step,tokens,train_loss,val_loss"]
        for step, tokens, value in points(params, batch):
            lines += [f"0,{step},{tokens},{value - 0.2},", f"0,{step},,,{value!r}"]
        (run / "metrics.csv").write_text("\n".join(lines) + "\n")
        (run / "hparams.yaml").write_text(
            f"n_params: {params}\nlr: 0.001\nargs: !!python/object:argparse.Namespace\n  width: 64\n"
        )


def write_json_logs(folder: Path, runs: list[tuple[str, int, int]]) -> None:
    """As OLMo and Levanter name their values: one line per step, evaluations in the line of their step."""
    for name, params, batch in runs:
        (folder / name).mkdir(parents=True)
        lines = []
        for step, tokens, value in points(params, batch):
            point = {"step": step, "throughput/total_tokens": tokens, "train/CrossEntropyLoss": value - 0.2}
            lines.append(json.dumps({**point, "eval/c4_en-validation/CrossEntropyLoss": value}))
        (folder / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        write_json(folder / name / "config.json", {"parameter_count": params, "model": {"d_model": 64}})


def write_marin(folder: Path, runs: list[tuple[str, int, int]]) -> None:
    """One line with config and summary per run, in a folder of the run."""
    for name, params, batch in runs:
        tokens = STEPS * batch
        summary = {"throughput/total_tokens": tokens, "throughput/total_gflops": 6 * params * tokens / 1e9}
        summary |= {"parameter_count": params, "eval/loss": loss(params, tokens), "train/loss": 1.0}
        record = {"run_path": f"gs://bucket/{name}", "config": {"trainer": {"seed": 0}}, "summary": summary}
        (folder / name).mkdir(parents=True)
        (folder / name / "tracker_metrics.jsonl").write_text(json.dumps(record) + "\n")


def write_chart_exports(folder: Path, runs: list[tuple[str, int, int]]) -> None:
    """Exports of two charts and of the table of runs."""
    metrics = {"eval/loss": 2, "tokens_seen": 1}
    for metric, index in metrics.items():
        names = [f"{name} - {metric}" for name, _, _ in runs]
        header = ["Step", *(f"{name}{end}" for name in names for end in ("", "__MIN", "__MAX"))]
        rows = [
            [
                str(step),
                *(
                    repr(list(points(params, batch))[step // 10 - 1][index])
                    for _, params, batch in runs
                    for _ in "123"
                ),
            ]
            for step in range(10, STEPS + 1, 10)
        ]
        text = "\n".join(",".join(f'"{cell}"' for cell in row) for row in [header, *rows])
        (folder / f"wandb_export_{metric.replace('/', '_')}.csv").write_text(text + "\n")
    lines = ["Name,State,n_params,eval/loss", *(f"{name},finished,{params},9.9" for name, params, _ in runs)]
    (folder / "wandb_export_runs.csv").write_text("\n".join(lines) + "\n")
