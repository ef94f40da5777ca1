"""Decorators for hooks and their implementations."""

from __future__ import annotations

import pluggy

PROJECT = "flops_fit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
