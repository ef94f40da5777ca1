"""What a user's model raised, and where."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from types import FrameType

from flops_fit_core.errors import FlopsFitError
from flops_fit_core.flops.model_stats import reads_values


def own_error(error: BaseException) -> str:
    """The model's own error with its place: ``AssertionError: 12 heads (/home/me/model.py, line 7, in f)``."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FlopsFitError):
        return str(error)
    text = " ".join(str(error).split())
    if reads_values(error):
        text += ". A model is built on torch's meta device to be counted, where tensors have no values to read"
    name = type(error).__name__
    frames = list(_own_frames(traceback.walk_tb(error.__traceback__)))
    # The user's own line says more than the line of a library that it calls.
    frames = [frame for frame in frames if "site-packages" not in frame[0]] or frames
    place = " ({}, line {}, in {})".format(*frames[-1]) if frames else ""
    return f"{name}: {text}{place}" if text else f"{name}{place}"


def _own_frames(frames: Iterable[tuple[FrameType, int]]) -> Iterator[tuple[str, int, str]]:
    """File, line and function of the frames that are neither ours nor torch's."""
    for frame, line in frames:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] != "torch" and not module.startswith("flops_fit"):
            yield frame.f_code.co_filename, line, frame.f_code.co_name
