"""What the bundled loggers wrote, read back by the libraries themselves where they can, as a kit's ``shown``."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tensorboard_rows(folder: Path) -> list[dict[str, Any]]:
    """By TensorBoard's EventAccumulator, one row an event folder."""
    return [_tensorboard_row(place) for place in sorted((folder / "tensorboard").iterdir())]


def accumulated(place: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def hyperparameters(place: Path) -> dict[str, Any]:
    """Of one run, as the hparams tab reads them."""
    from google.protobuf.json_format import MessageToDict
    from tensorboard.plugins.hparams import metadata

    content = accumulated(place).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    found = metadata.parse_session_start_info_plugin_data(content).hparams
    return {key: MessageToDict(value) for key, value in found.items()}


def _tensorboard_row(place: Path) -> dict[str, Any]:
    events = accumulated(place)
    curves = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    given = hyperparameters(place)
    return {
        "run": given["run"],
        "params": given["params"],
        "attempt": int(texts["attempt"]),
        "status": texts["status"],
        "error": texts.get("error"),
        **{key: curves[key][-1][1] for key in ("loss", "tokens", "flops") if key in curves},
        "eval": curves.get("eval/loss", []),
        "training": curves.get("train/loss", []),
    }


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """One row a run; a run that was interrupted has several files, which ``wandb sync`` puts together."""
    by_id: dict[str, dict[str, Any]] = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda one: one.parent.name):
        run = wandb_run(file)
        known = by_id.setdefault(run["id"], {"config": {}, "history": [], "summary": {}})
        known["config"] |= run["config"]
        known["history"] += run["history"]
        known["summary"] |= run["summary"]
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
    """What one file of an offline run holds."""
    from wandb.proto.wandb_internal_pb2 import Record

    run: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "ended": None}
    for data in _records(file.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            about = record.run
            run |= {"id": about.run_id, "name": about.display_name, "group": about.run_group}
            run |= {"project": about.project, "tags": list(about.tags)}
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
    """LevelDB's log format: blocks of 32 KiB, in them parts of records with a header of 7 bytes each."""
    assert data[:4] == b":W&B"
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield whole
            whole = b""


def mlflow_rows(uri: str, which: str = "") -> list[dict[str, Any]]:
    """By MlflowClient, from wherever it is."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = [one.experiment_id for one in client.search_experiments() if one.name != "Default"]
    runs = client.search_runs(experiments, which) if experiments else []
    return [_mlflow_row(client, run) for run in runs if "status" in run.data.tags]


def _mlflow_row(client: Any, run: Any) -> dict[str, Any]:
    tags, metrics, params = run.data.tags, run.data.metrics, run.data.params

    def curve(key: str) -> list[tuple[int, float]]:
        found = client.get_metric_history(run.info.run_id, key) if key in metrics else []
        return [(one.step, one.value) for one in found]

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
