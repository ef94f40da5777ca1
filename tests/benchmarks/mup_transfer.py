"""Does the best learning rate stay where it is when the model grows? Width-scaled recipe against constant.

    python tests/benchmarks/mup_transfer.py --out runs/mup
    python tests/benchmarks/mup_transfer.py --model gpt2 --lr 0.016 --rates 5 --seeds 1 --out runs/mup-gpt2

Byte-level transformers of 3 blocks and widths 32 and 128 on the bundled text: equal tokens (0.5M), batch and
steps, 7 peak learning rates a factor 2 apart, 3 seeds each; the best is the vertex of a parabola through the
lowest five. 84 runs, about 40 CPU minutes, in a folder that a second call goes on in. Prints the shift of the
best rate from the smallest to the largest width in octaves with its bootstrap interval (with fewer than three
seeds, the interval of the parabola's residuals), and draws the curves. For a model of transformers the second
case is the width-scaled recipe with the starting weights of transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from flops_fit_core import plan
from flops_fit_core.plugins.registry import installed
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.tuning import LearningRateSweep, Tuning, bootstrap_vertices, tune, vertex
from flops_fit_core.tuning.best_rate import vertex_error

LR = 0.008
BATCH = 10
WARMUP = 0.05
RECIPES = {
    "width-scaled": {"name": "width-scaled", "warmup": WARMUP},
    "constant": {"name": "constant", "betas": [0.9, 0.95]},
}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
CONFIGS = {
    "llama": {"tie_word_embeddings": False},
    "llama-tied": {"tie_word_embeddings": True},
    "gpt2": NO_DROPOUT,
    "qwen3": {},
}
INITS = ("fan_in", "architecture")
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
FIGURE = Path(__file__).parents[2] / "docs" / "images" / "mup-transfer.png"


def cases(model: str) -> list[str]:
    """What is compared: recipes, or starting weights."""
    return list(RECIPES) if model == "gpt" else [f"width-scaled, init {init}" for init in INITS]


def model_table(model: str, case: str) -> dict[str, Any]:
    """``[model]`` of an experiment."""
    if model == "gpt":
        return {"name": "gpt", "depth": 3, "head_dim": 16}
    config = {"num_hidden_layers": 3, **CONFIGS[model]}
    init = case.rpartition(" ")[2]
    return {"name": "hf", "architecture": model.split("-")[0], "head_dim": 16, "config": config, "init": init}


def trained(case: str, arguments: argparse.Namespace) -> Tuning:
    """Every width, rate and seed of one case."""
    recipe = case.split(",")[0]
    options = {**RECIPES[recipe], "lr": arguments.lr}
    if recipe == "constant":
        options["warmup_tokens"] = round(WARMUP * arguments.tokens)
    study = plan(
        {
            "name": f"mup-{case.replace(', ', '-').replace(' ', '-')}",
            "sweep": {
                "budgets": [1e12],
                "sizes": [{"width": width} for width in arguments.widths],
                "batch_size": BATCH,
                "allow_repeat": True,
                "min_steps": 1,
            },
            "model": model_table(arguments.model, case),
            "dataset": "text",
            "optimizer": "adamw",
            "recipe": options,
            "counter": "model" if arguments.model == "gpt" else "chinchilla",
            "device": "cpu",
            "executor": {"name": "processes", "workers": arguments.workers},
        },
        out=arguments.out / case.replace(", ", "-").replace(" ", "-"),
    )
    assert study.experiment is not None
    probe = LearningRateSweep(
        study.experiment,
        study.plan,
        sizes=arguments.widths,
        tokens=arguments.tokens,
        seeds=range(arguments.seeds),
    )
    return tune(probe, installed(), StudyFolder(study.folder.path), rates=arguments.rates, extensions=0)


def losses(found: Tuning, width: int) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the rates that all seeds survived, and their losses (rates, seeds)."""
    table: dict[float, list[float | None]] = {}
    for run in found.runs:
        if run.size == width:
            table.setdefault(run.value, []).append(run.loss)
    whole = {value: row for value, row in table.items() if None not in row}
    return np.log2(list(whole)), np.array(list(whole.values()), dtype=float)


