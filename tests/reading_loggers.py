"""Read the output of the bundled loggers back, with the trackers' libraries if possible."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tensorboard_rows(folder: Path) -> list[dict[str, Any]]:
    """One row per event folder, read by TensorBoard's EventAccumulator."""
    return [_tensorboard_row(run_folder) for run_folder in sorted((folder / "tensorboard").iterdir())]


def accumulated(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def hyperparameters(folder: Path) -> dict[str, Any]:
    """Hyperparameters of a run, as the hparams tab reads them."""
    from google.protobuf.json_format import MessageToDict
    from tensorboard.plugins.hparams import metadata

    content = accumulated(folder).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    messages = metadata.parse_session_start_info_plugin_data(content).hparams
    return {key: MessageToDict(message) for key, message in messages.items()}


def _tensorboard_row(folder: Path) -> dict[str, Any]:
    events = accumulated(folder)
    curves = {
        tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    config = hyperparameters(folder)
    return {
        "run": config["run"],
        "params": config["params"],
        "attempt": int(texts["attempt"]),
        "status": texts["status"],
        "error": texts.get("error"),
        **{key: curves[key][-1][1] for key in ("loss", "tokens", "flops") if key in curves},
        "eval": curves.get("eval/loss", []),
        "training": curves.get("train/loss", []),
    }


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """One row per run. An interrupted run has several files, merged here as by ``wandb sync``."""
    by_id: dict[str, dict[str, Any]] = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.parent.name):
        run = wandb_run(file)
        merged = by_id.setdefault(run["id"], {"config": {}, "history": [], "summary": {}})
        merged["config"] |= run["config"]
        merged["history"] += run["history"]
        merged["summary"] |= run["summary"]
    return [_wandb_row(run) for run in by_id.values() if "status" in run["summary"]]


def _wandb_row(run: dict[str, Any]) -> dict[str, Any]:
    summary, history = run["summary"], run["history"]

    def curve(key: str) -> list[tuple[int, float]]:
        return [(point["tokens"], point[key]) for point in history if key in point]

    return {
        "run": run["config"]["run"],
        "params": run["config"]["params"],
        "attempt": int(summary["attempt"]),
        "status": summary["status"],
        "error": summary.get("error"),
        **{key: summary[key] for key in ("loss", "tokens", "flops") if key in summary},
        "eval": curve("eval/loss"),
        "training": curve("train/loss"),
    }


def wandb_run(file: Path) -> dict[str, Any]:
    """The content of one file of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    run: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "ended": None}
    for data in _records(file.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            header = record.run
            run |= {"id": header.run_id, "name": header.display_name, "group": header.run_group}
            run |= {"project": header.project, "tags": list(header.tags)}
            run["config"] |= config
        elif kind == "history":
            point = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            run["history"].append(point)
        elif kind == "summary":
            run["summary"] |= {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.summary.update
            }
        elif kind == "exit":
            run["ended"] = record.exit.exit_code
    return run


def _records(data: bytes) -> Iterator[bytes]:
    """Records in LevelDB's log format: blocks of 32 KiB with parts of records, each after a header of 7 bytes."""
    assert data[:4] == b":W&B"
    offset, record = 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:
            offset += 32768 - offset % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a complete record, or the last part of a record
            yield record
            record = b""


def mlflow_rows(uri: str, query: str = "") -> list[dict[str, Any]]:
    """One row per run of a server or database, read by MlflowClient."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = [item.experiment_id for item in client.search_experiments() if item.name != "Default"]
    runs = client.search_runs(experiments, query) if experiments else []
    return [_mlflow_row(client, run) for run in runs if "status" in run.data.tags]


def _mlflow_row(client: Any, run: Any) -> dict[str, Any]:
    tags, metrics, params = run.data.tags, run.data.metrics, run.data.params

    def curve(key: str) -> list[tuple[int, float]]:
        points = client.get_metric_history(run.info.run_id, key) if key in metrics else []
        return [(point.step, point.value) for point in points]

    return {
        "run": params["run"],
        "params": int(params["params"]),
        "attempt": int(tags["flops_fit.attempt"]),
        "status": tags["status"],
        "error": tags.get("error"),
        **{key: metrics[key] for key in ("loss", "tokens", "flops") if key in metrics},
        "eval": curve("eval/loss"),
        "training": curve("train/loss"),
    }
