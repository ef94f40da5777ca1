"""Conformance kits for plugin authors: inherit, name your plugin, and run pytest.

::

    from flops_fit_core.testing import StoreConformance

    class TestMyStore(StoreConformance):
        name = "mine"

A kit, and pytest with it, is imported on first access, because workers import this package, too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name.endswith("Conformance"):
        _rewrite_asserts()
    return _load(name)


def _rewrite_asserts() -> None:
    """Make pytest show the values of a failed assert in a kit, which is not a test file."""
    import pytest

    modules = {f"{__name__}.{file.stem}" for file in Path(__file__).parent.glob("[!_]*.py")}
    pytest.register_assert_rewrite(*(modules - set(sys.modules)))
