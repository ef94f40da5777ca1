"""Ids of runs stay equal from version to version, so that finished results are found again.

``golden/run_ids.json`` was written once, by the version before the current one. An id may change only
together with the ``revision`` of a plugin's spec, or because planning gives an option another value than its
default: then write the new id here, and a line in docs/changelog.md. The ids of the version before for
``init = "architecture"`` are those that ``hf llama`` and ``hf-ladder`` had without it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from small import text_table, write_text

from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed

GOLDEN = Path(__file__).parent / "golden" / "run_ids.json"
EXTERNAL = {"name": "external", "label": "corpus", "vocab_size": 1000, "context": 128}
HF = {"name": "hf", "architecture": "llama", "head_dim": 8, "config": {"num_hidden_layers": 1}}
LADDER = [{"hidden_size": width, "num_attention_heads": 2, "num_hidden_layers": 1} for width in (8, 16)]
COMMAND = {"name": "command", "command": ["python", "train.py", "--tokens", "{tokens}"]}
TWO_WIDTHS = {"sizes": [{"width": 16}, {"width": 32}]}
TWO_RUNGS = {"budgets": [2.4e10], "sizes": [{"config_number": 1}, {"config_number": 2}], "batch_size": 8}
SURFACE = {
    "name": "surface",
    "sweep": {"budgets": [1e17, 1e18], "sizes": [{"params": 10_000_000}, {"params": 30_000_000}], "min_steps": 1},
    "model": {"name": "surface"},
    "dataset": {"name": "surface"},
    "trainer": {"name": "surface"},
    "optimizer": "adamw",
}
"""A law in place of training: nothing of a file is in its ids."""


def experiments(folder: Path) -> dict[str, dict]:
    """Experiments by name; each with sizes and counter written out, so that no default ladder is in an id."""
    text = write_text(folder / "text")
    np.arange(20_000, dtype=np.uint16).__mod__(500).astype(np.uint16).tofile(folder / "train.bin")
    tokens = {
        "name": "tokens",
        "path": str(folder / "train.bin"),
        "dtype": "uint16",
        "vocab_size": 500,
        "context": 32,
    }

    def on_text(**changes) -> dict:
        return text_table(text, **changes)

    return {
        "gpt on text": on_text(),
        "gpt, two seeds, budgets": on_text(sweep={"budgets": [2.4e8, 4.8e8], "seeds": [0, 7]}),
        "gpt, options": on_text(model={"depth": 2, "head_dim": 8, "tied": True}, sweep=TWO_WIDTHS),
        "gpt, sgd": on_text(optimizer="sgd"),
        "gpt, sgd and momentum": on_text(optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9}),
        "gpt, muon": on_text(optimizer="muon"),
        "gpt, lion": on_text(optimizer="lion"),
        "gpt, adafactor": on_text(optimizer="adafactor"),
        "gpt, schedule-free": on_text(optimizer="schedule-free"),
        "gpt, wsd": on_text(schedule="wsd", sweep={"budgets": [2.4e8, 4.8e8], "batch_size": 8}),
        "gpt, constant": on_text(schedule="constant"),
        "gpt, recipe constant": on_text(recipe={"name": "constant", "batch_size": 8}),
        "gpt, recipe width-scaled": on_text(recipe="width-scaled"),
        "gpt, recipe steplaw": on_text(recipe="steplaw", sweep={"batch_size": 8}),
        "gpt, recipe deepseek": on_text(recipe="deepseek", sweep={"batch_size": 8}),
        "gpt, recipe power-lines": on_text(recipe="power-lines", sweep={"batch_size": 8}),
        "gpt, chinchilla": on_text(counter="chinchilla"),
        "gpt, hoffmann": on_text(counter="hoffmann"),
        "gpt, traced": on_text(counter="traced"),
        "gpt, trainer options": on_text(trainer={"grad_clip": 0.5, "precision": "bfloat16"}),
        "gpt, micro-batches": on_text(trainer={"micro_batch": 2, "checkpoint_minutes": 1}),
        "gpt on tokens": on_text(dataset=tokens, sweep={"batch_size": 4}),
        "mlp on images": {
            "sweep": {
                "budgets": [1e9],
                "sizes": [{"width": 32}, {"width": 64}],
                "allow_repeat": True,
                "min_steps": 1,
            },
            "model": {"name": "mlp"},
            "dataset": {"name": "images"},
            "optimizer": "adamw",
            "counter": "chinchilla",
        },
        "vit on images": {
            "sweep": {"budgets": [1e9], "allow_repeat": True, "min_steps": 1, **TWO_WIDTHS},
            "model": {"name": "vit", "depth": 2, "patch": 2, "head_dim": 16},
            "dataset": {"name": "images"},
            "optimizer": "adamw",
            "counter": "chinchilla",
        },
        "hf llama": on_text(model=HF, sweep={**TWO_WIDTHS, "batch_size": 8}, counter="chinchilla"),
        "hf llama, init architecture": on_text(
            model={**HF, "init": "architecture"}, sweep={**TWO_WIDTHS, "batch_size": 8}, counter="chinchilla"
        ),
        "hf llama, recipe constant": on_text(
            model=HF, sweep=TWO_WIDTHS, counter="chinchilla", recipe={"name": "constant", "batch_size": 8}
        ),
        "hf-ladder": on_text(
            model={"name": "hf-ladder", "configs": LADDER}, sweep=TWO_RUNGS, counter="chinchilla"
        ),
        "hf-ladder, init architecture": on_text(
            model={"name": "hf-ladder", "configs": LADDER, "init": "architecture"},
            sweep=TWO_RUNGS,
            counter="chinchilla",
        ),
        "program": {
            "sweep": {"budgets": [1e12], "sizes": [{"params": 100_000}, {"params": 400_000}], "batch_size": 4},
            "model": "declared",
            "dataset": EXTERNAL,
            "optimizer": "adamw",
            "counter": "chinchilla",
            "trainer": COMMAND,
        },
        "surface": SURFACE,
    }


def ids(table: dict) -> list[str]:
    return [run.id for run in make_plan(make_experiment({"name": "golden", **table}, installed())).runs]


NAMES = tuple(json.loads(GOLDEN.read_text())) if GOLDEN.exists() else ()


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_version_before(name, tmp_path):
    assert ids(experiments(tmp_path)[name]) == json.loads(GOLDEN.read_text())[name]


def test_every_experiment_has_golden_ids(tmp_path):
    assert sorted(NAMES) == sorted(experiments(tmp_path))
