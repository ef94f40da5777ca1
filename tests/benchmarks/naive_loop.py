"""Compare a sweep with a naive loop: one process, one run after another, all threads.

    python tests/benchmarks/naive_loop.py [--budgets 2.5e10 5e10]

Trains the runs of docs/examples/text-gpt.toml (or its models at other budgets) twice, with the same models,
weights, batches and steps: as ``flops-fit run``, with workers, store and evaluations; and by a plain loop (AdamW
with torch's default implementation, one evaluation at the end, torch's threads on all cores). Prints both wall
times, their ratio, and the largest difference of held-out losses.
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


def train_naively(run, context):
    """Train one run. Return its loss on the run's held-out sample."""
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
    parser.add_argument("--budgets", type=float, nargs="+", help="default: the budgets of the example")
    arguments = parser.parse_args()
    table = tomllib.loads(EXAMPLE.read_text())
    if arguments.budgets:
        table["sweep"]["budgets"] = arguments.budgets
    with tempfile.TemporaryDirectory() as folder:
        study = plan(table, out=Path(folder) / "study")
        started = time.perf_counter()
        results = study.train()
        sweep_seconds = time.perf_counter() - started
        losses = {result.id: result.loss for result in results}
        runs, registry = study.plan.runs, study.registry
        jobs = {run.id: job for job in study.plan.jobs({run.id for run in runs}) for run in job.runs}
        started = time.perf_counter()
        differences = {}
        for run in runs:
            context = WorkerContext(jobs[run.id], registry, Path(folder))
            differences[run.id] = train_naively(run, context) - losses[run.id]
            print(
                f"  width {run.size:4d}, C {run.budget:.3g}: loss {losses[run.id]:.4f}, "
                f"{differences[run.id]:+.1e}",
                flush=True,
            )
        loop_seconds = time.perf_counter() - started
    print(f"{len(runs)} runs, torch threads {torch.get_num_threads()}")
    ratio = loop_seconds / sweep_seconds
    print(f"sweep {sweep_seconds:.1f} s, naive loop {loop_seconds:.1f} s: the sweep is {ratio:.2f} times as fast")
    print(f"held-out losses differ by at most {max(map(abs, differences.values())):.1e} nats")


if __name__ == "__main__":
    main()
