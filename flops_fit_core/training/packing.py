"""Several models of one shape trained as one: their weights stacked, their passes vectorized.

For small models most of a step is the launching of its operations, which then costs as much for eight models
as for one. Each keeps its own optimizer, learning rate, clipping and data; the gradients come from one
``torch.vmap`` over ``torch.func.functional_call``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flops_fit_core.plugins.protocols import Batch
from flops_fit_core.training.batches import stacked, to_device
from flops_fit_core.training.rng import random_state, set_random_state
from flops_fit_core.training.run_state import Pass
from flops_fit_core.training.step import at_least_one, autocast

logger = logging.getLogger("flops_fit")


class PackedStepper:
    """Takes a step of every pass: ``stepper(batches, step)`` gives each one's mean training loss.

    The passes' models keep their weights, as parts of the stack: they can be evaluated and saved at any time.

    Args:
        passes: Of models of one shape, at one step.
        device: Where they are.
        clip: Largest norm of each one's gradient; None for no clipping.
        precision: ``float32`` or ``bfloat16`` (autocast).
    """

    micro_batch: int | None = None
    compiled = False
    out_of_memory = False
    """Set when a step ran out of memory, which leaves some of the runs a step further than others."""

    def __init__(self, passes: Sequence[Pass], *, device: str, clip: float | None, precision: str) -> None:
        self._passes = passes
        self._device = device
        self._clip = clip
        self._autocast = autocast(device, precision)
        models = [one.parts.model for one in passes]
        self._weights, self._buffers = torch.func.stack_module_state(models)
        self._skeleton = copy.deepcopy(models[0]).to("meta")
        self._shared = shared_names(models[0])
        self._own = [self._parts_of_the_stack(model, number) for number, model in enumerate(models)]
        self._vectorized = torch.vmap(self._mean_loss, randomness="different")

    @classmethod
    def where_possible(
        cls, passes: Sequence[Pass], *, device: str, clip: float | None, precision: str
    ) -> PackedStepper | None:
        """None, with a warning, for models, tasks or devices that cannot be vectorized."""
        state = random_state(device)
        try:
            stepper = cls(passes, device=device, clip=clip, precision=precision)
            example = to_device(passes[0].parts.dataset.task.example(passes[0].run.batch_size), device)
            stepper._try([example] * len(passes))
        except Exception as error:
            reason = str(error).partition("\n")[0]
            logger.warning(
                "%d runs cannot be trained as one, so they are trained one after another: %s", len(passes), reason
            )
            return None
        finally:
            set_random_state(state, device)
        return stepper

    def __call__(self, batches: Sequence[Batch], step: int) -> Tensor:
        losses, gradients = self._gradients([to_device(batch, self._device) for batch in batches])
        for number, one in enumerate(self._passes):
            if not one.position.diverged:
                self._update(number, one, gradients, step)
        return losses

    def _try(self, batches: Sequence[Batch]) -> None:
        """A pass that changes no buffer: running statistics of a BatchNorm are of training batches only."""
        before = {name: buffer.clone() for name, buffer in self._buffers.items()}
        try:
            self._gradients(batches)
        finally:
            for name, buffer in self._buffers.items():
                buffer.data.copy_(before[name])

    def _gradients(self, batches: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        with ExitStack() as contexts:
            for context in self._contexts():
                contexts.enter_context(context)
            losses = self._vectorized(self._weights, self._buffers, stacked(batches))
        trained = {name: one for name, one in self._weights.items() if one.requires_grad}
        found = torch.autograd.grad(losses.sum(), list(trained.values()), allow_unused=True)
        gradients = {name: one for name, one in zip(trained, found, strict=True) if one is not None}
        return losses.detach(), gradients

    def _contexts(self) -> list[AbstractContextManager[Any]]:
        # Fused attention has no batching rule on CPUs: vmap would call it once a model, and warn.
        return [self._autocast, sdpa_kernel(SDPBackend.MATH)]

    def _mean_loss(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch) -> Tensor:
        weights = {**weights, **{name: weights[first] for name, first in self._shared.items()}}

        def model(*inputs: Any, **named: Any) -> Any:
            return torch.func.functional_call(self._skeleton, (weights, buffers), inputs, named)

        task = self._passes[0].parts.dataset.task
        total, count = task.loss(task.outputs(model, batch), batch)  # type: ignore[arg-type]
        mean: Tensor = total / at_least_one(count)
        return mean

    def _update(self, number: int, one: Pass, gradients: dict[str, Tensor], step: int) -> None:
        own = self._own[number]
        for name, gradient in gradients.items():
            # As autograd lays them out: fused optimizers go through memory and take no notice of strides.
            own[name].grad = gradient[number].contiguous()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(own.values(), self._clip)
        one.set_learning_rates(step)
        one.parts.optimizer.step()
        one.parts.optimizer.zero_grad(set_to_none=True)

    def _parts_of_the_stack(self, model: nn.Module, number: int) -> dict[str, nn.Parameter]:
        """Let a model's weights be a part of the stack. Returns those that are trained, by name."""
        for name, buffer in model.named_buffers():
            buffer.data = self._buffers[name].data[number]
        own = dict(model.named_parameters())
        for name, parameter in own.items():
            parameter.data = self._weights[name].data[number]
        return {name: parameter for name, parameter in own.items() if parameter.requires_grad}


def shared_names(model: nn.Module) -> dict[str, str]:
    """Further names of weights that have several, such as a tied head's, and their first ones. The way to the meta
    device makes a weight of its own of each."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    everywhere = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in everywhere if first[id(parameter)] != name}
