"""Discovery of plugins and the registry of their specs."""

from __future__ import annotations

from flops_fit_core.plugins.registry.offers import KINDS, SPEC_TYPES, PluginProblem, PluginSetup, RegisteredSpec
from flops_fit_core.plugins.registry.registry import Registry, installed, registry_from

__all__ = [
    "KINDS",
    "SPEC_TYPES",
    "PluginProblem",
    "PluginSetup",
    "RegisteredSpec",
    "Registry",
    "installed",
    "registry_from",
]
