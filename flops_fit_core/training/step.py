"""One training step: forward, backward, clipping, the optimizer, and a second try when memory runs out."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.protocols import Batch, TrainContext
from flops_fit_core.training.batches import length, part, to_device
from flops_fit_core.training.distributed import without_averaging
from flops_fit_core.training.memory import Snapshot, is_out_of_memory
from flops_fit_core.training.options import TrainOptions
from flops_fit_core.training.run_state import RunState
from flops_fit_core.training.sharding import is_sharded

logger = logging.getLogger("flops_fit")


class TrainStep(Protocol):
    """Trains one run, or several runs of one shape, by a step."""

    @property
    def num_runs(self) -> int: ...

    @property
    def micro_batch(self) -> int | None:
        """Samples of one forward pass; None for the whole batch."""

    @property
    def compiled(self) -> bool:
        """Whether the model is compiled."""

    def __call__(self, batches: Sequence[Batch], step: int) -> Tensor | None:
        """Train every run on its batch.

        Args:
            batches: One per run, on the CPU.
            step: Counted from 0; determines the learning rates.

        Returns the mean training losses, in nats per valid target, as a tensor with one element per run. Reading
        it waits for the device. None if the runs do not fit into memory together; some of them may then be a step
        ahead of their positions, so they must be built again from their checkpoints.
        """


class PlainStep:
    """Trains one run by a step, on one or several devices. Implements :class:`TrainStep`.

    When memory runs out, the step is repeated with micro-batches of half the size. They are used from then on.

    Raises RunFailed if the loss needs whole batches and the options or the devices divide them.
    """

    num_runs = 1

    def __init__(self, run: RunState, context: TrainContext, options: TrainOptions) -> None:
        self._run = run
        self._clip = options.grad_clip
        self._device = context.device.torch_device
        self._release_memory = context.device.release
        self._autocast = autocast(self._device, options.precision_on(context.device))
        self._distributed = context.distributed
        self._batch_size = run.spec.batch_size
        self._max_local_samples = -(-self._batch_size // self._distributed.size)
        """Samples of a batch on the process with the most."""
        self._micro_batch_size = min(options.micro_batch or self._max_local_samples, self._max_local_samples)
        self._needs_whole_batches = getattr(run.parts.dataset.task, "whole_batches", False)
        if self._needs_whole_batches and self._micro_batch_size < self._batch_size:
            raise RunFailed(
                "the loss is of whole batches: leave out trainer.micro_batch, on one device for each run"
            )
        self._parameters = [param for param in run.parts.model.parameters() if param.requires_grad]
        self._sharded = is_sharded(run.parts.model)
        self._uncompiled_model = self._distributed.wrap_model(run.parts.model)
        self.compiled = options.compile
        self._model: Callable[..., Any] = self._uncompiled_model
        if self.compiled:
            self._model = torch.compile(self._uncompiled_model)
        self._has_succeeded = False
        """Whether a step has succeeded: then the optimizer's state is allocated and the model is compiled."""
        self._in_optimizer = False
        """Whether the optimizer's step has begun, which may leave a part of the weights updated."""

    @property
    def micro_batch(self) -> int | None:
        """Samples of one forward pass; None for all samples that this process has of a batch."""
        return self._micro_batch_size if self._micro_batch_size < self._max_local_samples else None

    def __call__(self, batches: Sequence[Batch], step: int) -> Tensor:
        self._run.set_learning_rates(step)
        optimizer = self._run.parts.optimizer
        batch = to_device(self._distributed.local_batch(batches[0], self._batch_size), self._device)
        before = None
        if not self._has_succeeded:  # only the first step allocates the optimizer's state, and may fail half-way
            before = Snapshot(self._run.parts, self._device, weights=self._distributed.size == 1)
        while True:
            try:
                self._in_optimizer = False
                loss = self._backward(batch)
                if self._clip is not None:
                    nn.utils.clip_grad_norm_(self._parameters, self._clip)
                self._in_optimizer = True
                optimizer.step()
                self._has_succeeded = True
                optimizer.zero_grad(set_to_none=True)
                return loss
            except Exception as error:
                self._make_smaller(error)
            # Outside of the handler: inside, the error's traceback keeps the activations in memory.
            optimizer.zero_grad(set_to_none=True)
            self._release_memory()
            if before is not None:
                before.restore()

    def _backward(self, batch: Batch) -> Tensor:
        """Compute the gradients of the mean loss of a batch. Returns that loss."""
        if self._distributed.size == 1 and self._micro_batch_size >= self._max_local_samples:
            total, count = self._forward(batch)
            loss = total.div(at_least_one(count))
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        # The number of predictions of the whole batch is known at the end only, so gradients are of sums at first.
        totals, count = [], 0
        micro_batches = self._micro_batches(batch)
        for index, micro_batch in enumerate(micro_batches, start=1):
            with without_averaging(self._uncompiled_model, last=index == len(micro_batches)):
                total, num_predictions = self._forward(micro_batch)
                total.backward()  # type: ignore[no-untyped-call]
            totals.append(total.detach())
            count += num_predictions
        return self._divide_gradients(torch.stack(totals).sum(), count)

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        """Parts of this process's batch. Every process has equally many: a forward pass may need all of them."""
        num_processes = self._distributed.size
        samples = self._distributed.local_samples(self._batch_size)
        num_parts = -(-self._max_local_samples // self._micro_batch_size)
        num_parts = min(num_parts, self._batch_size // num_processes)
        if num_processes == 1:  # a collate function may make another number of rows, such as one packed row
            samples = length(batch)
            num_parts = min(num_parts, samples)
        bounds = [index * samples // num_parts for index in range(num_parts + 1)]
        return [part(batch, first, last) for first, last in itertools.pairwise(bounds)]

    def _forward(self, batch: Batch) -> tuple[Tensor, Any]:
        """The sum of the losses and the number of predictions."""
        task = self._run.parts.dataset.task
        with self._autocast:
            return task.loss(task.outputs(self._model, batch), batch)  # type: ignore[arg-type]

    def _divide_gradients(self, total: Tensor, count: Any) -> Tensor:
        """Turn gradients of this process's sum of losses into those of the mean over all processes.

        Returns that mean.
        """
        if self._distributed.size == 1:
            # Divided, not multiplied by 1 / count, which rounds differently.
            torch._foreach_div_(gradients(self._parameters), at_least_one(count))
            return total.div(at_least_one(count))
        sums = torch.stack([total, torch.as_tensor(count, dtype=total.dtype, device=total.device)])
        torch.distributed.all_reduce(sums)
        total, count = sums[0], at_least_one(sums[1])
        factor = self._distributed.size / count  # the gradients are means over the processes
        # Sharded gradients cannot be multiplied by a tensor. Reading its value waits for the device.
        torch._foreach_mul_(gradients(self._parameters), factor.item() if self._sharded else factor)
        return total.div(count)

    def _make_smaller(self, error: Exception) -> None:
        """Prepare the next try of a failed step: a smaller one, or uncompiled. Raises if that cannot help."""
        if is_out_of_memory(error):
            self._halve_micro_batch(error)
        elif self._failed_to_compile(error):
            reason = str(error).partition("\n")[0]
            logger.warning("torch.compile failed, so the model is trained uncompiled: %s", reason)
            self._model, self.compiled = self._uncompiled_model, False
        else:
            raise error

    def _halve_micro_batch(self, error: Exception) -> None:
        if self._needs_whole_batches:
            raise error
        half = -(-self._micro_batch_size // 2)
        if self._distributed.size > 1:  # the other processes have not failed and would not repeat the step
            raise RunFailed(
                f"out of memory with {self._micro_batch_size} samples on each of {self._distributed.size} "
                f"devices: write trainer.micro_batch = {half} or more devices_per_run"
            ) from None
        if self._in_optimizer and self._has_succeeded:
            raise RunFailed(
                f"out of memory in the optimizer's step, which may have updated a part of the weights, so it is "
                f"not repeated. Run the study again to continue from the last checkpoint, and write "
                f"trainer.micro_batch = {half} to leave more memory ({error})"
            ) from error
        if self._micro_batch_size == 1:
            raise error
        self._micro_batch_size = half
        logger.warning("out of memory: going on with micro-batches of %d samples", half)

    def _failed_to_compile(self, error: Exception) -> bool:
        in_compiler = isinstance(error, torch._dynamo.exc.TorchDynamoException)
        return self.compiled and not self._has_succeeded and in_compiler


def at_least_one(count: Any) -> Any:
    """A number of predictions to divide by. A batch without predictions has the sum 0 and gets the mean 0."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [param.grad for param in parameters if param.grad is not None]


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16; does nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
