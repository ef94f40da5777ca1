"""Rows of ``check.py``: a GPU's memory runs out, by real allocations that fail."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from experiments import MEBIBYTE, check, gpt_table, jobs_of, loss_of, relative, run_jobs, train_one

from flops_fit_core import RunResult
from flops_fit_core.plugins import OptimizerSpec, hookimpl
from flops_fit_core.plugins.registry import Registry, installed
from flops_fit_optim.adamw import AdamWOptions, build_adamw

CHUNK = 2 * MEBIBYTE
"""Bytes that the ballast is taken in: just above what torch's allocator serves from its pool of small blocks."""
HALF = 0.5
"""Where between the smaller and the larger of two peaks the memory is limited."""


@contextmanager
def memory_limit(limit: float) -> Iterator[None]:
    """Let torch's allocator have this many bytes of GPU 0; beyond, it raises ``torch.OutOfMemoryError``."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    check(limit < total, f"{limit / 2**30:.1f} GiB are more than the GPU has")
    torch.cuda.set_per_process_memory_fraction(limit / total, 0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


@contextmanager
def warnings() -> Iterator[list[str]]:
    """The project's log messages."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flops_fit")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def peak(result: RunResult) -> int:
    """Bytes that a run's tensors took at most."""
    assert result.peak_memory is not None
    return result.peak_memory


def forward(device: str, quick: bool) -> str:
    """A batch that does not fit in forward and backward."""

    def table(micro_batch: int | None = None) -> dict[str, Any]:
        trainer = {"micro_batch": micro_batch} if micro_batch else {}
        return gpt_table(device, width=256, depth=4, context=256, batch=128, steps=12, trainer=trainer)

    batch = 128
    train_one(gpt_table(device, steps=2))  # loads libraries, whose workspaces would count below
    all_at_once, quarter = train_one(table()), train_one(table(batch // 4))
    limit = peak(quarter) + HALF * (peak(all_at_once) - peak(quarter))
    with memory_limit(limit):
        halved = train_one(table())
    check(halved.micro_batch is not None and halved.micro_batch < batch, "memory did not run out")
    apart = relative(loss_of(halved), loss_of(all_at_once))
    check(apart < 5e-3, f"held-out losses differ by {apart:.1e}")
    return (
        f"peak {peak(all_at_once) / MEBIBYTE:.0f} MiB, limit {limit / MEBIBYTE:.0f} MiB: micro-batch {batch} -> "
        f"{halved.micro_batch}, peak {peak(halved) / MEBIBYTE:.0f} MiB; loss {loss_of(all_at_once):.5f} -> "
        f"{loss_of(halved):.5f}"
    )


class Ballast:
    """A plugin: the project's AdamW; memory is filled before its first step, but for half of its moments.

    The moments are then allocated group by group until an allocation fails, in the middle of the step.
    """

    def __init__(self) -> None:
        self.filled: list[torch.Tensor] = []
        self.allocated: list[int] = []
        """How many parameters had moments when the first step failed."""
        self.steps = 0

    @hookimpl
    def flops_fit_optimizers(self) -> Any:
        """Offer it."""
        yield OptimizerSpec(name="adamw", options=AdamWOptions, build=self.build, width_scaling="adam")

    def build(self, options: Any, model: Any, run: Any) -> torch.optim.Optimizer:
        """The optimizer, with hooks around its first step."""
        optimizer = build_adamw(options, model, run)
        moments = 2 * sum(parameter.nbytes for parameter in model.parameters())
        step = optimizer.step

        def fill_then_step(*arguments: Any, **named: Any) -> Any:
            self.steps += 1
            if self.steps > 1:
                return step(*arguments, **named)
            self.fill(leave=moments // 2)
            try:
                return step(*arguments, **named)
            finally:
                self.allocated.append(len(optimizer.state))

        optimizer.step = fill_then_step  # type: ignore[method-assign]
        model.register_forward_pre_hook(lambda module, inputs: self.empty())
        return optimizer

    def fill(self, leave: int) -> None:
        """Take all memory up to the limit, fragments included, and give so many bytes of it back."""
        with suppress(torch.OutOfMemoryError):
            while True:
                self.filled.append(torch.empty(CHUNK, dtype=torch.uint8, device="cuda"))
        del self.filled[-max(1, leave // CHUNK) :]

    def empty(self) -> None:
        """Give the memory back, as another program on the GPU would."""
        self.filled.clear()


def first_step(device: str, quick: bool) -> str:
    """Memory runs out in the middle of the optimizer's first step."""
    shape: dict[str, Any] = {"width": 512, "depth": 6, "context": 128, "batch": 16, "steps": 12}
    reference = train_one(gpt_table(device, **shape, trainer={"micro_batch": 8}))
    limit = 1.5 * peak(reference) + 512 * MEBIBYTE
    ballast = Ballast()
    registry = installed().with_plugins({"ballast": ballast})
    with memory_limit(limit):
        halved = train_one(gpt_table(device, **shape, optimizer={"name": "ballast/adamw"}), registry)
    check(len(ballast.allocated) == 1, "memory did not run out in the first step")
    check(halved.micro_batch == 8, f"the micro-batch is {halved.micro_batch}, not 8")
    apart = relative(loss_of(halved), loss_of(reference))
    check(apart < 1e-3, f"held-out losses differ by {apart:.1e}: a part of the first step was applied twice")
    return (
        f"failed with moments of {ballast.allocated[0]} parameters; taken back, micro-batch 16 -> 8; loss "
        f"{loss_of(halved):.6f}, with micro-batch 8 from the start {loss_of(reference):.6f}"
    )


def evaluation(device: str, quick: bool) -> str:
    """Memory runs out in the evaluation after the last step."""

    def table(tokens: int) -> dict[str, Any]:
        trainer = {"eval_batch_tokens": tokens, "eval_tokens": 2**18, "micro_batch": 4}
        return gpt_table(device, width=128, depth=3, context=256, batch=8, steps=12, trainer=trainer)

    train_one(gpt_table(device, steps=2))
    small, large = train_one(table(4096)), train_one(table(2**18))
    check(peak(large) > 2 * peak(small), "the evaluation takes no more memory than the training")
    limit = peak(small) + HALF * (peak(large) - peak(small))
    registry: Registry = installed()
    with memory_limit(limit), warnings() as logged, tempfile.TemporaryDirectory() as folder:
        (halved,) = run_jobs(jobs_of(table(2**18), registry), registry, Path(folder))
    check(any("out of memory in an evaluation" in line for line in logged), "memory did not run out")
    apart = relative(loss_of(halved), loss_of(small))
    check(apart < 1e-3, f"held-out losses differ by {apart:.1e}")
    return (
        f"peak with 2^18 tokens at once {peak(large) / MEBIBYTE:.0f} MiB, limit {limit / MEBIBYTE:.0f} MiB: "
        f"completed at {peak(halved) / MEBIBYTE:.0f} MiB; loss {loss_of(halved):.7f}, in batches of 4096 tokens "
        f"{loss_of(small):.7f}"
    )
