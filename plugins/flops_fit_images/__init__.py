"""Dataset ``images``: scikit-learn's digits, or any torch ``Dataset`` of (image, class) pairs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

from flops_fit_core.plugins import Dataset, DatasetSpec, EvalSetName, Options, RunsCode, Runtime, hookimpl


def _with_absolute_file(source: str) -> str:
    module, colon, name = source.rpartition(":")
    return f"{Path(module).expanduser().absolute()}:{name}" if colon and module.endswith(".py") else source


Source = Annotated[str, AfterValidator(_with_absolute_file)]


class ImagesOptions(Options):
    """The images, and their division into a training and a held-out part."""

    source: Annotated[Source, Runtime(), RunsCode()] = "digits"
    """``digits``: scikit-learn's 1,797 handwritten digits, 8 x 8 grey pixels. ``my_package.data:train`` or
    ``my_data.py:train``: a map-style torch Dataset of (image tensor, class) pairs in a module or a file, or a
    function without arguments that returns a Dataset. The content identifies the runs, not the name."""
    eval_source: Annotated[Source | None, Runtime(), RunsCode()] = None
    """Images to hold out, in the format of ``source``. Unset: a share of ``source``."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images of ``source`` that is held out if ``eval_source`` is not set, chosen by a hash of
    their pixels. Equal images are on the same side. All images are read once when the dataset is opened."""
    eval_sets: Annotated[dict[EvalSetName, Source], Runtime(), RunsCode()] = {}
    """Additional images to hold out, by name: ``{ night = "my_data.py:night" }``. Each run records its loss on
    each set, and ``flops-fit fit --eval-set night`` fits one of them."""
    classes: PositiveInt | None = None
    """Number of classes. Unset: that of the source's list ``classes``, or the largest class in a sample, plus
    1."""
    normalize: bool = True
    """Subtract each channel's mean over 2,048 evenly spaced training images and divide by the standard deviation.
    False: unchanged pixels, bytes divided by 255."""


def build_images(options: ImagesOptions, seed: int) -> Dataset:
    """Open the sources. Raises DataError for a source that cannot be imported, is empty, or has other items."""
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
