"""A plugin for the conformance kit: training that takes milliseconds, and a model that does what a test needs.

Workers import it by name, so it imports nothing but what a plugin does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core.data.tasks import SupervisedTask
from flops_fit_core.plugins.hookspecs import hookimpl
from flops_fit_core.plugins.protocols import Dataset, RunInfo
from flops_fit_core.plugins.specs import DatasetSpec, ModelSpec, OptimizerSpec, Options, ScheduleSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUTS, CLASSES = 8, 2


class TinyOptions(Options):
    """A multilayer perceptron that can do something else beside learning."""

    width: int = 4
    code: str = ""
    """Python that runs in every forward pass of training, with ``step``, counted from 0, the ``model`` and the
    inputs ``batch``."""
    evaluated: str = ""
    """Python that runs in every forward pass without gradients, with the ``model``."""


def build_tiny(options: TinyOptions, task: SupervisedTask) -> nn.Module:
    from torch import is_grad_enabled, nn
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    class Tiny(nn.Sequential):
        step = 0

        def forward(self, batch: Tensor) -> Any:
            # Planning tries models and evaluation measures them, both without gradients; a trace is neither.
            if _get_current_dispatch_mode() is not None:
                return super().forward(batch)  # type: ignore[no-untyped-call]
            if is_grad_enabled():
                exec(options.code, {"step": self.step, "model": self, "batch": batch})  # noqa: S102
                self.step += 1
            elif options.evaluated and not batch.is_meta:
                exec(options.evaluated, {"model": self})  # noqa: S102
            return super().forward(batch)  # type: ignore[no-untyped-call]

    return Tiny(nn.Linear(INPUTS, options.width), nn.ReLU(), nn.Linear(options.width, task.outputs_size))


class Majority(Dataset):
    """Whether more than half of a number's 8 bits are ones: endless, computed, the same everywhere."""

    task = SupervisedTask(inputs=(INPUTS,), outputs_size=CLASSES)

    def __init__(self, seed: int, contrary: bool = False) -> None:
        self.seed, self.contrary = seed, contrary
        self.fingerprint = f"majority of 8 bits, version 1{', contrary' if contrary else ''}"

    def batches(self, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield _examples(range(start, start + batch_size), self.seed)
            start += batch_size

    def eval_batches(self, tokens: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        tokens = min(tokens, 250)  # no whole number of batches of a usual size
        for first in range(0, tokens, batch_size):
            inputs, answers = _examples(range(first, min(first + batch_size, tokens)), seed=-1)
            yield inputs, 1 - answers if self.contrary else answers


class MajorityOptions(Options):
    """What is held out."""

    contrary: bool = False
    """Held-out answers are the wrong ones: what has learned has a high held-out loss and a low training loss."""


class PlainOptions(Options):
    """Gradient descent that can say what it does."""

    lr: float = 0.3
    trace: str = ""
    """File to which each step appends its learning rate."""
    poison: bool = False
    """Whether a step leaves gradients that are not numbers behind: whoever uses them again learns nothing."""


class PlainDescent:
    """Gradient descent without torch.optim, whose first use imports torch's compiler: seconds for each worker."""

    def __init__(self, parameters: Iterable[nn.Parameter], options: PlainOptions) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": options.lr}]
        self.trace, self.poison = options.trace, options.poison

    def step(self) -> None:
        if self.trace:
            with Path(self.trace).open("a") as file:
                file.write(f"{self.param_groups[0]['lr']!r}\n")
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad, alpha=group["lr"])
                if self.poison:
                    parameter.grad.fill_(float("nan"))

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It has none."""


def _examples(positions: range, seed: int) -> tuple[Tensor, Tensor]:
    import torch

    # A multiplicative hash: neighbouring positions give unlike numbers.
    numbers = torch.tensor([(position + 977 * seed) * 2654435761 >> 8 & 0xFF for position in positions])
    bits = numbers[:, None] >> torch.arange(INPUTS) & 1
    return bits.float(), (bits.sum(1) > INPUTS // 2).long()


@hookimpl
def flops_fit_models() -> Iterable[ModelSpec]:
    yield ModelSpec(name="tiny", options=TinyOptions, build=build_tiny, size="width")


@hookimpl
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    yield DatasetSpec(
        name="majority",
        options=MajorityOptions,
        build=lambda options, seed: Majority(seed, options.contrary),
    )


@hookimpl
def flops_fit_optimizers() -> Iterable[OptimizerSpec]:
    def build(options: PlainOptions, model: nn.Module, run: RunInfo) -> Any:
        return PlainDescent(model.parameters(), options)

    yield OptimizerSpec(name="plain", options=PlainOptions, build=build, width_scaling="none")


@hookimpl
def flops_fit_schedules() -> Iterable[ScheduleSpec]:
    """A straight line to zero, and one multiplier for ever, whose runs share all of their way."""
    yield ScheduleSpec(name="falling", build=lambda options, run: lambda step: 1 - step / run.steps)
    yield ScheduleSpec(
        name="level", build=lambda options, run: lambda step: 1.0, branch=lambda options, run: run.steps
    )
