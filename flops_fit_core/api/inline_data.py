"""The data arguments of ``find_optimal``, checked and identified in the caller's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flops_fit_core.api.data_checks.arguments import check_arguments, check_eval_disjoint
from flops_fit_core.api.data_checks.overlap import check_windows_disjoint, shared_samples
from flops_fit_core.api.sources import has_length, identify_functions, unwrap
from flops_fit_core.api.streams import check_stream
from flops_fit_core.data.custom_task import LossForm, Reduction
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.specs import Options

STATED_FORMS: tuple[Reduction, ...] = ("mean", "sum", "sample-mean", "sample-sum", "batch")
"""Forms of a loss that a user may state."""


class InlineDataOptions(Options):
    """The form of the loss of a batch, determined with a model of the study during planning."""

    reduction: Reduction = "auto"
    ignored: tuple[int, ...] = ()
    shifted: bool = False
    targets_argument: str = ""

    def form(self) -> LossForm:
        return LossForm(self.reduction, self.ignored, self.shifted, self.targets_argument)


@dataclass(frozen=True)
class InlineData:
    """The data arguments of ``find_optimal``."""

    training: Any
    """A torch dataset or DataLoader, or a SeededStream."""
    eval_dataset: Any | None
    eval_share: float
    loss_fn: Callable[[Any, Any], Any] | None
    tokens_per_sample: int | None
    unit: str | None
    fingerprint: str | None
    functions: tuple[str | None, ...] = (None,)
    """From :func:`identify_functions`, in the caller's process: a worker may not have the source text."""
    repeat: bool = True
    """Whether a stream may be read more than once."""
    copy_task: bool = False
    """Whether targets may be the inputs themselves."""
    loss_reduction: Reduction | None = None
    """Form of the loss function, stated by the user."""
    batch_size: int | None = None
    """Samples per batch, if the user sets it."""
    overlap: float = 0.0
    """Share of the held-out samples that equal training samples."""


def check_inline_data(data: Any, **arguments: Any) -> InlineData:
    """Check and identify data in the caller's process.

    Args:
        data: A torch dataset or DataLoader, or a SeededStream.
        arguments: The other fields of :class:`InlineData` that the user sets.

    Raises DataError for objects that are not a dataset and for streams that cannot be resumed, ConfigError for
    functions that cannot be identified and an unknown ``loss_reduction``.
    """
    _check_loss_reduction(arguments)
    check_arguments(arguments)
    eval_dataset = arguments["eval_dataset"]
    for source, least, has_eval_data in ((data, 2, eval_dataset is not None), (eval_dataset, 1, True)):
        stream = unwrap(source, least)[0] if source is not None else []
        if not has_length(stream):
            check_stream(stream, has_eval_data=has_eval_data)
    overlap = 0.0
    if eval_dataset is not None:
        sources = unwrap(data)[0], unwrap(eval_dataset, 1)[0]
        check_eval_disjoint(*sources)
        if all(map(has_length, sources)):
            check_windows_disjoint(*sources)
            overlap = shared_samples(*sources)
    functions = () if arguments["fingerprint"] else identify_functions(data, arguments["loss_fn"], eval_dataset)
    return InlineData(training=data, functions=functions, overlap=overlap, **arguments)


def _check_loss_reduction(arguments: dict[str, Any]) -> None:
    reduction = arguments["loss_reduction"]
    if reduction is None:
        return
    if reduction not in STATED_FORMS:
        raise ConfigError(f"loss_reduction={reduction!r}: it must be one of {', '.join(map(repr, STATED_FORMS))}")
    if arguments["loss_fn"] is None:
        raise ConfigError(f"loss_reduction={reduction!r} needs a loss_fn: pass loss_fn, or omit loss_reduction")
    if reduction == "batch" and arguments["batch_size"] is None:
        raise ConfigError(
            "loss_reduction='batch' needs batches of one size in every run: pass batch_size, such as batch_size=64"
        )
