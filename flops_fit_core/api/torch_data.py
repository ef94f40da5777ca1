"""A torch ``Dataset``, ``IterableDataset`` or ``DataLoader`` as a flops-fit Dataset.

Of a dataset with a length, ``eval_share`` of its items, evenly spaced, are held out. Of a stream, its first
samples are held out and training starts behind them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flops_fit_core.api.data_checks.arguments import check_arguments, check_eval_disjoint
from flops_fit_core.api.data_checks.first_batch import (
    batch_targets,
    check_samples_first,
    first_batch,
    first_items,
    plain,
)
from flops_fit_core.api.data_checks.overlap import (
    SAME_DATA,
    check_windows_disjoint,
    find_windows,
    shared_samples,
    split_windows,
    unwrap_subset,
)
from flops_fit_core.api.data_checks.task_checks import (
    batches_with_valid_targets,
    check_eval_data,
    data_notes,
    find_loss_form,
)
from flops_fit_core.api.inline import copied
from flops_fit_core.api.sources import (
    REREAD,
    has_length,
    eval_collate,
    identify_functions,
    identify_source,
    split_indices,
    unwrap,
)
from flops_fit_core.api.streams import StreamPasses, check_stream
from flops_fit_core.data.custom_task import CustomTask, LossForm, Reduction, is_classes
from flops_fit_core.errors import ConfigError, DataError
from flops_fit_core.plugins.protocols import Batch, CompletedDataset, SampleSize
from flops_fit_core.plugins.specs import Options
from flops_fit_core.records import content_hash

if TYPE_CHECKING:
    from torch import nn

STREAM_EVAL = 2048
"""Samples held out of a stream, where no held-out dataset is given."""
SIZED = 1024
"""Training samples by which the valid share of the data is measured."""
PROBED = 8
"""Samples on which the form of the loss is found."""
STATED: tuple[Reduction, ...] = ("mean", "sum", "sample-mean", "sample-sum", "batch")
"""Forms of a loss that a user may state."""
EVAL_GROUP = 8
"""Samples of a held-out batch whose collate function draws random numbers: what it draws then depends on
nothing."""


class InlineDataOptions(Options):
    """How a batch becomes a loss, found with a model of the study when it is planned."""

    reduction: Reduction = "auto"
    ignored: tuple[int, ...] = ()
    shifted: bool = False
    targets_argument: str = ""

    def form(self) -> LossForm:
        return LossForm(self.reduction, self.ignored, self.shifted, self.targets_argument)


@dataclass(frozen=True)
class InlineData:
    """What ``find_optimal`` was given as data."""

    training: Any
    """A torch dataset or DataLoader, or a SeededStream."""
    eval_dataset: Any | None
    eval_share: float
    loss_fn: Callable[[Any, Any], Any] | None
    tokens_per_sample: int | None
    unit: str | None
    fingerprint: str | None
    functions: tuple[str | None, ...] = (None,)
    """By :func:`identify_functions`, in the caller's process: a worker may not have their source text."""
    repeat: bool = True
    """Whether a stream may be read more than once."""
    copy_task: bool = False
    """Whether targets may be the inputs themselves."""
    loss_reduction: Reduction | None = None
    """Form of the loss function, stated by the user."""
    batch_size: int | None = None
    """Samples of every batch, where the user has fixed it."""
    shared: float = 0.0
    """Share of the held-out samples that equal training samples."""

    def open(self, seed: int, options: InlineDataOptions | None = None) -> InlineDataset:
        """The dataset in the order of a seed."""
        return InlineDataset(self, seed, options or InlineDataOptions())


