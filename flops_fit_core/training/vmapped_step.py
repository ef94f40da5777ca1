"""One training step of several models of one shape: their weights stacked, their passes vectorized.

A small model spends most of a step on launching operations, which takes as long for eight stacked models as for
one. Each run keeps its own optimizer, learning rate, clipping and data. The gradients of all come from one
``torch.vmap`` over ``torch.func.functional_call``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flops_fit_core.plugins.protocols import Batch, Device
from flops_fit_core.training.batches import stacked, to_device
from flops_fit_core.training.memory import is_out_of_memory
from flops_fit_core.training.options import TrainOptions
from flops_fit_core.training.rng import random_state, set_random_state
from flops_fit_core.training.run_state import RunState
from flops_fit_core.training.step import at_least_one, autocast

logger = logging.getLogger("flops_fit")


class VmappedStep:
    """Trains several runs by a step. Implements ``TrainStep``.

    Each run's model stays usable: its weights are views of the stacked weights. It can be evaluated and saved at
    any time.

    Args:
        runs: Runs with models of one shape, at one step. Diverged runs are computed, but not updated.
        device: The device of the models.
        options: Clipping and precision. ``micro_batch`` and ``compile`` are not supported.
    """

    micro_batch: int | None = None
    compiled = False

    def __init__(self, runs: Sequence[RunState], device: Device, options: TrainOptions) -> None:
        self.num_runs = len(runs)
        self._runs = runs
        self._device = device.torch_device
        self._clip = options.grad_clip
        self._autocast = autocast(self._device, options.precision_on(device))
        models = [run.parts.model for run in runs]
        self._weights, self._buffers = torch.func.stack_module_state(models)
        self._architecture = copy.deepcopy(models[0]).to("meta")
        self._aliases = alias_names(models[0])
        self._trained = [self._use_stacked_weights(model, index) for index, model in enumerate(models)]

    @classmethod
    def if_possible(cls, runs: Sequence[RunState], device: Device, options: TrainOptions) -> VmappedStep | None:
        """The step of these runs. None, with a warning, if they cannot be vectorized together.

        Tries a forward and backward pass, after which every random generator is in its earlier state.
        """
        if len({(run.position.step, bool(run.position.run)) for run in runs}) > 1:
            return None  # resumed from checkpoints of different steps
        random = random_state(device.torch_device)
        try:
            vmapped_step = cls(runs, device, options)
            vmapped_step._try()
        except Exception as error:
            reason = str(error).partition("\n")[0]
            logger.warning(
                "%d runs cannot be trained as one, so they are trained one after another: %s", len(runs), reason
            )
            return None
        finally:
            set_random_state(random, device.torch_device)
        return vmapped_step

    def _try(self) -> None:
        """Raises what a forward and backward pass on an example batch raises."""
        run = self._runs[0]
        example = to_device(run.parts.dataset.task.example(run.spec.batch_size), self._device)
        # Running statistics of a BatchNorm must come from training batches only.
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        try:
            self._backward([example] * self.num_runs)
        finally:
            for name, buffer in self._buffers.items():
                buffer.data.copy_(buffers[name])

    def __call__(self, batches: Sequence[Batch], step: int) -> Tensor | None:
        try:
            losses, gradients = self._backward([to_device(batch, self._device) for batch in batches])
            for index, run in enumerate(self._runs):
                if not run.position.diverged:
                    self._update(index, run, gradients, step)
            return losses
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        logger.warning(
            "out of memory with %d runs side by side: each is trained by itself, from its last checkpoint",
            self.num_runs,
        )
        return None

    def _backward(self, batches: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of every run, and the stacked gradients of the weights that have any."""
        # Made for every step: kept as an attribute, it would refer back to this object, and the weights would stay
        # in memory until the garbage collector runs.
        vmapped_loss = torch.vmap(self._mean_loss, randomness="different")
        # Fused attention has no batching rule on CPUs: vmap would call it once per model, with a warning.
        with self._autocast, sdpa_kernel(SDPBackend.MATH):
            losses = vmapped_loss(self._weights, self._buffers, stacked(batches))
        trained = {name: weight for name, weight in self._weights.items() if weight.requires_grad}
        gradients = torch.autograd.grad(losses.sum(), list(trained.values()), allow_unused=True)
        by_name = {name: grad for name, grad in zip(trained, gradients, strict=True) if grad is not None}
        return losses.detach(), by_name

    def _mean_loss(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch) -> Tensor:
        """The loss of one run's model. ``torch.vmap`` calls it for all runs at once."""
        weights = {**weights, **{alias: weights[name] for alias, name in self._aliases.items()}}

        def model(*inputs: Any, **named_inputs: Any) -> Any:
            return torch.func.functional_call(self._architecture, (weights, buffers), inputs, named_inputs)

        task = self._runs[0].parts.dataset.task
        total, count = task.loss(task.outputs(model, batch), batch)  # type: ignore[arg-type]
        return total.div(at_least_one(count))

    def _update(self, index: int, run: RunState, gradients: dict[str, Tensor], step: int) -> None:
        """Take the optimizer's step of one run."""
        parameters = self._trained[index]
        for name, gradient in gradients.items():
            # Contiguous, as autograd makes it: fused optimizers ignore strides.
            parameters[name].grad = gradient[index].contiguous()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(parameters.values(), self._clip)
        run.set_learning_rates(step)
        run.parts.optimizer.step()
        run.parts.optimizer.zero_grad(set_to_none=True)

    def _use_stacked_weights(self, model: nn.Module, index: int) -> dict[str, nn.Parameter]:
        """Replace a model's weights and buffers by views of the stacked ones. Returns its trained parameters."""
        for name, buffer in model.named_buffers():
            buffer.data = self._buffers[name].data[index]
        parameters = dict(model.named_parameters())
        for name, param in parameters.items():
            param.data = self._weights[name].data[index]
        return {name: param for name, param in parameters.items() if param.requires_grad}


def alias_names(model: nn.Module) -> dict[str, str]:
    """Further names of weights that have several, such as the weight of a tied head: {further name: first name}.

    Moving a model to the meta device unties them.
    """
    first_names = {id(param): name for name, param in model.named_parameters()}
    all_names = model.named_parameters(remove_duplicate=False)
    return {name: first_names[id(param)] for name, param in all_names if first_names[id(param)] != name}
