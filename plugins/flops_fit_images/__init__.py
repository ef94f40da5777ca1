"""Dataset ``images``: scikit-learn's digits, or any torch ``Dataset`` of (image, class) pairs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

from flops_fit_core.plugins import Dataset, DatasetSpec, EvalSetName, Options, Runtime, hookimpl


def _with_absolute_file(source: str) -> str:
    place, colon, name = source.rpartition(":")
    return f"{Path(place).expanduser().absolute()}:{name}" if colon and place.endswith(".py") else source


Source = Annotated[str, AfterValidator(_with_absolute_file)]


class ImagesOptions(Options):
    """Which images, and how they are cut into a part to train on and a part to hold out."""

    source: Annotated[Source, Runtime()] = "digits"
    """``digits``: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels of grey. ``my_package.data:train`` or
    ``my_data.py:train``: a map-style torch Dataset of (image tensor, class) pairs in a module or a file, or a
    function without arguments that makes one. The content identifies the runs, not the name."""
    eval_source: Annotated[Source | None, Runtime()] = None
    """Images to hold out, written like ``source``. Unset: a share of ``source``."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images of ``source`` that is held out where no other source is, chosen by a hash of their
    pixels: equal images are on one side. All images are then read once when the data are opened."""
    eval_sets: Annotated[dict[EvalSetName, Source], Runtime()] = {}
    """Further images to hold out, by name: ``{ night = "my_data.py:night" }``. Each run keeps its loss on each
    set, and ``flops-fit fit --eval-set night`` fits one of them."""
    classes: PositiveInt | None = None
    """Number of classes. Unset: the source's own list ``classes``, or the largest class that is seen, plus 1."""
    normalize: bool = True
    """Subtract each channel's mean over training images (2,048 of them, evenly spaced) and divide by its
    standard deviation. False: pixels as they come, bytes divided by 255."""


def build_images(options: ImagesOptions, seed: int) -> Dataset:
    """Open the sources. Raises DataError for one that cannot be imported, is empty, or holds something else."""
    from flops_fit_images.dataset import open_images

    return open_images(options, seed)


@hookimpl
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    """Offer ``images``."""
    yield DatasetSpec(
        name="images",
        options=ImagesOptions,
        build=build_images,
        requires=("scikit-learn>=1.4",),
        extra="images",
    )
