"""Import, check and read sources of images."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from flops_fit_core import DataError

BLOCK = 256
"""Images per read when many images are read."""


class Images:
    """A map-style dataset of (image, class) pairs, read by index.

    Raises DataError for other objects, and for images that differ in shape or between two reads.
    """

    def __init__(self, name: str, data: Any) -> None:
        self.name = name
        self._data = data
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise self.error(
                f"is a {type(data).__name__}, which has no items by number: write a map-style torch Dataset, or a "
                f"function without arguments that returns a Dataset"
            )
        if len(data) == 0:
            raise self.error("has no images")
        image, _ = self._pair(0)
        self.shape = tuple(image.shape)
        if not image.equal(self._pair(0)[0]):
            raise self.error("returns another image 0 when it is read again: leave out random augmentation")

    def __len__(self) -> int:
        return len(self._data)

    @property
    def class_names(self) -> list[Any]:
        """The dataset's list ``classes``, as in torchvision; empty if it has no such list."""
        names = getattr(self._data, "classes", None)
        return list(names) if isinstance(names, list | tuple) else []

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images in float32, bytes divided by 255, and classes in int64."""
        if type(self._data) is TensorDataset:
            images, classes = self._data[torch.from_numpy(indices)]
        else:
            pairs = [self._pair(int(index)) for index in indices]
            different = {tuple(image.shape) for image, _ in pairs} - {self.shape}
            if different:
                raise self.error(
                    f"has images of shape {self.shape} and of {different.pop()}: give all images the same shape"
                )
            images = torch.stack([image for image, _ in pairs])
            classes = torch.tensor([label for _, label in pairs])
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return images, classes.long()

    def hashes(self) -> NDArray[np.uint64]:
        """A hash of the pixels of every image."""
        digests = []
        for first in range(0, len(self), BLOCK):
            images, _ = self.read(np.arange(first, min(first + BLOCK, len(self))))
            digests += [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images.numpy()]
        return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)

    def _pair(self, index: int) -> tuple[Tensor, int]:
        item = self._data[index]
        pair = item if isinstance(item, tuple | list) and len(item) == 2 else (None, None)
        image, label = _image(pair[0]), _class(pair[1])
        if image is None or label is None:
            raise self.error(
                f"returns {_describe(item)} as item {index}: items must be pairs of an image tensor, of shape "
                f"(channels, height, width) or (height, width) and of bytes or real numbers, and a class"
            )
        return image, label

    def error(self, problem: str) -> DataError:
        """An error about this source."""
        return DataError(f"dataset 'images': {self.name} {problem}")


def _image(value: Any) -> Tensor | None:
    if not isinstance(value, Tensor) or value.ndim not in (2, 3):
        return None
    return value if value.dtype == torch.uint8 or value.is_floating_point() else None


def _class(value: Any) -> int | None:
    try:
        return int(value) if int(value) == value else None
    except (TypeError, ValueError, RuntimeError):
        return None


def _describe(item: Any) -> str:
    if isinstance(item, tuple | list):
        return f"({', '.join(_describe(element) for element in item)})"
    if isinstance(item, Tensor):
        return f"a tensor of {str(item.dtype).removeprefix('torch.')} of shape {tuple(item.shape)}"
    return type(item).__name__


def load(source: str) -> Images:
    """Load the images of a source. Raises DataError, which states the valid sources."""
    if source == "digits":
        return Images(source, digits())
    module_name, colon, name = source.rpartition(":")
    if not colon or not module_name or not name.isidentifier():
        raise DataError(
            f"dataset 'images': there is no source {source!r}: write 'digits', 'package.module:name' or "
            f"'file.py:name'"
        )
    module = _import(module_name)
    if not hasattr(module, name):
        names = ", ".join(member for member in vars(module) if not member.startswith("_")) or "nothing"
        raise DataError(f"dataset 'images': {module_name} has no {name!r}; it has: {names}")
    data = getattr(module, name)
    if not callable(data):
        return Images(source, data)
    try:
        return Images(source, data())
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"dataset 'images': {source}() failed: {type(error).__name__}: {error}") from error


def digits() -> TensorDataset:
    """Scikit-learn's copy of the UCI test set of optically recognized digits: images (1797, 1, 8, 8), with pixels
    from 0 to 1."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    return TensorDataset(images, torch.from_numpy(bunch.target).long())


def _import(name: str) -> ModuleType:
    try:
        return _import_file(Path(name)) if name.endswith(".py") else _import_module(name)
    except (Exception, SystemExit) as error:
        advice = "" if name.endswith(".py") else f"; searched {Path.cwd()} and Python's path"
        raise DataError(
            f"dataset 'images': cannot import {name}: {type(error).__name__}: {error}{advice}"
        ) from error


def _import_module(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that it does not shadow installed packages
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    name = f"flops_fit_images_source_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look up modules here
    # From the source, because a compiled file next to it may be other code.
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # noqa: S102
    return module
