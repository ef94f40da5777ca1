"""The task of a user's data, model and loss function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flops_fit_core.plugins.protocols import Batch, BatchCount, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

IGNORED = -100
"""The target that losses in torch and transformers ignore."""

Reduction = Literal[
    "auto",
    "sum",
    "mean",
    "mean-of-all",
    "mean-of-sample-sums",
    "values",
    "sample-sum",
    "sample-mean",
    "sample-mean-of-all",
    "pair",
    "batch",
]
"""Form of the value of a loss function.

``sum``, ``mean``: a scalar, over the valid targets. ``mean-of-all``: a scalar, the sum over valid targets divided
by the number of all targets. ``mean-of-sample-sums``: the same divided by the number of samples. ``values``: one
value per target. ``sample-sum``, ``sample-mean``, ``sample-mean-of-all``: one value per sample, a sum or mean
over its targets. ``pair``: ``(sum, count)``. ``batch``: a scalar for a complete batch, such as a contrastive
loss. ``auto``: a scalar is a ``mean``, a tensor is summed.
"""


@dataclass(frozen=True)
class LossForm:
    """How the value of a loss function becomes a sum over valid targets."""

    reduction: Reduction = "auto"
    ignored: tuple[int, ...] = (IGNORED,)
    """Class numbers of targets that do not count."""
    shifted: bool = False
    """Whether the targets are the inputs. Then position t predicts target t + 1, and the first target of each row
    does not count."""
    targets_argument: str = ""
    """Name of the model's argument for targets, if it returns logits for every position only with targets."""


