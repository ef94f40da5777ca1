"""A plugin for the conformance kits: training in milliseconds, and a model that runs code of a test.

Workers import it by name, so it imports only modules that any plugin may import.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core.data.tasks import SupervisedTask
from flops_fit_core.plugins.hookspecs import hookimpl
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.protocols import Dataset, RunInfo
from flops_fit_core.plugins.specs import DatasetSpec, ModelSpec, OptimizerSpec, ScheduleSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUTS, CLASSES = 8, 2


class TinyOptions(Options):
    """A multilayer perceptron that can run additional code."""

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
            # A dispatch mode means a trace. Planning and evaluation run without gradients.
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
    """Classify whether more than half of a number's 8 bits are ones. Endless, and computed from the position."""

    task = SupervisedTask(inputs=(INPUTS,), outputs_size=CLASSES)

    def __init__(self, seed: int, contrary: bool = False) -> None:
        self.seed, self.contrary = seed, contrary
        self.fingerprint = f"majority of 8 bits, version 1{', contrary' if contrary else ''}"

    def batches(self, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield _examples(range(start, start + batch_size), self.seed)
            start += batch_size

    def eval_batches(self, tokens: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        tokens = min(tokens, 250)  # not a multiple of common batch sizes
        for first in range(0, tokens, batch_size):
            inputs, answers = _examples(range(first, min(first + batch_size, tokens)), seed=-1)
            yield inputs, 1 - answers if self.contrary else answers


class MajorityOptions(Options):
    """Options of the held-out data."""

    contrary: bool = False
    """Whether held-out answers are wrong. A trained model then has a high held-out loss and a low training
    loss."""


class PlainOptions(Options):
    """Options of gradient descent."""

    lr: float = 0.3
    trace: str = ""
    """File to which each step appends its learning rate."""
    poison: bool = False
    """Whether a step sets all gradients to NaN, so that a trainer that does not clear them fails."""


class PlainDescent:
    """Gradient descent without torch.optim, which imports torch's compiler on first use, for seconds per
    worker."""

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
        """Does nothing, because there is no state."""


def _examples(positions: range, seed: int) -> tuple[Tensor, Tensor]:
    import torch

    # A multiplicative hash, so that neighbouring positions have unrelated numbers.
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
    """A linear schedule to zero, and a constant schedule with a shared stable phase of all steps."""
    yield ScheduleSpec(name="falling", build=lambda options, run: lambda step: 1 - step / run.steps)
    yield ScheduleSpec(
        name="level", build=lambda options, run: lambda step: 1.0, branch=lambda options, run: run.steps
    )
