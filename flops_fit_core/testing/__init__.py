"""Conformance kits for plugin authors: inherit, name your plugin, and run pytest.

::

    from flops_fit_core.testing import StoreConformance

    class TestMyStore(StoreConformance):
        name = "mine"

A kit, and pytest with it, is imported when it is first asked for: workers import from here as well.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flops_fit_core.testing.counters import FlopCounterConformance
    from flops_fit_core.testing.datasets import DatasetConformance
    from flops_fit_core.testing.devices import DeviceConformance
    from flops_fit_core.testing.examples import example_result, example_run
    from flops_fit_core.testing.executors import ExecutorConformance
    from flops_fit_core.testing.fitters import FitterConformance
    from flops_fit_core.testing.loggers import LoggerConformance
    from flops_fit_core.testing.models import ModelConformance
    from flops_fit_core.testing.optimizers import OptimizerConformance
    from flops_fit_core.testing.recipes import RecipeConformance
    from flops_fit_core.testing.schedules import ScheduleConformance
    from flops_fit_core.testing.stores import StoreConformance
    from flops_fit_core.testing.trainers import TrainerConformance

_HOME = {
    "DatasetConformance": "datasets",
    "DeviceConformance": "devices",
    "ExecutorConformance": "executors",
    "FitterConformance": "fitters",
    "FlopCounterConformance": "counters",
    "LoggerConformance": "loggers",
    "ModelConformance": "models",
    "OptimizerConformance": "optimizers",
    "RecipeConformance": "recipes",
    "ScheduleConformance": "schedules",
    "StoreConformance": "stores",
    "TrainerConformance": "trainers",
    "example_result": "examples",
    "example_run": "examples",
}

__all__ = [
    "DatasetConformance",
    "DeviceConformance",
    "ExecutorConformance",
    "FitterConformance",
    "FlopCounterConformance",
    "LoggerConformance",
    "ModelConformance",
    "OptimizerConformance",
    "RecipeConformance",
    "ScheduleConformance",
    "StoreConformance",
    "TrainerConformance",
    "example_result",
    "example_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOME[name]}"
    if name.endswith("Conformance"):
        import pytest

        pytest.register_assert_rewrite(home)
    return getattr(importlib.import_module(home), name)
