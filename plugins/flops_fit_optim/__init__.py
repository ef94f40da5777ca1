"""Optimizers: ``sgd`` and ``adamw``, ``muon``, ``lion``, ``adafactor`` and ``schedule-free``."""

from __future__ import annotations

from collections.abc import Iterable

from flops_fit_core.plugins import OptimizerSpec, hookimpl
from flops_fit_optim.adafactor import AdafactorOptions, build_adafactor
from flops_fit_optim.adamw import AdamWOptions, build_adamw
from flops_fit_optim.lion import LionOptions, build_lion
from flops_fit_optim.muon import MuonOptions, build_muon
from flops_fit_optim.schedule_free import ScheduleFreeOptions, build_schedule_free
from flops_fit_optim.sgd import SGDOptions, build_sgd


@hookimpl
def flops_fit_optimizers() -> Iterable[OptimizerSpec]:
    """Offer all optimizers."""
    yield OptimizerSpec(name="sgd", options=SGDOptions, build=build_sgd, width_scaling="none")
    yield OptimizerSpec(name="adamw", options=AdamWOptions, build=build_adamw, width_scaling="adam")
    yield OptimizerSpec(
        name="muon", options=MuonOptions, build=build_muon, width_scaling="custom", requires=("torch>=2.9",)
    )
    yield OptimizerSpec(
        name="lion",
        options=LionOptions,
        build=build_lion,
        width_scaling="adam",
        lr_relative_to_adamw=0.3,
        requires=("pytorch-optimizer>=3.3",),
        extra="optimizers",
    )
    yield OptimizerSpec(
        name="adafactor",
        options=AdafactorOptions,
        build=build_adafactor,
        width_scaling="adam",
        requires=("pytorch-optimizer>=3.3",),
        extra="optimizers",
    )
    yield OptimizerSpec(
        name="schedule-free",
        options=ScheduleFreeOptions,
        build=build_schedule_free,
        width_scaling="adam",
        lr_relative_to_adamw=2.0,
        schedule="schedules/constant",
        requires=("schedulefree>=1.3",),
        extra="optimizers",
    )
