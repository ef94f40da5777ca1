"""One optimizer step: micro-batches, precision, clipping, what to do when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.protocols import Batch, TrainContext
from flops_fit_core.training.batches import length, part, to_device
from flops_fit_core.training.distributed import is_sharded, without_averaging
from flops_fit_core.training.memory import Snapshot, is_out_of_memory
from flops_fit_core.training.run_state import Pass

logger = logging.getLogger("flops_fit")


class Stepper:
    """Takes a run's steps: ``stepper([batch], step)`` gives the mean training loss as a tensor of one element.

    Only who reads that tensor waits for the device.

    Args:
        one: The run.
        context: Of its worker.
        micro_batch: Samples of one forward pass; None for all. Halved when memory runs out.
        compiled: Whether to train the model as ``torch.compile`` makes it.
        clip: Largest norm of the gradient; None for no clipping.
        precision: ``float32`` or ``bfloat16`` (autocast).
    """

    def __init__(
        self,
        one: Pass,
        context: TrainContext,
        *,
        micro_batch: int | None,
        compiled: bool,
        clip: float | None,
        precision: str,
    ) -> None:
        self._pass, self.parts = one, one.parts
        self._together = context.together
        self.batch_size = one.run.batch_size
        self._samples = -(-self.batch_size // self._together.size)
        """Of a batch, on the process that has the most."""
        self._size = min(micro_batch or self._samples, self._samples)
        self._whole = getattr(one.parts.dataset.task, "whole_batches", False)
        if self._whole and self._size < self.batch_size:
            raise RunFailed(
                "the loss is of whole batches: leave out trainer.micro_batch, on one device for each run"
            )
        self.compiled = compiled
        self._clip = clip
        self._device = context.device.torch_device
        self._release = context.device.release
        self._autocast = autocast(self._device, precision)
        model = one.parts.model
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._sharded = is_sharded(model)
        self._plain = self._together.wrapped(model)
        self._model: Callable[..., Any] = torch.compile(self._plain) if compiled else self._plain
        self._proven = False
        """Whether a step has succeeded: only then is the optimizer's state allocated and the model compiled."""
        self._updating = False
        """Whether the optimizer's step has begun, which may leave a part of the weights updated."""

    @property
    def micro_batch(self) -> int | None:
        """Samples of one forward pass; None for all that this process has of a batch."""
        return self._size if self._size < self._samples else None

    def __call__(self, batches: Sequence[Batch], step: int) -> torch.Tensor:
        self._pass.set_learning_rates(step)
        batch = to_device(self._together.share(batches[0], self.batch_size), self._device)
        alone = self._together.size == 1
        before = None if self._proven else Snapshot(self.parts, self._device, weights=alone)
        while True:
            try:
                return self._step(batch)
            except Exception as error:
                self._adapt(error)
            # After the handler: the error's traceback holds the tensors of the step.
            self._undo(before)

    def _step(self, batch: Batch) -> torch.Tensor:
        """Backward over the whole batch, in parts that fit, and the optimizer's step. Returns the mean loss."""
        self._updating = False
        loss = self._accumulated(batch)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._updating = True
        self.parts.optimizer.step()
        self._proven = True
        self.parts.optimizer.zero_grad(set_to_none=True)
        return loss

    def _adapt(self, error: Exception) -> None:
        """Change what made a step fail, so that it can be repeated. Raises where nothing can be changed."""
        if is_out_of_memory(error):
            self._halve(error)
        elif self._failed_to_compile(error):
            self._do_without_compiling(error)
        else:
            raise error

    def _undo(self, before: Snapshot | None) -> None:
        """Drop what a failed step has left."""
        self.parts.optimizer.zero_grad(set_to_none=True)
        self._release()
        if before is not None:
            before.restore()

    def _accumulated(self, batch: Batch) -> torch.Tensor:
        if self._together.size > 1:
            return self._averaged(batch)
        if self._size >= self._samples:
            total, count = self._forward(batch)
            loss: torch.Tensor = total / at_least_one(count)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        total, count = self._summed(batch)
        torch._foreach_div_(gradients(self._parameters), at_least_one(count))
        mean: torch.Tensor = total / at_least_one(count)
        return mean

    def _averaged(self, batch: Batch) -> torch.Tensor:
        """With other processes, each of which has its share of the batch. Gradients come averaged over processes,
        each process's being a sum over its own predictions."""
        total, count = self._summed(batch)
        both = torch.stack([total, torch.as_tensor(count, dtype=total.dtype, device=total.device)])
        torch.distributed.all_reduce(both)
        both[1] = at_least_one(both[1])
        factor = self._together.size / both[1]
        # Sharded gradients take no tensor for a factor; reading it waits for the device.
        torch._foreach_mul_(gradients(self._parameters), factor.item() if self._sharded else factor)
        return both[0] / both[1]

    def _summed(self, batch: Batch) -> tuple[torch.Tensor, Any]:
        """Backward through the sum of the losses, part by part. Returns that sum and the number of predictions."""
        size = self._together.size
        samples = self._together.samples(self.batch_size)
        # As many on every process, for each forward pass may need them all.
        parts = min(-(-self._samples // self._size), self.batch_size // size)
        if size == 1:  # a collate function may make more or fewer rows than samples, such as one packed row
            samples = length(batch)
            parts = min(parts, samples)
        sums, count = [], 0
        for index in range(parts):
            with without_averaging(self._plain, last=index == parts - 1):
                some = part(batch, index * samples // parts, (index + 1) * samples // parts)
                total, number = self._forward(some)
                total.backward()  # type: ignore[no-untyped-call]
            sums.append(total.detach())
            count += number
        return torch.stack(sums).sum(), count

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, Any]:
        task = self.parts.dataset.task
        with self._autocast:
            return task.loss(task.outputs(self._model, batch), batch)  # type: ignore[arg-type]

    def _too_large(self) -> str:
        return (
            f"out of memory with {self._size} samples on each of {self._together.size} devices: write "
            f"trainer.micro_batch = {-(-self._size // 2)} or more devices_per_run"
        )

    def _halve(self, error: Exception) -> None:
        if self._whole:
            raise error  # The loss of a batch is no sum over its parts.
        if self._together.size > 1:
            raise RunFailed(self._too_large()) from None
        if self._updating and self._proven:
            raise RunFailed(
                f"out of memory in the optimizer's step, which may have updated a part of the weights, so it is "
                f"not repeated. Run the study again to go on from the last checkpoint, and write "
                f"trainer.micro_batch = {-(-self._size // 2)} to leave more memory ({error})"
            ) from error
        if self._size == 1:
            raise error
        self._size = -(-self._size // 2)
        logger.warning("out of memory: going on with micro-batches of %d samples", self._size)

    def _failed_to_compile(self, error: Exception) -> bool:
        return self.compiled and not self._proven and isinstance(error, torch._dynamo.exc.TorchDynamoException)

    def _do_without_compiling(self, error: Exception) -> None:
        logger.warning("torch.compile failed, so the model runs as it is: %s", str(error).partition("\n")[0])
        self._model, self.compiled = self._plain, False


def at_least_one(count: Any) -> Any:
    """A number of predictions to divide by: 1 where there are none, whose sum is 0."""
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)


def gradients(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    return [one.grad for one in parameters if one.grad is not None]


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """Nothing for float32; otherwise matrix products in bfloat16."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
