"""Rows of ``check.py``: how fast, and with how much memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from experiments import check, gpt_table, jobs_of, loss_of, plan_of, relative, run_jobs, train_one

from flops_fit_core import Job, RunResult
from flops_fit_core.plugins import DatasetSpec, hookimpl
from flops_fit_core.plugins.registry import Registry, installed
from flops_fit_core.training import WorkerContext
from flops_fit_core.training.throughput import measure_tokens_per_second

ROOT = Path(__file__).resolve().parents[2]


def compiled(device: str, quick: bool) -> str:
    """The same run with and without ``torch.compile``."""
    shape: dict[str, Any] = {"width": 256, "depth": 4, "context": 256, "batch": 32, "steps": 40}
    if device == "cpu":
        shape = {"width": 32, "depth": 2, "steps": 20}
    plain = train_one(gpt_table(device, **shape))
    fast = train_one(gpt_table(device, **shape, trainer={"compile": True}))
    check(fast.compiled is True, "torch.compile failed, so the model ran as it is: see the warning in the output")
    apart = relative(loss_of(fast), loss_of(plain))
    check(apart < 5e-3, f"held-out losses differ by {apart:.1e}")
    speeds = {}
    for name, trainer in (("plain", {}), ("compiled", {"compile": True})):
        speeds[name], _, _ = _throughput(gpt_table(device, **shape, trainer=trainer), 1.0)
    return (
        f"losses {loss_of(plain):.5f} and {loss_of(fast):.5f} compiled; {speeds['plain']:,.0f} and "
        f"{speeds['compiled']:,.0f} tokens/s ({speeds['compiled'] / speeds['plain']:.2f}x); "
        f"{fast.seconds - plain.seconds:.0f} s of compiling"
    )


def _throughput(table: dict[str, Any], seconds: float) -> tuple[float, float | None, int | None]:
    """Tokens a second after a warm-up step, MFU, and the peak of memory in bytes."""
    registry = installed()
    (job,) = jobs_of(table, registry)
    with tempfile.TemporaryDirectory() as folder:
        context = WorkerContext(job, registry, Path(folder))
        chosen = context.chosen("trainer", job.runs[0])
        trainer = chosen.spec.build(chosen.options)
        run = job.runs[0]
        speed = measure_tokens_per_second(run, context, trainer.options, seconds)
        peak_flops = context.device.peak_flops(trainer.options.precision_on(context.device))
        memory = context.device.peak_memory()
        context.release()
    return speed, speed * run.flops_per_token / peak_flops if peak_flops else None, memory


def widths(device: str, quick: bool) -> str:
    """Peak memory and MFU of gpt in training, by width."""
    shape: dict[str, Any] = {"depth": 8, "head_dim": 64, "context": 1024, "steps": 10}
    sizes = {256: 64, 512: 64, 1024: 32, 2048: 16}
    seconds = 4.0
    if device == "cpu":
        shape, seconds = {"depth": 3, "head_dim": 16, "context": 64, "steps": 10}, 0.5 if quick else 2.0
        sizes = {32: 16, 64: 16} if quick else {32: 16, 64: 16, 128: 16, 256: 16}
    lines = []
    for width, batch in sizes.items():
        table = gpt_table(device, width=width, batch=batch, **shape)
        speed, mfu, memory = _throughput(table, seconds)
        flops = speed * plan_of(table, installed())[1].runs[0].flops_per_token
        lines.append(
            f"width {width} (batch {batch}): {speed:,.0f} tokens/s, {flops / 1e12:.3g} TFLOP/s, MFU "
            f"{f'{mfu:.1%}' if mfu else 'unknown'}, {f'{memory / 2**30:.2f} GiB' if memory else 'no memory count'}"
        )
    return f"depth {shape['depth']}, context {shape['context']}; " + "; ".join(lines)


class SlowText:
    """A plugin: the default text, each batch of which takes some time to make."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @hookimpl
    def flops_fit_datasets(self) -> Any:
        """Offer it."""
        spec = installed().find("dataset", "text").spec
        yield DatasetSpec(name="text", options=spec.options, build=self.build)

    def build(self, options: Any, seed: int) -> Any:
        """The text with slow batches."""
        dataset: Any = installed().find("dataset", "text").spec.build(options, seed)
        batches = dataset.batches

        def slowly(batch_size: int, start: int = 0) -> Iterator[Any]:
            for batch in batches(batch_size, start):
                time.sleep(self.seconds)
                yield batch

        dataset.batches = slowly
        return dataset


def prefetch(device: str, quick: bool) -> str:
    """Batches that take half as long to make as a step: the time that is waited for them."""
    slow = SlowText()
    registry = installed().with_plugins({"slow": slow})
    shape: dict[str, Any] = {"width": 512, "depth": 6, "context": 256, "batch": 64, "steps": 60}
    table = gpt_table(device, **shape, dataset={"name": "slow/text"})
    train_one(gpt_table(device, **shape))  # warms up
    step = _step_seconds(train_one(table, registry))
    slow.seconds = step / 2
    result = train_one(table, registry)
    ratio = _step_seconds(result) / step
    check(ratio < 1.25, f"{ratio:.2f} times the time of a step; 1.5 without prefetching")
    return (
        f"step {1e3 * step:.1f} ms, batch made in {1e3 * slow.seconds:.1f} ms: {ratio:.2f}x the time of a step "
        f"(1.5x without prefetching), data_wait {result.data_wait:.1%}"
    )


