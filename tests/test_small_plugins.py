"""Optimizers, schedules, recipes, FLOPs counters, devices."""

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flops_fit_core import ConfigError, ParameterCounts, PluginError
from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import CounterInput, OptimizerSpec, ParameterGroup, RecipeInput, RunInfo
from flops_fit_core.plugins.registry import installed


def spec(kind, name):
    return installed().find(kind, name).spec


def built(kind, name, *arguments, **options):
    plugin = spec(kind, name)
    return plugin.build(plugin.options.model_validate(options), *arguments)


def view(steps=100, base_width=None, groups=None, width_scaling="adam"):
    return RunInfo(
        steps=steps,
        tokens=steps * 32,
        tokens_per_step=32,
        base_width=base_width,
        groups=groups or (lambda model: [ParameterGroup(list(model.parameters()))]),
        width_scaling=width_scaling,
    )


class Two(nn.Module):
    """A matrix fed by 16 channels, and a bias."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 2)

    def groups(self):
        return [ParameterGroup([self.layer.weight], width=16), ParameterGroup([self.layer.bias], decay=False)]


# ---------------------------------------------------------------------------- optimizers


def test_sgd_steps_by_001_times_the_gradient_unless_said_otherwise():
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = built("optimizer", "sgd", model, view())
    model.weight.grad = torch.ones(1, 3)
    optimizer.step()
    assert torch.allclose(model.weight.detach(), before - 0.01)


def test_adamw_scales_matrices_by_base_width_over_width_and_nothing_else():
    model = Two()
    optimizer = built(
        "optimizer", "adamw", model, view(base_width=64, groups=Two.groups), lr=0.002, weight_decay=0.1
    )
    matrix, bias = optimizer.param_groups
    assert matrix["lr"] == pytest.approx(0.002 * 64 / 16)
    assert bias["lr"] == 0.002
    # What a step decays is lr x weight decay, at every width; a bias does not decay.
    assert matrix["lr"] * matrix["weight_decay"] == pytest.approx(0.002 * 0.1)
    assert bias["weight_decay"] == 0


def test_sgd_has_one_learning_rate_at_every_width():
    run = view(base_width=64, groups=Two.groups, width_scaling="none")
    optimizer = built("optimizer", "sgd", Two(), run, lr=0.5, momentum=0.9)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]


def test_a_step_of_adamw_is_that_of_the_paper():
    model = nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone().double()
    optimizer = built("optimizer", "adamw", model, view(), lr=0.1, betas=[0.8, 0.9], eps=1e-6, weight_decay=0.5)
    gradients = [torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])]
    weight, first, second = start, torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for step, gradient in enumerate(gradients, 1):
        model.weight.grad = gradient.clone()
        optimizer.step()
        first = 0.8 * first + 0.2 * gradient
        second = 0.9 * second + 0.1 * gradient**2
        corrected = (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-6)
        weight = weight - 0.1 * 0.5 * weight - 0.1 * corrected
    assert torch.allclose(model.weight.detach().double(), weight, atol=1e-5)


def test_bundled_optimizers_declare_how_they_scale_with_the_width():
    names = ("sgd", "adamw", "lion", "adafactor", "schedule-free", "muon")
    declared = {name: spec("optimizer", name).width_scaling for name in names}
    assert declared == {**dict.fromkeys(names, "adam"), "sgd": "none", "muon": "custom"}


@pytest.mark.parametrize("scaling", ["adam", "none"])
def test_groups_for_torch_have_the_parameters_in_the_order_of_the_family(scaling):
    model = Two()
    run = view(base_width=64, groups=Two.groups, width_scaling=scaling)
    factor = 64 / 16 if scaling == "adam" else 1.0
    matrix, bias = run.param_groups(model, 0.002, 0.1)
    assert matrix["params"] == [model.layer.weight]
    assert bias["params"] == [model.layer.bias]
    assert (matrix["lr"], matrix["weight_decay"]) == (0.002 * factor, 0.1 / factor)
    assert (bias["lr"], bias["weight_decay"]) == (0.002, 0.0)


def test_groups_for_torch_are_refused_for_a_custom_rule():
    with pytest.raises(PluginError, match=r"use run.groups\(model\) and run.lr_scale\(group\)"):
        view(width_scaling="custom").param_groups(Two(), 0.002)


@pytest.mark.parametrize(
    ("declared", "problem"),
    [({}, "width_scaling is missing"), ({"width_scaling": "muP"}, "width_scaling cannot be 'muP'")],
)
def test_an_optimizer_must_declare_how_it_scales_with_the_width(declared, problem):
    with pytest.raises(ValueError, match=f"optimizer 'mine': {problem}: write") as caught:
        OptimizerSpec(name="mine", build=lambda options, model, run: None, **declared)
    for choice in ('width_scaling="adam"', '"none"', '"custom"'):
        assert choice in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [("sgd", {"lr": 0}), ("sgd", {"lr": -1}), ("adamw", {"betas": [0.9, 1.0]}), ("adamw", {"lr": math.inf})],
)
def test_values_that_make_no_sense_are_refused(name, options):
    with pytest.raises(ValueError):
        spec("optimizer", name).options.model_validate(options)


# ---------------------------------------------------------------------------- schedules


def test_cosine_rises_to_the_peak_and_falls_to_its_share_at_the_last_step():
    multiplier = built("schedule", "cosine", view(steps=101), warmup_tokens=320, final=0.2)
    values = [multiplier(step) for step in range(101)]
    assert values[0] == pytest.approx(1 / 11)
    assert values[9] == pytest.approx(10 / 11)
    assert values[10] == 1.0
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[55] == pytest.approx(0.6)
    assert values[100] == pytest.approx(0.2)


def test_cosine_falls_to_a_tenth_over_the_runs_own_steps():
    for steps in (10, 1000):
        multiplier = built("schedule", "cosine", view(steps=steps))
        assert multiplier(0) == 1.0
        assert multiplier(steps - 1) == pytest.approx(0.1)


def test_constant_stays_at_the_peak_after_its_warmup():
    multiplier = built("schedule", "constant", view(), warmup_tokens=64)
    assert [multiplier(step) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert built("schedule", "constant", view())(0) == 1.0


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_one_step_has_a_learning_rate(steps):
    for name in ("cosine", "constant"):
        for warmup in (0, 16, 64):
            multiplier = built("schedule", name, view(steps=steps), warmup_tokens=warmup)
            assert all(0 < multiplier(step) <= 1 for step in range(steps))


# ---------------------------------------------------------------------------- recipes


def example_run(**changes):
    defaults = {
        "params": 10**6,
        "tokens": 10**8,
        "width": 128,
        "task": LanguageTask(256, 64),
        "width_scaling": "adam",
        "flops": 6e14,
        "parameters": ParameterCounts(total=10**6, active=10**6),
    }
    return RecipeInput(**{**defaults, **changes})


def test_the_width_scaled_recipe_for_adam_on_a_family_with_a_width():
    hyper = built("recipe", "width-scaled", example_run())
    assert hyper.batch_size == round(0.9 * math.sqrt(10**8) / 64)
    assert (hyper.lr, hyper.base_width) == (0.008, 64)
    assert hyper.betas == (0.9, 0.95)
    assert hyper.warmup_tokens == 5 * 10**6


def test_the_width_scaled_recipe_leaves_learning_rates_that_it_does_not_know_alone():
    for changes in ({"width_scaling": "none"}, {"width": None}):
        hyper = built("recipe", "width-scaled", example_run(**changes))
        assert hyper.lr is None
        assert hyper.base_width is None
    assert built("recipe", "width-scaled", example_run(width_scaling="none")).betas is None


def test_the_recipes_options_are_what_it_uses():
    hyper = built("recipe", "width-scaled", example_run(), lr=0.1, base_width=32, warmup=0.2, batch_scale=1.8)
    assert (hyper.lr, hyper.base_width, hyper.warmup_tokens) == (0.1, 32, 2 * 10**7)
    assert hyper.batch_size == round(1.8 * 10**4 / 64)


def test_a_batch_has_at_least_two_samples():
    assert built("recipe", "width-scaled", example_run(tokens=100)).batch_size == 2


# ---------------------------------------------------------------------------- FLOPs


def measured(own=None, **counts):
    parameters = ParameterCounts(
        **{"total": 1000, "lookup_table": 300, "unembedding": 200, "active": 1000, **counts}
    )
    return CounterInput(
        module=nn.Linear(1, 1),
        task=LanguageTask(256, 64),
        parameters=parameters,
        own_flops_per_token=own,
        family="x/y",
    )


@pytest.mark.parametrize(("n", "params"), [("matmul", 700), ("total", 1000), ("non-embedding", 500)])
def test_chinchilla_counts_6_n_with_the_n_that_was_asked_for(n, params):
    count = built("counter", "chinchilla", measured(), n=n)
    assert (count.flops_per_token, count.params, count.flops_name) == (6 * params, params, "6 N D")
    assert built("counter", "chinchilla", measured()).params == 700


@pytest.mark.parametrize(
    ("n", "params", "flops_name", "params_name"),
    [
        ("matmul", 300, "6 N D", "matmul parameters that a token uses (all but lookup tables)"),
        ("total", 1000, "6 N D with N of active parameters", "all parameters"),
        ("non-embedding", 100, "6 N D", "parameters that a token uses without embeddings and output head"),
    ],
)
def test_experts_that_a_token_is_not_sent_to_cost_nothing(n, params, flops_name, params_name):
    count = built("counter", "chinchilla", measured(active=600), n=n)
    assert count.flops_per_token == 6 * (600 if n == "total" else params)
    assert (count.params, count.flops_name, count.params_name) == (params, flops_name, params_name)


def test_model_takes_the_familys_own_count():
    count = built("counter", "model", measured(own=4321.0))
    assert (count.flops_per_token, count.params) == (4321.0, 700)
    assert "x/y" in count.flops_name


def test_a_family_without_a_count_says_which_counter_to_use():
    with pytest.raises(ConfigError, match='counter = "chinchilla"'):
        built("counter", "model", measured())


def test_a_model_of_nothing_but_tables_has_no_matmul_parameters():
    with pytest.raises(ConfigError, match='n = "total"'):
        built("counter", "chinchilla", measured(lookup_table=1000))


# ---------------------------------------------------------------------------- devices


def test_auto_is_cuda_where_there_is_one_and_else_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = built("device", "auto")
    assert (device.torch_device, device.precision, device.peak_memory()) == ("cpu", "float32", None)
    assert device.name.startswith("CPU")


def test_one_gpu_by_its_index_trains_a_run_alone():
    spec = installed().find("device", "devices/cuda").spec
    with pytest.raises(ValidationError, match="index names one GPU"):
        spec.options(index=3, devices_per_run=2)
    assert spec.devices_per_run(spec.options(index=3), 10**15) == 1
    assert spec.devices_per_run(spec.options(devices_per_run=4), 0) == 4


def test_a_cuda_device_that_is_not_there_says_what_to_write(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match='device = "cpu"'):
        built("device", "cuda", index=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="cuda:1: valid indices are 0 to 0"):
        built("device", "cuda", index=1)


def test_a_machine_without_gpus_has_a_place_for_every_core(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5})
    assert len(spec("device", "cpu").slots(None)) == 3
    assert len(spec("device", "auto").slots(None)) == 3


@pytest.mark.parametrize(
    ("visible", "count", "expected"), [(None, 2, ["0", "1"]), ("4, 7", 2, ["4", "7"]), ("MIG-a", 1, ["MIG-a"])]
)
def test_each_gpu_is_a_place_that_shows_only_that_one(monkeypatch, visible, count, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    slots = spec("device", "auto").slots(None)
    assert slots == [{"CUDA_VISIBLE_DEVICES": name} for name in expected]
    assert spec("device", "cuda").slots(SimpleNamespace(index=None)) == slots
    assert spec("device", "cuda").slots(SimpleNamespace(index=1)) == [{}]


def test_nesterov_without_momentum_is_refused_before_anything_is_trained():
    sgd = installed().find("optimizer", "sgd").spec.options
    with pytest.raises(ValueError, match="nesterov needs momentum"):
        sgd(nesterov=True)
    assert sgd(nesterov=True, momentum=0.9).nesterov
