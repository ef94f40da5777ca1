"""Marks tests that need a package of the extra ``test`` that the smaller extra ``test-core`` leaves out."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def needs(package: str, installed: pytest.MarkDecorator | None = None) -> pytest.MarkDecorator:
    """Skips a test if a package is missing. Otherwise the mark is ``installed``, if given."""
    missing = find_spec(package) is None
    if installed is not None and not missing:
        return installed
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install 'flops-fit[test]'")
