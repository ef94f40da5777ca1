"""What marks a hook, and a plugin's function that implements one."""

from __future__ import annotations

import pluggy

PROJECT = "flops_fit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
