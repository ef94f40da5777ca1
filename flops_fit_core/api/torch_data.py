"""A torch ``Dataset``, ``IterableDataset`` or ``DataLoader`` as a flops-fit Dataset.

If no held-out data are given, ``eval_share`` of the items of a dataset with a length are held out, evenly
spaced. Of a stream, the first samples are held out, and training starts after them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flops_fit_core.api.batch_reader import BatchReader
from flops_fit_core.api.data_checks.first_batch import (
    batch_targets,
    check_samples_first,
    first_batch,
    first_items,
)
from flops_fit_core.api.data_checks.overlap import SAME_DATA, find_windows, split_windows, unwrap_subset
from flops_fit_core.api.data_checks.task_checks import (
    batches_with_valid_targets,
    check_eval_data,
    data_notes,
    find_loss_form,
)
from flops_fit_core.api.inline import copied
from flops_fit_core.api.inline_data import InlineData, InlineDataOptions
from flops_fit_core.api.sources import has_length, identify_source, split_indices, unwrap
from flops_fit_core.api.streams import StreamPasses
from flops_fit_core.data.custom_task import CustomTask, LossForm, is_classes
from flops_fit_core.errors import DataError
from flops_fit_core.plugins.protocols import Batch, CompletedDataset, SampleSize
from flops_fit_core.records import content_hash

if TYPE_CHECKING:
    from torch import nn

STREAM_EVAL = 2048
"""Samples held out from a stream without separate held-out data."""
SIZED = 1024
"""Training samples used to measure the valid share of targets."""
PROBED = 8
"""Samples of a batch used to determine the form of the loss."""
EVAL_GROUP = 8
"""Samples of a held-out batch if the collate function draws random numbers. A fixed size makes its draws the same
for every batch size."""
ORDER_SEED_STEP = 1_000_003
"""Distance between two runs' seeds in the seeds of their epochs."""