class InlineDataset(CompletedDataset):
    """A dataset on torch's own dataset types."""

    task: CustomTask

    def __init__(self, data: InlineData, seed: int, options: InlineDataOptions) -> None:
        from flops_fit_core.training.rng import fixed_randomness

        self.data = data
        self._seed = seed
        self._options = options
        self._source, self._collate = unwrap(data.training)
        self._eval_source = unwrap(data.eval_dataset, least=1)[0] if data.eval_dataset is not None else None
        self._eval_collate = eval_collate(data.eval_dataset)
        self.is_stream = not has_length(self._source)
        self._passes = StreamPasses(self._source, seed)
        self._windows = None if self.is_stream else find_windows(self._source)
        self._training, self._held = self._split()
        with fixed_randomness():  # items may be augmented at random
            items = first_items(self._first_items(), 3)
            sample = first_batch(items[:2], self._collate)
            check_samples_first(self._collate, items, batch_targets(sample))
        self.task = make_task(data, sample, options.form())
        self.fingerprint = content_hash(self._identities(data))

    def _split(self) -> tuple[list[int], list[int]]:
        """Indices of the samples to train on and of those to hold out."""
        if self.is_stream:
            return [], []
        if self._windows is not None and self._eval_source is None:
            return split_windows(self._source, self._windows, self.data.eval_share)
        return split_indices(len(self._source), self.data.eval_share if self._eval_source is None else 0.0)

    def _identities(self, data: InlineData) -> list[Any]:
        ends = ["windows"] if self._windows is not None and self._eval_source is None else []
        if data.fingerprint:
            return [data.fingerprint, data.eval_share, self.task.tokens_per_sample, *ends]
        loss, *collate = data.functions
        training = identify_source(self._source)
        eval_dataset = identify_source(self._eval_source) if self._eval_source is not None else None
        if eval_dataset == training and not self._draws[0]:
            raise DataError(SAME_DATA)
        return [
            training,
            eval_dataset,
            data.eval_share,
            loss,
            self.task.tokens_per_sample,
            *collate,
            *ends,
        ]

    @property
    def num_unique_tokens(self) -> int | None:  # type: ignore[override]  # a stream's is known at its end
        """Different valid training targets. None for a stream that has no length and was not yet read to its
        end."""
        samples = self._training_samples
        if samples is None:
            return None
        full = samples * self.task.tokens_per_sample
        if self._windows is not None:  # a token of a text that is read at every position is in many samples
            inside = unwrap_subset(self._source)[1]
            items = self._training if inside is None else [inside[index] for index in self._training]
            full = min(full, self._windows.positions(items))
        return round(full * self._valid_share) if self.task.counts_targets else full

    @property
    def _training_samples(self) -> int | None:
        if not self.is_stream:
            return len(self._training)
        if self._passes.length is not None:
            return self._passes.length
        try:
            length = len(self._source)
        except TypeError:  # a stream without __len__
            return None
        return max(0, length - self._behind)

    # ------------------------------------------------------------------ training data

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches by the dataset's own ``collate_fn``, from sample ``start``.

        They end only with a stream that may not be repeated.
        """
        if self.is_stream:
            yield from self._stream_batches(batch_size, start)
            return
        order = self._order(start)
        for first in itertools.count(start, batch_size):
            yield self._fetch(self._source, list(itertools.islice(order, batch_size)), (self._seed, first))

    def _stream_batches(self, batch_size: int, start: int) -> Iterator[Batch]:
        samples = itertools.islice(self._stream(), start, None)
        first = start
        while len(items := list(itertools.islice(samples, batch_size))) == batch_size:
            yield self._collated(items, (self._seed, first))
            first += batch_size
        if self._passes.length:
            return
        raise DataError(self._too_short())

    def _too_short(self) -> str:
        if self._eval_source is None:
            return (
                f"the stream has no samples to train on: its first {STREAM_EVAL} are held out. Give more, or "
                f"eval_dataset=another_dataset"
            )
        return "the stream has no samples, or none when it is iterated again: give an IterableDataset that does"

    def _stream(self) -> Iterator[Any]:
        return self._passes.samples(behind=self._behind, repeat=self.data.repeat)

    @property
    def _behind(self) -> int:
        """First samples of each pass of a stream that are not trained on."""
        return 0 if self._eval_source is not None else STREAM_EVAL

    def _order(self, start: int) -> Iterator[int]:
        """Indices of the training samples from position ``start``, shuffled anew each epoch."""
        import torch

        epoch, skip = divmod(start, len(self._training))
        while True:
            order = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            for place in torch.randperm(len(self._training), generator=order).tolist()[skip:]:
                yield self._training[place]
            epoch, skip = epoch + 1, 0

    # ------------------------------------------------------------------ held-out data

    def eval_batches(self, tokens: int, batch_size: int) -> Iterator[Batch]:
        """The first held-out samples, in the dataset's own order."""
        wanted = max(1, round(tokens / self.task.tokens_per_sample))
        batches = self._eval_batches(wanted, EVAL_GROUP if self._draws[1] else batch_size)
        first = next(batches, None)
        if first is None:
            raise DataError("the held-out part is empty: give more data, or eval_dataset=another_dataset")
        yield first
        yield from batches

    def _eval_batches(self, wanted: int, batch_size: int) -> Iterator[Batch]:
        own = self._eval_source is not None
        source: Any = self._eval_source if own else self._source
        if not has_length(source):
            stream = StreamPasses(source, 0).read(0)
            samples = itertools.islice(stream, wanted if own else min(wanted, STREAM_EVAL))
            for first in itertools.count(0, batch_size):
                if not (items := list(itertools.islice(samples, batch_size))):
                    return
                yield self._collated(items, (-1, first), own)
        held = range(len(source)) if own else self._held
        for first in range(0, min(wanted, len(held)), batch_size):
            yield self._fetch(source, list(held[first : min(wanted, first + batch_size)]), (-1, first), own)

    # ------------------------------------------------------------------ items

    def _fetch(self, source: Any, indices: list[int], place: tuple[int, int], eval_dataset: bool = False) -> Batch:
        """One batch of a dataset with a length; in one go where the dataset can.

        ``place``: seed and position of the batch, from which random items and collate functions draw. ``eval_dataset``:
        whether the source is the user's held-out data, which may have their own collate function.
        """
        from torch.utils.data import TensorDataset, default_collate

        from flops_fit_core.training.rng import fixed_randomness

        own = eval_dataset and self._eval_collate is not None
        if type(source) is TensorDataset and self._collate is default_collate and not own:
            return [tensor[indices] for tensor in source.tensors]
        if self._draws[0]:
            items = []
            for offset, index in enumerate(indices):
                with fixed_randomness(_seed_of(place, offset)):
                    items.append(source[index])
        elif hasattr(source, "__getitems__"):
            items = source.__getitems__(indices)
        else:
            items = [source[index] for index in indices]
        return self._collated(items, place, eval_dataset)

    def _collated(self, items: list[Any], place: tuple[int, int], eval_dataset: bool = False) -> Batch:
        from flops_fit_core.training.rng import fixed_randomness

        own = self._eval_collate if eval_dataset else None
        if own is None and not self._draws[1]:
            return plain(self._collate(items))
        with fixed_randomness(_seed_of(place, -1)):
            return plain((own or self._collate)(items))

    @cached_property
    def _draws(self) -> tuple[bool, bool]:
        """Whether items of a dataset with a length, and whether the collate function, draw random numbers."""
        from flops_fit_core.training.rng import draws_random_numbers

        items: list[Any] = []
        reading = draws_random_numbers(lambda: items.extend(itertools.islice(self._first_items(), REREAD)))
        collating = draws_random_numbers(lambda: self._collate(items[:REREAD]))
        return reading and not self.is_stream, collating

    def _first_items(self) -> Iterator[Any]:
        """Items that are the same for every seed."""
        if self.is_stream:
            yield from StreamPasses(self._source, 0).read(0)
        else:
            yield from (self._source[index] for index in range(len(self._source)))

    # ------------------------------------------------------------------ what a plan needs

    def sample_size(self, batch_size: int) -> SampleSize:
        """Mean valid targets and positions of a training sample, over at most 1,024 evenly spaced ones."""
        if not self.task.counts_targets:
            return SampleSize(self.task.tokens_per_sample, self.task.tokens_per_sample)
        batch_size = min(batch_size, len(self.sized_items))
        starts = range(0, len(self.sized_items) - batch_size + 1, batch_size)
        groups = [self.sized_items[start : start + batch_size] for start in starts]
        counts = [self.task.count(self._collated(group, (-2, 0))) for group in groups]
        samples = batch_size * len(groups)
        return SampleSize(sum(c.tokens for c in counts) / samples, sum(c.positions for c in counts) / samples)

    @property
    def _valid_share(self) -> float:
        size = self.sample_size(PROBED)
        return size.tokens / self.task.tokens_per_sample

    @cached_property
    def sized_items(self) -> list[Any]:
        """A fixed sample of the training items."""
        from flops_fit_core.training.rng import fixed_randomness

        if self.is_stream:
            items = list(itertools.islice(self._passes.samples(behind=self._behind, allow_repeat=False), SIZED))
            if not items:
                raise DataError(self._too_short())
            return items
        length = len(self._training)
        count = min(SIZED, length)
        with fixed_randomness():
            return [self._source[self._training[k * length // count]] for k in range(count)]

    def probe_batches(self, count: int) -> list[Batch]:
        """A few batches of training samples."""
        items = self.sized_items[: count * PROBED]
        return [self._collated(items[first : first + PROBED], (-2, 0)) for first in range(0, len(items), PROBED)]

    def complete(self, model: nn.Module | None) -> Mapping[str, Any]:
        """How a batch becomes a loss, by passing a few samples through a model on the CPU.

        Raises DataError for targets that the model sees, and for a loss of no known form.
        """
        batches = batches_with_valid_targets(self.task, self.probe_batches, 4, SIZED // PROBED)
        form = find_loss_form(
            self.task, model, batches, stated=self.data.loss_reduction, copy_task=self.data.copy_task
        )
        if model is not None and self._eval_source is not None:
            task = replace(self.task, form=form)
            held = next(self._eval_batches(PROBED, PROBED), None)
            check_eval_data(task, model, batches, held, copy_task=self.data.copy_task)
        return {
            "reduction": form.reduction,
            "ignored": form.ignored,
            "shifted": form.shifted,
            "targets_argument": form.targets_argument,
        }

    @property
    def notes(self) -> Sequence[str]:  # type: ignore[override]  # computed when a plan shows them
        """Statements about the data for the plan."""
        size, samples = self.sample_size(PROBED), len(self.sized_items)
        notes = data_notes(self.task, size, samples, self.probe_batches(16))
        stated, targets = self.data.tokens_per_sample, self.task.targets_of(self.task.sample)
        if stated is not None and is_classes(targets) and targets.ndim == 2 and stated != targets.shape[1]:
            notes.append(
                f"warning: D counts {stated:,} {self.task.unit} a sample, as tokens_per_sample states, and a "
                f"sample has {targets.shape[1]:,} targets"
            )
        if self._windows is not None:
            held = f", so the last {len(self._held):,} are held out, and none that overlaps them is trained on"
            notes.append(
                f"the samples overlap (each begins {self._windows.step} positions after the one before)"
                f"{held if self._held else ''}"
            )
        if self.data.shared:
            notes.append(
                f"warning: about {self.data.shared:.0%} of the samples of eval_dataset equal training samples, so the "
                f"loss is too low by what is learnt by heart"
            )
        if self.is_stream and self.num_unique_tokens is None:
            end = "is read again from its start" if self.data.repeat else "that ends before D makes a failed run"
            notes.append(
                f"the data are a stream of unknown length: one {end}. Results hold the number of passes and of "
                f"different {self.task.unit}"
            )
        return notes


def open_inline_data(data: Any, **given: Any) -> InlineData:
    """Data given to ``find_optimal``, checked and identified in the caller's process.

    Raises DataError for what is no dataset and for streams that cannot be resumed, ConfigError for functions that
    cannot be identified and an unknown ``loss_reduction``.
    """
    reduction = given["loss_reduction"]
    if reduction is not None and reduction not in STATED:
        raise ConfigError(f"loss_reduction={reduction!r}: it is one of {', '.join(map(repr, STATED))}")
    if reduction is not None and given["loss_fn"] is None:
        raise ConfigError(f"loss_reduction={reduction!r} without a loss_fn: leave it out")
    if reduction == "batch" and given["batch_size"] is None:
        raise ConfigError("loss_reduction='batch' needs batches of one size in every run: pass batch_size=64, say")
    check_arguments(given)
    for source, least, has_eval_data in (
        (data, 2, given["eval_dataset"] is not None),
        (given["eval_dataset"], 1, True),
    ):
        stream = unwrap(source, least)[0] if source is not None else []
        if not has_length(stream):
            check_stream(stream, has_eval_data=has_eval_data)
    shared = 0.0
    if given["eval_dataset"] is not None:
        sources = unwrap(data)[0], unwrap(given["eval_dataset"], 1)[0]
        check_eval_disjoint(*sources)
        if all(map(has_length, sources)):
            check_windows_disjoint(*sources)
            shared = shared_samples(*sources)
    functions = () if given["fingerprint"] else identify_functions(data, given["loss_fn"], given["eval_dataset"])
    return InlineData(training=data, functions=functions, shared=shared, **given)


def _seed_of(place: tuple[int, int], offset: int) -> int:
    """A seed for one item of a batch, or for its collate function (offset -1), which starts at ``place``."""
    seed, first = place
    return int(content_hash(["item", seed, first + offset] if offset >= 0 else ["batch", seed, first])[:8], 16)


def make_task(data: InlineData, sample: Batch, form: LossForm) -> CustomTask:
    """The task of the data: its loss (by default by the targets' type) and what one sample counts for."""
    targets = batch_targets(sample)
    if data.loss_fn is None and not is_classes(targets) and not targets.is_floating_point():
        raise DataError(
            f"the targets are {str(targets.dtype).removeprefix('torch.')}, for which there is no default loss: "
            "give class numbers (integers), real numbers (.float()), or a loss_fn such as "
            "torch.nn.functional.binary_cross_entropy_with_logits on targets.float()"
        )
    rows = targets.ndim == 2 and is_classes(targets)
    # A row of class numbers a sample is a sequence to predict; anything else is one prediction.
    positions = int(targets.shape[1]) if rows else 1
    per_sample = data.tokens_per_sample or positions
    return CustomTask(
        loss_fn=copied(data.loss_fn) if data.loss_fn is not None else None,
        sample=sample,
        unit=data.unit or ("tokens" if per_sample > 1 else "samples"),
        tokens_per_sample=per_sample,
        counts_targets=is_classes(targets) and targets.ndim <= 2 and per_sample == positions,
        form=form,
    )