@dataclass(frozen=True)
class CustomTask(Task):
    """A user's loss, ``loss_fn(outputs, targets)``, on batches of a user's dataset.

    A batch is a pair (inputs, targets), a dict, or a single tensor (both input and target). In a dict, the entry
    named ``targets`` is the target; the model receives the other entries as keyword arguments. The loss is the sum
    over valid targets divided by their number; ``form`` states how the sum follows from the value of ``loss_fn``.
    Real-valued targets are all valid and count once per sample.
    """

    loss_fn: Callable[[Any, Any], Any] | None
    """None: cross-entropy in nats for class numbers, mean squared error for real targets."""
    sample: Batch
    """A batch of the dataset, for its shapes; tensors on the CPU."""
    targets: str = "labels"
    unit: str = "samples"
    tokens_per_sample: int = 1
    """Positions per sample."""
    counts_targets: bool = False
    """Whether D counts valid targets. Otherwise every sample counts as ``tokens_per_sample``."""
    form: LossForm = LossForm()

    @property
    def whole_batches(self) -> bool:  # type: ignore[override]  # read-only, as the fields of this class
        """Whether batches cannot be divided, because the loss of a batch is not a sum over its samples."""
        return self.form.reduction == "batch"

    def example(self, batch_size: int) -> Batch:
        import torch

        samples = len(self.targets_of(self.sample))

        def resize(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                if not value.ndim or len(value) != samples:  # not a value per sample
                    return value
                return torch.zeros(batch_size, *value.shape[1:], dtype=value.dtype)
            if isinstance(value, Mapping):
                return {key: resize(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [resize(item) for item in value]
            return value

        return resize(self.sample)

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        keyword = {self.form.targets_argument: self.targets_of(batch)} if self.form.targets_argument else {}
        if isinstance(batch, Mapping):
            return model(**{key: value for key, value in batch.items() if key != self.targets}, **keyword)
        return model(batch[0] if isinstance(batch, list | tuple) else batch, **keyword)

    def targets_of(self, batch: Batch) -> Tensor:
        """The targets of a batch, samples first."""
        targets: Tensor
        if isinstance(batch, Mapping):
            targets = batch[self.targets]
        else:
            targets = batch[1] if isinstance(batch, list | tuple) else batch
        return targets

    def count(self, batch: Batch) -> BatchCount:
        """Valid targets and positions of a batch."""
        targets = self.targets_of(batch)
        if not self.counts_targets:
            samples = len(targets) * self.tokens_per_sample
            return BatchCount(samples, samples)
        positions = targets.numel() if targets.ndim == 2 else len(targets)
        return BatchCount(int(self._valid(targets).sum()), positions)

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, Any]:
        """Loss in nats summed over the valid targets, and their number (an integer or a tensor of one element).

        Raises ValueError, naming both shapes, if the outputs do not match the targets.
        """
        targets = self.targets_of(batch)
        if self.loss_fn is None:
            return default_loss(outputs, targets, shifted=self.form.shifted)
        return self._summed(outputs, targets)

    def _summed(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Any]:
        assert self.loss_fn is not None
        reduction = self.form.reduction
        count: Any
        sample_counts: Any
        total: Tensor
        if is_classes(targets):
            valid = self._valid(targets)
            count, sample_counts, num_targets, width = valid.sum(), valid.sum(1), valid.numel(), valid.shape[1]
        else:
            count = num_targets = len(targets)
            sample_counts = width = 1
        value = self.loss_fn(outputs, self._fill_empty(targets))
        if reduction == "auto":
            reduction = _form_by_shape(value, targets)
        if reduction == "pair":
            total, count = value
        elif reduction == "batch":
            total, count = value * len(targets), len(targets)
        elif reduction == "mean":
            total = value * count
        elif reduction == "mean-of-all":
            total = value * num_targets
        elif reduction == "mean-of-sample-sums":
            total = value * len(targets)
        elif reduction == "sample-mean":
            total = (value.flatten() * sample_counts).sum()
        elif reduction == "sample-mean-of-all":
            total = value.sum() * width
        else:
            total = value.sum()
        return total, count

    def _valid(self, targets: Tensor) -> Tensor:
        """Mask of the targets that count, (batch, targets per sample); if shifted, without the first target."""
        rows = targets.reshape(len(targets), -1)
        if self.form.shifted:
            rows = rows[:, 1:]
        valid = rows == rows
        for value in self.form.ignored:
            valid = valid & (rows != value)
        return valid

    def _fill_empty(self, targets: Tensor) -> Tensor:
        """The targets, with a valid class in place of ignored targets if a mean would be 0 / 0.

        This mean is multiplied by the number of valid targets, which is 0.
        """
        import torch

        if self.form.reduction not in ("mean", "sample-mean") or not is_classes(targets):
            return targets
        has_valid = self._valid(targets).any(1)
        if self.form.reduction != "sample-mean":
            has_valid = has_valid.any()
        placeholder = next(value for value in range(len(self.form.ignored) + 1) if value not in self.form.ignored)
        has_valid = has_valid.reshape(-1, *[1] * (targets.ndim - 1)) if has_valid.ndim else has_valid
        return torch.where(has_valid, targets, torch.full_like(targets, placeholder))


def _form_by_shape(value: Any, targets: Tensor) -> Reduction:
    """The form of a value by its type and shape. Raises ValueError for one value per sequence (ambiguous)."""
    if isinstance(value, tuple):
        return "pair"
    if value.ndim == 0:
        return "mean"
    if is_classes(targets) and targets.ndim > 1 and value.numel() == len(targets):
        raise ValueError(
            "loss_fn returned one value per sample, a mean or a sum over its targets: state reduction "
            "'sample-mean' or 'sample-sum'"
        )
    return "values"


def is_classes(targets: Tensor) -> bool:
    """Whether targets are class numbers."""
    import torch

    return not targets.is_floating_point() and not targets.is_complex() and targets.dtype is not torch.bool


def logits_of(outputs: Any) -> Any:
    """The logits in a model's outputs: a tensor, ``.logits``, the entry ``logits``, or a tuple's first item."""
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    if hasattr(outputs, "logits"):
        return outputs.logits
    return outputs[0] if isinstance(outputs, list | tuple) and outputs else outputs


def default_loss(outputs: Any, targets: Tensor, *, shifted: bool = False) -> tuple[Tensor, Any]:
    """The default loss, and the number of targets or samples that it is summed over.

    Class numbers: cross-entropy in nats, summed over targets other than -100. Real targets: the mean squared
    error of each sample, summed over samples.

    Raises ValueError, naming both shapes, if the outputs do not match the targets.
    """
    from torch.nn import functional

    logits = logits_of(outputs)
    shape = tuple(getattr(logits, "shape", ()))
    if not hasattr(logits, "shape"):
        raise ValueError(
            f"the model returned {_describe_outputs(outputs)}, which contains no logits: return a tensor, an "
            "object with .logits, a dict with 'logits', or a tuple with logits first; or pass a loss_fn"
        )
    if not is_classes(targets):
        if shape and logits.numel() != targets.numel():
            raise ValueError(
                f"the model returned outputs of shape {shape} for targets of shape {tuple(targets.shape)}: "
                "squared error needs one output per target"
            )
        error = functional.mse_loss(logits.float(), targets.to(logits.device).float().reshape(logits.shape))
        return error * len(targets), len(targets)
    if shape[:-1] != tuple(targets.shape):
        in_second = len(shape) > 2 and shape[:1] + shape[2:] == tuple(targets.shape)
        hint = "; for classes in dimension 1, pass loss_fn=torch.nn.CrossEntropyLoss()" if in_second else ""
        raise ValueError(
            f"the model returned outputs of shape {shape} for targets of shape {tuple(targets.shape)}: "
            f"cross-entropy needs logits of shape {(*targets.shape, 'classes')}{hint}"
        )
    if shifted:
        logits, targets = logits[:, :-1], targets[:, 1:]
    flat = targets.flatten().long()
    total = functional.cross_entropy(logits.float().flatten(0, -2), flat, reduction="sum", ignore_index=IGNORED)
    return total, (flat != IGNORED).sum()


def _describe_outputs(outputs: Any) -> str:
    if isinstance(outputs, Mapping):
        return f"a {type(outputs).__name__} with {', '.join(map(str, outputs))}"
    if isinstance(outputs, list | tuple):
        return f"a {type(outputs).__name__} of {', '.join(type(item).__name__ for item in outputs)}"
    return f"a {type(outputs).__name__}"