def _step_seconds(result: RunResult) -> float:
    """Mean over all steps, without evaluations."""
    run = result.run
    assert result.flops_per_second is not None
    return run.flops_per_token * run.tokens_per_step / result.flops_per_second


RATES = [0.001 * 2**power for power in range(8)]
PROCESSES = 4


def _small_jobs(device: str, registry: Registry, quick: bool) -> list[Job]:
    """One job of a small gpt for each learning rate."""
    jobs: list[Job] = []
    for rate in RATES:
        table = gpt_table(device, width=32, head_dim=8, batch=8, steps=20 if quick else 150)
        jobs += jobs_of({**table, "recipe": {"name": "default", "lr": rate}}, registry)
    return jobs


def packing(device: str, quick: bool) -> str:
    """Eight learning rates of a small gpt: one after another, packed, and in several processes."""
    registry = installed()
    jobs = _small_jobs(device, registry, quick)
    tokens = sum(job.runs[0].tokens for job in jobs)
    together = Job(id="vmap_runs", trajectories=tuple(job.trajectories[0] for job in jobs), device=jobs[0].device)
    train_one(gpt_table(device, width=32, head_dim=8, batch=8, steps=5))  # warms up
    seconds, losses = {}, {}
    for name, group in (("one after another", jobs), ("vmap_runs", [together])):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            results = run_jobs(group, registry, Path(folder))
            seconds[name] = time.perf_counter() - began
        losses[name] = {result.id: loss_of(result) for result in results if result.status == "completed"}
        if name == "vmap_runs":
            check(all(result.vmap_runs == len(jobs) for result in results), "the runs were not packed")
    processes = 2 if device == "cpu" else PROCESSES
    seconds[f"{processes} processes"] = _in_processes(device, quick, processes)
    common = losses["vmap_runs"].keys() & losses["one after another"].keys()
    check(bool(common), "no run was completed in both ways")
    apart = median(relative(losses["vmap_runs"][run], losses["one after another"][run]) for run in common)
    check(apart < 0.02, f"median difference of losses {apart:.1e}")
    first = seconds["one after another"]
    shown = ", ".join(f"{name} {tokens / value:,.0f} ({first / value:.2f}x)" for name, value in seconds.items())
    return f"{len(jobs)} runs of width 32, tokens/s: {shown}; median difference of losses {apart:.1e}"


def _in_processes(device: str, quick: bool, count: int) -> float:
    """Seconds in which processes that are warm train all jobs between them."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    finished = context.Queue()
    processes = [
        context.Process(target=_train_a_share, args=(device, quick, rank, count, barrier, finished), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        barrier.wait(60)
        began = time.perf_counter()
        errors = [error for error in (finished.get(timeout=60) for _ in processes) if error]
        check(not errors, "; ".join(errors))
        return time.perf_counter() - began
    finally:
        for process in processes:
            process.kill()
            process.join()


def _train_a_share(device: str, quick: bool, rank: int, count: int, barrier: Any, finished: Any) -> None:
    torch.set_num_threads(1)
    registry = installed()
    jobs = _small_jobs(device, registry, quick)[rank::count]
    with tempfile.TemporaryDirectory() as folder:
        train_one(gpt_table(device, width=32, head_dim=8, batch=8, steps=5))
        barrier.wait(60)
        try:
            run_jobs(jobs, registry, Path(folder))
            finished.put("")
        except Exception as error:
            finished.put(f"{type(error).__name__}: {error}")


def study(device: str, quick: bool) -> str:
    """The README's study by its command, from planning to the fitted law."""
    changes, what = [], "docs/examples/text-gpt.toml"
    if device == "cpu":
        budgets = "[2e9, 4e9, 8e9]" if quick else "[6e9, 1.2e10, 2.5e10]"
        changes = ["--set", f"sweep.budgets={budgets}", "--set", "sweep.sizes=3", "--set", "sweep.min_steps=10"]
        what += f" with budgets {budgets} of three sizes"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from flops_fit_core.cli import main; main()"]
        example = str(ROOT / "docs" / "examples" / "text-gpt.toml")
        began = time.perf_counter()
        ran = subprocess.run(
            [*command, "run", example, "--out", f"{folder}/study", "--set", f"device={device}", *changes],
            capture_output=True,
            text=True,
            cwd=folder,
            env=os.environ,
            check=False,
        )
        seconds = time.perf_counter() - began
        check(ran.returncode == 0, f"exit code {ran.returncode}:\n{ran.stdout[-1500:]}\n{ran.stderr[-1500:]}")
        listed = subprocess.run(
            [*command, "runs", f"{folder}/study", "--json"], capture_output=True, text=True, check=True
        )
        rows = json.loads(listed.stdout)
    exponents = [line.strip() for line in ran.stdout.splitlines() if "C^" in line or line.strip().startswith("a ")]
    return f"{what}: {seconds:.1f} s, {len(rows)} rows; {'; '.join(exponents[:2])}"
