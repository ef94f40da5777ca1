"""What is said of a plugin that does not work, or does not come to an end."""

from __future__ import annotations

import difflib
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

from flops_fit_core import __version__
from flops_fit_core.plugins.registry.offers import SPEC_TYPES, message_of

PATIENCE = 5.0
"""Seconds after which somebody who waits is told for whom."""

logger = logging.getLogger("flops_fit")


@contextmanager
def speaking_up(plugin: str, doing: str, name: str) -> Iterator[None]:
    """Say on standard error which plugin is being waited for, where that takes long or is interrupted.

    Nothing is cut short: a plugin may have to look at a slow file system, and Python cannot stop an import.
    """
    way_out = f"FLOPS_FIT_DISABLE={name} leaves it out"

    def slow() -> None:
        logger.warning("plugin %s: %s has not ended after %g seconds; %s", plugin, doing, PATIENCE, way_out)

    timer = threading.Timer(PATIENCE, slow)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("plugin %s: interrupted in %s; %s", plugin, doing, way_out)
        raise
    finally:
        timer.cancel()


def hint_for(error: BaseException, missing: Sequence[str] = ()) -> str:
    """What to do about an error of a plugin, where that can be told; empty where not.

    ``missing``: requirements of the plugin's distribution that are not installed.
    """
    if isinstance(error, ImportError):
        if missing:
            return f"it needs {' and '.join(missing)}: pip install {' '.join(map(repr, missing))}"
        if (error.name or "").split(".")[0] == "flops_fit_core":
            return f"this is flops-fit {__version__}; the plugin was written for another version"
    return _unknown_field(message_of(error)) if isinstance(error, TypeError) else ""


def _unknown_field(message: str) -> str:
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    specs = {spec.__name__: spec for spec in SPEC_TYPES.values()}
    if found is None or found[1] not in specs:
        return ""
    known = [field.name for field in fields(specs[found[1]])]
    close = difflib.get_close_matches(found[2], known, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}{found[1]} of flops-fit {__version__} has: {', '.join(known)}"
