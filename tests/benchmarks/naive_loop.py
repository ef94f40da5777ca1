"""The whole sweep beside the loop that one writes first: one process, one run after another, all threads.

    python tests/benchmarks/naive_loop.py [--budgets 2.5e10 5e10]

The runs of docs/examples/text-gpt.toml (or its models at other budgets), each side with the same models, weights,
batches and steps: once as ``flops-fit run`` does it, workers, store and evaluations included, once by a plain loop
(AdamW as torch builds it by default, one evaluation at the end, torch's threads on all cores). Prints both wall
times, their ratio, and how far the held-out losses are apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tomllib
from pathlib import Path

import torch
from by_hand import multiplier, parameter_groups
from torch.nn.functional import cross_entropy

from flops_fit_core import plan
from flops_fit_core.training import WorkerContext

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "text-gpt.toml"


def naive(run, context):
    """Train one run, and its loss on the run's own held-out sample."""
    dataset = context.dataset(run)
    model_choice = context.chosen("model", run)
    torch.manual_seed(run.seed)
    model = model_choice.spec.build(model_choice.options, dataset.task)
    groups = parameter_groups(model)
    peaks = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    batches = dataset.batches(run.batch_size)
    for step in range(run.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * multiplier(run, step)
        batch = next(batches)
        loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    nats, count = 0.0, 0
    eval_tokens = context.chosen("trainer", run).options.eval_tokens
    with torch.no_grad():
        for batch in dataset.eval_batches(eval_tokens, 256):
            targets = batch[:, 1:].flatten()
            nats += float(cross_entropy(model(batch[:, :-1]).flatten(0, 1), targets, reduction="sum"))
            count += len(targets)
    return nats / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", help="instead of the example's")
    given = parser.parse_args()
    table = tomllib.loads(EXAMPLE.read_text())
    if given.budgets:
        table["sweep"]["budgets"] = given.budgets
    with tempfile.TemporaryDirectory() as folder:
        study = plan(table, out=Path(folder) / "study")
        started = time.perf_counter()
        results = study.train()
        ours = time.perf_counter() - started
        losses = {result.id: result.loss for result in results}
        (runs, registry) = (study.plan.runs, study.registry)
        jobs = {run.id: job for job in study.plan.jobs({run.id for run in runs}) for run in job.runs}
        started = time.perf_counter()
        apart = {}
        for run in runs:
            apart[run.id] = naive(run, WorkerContext(jobs[run.id], registry, Path(folder))) - losses[run.id]
            print(
                f"  width {run.size:4d}, C {run.budget:.3g}: loss {losses[run.id]:.4f}, {apart[run.id]:+.1e}",
                flush=True,
            )
        theirs = time.perf_counter() - started
    print(f"{len(runs)} runs, torch threads {torch.get_num_threads()}")
    print(f"sweep {ours:.1f} s, naive loop {theirs:.1f} s: {theirs / ours:.2f} times faster")
    print(f"held-out losses apart by at most {max(map(abs, apart.values())):.1e} nats")


if __name__ == "__main__":
    main()
