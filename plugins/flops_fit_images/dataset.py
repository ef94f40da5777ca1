"""Images as a dataset: split, looked through, normalised, in an order."""

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

LOOKED_AT = 2048
"""Images of a part, evenly spaced, that give its fingerprint; those of the training part, the statistics too."""


@dataclass(frozen=True)
class Part:
    """Some images of a source."""

    images: Images
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images and classes at these places of the part."""
        return self.images.read(self.indices[positions])


@dataclass(frozen=True)
class Look:
    """What looking through a part shows."""

    fingerprint: str
    largest_class: int
    mean: Tensor
    """Of each channel, in a shape that broadcasts over (batch, *image); of images without channels, over all."""
    deviation: Tensor
    """Standard deviation, likewise; 1 where nothing varies, which leaves such a channel as it is."""


def look_through(part: Part) -> Look:
    """Look at :data:`LOOKED_AT` images of a part, or all. Raises DataError for an empty part."""
    chosen = EpochOrder(len(part)).spread(LOOKED_AT)
    digest = hashlib.sha256(f"{len(part)} {part.images.shape}".encode())
    largest, moments = 0, torch.zeros(2, 1, dtype=torch.float64)
    for first in range(0, len(chosen), BLOCK):
        images, classes = part.read(chosen[first : first + BLOCK])
        digest.update(images.numpy().tobytes() + classes.numpy().tobytes())
        largest = max(largest, int(classes.max()))
        by_channel = images.double() if images.ndim == 4 else images.double()[:, None]
        moments = moments + torch.stack([(by_channel**power).mean((2, 3)).sum(0) for power in (1, 2)])
    mean, square = moments / len(chosen)
    variance = square - mean**2
    deviation = torch.where(variance > 1e-12, variance.clamp(min=1e-12).sqrt(), 1.0)
    shape = (1, -1, 1, 1) if len(part.images.shape) == 3 else (1, 1, 1)
    return Look(digest.hexdigest()[:16], largest, mean.float().reshape(shape), deviation.float().reshape(shape))


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
        """Without end, every image once an epoch."""
        while True:
            yield self._batch(self._training, self._order.order(start, batch_size))
            start += batch_size

    def eval_batches(
        self, tokens: int, batch_size: int, name: str | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images evenly spaced over the held-out part, in the source's order."""
        part = self._eval_data[name]
        chosen = EpochOrder(len(part)).spread(max(1, tokens))
        for first in range(0, len(chosen), batch_size):
            yield self._batch(part, chosen[first : first + batch_size])

    def _batch(self, part: Part, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images, classes = part.read(positions)
        if int(classes.min()) < 0 or int(classes.max()) >= self.task.outputs_size:
            raise part.images.error(
                f"has classes from {int(classes.min())} to {int(classes.max())}, and there are "
                f"{self.task.outputs_size} from 0 on: write dataset.classes"
            )
        if self._scale is not None:
            mean, deviation = self._scale
            images = (images - mean) / deviation
        return images, classes


def open_images(options: ImagesOptions, seed: int) -> ImageDataset:
    """Raises DataError, naming the source."""
    training, eval_data = parts_of(options)
    for part in eval_data.values():
        if part.images.shape != training.images.shape:
            raise part.images.error(f"has images of shape {part.images.shape}, not {training.images.shape}")
    look = look_through(training)
    classes = options.classes or len(training.images.class_names) or look.largest_class + 1
    looks = [(name or "", look_through(part).fingerprint) for name, part in eval_data.items()]
    return ImageDataset(
        training,
        eval_data,
        classes=classes,
        scale=(look.mean, look.deviation) if options.normalize else None,
        seed=seed,
        fingerprint=content_hash([classes, look.fingerprint, sorted(looks)]),
    )


def parts_of(options: ImagesOptions) -> tuple[Part, dict[str | None, Part]]:
    """The part to train on and those to hold out, the main one under None."""
    source = load(options.source)
    everything = np.arange(len(source))
    eval_data: dict[str | None, Part] = {}
    if options.eval_source is None:
        out = source.hashes() < np.uint64(options.eval_share * 2**64)
        if out.all() or not out.any():
            raise source.error(
                f"has {len(source)} images, which leave nothing to {'train on' if out.all() else 'hold out'}: "
                f"give more, another dataset.eval_share, or dataset.eval_source"
            )
        training, eval_data[None] = Part(source, everything[~out]), Part(source, everything[out])
    else:
        training, eval_data[None] = Part(source, everything), _other(options, options.eval_source)
    return training, eval_data | {name: _other(options, other) for name, other in options.eval_sets.items()}


def _other(options: ImagesOptions, name: str) -> Part:
    if name == options.source:
        raise DataError(f"dataset 'images': {name} is trained on and held out at once: give another source")
    images = load(name)
    return Part(images, np.arange(len(images)))
