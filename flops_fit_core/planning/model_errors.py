"""Errors of a user's model, with the line that raised them."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from types import FrameType

from flops_fit_core.errors import FlopsFitError
from flops_fit_core.flops.model_stats import reads_values


def describe_model_error(error: BaseException) -> str:
    """The original error with its line: ``AssertionError: 12 heads (/home/me/model.py, line 7, in f)``."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FlopsFitError):
        return str(error)
    text = " ".join(str(error).split())
    if reads_values(error):
        text += ". To be counted, a model is built on torch's meta device, where tensors have no values"
    name = type(error).__name__
    frames = list(_user_frames(traceback.walk_tb(error.__traceback__)))
    # The user's line is more useful than a line of a library that it calls.
    frames = [frame for frame in frames if "site-packages" not in frame[0]] or frames
    place = " ({}, line {}, in {})".format(*frames[-1]) if frames else ""
    return f"{name}: {text}{place}" if text else f"{name}{place}"


def _user_frames(frames: Iterable[tuple[FrameType, int]]) -> Iterator[tuple[str, int, str]]:
    """File, line and function of the frames outside flops-fit and torch."""
    for frame, line in frames:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] != "torch" and not module.startswith("flops_fit"):
            yield frame.f_code.co_filename, line, frame.f_code.co_name
