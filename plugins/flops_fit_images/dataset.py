"""Images as a dataset: division into parts, fingerprints, normalization and order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flops_fit_core import DataError
from flops_fit_core.data import EpochOrder, SupervisedTask
from flops_fit_core.plugins import MultiEvalDataset, content_hash
from flops_fit_images import ImagesOptions
from flops_fit_images.sources import BLOCK, Images, load

SAMPLE_SIZE = 2048
"""Evenly spaced images of a part for its fingerprint, and for the statistics of the training part."""


@dataclass(frozen=True)
class Part:
    """Some images of a source."""

    images: Images
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images and classes at these positions of the part."""
        return self.images.read(self.indices[positions])


@dataclass(frozen=True)
class Statistics:
    """Fingerprint and statistics of a sample of a part."""

    fingerprint: str
    largest_class: int
    mean: Tensor
    """Mean of each channel, in a shape that broadcasts over (batch, *image). One value for images without
    channels."""
    deviation: Tensor
    """Standard deviation, in the same shape; 1 for a constant channel, which is then not scaled."""


def measure(part: Part) -> Statistics:
    """Statistics of :data:`SAMPLE_SIZE` images of a part, or of all. Raises DataError for an empty part."""
    sample = EpochOrder(len(part)).spread(SAMPLE_SIZE)
    digest = hashlib.sha256(f"{len(part)} {part.images.shape}".encode())
    largest, moments = 0, torch.zeros(2, 1, dtype=torch.float64)
    for first in range(0, len(sample), BLOCK):
        images, classes = part.read(sample[first : first + BLOCK])
        digest.update(images.numpy().tobytes() + classes.numpy().tobytes())
        largest = max(largest, int(classes.max()))
        by_channel = images.double() if images.ndim == 4 else images.double()[:, None]
        moments = moments + torch.stack([(by_channel**power).mean((2, 3)).sum(0) for power in (1, 2)])
    mean, square = moments / len(sample)
    variance = square - mean**2
    deviation = torch.where(variance > 1e-12, variance.clamp(min=1e-12).sqrt(), 1.0)
    shape = (1, -1, 1, 1) if len(part.images.shape) == 3 else (1, 1, 1)
    return Statistics(
        digest.hexdigest()[:16], largest, mean.float().reshape(shape), deviation.float().reshape(shape)
    )


class ImageDataset(MultiEvalDataset):
    """Pairs of images (batch, *shape) in float32 and classes (batch,) in int64."""

    task: SupervisedTask

    def __init__(
        self,
        training: Part,
        eval_data: dict[str | None, Part],
        *,
        classes: int,
        scale: tuple[Tensor, Tensor] | None,
        seed: int,
        fingerprint: str,
    ) -> None:
        self.task = SupervisedTask(inputs=training.images.shape, outputs_size=classes)
        self.num_unique_tokens = len(training)
        self.fingerprint = fingerprint
        self.eval_sets = tuple(name for name in eval_data if name is not None)
        self._training = training
        self._eval_data = eval_data
        self._order = EpochOrder(len(training), seed)
        self._scale = scale

    def batches(self, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """An endless iterator; every image once per epoch."""
        while True:
            yield self._batch(self._training, self._order.order(start, batch_size))
            start += batch_size

    def eval_batches(
        self, tokens: int, batch_size: int, name: str | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images evenly spaced over the held-out part, in the source's order."""
        part = self._eval_data[name]
        positions = EpochOrder(len(part)).spread(max(1, tokens))
        for first in range(0, len(positions), batch_size):
            yield self._batch(part, positions[first : first + batch_size])

    def _batch(self, part: Part, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images, classes = part.read(positions)
        if int(classes.min()) < 0 or int(classes.max()) >= self.task.outputs_size:
            raise part.images.error(
                f"has classes from {int(classes.min())} to {int(classes.max())}, not from 0 to "
                f"{self.task.outputs_size - 1}: write dataset.classes"
            )
        if self._scale is not None:
            mean, deviation = self._scale
            images = (images - mean) / deviation
        return images, classes


def open_images(options: ImagesOptions, seed: int) -> ImageDataset:
    """Open the dataset. Raises DataError, which names the source."""
    training, eval_data = parts_of(options)
    for part in eval_data.values():
        if part.images.shape != training.images.shape:
            raise part.images.error(f"has images of shape {part.images.shape}, not {training.images.shape}")
    statistics = measure(training)
    classes = options.classes or len(training.images.class_names) or statistics.largest_class + 1
    fingerprints = [(name or "", measure(part).fingerprint) for name, part in eval_data.items()]
    return ImageDataset(
        training,
        eval_data,
        classes=classes,
        scale=(statistics.mean, statistics.deviation) if options.normalize else None,
        seed=seed,
        fingerprint=content_hash([classes, statistics.fingerprint, sorted(fingerprints)]),
    )


def parts_of(options: ImagesOptions) -> tuple[Part, dict[str | None, Part]]:
    """The training part, and the held-out parts by name. The main held-out part has the key None."""
    source = load(options.source)
    indices = np.arange(len(source))
    eval_data: dict[str | None, Part] = {}
    if options.eval_source is None:
        is_held_out = source.hashes() < np.uint64(options.eval_share * 2**64)
        if is_held_out.all() or not is_held_out.any():
            missing = "train on" if is_held_out.all() else "hold out"
            raise source.error(
                f"has {len(source)} images, which leave nothing to {missing}: "
                f"use more images, another dataset.eval_share, or dataset.eval_source"
            )
        training, eval_data[None] = Part(source, indices[~is_held_out]), Part(source, indices[is_held_out])
    else:
        training, eval_data[None] = Part(source, indices), _load_eval_part(options, options.eval_source)
    further = {name: _load_eval_part(options, other) for name, other in options.eval_sets.items()}
    return training, eval_data | further


def _load_eval_part(options: ImagesOptions, name: str) -> Part:
    if name == options.source:
        raise DataError(f"dataset 'images': {name} is both trained on and held out: write another source")
    images = load(name)
    return Part(images, np.arange(len(images)))