def interval(x: np.ndarray, y: np.ndarray, number: int) -> np.ndarray:
    """Draws of the best rate's log2, shape (draws,)."""
    if y.shape[1] >= 3:
        return bootstrap_vertices(x, y, seed=number)
    error = vertex_error(x, y.mean(1))
    noise = np.random.default_rng(number).standard_normal(2000)
    return vertex(x, y.mean(1)) + (np.nan if error is None else error) * noise


def report(found: Tuning, widths: list[int]) -> None:
    """Print the losses, the best rates and their shift."""
    best, draws = [], []
    for number, width in enumerate(widths):
        x, y = losses(found, width)
        print(f"  width {width}: " + ", ".join(f"{2**a:.3g}: {b:.4f}" for a, b in zip(x, y.mean(1), strict=True)))
        lowest = int(np.argmin(y.mean(1)))
        best.append(vertex(x, y.mean(1)))
        draws.append(interval(x, y, number))
        low, high = 2 ** np.quantile(draws[-1], [0.05, 0.95])
        edge = " AT AN EDGE" if lowest in (0, len(found.values) - 1) else ""
        noise = f"; seed sd {y.std(1, ddof=1).mean():.4f} nats" if y.shape[1] > 1 else ""
        print(f"    best {2 ** best[-1]:.4f} [{low:.4f}, {high:.4f}]{edge}{noise}")
    shift = best[-1] - best[0]
    low, high = np.quantile(draws[-1] - draws[0], [0.05, 0.95])
    print(f"  shift from width {widths[0]} to {widths[-1]}: {shift:+.2f} octaves [{low:+.2f}, {high:+.2f}] (90%)")


def draw(found: dict[str, Tuning], widths: list[int], path: Path, tokens: float) -> None:
    """One panel a case: mean loss and every seed by rate, the parabola's vertex marked."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(9, 3.8), sharey=True, layout="constrained")
    for axis, (case, one) in zip(np.atleast_1d(axes), found.items(), strict=True):
        for width, color in zip(widths, COLORS, strict=False):
            x, y = losses(one, width)
            best = vertex(x, y.mean(1))
            axis.plot(2**x, y, ".", color=color, alpha=0.35, markersize=5)
            axis.plot(2**x, y.mean(1), "-", color=color, label=f"width {width}: best {2**best:.2g}")
            axis.axvline(2**best, color=color, linestyle=":", linewidth=1.2)
        axis.set_xscale("log", base=2)
        axis.set_xticks(one.values, [f"{value:.3g}" for value in one.values])
        axis.set_xlabel("peak learning rate")
        axis.set_title(case)
        axis.legend(loc="upper center")
    np.atleast_1d(axes)[0].set_ylabel("held-out loss (nats per byte)")
    figure.suptitle(f"Best learning rate at two widths, {tokens / 1e6:g}M tokens each", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("gpt", *CONFIGS), default="gpt")
    parser.add_argument("--cases", nargs="+", help="a part of the cases")
    parser.add_argument("--out", type=Path, default=Path("runs/mup"))
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--tokens", type=float, default=500_000)
    parser.add_argument("--lr", type=float, default=LR, help="the rate in the middle")
    parser.add_argument("--rates", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="for gpt the one of the documents")
    arguments = parser.parse_args()
    figure = arguments.figure or (FIGURE if arguments.model == "gpt" else arguments.out / "mup-transfer.png")
    found = {case: trained(case, arguments) for case in arguments.cases or cases(arguments.model)}
    for case, one in found.items():
        print(case)
        report(one, arguments.widths)
    draw(found, arguments.widths, figure, arguments.tokens)
    print(f"figure: {figure}")


if __name__ == "__main__":
    main()