class InlineDataset(CompletedDataset):
    """A torch dataset in the order of a seed."""

    task: CustomTask

    def __init__(self, data: InlineData, seed: int, options: InlineDataOptions | None = None) -> None:
        from flops_fit_core.training.rng import fixed_randomness

        self.data = data
        self._seed = seed
        self._reader = BatchReader(data.training, data.eval_dataset)
        self._source = self._reader.source
        self._eval_source = unwrap(data.eval_dataset, least=1)[0] if data.eval_dataset is not None else None
        self.is_stream = self._reader.is_stream
        self._passes = StreamPasses(self._source, seed)
        self._windows = None if self.is_stream else find_windows(self._source)
        self._training, self._held_out = self._split()
        with fixed_randomness():  # items may be augmented at random
            items = first_items(self._reader.first_items(), 3)
            sample = first_batch(items[:2], self._reader.collate_fn)
            check_samples_first(self._reader.collate_fn, items, batch_targets(sample))
        self.task = make_task(data, sample, (options or InlineDataOptions()).form())
        self.fingerprint = content_hash(self._identities())

    def _split(self) -> tuple[list[int], list[int]]:
        """Indices of the samples to train on and of those to hold out."""
        if self.is_stream:
            return [], []
        if self._windows is not None and self._eval_source is None:
            return split_windows(self._source, self._windows, self.data.eval_share)
        return split_indices(len(self._source), self.data.eval_share if self._eval_source is None else 0.0)

    def _identities(self) -> list[Any]:
        """The parts of the fingerprint. Raises DataError if the held-out data are the training data."""
        data = self.data
        window_split = ["windows"] if self._windows is not None and self._eval_source is None else []
        if data.fingerprint:
            return [data.fingerprint, data.eval_share, self.task.tokens_per_sample, *window_split]
        loss, *collate = data.functions
        training = identify_source(self._source)
        held_out = identify_source(self._eval_source) if self._eval_source is not None else None
        if held_out == training and not self._reader.has_random_items:
            raise DataError(SAME_DATA)
        return [
            training,
            held_out,
            data.eval_share,
            loss,
            self.task.tokens_per_sample,
            *collate,
            *window_split,
        ]

    @property
    def num_unique_tokens(self) -> int | None:  # type: ignore[override]  # known at the end of a stream
        """Distinct valid training targets. None for a stream without a length until a pass has been read to its
        end."""
        samples = self._training_samples
        if samples is None:
            return None
        total = samples * self.task.tokens_per_sample
        if self._windows is not None:  # overlapping windows contain the same token several times
            selected = unwrap_subset(self._source)[1]
            items = self._training if selected is None else [selected[index] for index in self._training]
            total = min(total, self._windows.positions(items))
        return round(total * self._valid_share) if self.task.counts_targets else total

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
        return max(0, length - self._num_skipped)

    # ------------------------------------------------------------------ training data

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches by the dataset's own ``collate_fn``, from sample ``start``.

        Endless, except for a stream that may not be repeated.
        """
        if self.is_stream:
            yield from self._stream_batches(batch_size, start)
            return
        order = self._order(start)
        for first in itertools.count(start, batch_size):
            indices = list(itertools.islice(order, batch_size))
            yield self._reader.fetch(self._source, indices, (self._seed, first))

    def _stream_batches(self, batch_size: int, start: int) -> Iterator[Batch]:
        stream = self._passes.samples(behind=self._num_skipped, repeat=self.data.allow_repeat)
        samples = itertools.islice(stream, start, None)
        first = start
        while len(items := list(itertools.islice(samples, batch_size))) == batch_size:
            yield self._reader.collate(items, (self._seed, first))
            first += batch_size
        if not self._passes.length:
            raise self._no_samples()

    def _no_samples(self) -> DataError:
        if self._eval_source is None:
            return DataError(
                f"the stream has no samples to train on, because its first {STREAM_EVAL} are held out: give "
                f"more samples, or eval_dataset=another_dataset"
            )
        return DataError(
            "the stream has no samples, or none when it is iterated a second time: give an IterableDataset that "
            "can be iterated repeatedly"
        )

    @property
    def _num_skipped(self) -> int:
        """Samples at the start of each pass of a stream that are not trained on."""
        return 0 if self._eval_source is not None else STREAM_EVAL

    def _order(self, start: int) -> Iterator[int]:
        """Indices of the training samples from position ``start``, shuffled in each epoch."""
        import torch

        epoch, skip = divmod(start, len(self._training))
        while True:
            order = torch.Generator().manual_seed(self._seed * ORDER_SEED_STEP + epoch)
            for position in torch.randperm(len(self._training), generator=order).tolist()[skip:]:
                yield self._training[position]
            epoch, skip = epoch + 1, 0

    # ------------------------------------------------------------------ held-out data

    def eval_batches(self, tokens: int, batch_size: int) -> Iterator[Batch]:
        """The first held-out samples, in the dataset's own order."""
        count = max(1, round(tokens / self.task.tokens_per_sample))
        batches = self._eval_batches(count, EVAL_GROUP if self._reader.has_random_collate else batch_size)
        first = next(batches, None)
        if first is None:
            raise DataError("the held-out part is empty: give more data, or eval_dataset=another_dataset")
        yield first
        yield from batches

    def _eval_batches(self, count: int, batch_size: int) -> Iterator[Batch]:
        """Batches of the first ``count`` held-out samples; fewer if there are fewer samples."""
        is_separate = self._eval_source is not None
        source: Any = self._eval_source if is_separate else self._source
        if not has_length(source):
            stream = StreamPasses(source, 0).read(0)
            samples = itertools.islice(stream, count if is_separate else min(count, STREAM_EVAL))
            for first in itertools.count(0, batch_size):
                if not (items := list(itertools.islice(samples, batch_size))):
                    return
                yield self._reader.collate(items, (-1, first), is_heldout=is_separate)
        indices = range(len(source)) if is_separate else self._held_out
        for first in range(0, min(count, len(indices)), batch_size):
            batch_indices = list(indices[first : min(count, first + batch_size)])
            yield self._reader.fetch(source, batch_indices, (-1, first), is_heldout=is_separate)

    # ------------------------------------------------------------------ planning

    def sample_size(self, batch_size: int) -> SampleSize:
        """Mean valid targets and positions per training sample, over at most 1,024 evenly spaced samples."""
        if not self.task.counts_targets:
            return SampleSize(self.task.tokens_per_sample, self.task.tokens_per_sample)
        batch_size = min(batch_size, len(self.sized_items))
        starts = range(0, len(self.sized_items) - batch_size + 1, batch_size)
        groups = [self.sized_items[start : start + batch_size] for start in starts]
        counts = [self.task.count(self._reader.collate(group, (-2, 0))) for group in groups]
        samples = batch_size * len(groups)
        return SampleSize(
            sum(count.tokens for count in counts) / samples, sum(count.positions for count in counts) / samples
        )

    @property
    def _valid_share(self) -> float:
        size = self.sample_size(PROBED)
        return size.tokens / self.task.tokens_per_sample

    @cached_property
    def sized_items(self) -> list[Any]:
        """A fixed sample of the training items."""
        from flops_fit_core.training.rng import fixed_randomness

        if self.is_stream:
            samples = self._passes.samples(behind=self._num_skipped, repeat=False)
            items = list(itertools.islice(samples, SIZED))
            if not items:
                raise self._no_samples()
            return items
        length = len(self._training)
        count = min(SIZED, length)
        with fixed_randomness():
            return [self._source[self._training[k * length // count]] for k in range(count)]

    def probe_batches(self, count: int) -> list[Batch]:
        """The first ``count`` batches of ``sized_items``, of 8 samples each."""
        items = self.sized_items[: count * PROBED]
        starts = range(0, len(items), PROBED)
        return [self._reader.collate(items[first : first + PROBED], (-2, 0)) for first in starts]

    def complete(self, model: nn.Module | None) -> Mapping[str, Any]:
        """The form of the loss of a batch, determined by passing a few samples through a model on the CPU.

        Raises DataError for targets that the model sees, and for a loss of unknown form.
        """
        batches = batches_with_valid_targets(self.task, self.probe_batches, 4, SIZED // PROBED)
        form = find_loss_form(
            self.task, model, batches, stated=self.data.loss_reduction, copy_task=self.data.copy_task
        )
        if model is not None and self._eval_source is not None:
            task = replace(self.task, form=form)
            heldout_batch = next(self._eval_batches(PROBED, PROBED), None)
            check_eval_data(task, model, batches, heldout_batch, copy_task=self.data.copy_task)
        return {
            "reduction": form.reduction,
            "ignored": form.ignored,
            "shifted": form.shifted,
            "targets_argument": form.targets_argument,
        }

    @property
    def notes(self) -> Sequence[str]:  # type: ignore[override]  # computed when a plan shows them
        """Statements about the data for the plan."""
        unit = self.task.unit
        notes = data_notes(self.task, self.sample_size(PROBED), len(self.sized_items), self.probe_batches(16))
        stated, targets = self.data.tokens_per_sample, self.task.targets_of(self.task.sample)
        if stated is not None and is_classes(targets) and targets.ndim == 2 and stated != targets.shape[1]:
            notes.append(
                f"warning: tokens_per_sample sets D to {stated:,} {unit} per sample, but a sample has "
                f"{targets.shape[1]:,} targets"
            )
        if self._windows is not None:
            note = f"the samples overlap: each begins {self._windows.step} positions after the previous sample"
            if self._held_out:
                note += (
                    f". The last {len(self._held_out):,} are held out, and samples that overlap them are not "
                    f"trained on"
                )
            notes.append(note)
        if self.data.overlap:
            notes.append(
                f"warning: about {self.data.overlap:.0%} of the samples of eval_dataset equal training samples, "
                f"so the held-out loss is too low if the model memorizes them"
            )
        if self.is_stream and self.num_unique_tokens is None:
            end = (
                "It is read again from its start if it ends"
                if self.data.allow_repeat
                else "A run fails if the stream ends before D"
            )
            notes.append(
                f"the data are a stream of unknown length. {end}. Results contain the number of passes and of "
                f"distinct {unit}"
            )
        return notes


def make_task(data: InlineData, sample: Batch, form: LossForm) -> CustomTask:
    """The task of the data: its loss (by default by the type of the targets) and the tokens per sample.

    Raises DataError for targets without a default loss.
    """
    targets = batch_targets(sample)
    if data.loss_fn is None and not is_classes(targets) and not targets.is_floating_point():
        raise DataError(
            f"the targets are {str(targets.dtype).removeprefix('torch.')}, which have no default loss: give class "
            "numbers (integers), real numbers (.float()), or a loss_fn such as "
            "torch.nn.functional.binary_cross_entropy_with_logits on targets.float()"
        )
    is_sequence = targets.ndim == 2 and is_classes(targets)
    # A row of class numbers per sample is a sequence of predictions; all other targets are one prediction.
    positions = int(targets.shape[1]) if is_sequence else 1
    per_sample = data.tokens_per_sample or positions
    return CustomTask(
        loss_fn=copied(data.loss_fn) if data.loss_fn is not None else None,
        sample=sample,
        unit=data.unit or ("tokens" if per_sample > 1 else "samples"),
        tokens_per_sample=per_sample,
        counts_targets=is_classes(targets) and targets.ndim <= 2 and per_sample == positions,
        form=form,
    )
