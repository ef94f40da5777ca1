"""The coordinate check of muP for gpt, vit and every architecture of transformers that the documents name.

    python tests/benchmarks/mup_coordinates.py                        # starting weights by fan-in
    python tests/benchmarks/mup_coordinates.py --init architecture    # as transformers draws them
    python tests/benchmarks/mup_coordinates.py --only llama gpt2 --widths 64 1024 --seeds 4

Two layers, heads of 16 channels, five steps of AdamW with the recipe width-scaled on 16 samples of words, means
over the seeds. Prints a table in Markdown: by how much the output of any part of a model grows from one width to a
larger one, at most, and the change of it by the steps, with the part that grows most; and the same of the logits.
An architecture that is not verified is measured with weights by fan-in all the same. Ten CPU minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from coordinates import CONFIGS, LOGITS, Images, coordinates, growth, hf_model
from small import text_table, write_text

from flops_fit_core.config import make_experiment
from flops_fit_core.plugins.registry import Registry, installed

OWN: dict[str, dict[str, Any]] = {
    "gpt (bundled)": {"name": "gpt", "depth": 2, "head_dim": 16},
    "gpt, tied (bundled)": {"name": "gpt", "depth": 2, "head_dim": 16, "tied": True},
    "vit (bundled)": {"name": "vit", "depth": 2, "head_dim": 16, "patch": 2},
}


def measure(model: dict[str, Any], text: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Outputs and their changes by part, one value for each width."""
    registry: Registry = installed()
    table = text_table(text, model=model, recipe="width-scaled", counter="chinchilla")
    if model["name"] == "vit":
        registry = registry.with_plugins({"noise": Images()})
        table["dataset"] = "noise/random"
    sizes = [{"width": width} for width in arguments.widths]
    table["sweep"] |= {"sizes": sizes, "budgets": [1e13], "batch_size": 16}
    return coordinates(make_experiment(table, registry), registry, seeds=arguments.seeds)


def row(name: str, values: dict[str, list[float]]) -> str:
    """One line of the table."""
    grown = {part: growth(sizes) for part, sizes in values.items()}
    outputs = [part for part in grown if not part.startswith("change of ")]
    changes = [part for part in grown if part.startswith("change of ")]
    cells = [name]
    for parts in (outputs, changes):
        worst = max(parts, key=lambda part: grown[part])
        cells.append(f"{grown[worst]:.2f} ({worst.removeprefix('change of ').removeprefix('lm.')})")
    cells += [f"{grown[LOGITS]:.2f}", f"{grown['change of ' + LOGITS]:.2f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", choices=("fan_in", "architecture"), default="fan_in")
    parser.add_argument("--only", nargs="+", default=[*OWN, *CONFIGS])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = write_text(Path(tempfile.mkdtemp()))
    print("| architecture | outputs | their changes | logits | their change |\n|---|---|---|---|---|", flush=True)
    with patch("flops_fit_transformers.model.require_fan_in"):
        for name in arguments.only:
            model = OWN.get(name) or hf_model(name, init=arguments.init)
            print(row(name, measure(model, text, arguments)), flush=True)


if __name__ == "__main__":
    main()
