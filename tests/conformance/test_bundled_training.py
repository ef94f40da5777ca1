"""Bundled optimizers, schedules, FLOPs counters, recipes and devices pass their conformance kits."""

from __future__ import annotations

from flops_fit_core.testing import (
    DeviceConformance,
    FlopCounterConformance,
    OptimizerConformance,
    RecipeConformance,
    ScheduleConformance,
)


class TestSGD(OptimizerConformance):
    name = "sgd"
    lr = 0.05


class TestSGDWithMomentum(OptimizerConformance):
    name = "sgd"
    options = {"momentum": 0.9}


class TestAdamW(OptimizerConformance):
    name = "adamw"


class TestMuon(OptimizerConformance):
    name = "muon"
    hidden_width_power = 0.5


class TestMuonWithConstantSpectralNorm(OptimizerConformance):
    name = "muon"
    options = {"adjust_lr_fn": "original", "nesterov": False, "hidden": "linear"}
    hidden_width_power = 0.0


class TestLion(OptimizerConformance):
    name = "lion"
    lr = 0.002


class TestAdafactor(OptimizerConformance):
    name = "adafactor"


class TestScheduleFree(OptimizerConformance):
    name = "schedule-free"


class TestConstant(ScheduleConformance):
    name = "constant"


class TestConstantAfterWarmup(ScheduleConformance):
    name = "constant"
    options = {"warmup_tokens": 10_000}


class TestCosine(ScheduleConformance):
    name = "cosine"


class TestCosineAfterWarmup(ScheduleConformance):
    name = "cosine"
    options = {"warmup_tokens": 1000, "final": 0.0}


class TestWSD(ScheduleConformance):
    name = "wsd"


class TestWSDWithLinearDecay(ScheduleConformance):
    name = "wsd"
    options = {"warmup_tokens": 10_000, "decay": 0.5, "shape": "linear", "final": 0.1}


class TestChinchilla(FlopCounterConformance):
    name = "chinchilla"


class TestChinchillaWithTotalParameters(FlopCounterConformance):
    name = "chinchilla"
    options = {"n": "total"}


class TestModelCounter(FlopCounterConformance):
    name = "model"


class TestHoffmann(FlopCounterConformance):
    name = "hoffmann"


class TestTraced(FlopCounterConformance):
    name = "traced"


class TestWidthScaledWithoutWidth(RecipeConformance):
    name = "width-scaled"
    width_scaling = "none"
    width = False


class TestWidthScaled(RecipeConformance):
    name = "width-scaled"


class TestConstantRecipe(RecipeConformance):
    name = "recipes/constant"
    options = {"lr": 0.01, "batch_size": 4}


class TestStepLaw(RecipeConformance):
    name = "steplaw"


class TestDeepSeek(RecipeConformance):
    name = "deepseek"


class TestPowerLines(RecipeConformance):
    name = "power-lines"


class TestPowerLaw(RecipeConformance):
    name = "power-law"
    options = {
        "lr_scale": 1.79,
        "lr_params": -0.713,
        "lr_tokens": 0.307,
        "batch_scale": 0.58,
        "batch_tokens": 0.571,
    }


class TestPowerLawWithoutConstants(RecipeConformance):
    name = "power-law"


class TestCPU(DeviceConformance):
    name = "cpu"


class TestAuto(DeviceConformance):
    name = "auto"


class TestCUDA(DeviceConformance):
    name = "cuda"
    backend = "cuda"
