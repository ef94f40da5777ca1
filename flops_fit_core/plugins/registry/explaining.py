"""Messages about plugins that fail or hang."""

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

WARN_AFTER = 5.0
"""Seconds after which a warning names the plugin that has not returned."""

logger = logging.getLogger("flops_fit")


@contextmanager
def warn_if_slow(plugin: str, action: str, name: str) -> Iterator[None]:
    """Log a warning that names the plugin if the block is slow or interrupted.

    Nothing is cut short: the plugin may read a slow file system, and Python cannot stop an import.
    """
    advice = f"FLOPS_FIT_DISABLE={name} leaves it out"

    def warn() -> None:
        logger.warning("plugin %s: %s has not ended after %g seconds; %s", plugin, action, WARN_AFTER, advice)

    timer = threading.Timer(WARN_AFTER, warn)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("plugin %s: interrupted in %s; %s", plugin, action, advice)
        raise
    finally:
        timer.cancel()


def hint_for(error: BaseException, missing: Sequence[str] = ()) -> str:
    """Advice on how to fix an error of a plugin; empty if there is none.

    ``missing``: requirements of the plugin's distribution that are not installed.
    """
    if isinstance(error, ImportError):
        if missing:
            return f"it needs {' and '.join(missing)}: pip install {' '.join(map(repr, missing))}"
        if (error.name or "").split(".")[0] == "flops_fit_core":
            return f"this is flops-fit {__version__}; the plugin was written for another version"
    return _unknown_field(message_of(error)) if isinstance(error, TypeError) else ""


def _unknown_field(message: str) -> str:
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    specs = {spec.__name__: spec for spec in SPEC_TYPES.values()}
    if match is None or match[1] not in specs:
        return ""
    names = [field.name for field in fields(specs[match[1]])]
    close = difflib.get_close_matches(match[2], names, n=1)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    return f"{suggestion}{match[1]} of flops-fit {__version__} has: {', '.join(names)}"
