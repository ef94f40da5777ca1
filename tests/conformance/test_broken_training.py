"""The conformance kits for optimizers, schedules, FLOPs counters, recipes and devices detect broken plugins."""

from __future__ import annotations

import pytest
from conftest import Failures

OPTIMIZER = """
import torch

from flops_fit_core.plugins import OptimizerSpec, Options, hookimpl
from flops_fit_core.testing import OptimizerConformance

class AdamOptions(Options):
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

class Adam(torch.optim.AdamW):
    BODY

class Averaging(torch.optim.AdamW):
    # eval() replaces the weights by their moving average, and train() restores them.
    def step(self):
        super().step()
        for p in self.weights():
            self.state[p].setdefault("average", p.detach().clone()).lerp_(p.detach(), 0.5)

    def weights(self):
        return [p for group in self.param_groups for p in group["params"]]

    def exchange(self, averaged):
        if self.param_groups[0].get("averaged", False) == KNOWN:
            return
        for group in self.param_groups:
            group["averaged"] = averaged
        for p in self.weights():
            if "average" in self.state[p]:
                weights = p.detach().clone()
                p.data.copy_(self.state[p]["average"])
                self.state[p]["average"].copy_(weights)

    def train(self):
        self.exchange(False)

    EVAL

def build(options, model, run):
    groups = [
        {"params": list(group.parameters), "lr": LR, "weight_decay": DECAY} for group in run.groups(model)
    ]
    return KIND(GROUPS, betas=BETAS)

class Plugin:
    @hookimpl
    def flops_fit_optimizers(self):
        yield OptimizerSpec(name="broken", options=AdamOptions, build=build, width_scaling=DECLARED)

class TestBroken(OptimizerConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


@pytest.mark.slow
def test_broken_optimizers_fail_the_kit(failures, capsys):
    evaluated = "def eval(self): self.exchange(True)"
    counted = evaluated + "; [self.state[p]['step'].add_(1) for p in self.weights() if self.state[p]]"
    sound = {
        "DECLARED": "'adam'",
        "LR": "options.lr * run.lr_scale(group)",
        "DECAY": "options.weight_decay if group.decay else 0.0",
        "GROUPS": "groups",
        "BODY": "pass",
        "KIND": "Adam",
        "BETAS": "options.betas",
        "KNOWN": "averaged",
        "EVAL": evaluated,
    }
    own_rate = """def step(self):
        rates = [group['lr'] for group in self.param_groups]
        for group in self.param_groups:
            group['lr'] = 0.01
        super().step()
        for group, rate in zip(self.param_groups, rates):
            group['lr'] = rate
    """
    own_decay = """def step(self):
        for group in self.param_groups:
            decay, group['weight_decay'] = group['weight_decay'], 0.0
            for p in group['params']:
                p.data.mul_(1 - 0.01 * decay)
        super().step()
    """
    clipping = """def step(self):
        for group in self.param_groups:
            for p in group['params']:
                p.grad.clamp_(-1, 1)
        super().step()
    """
    own_count = """steps = 0

    def step(self):
        self.steps += 1
        for group in self.param_groups:
            for p in group['params']:
                p.data.mul_(1 - group['lr'] / self.steps) if p.grad is not None and p.grad.any() else None
        super().step()
    """
    shared_state = """momentum = {}

    def step(self):
        used = [p for group in self.param_groups for p in group['params'] if p.grad is not None]
        for number, p in enumerate(used):
            p.grad.add_(0.9 * self.momentum.setdefault((number, p.shape), torch.zeros_like(p)))
            self.momentum[number, p.shape] = p.grad.clone()
        super().step()
    """
    groups = "run.param_groups(model, options.lr, options.weight_decay)"
    failed = failures(
        OPTIMIZER,
        sound,
        {
            "sound": {},
            "ignores its lr": {"LR": "0.01"},
            "ignores widths": {"LR": "options.lr"},
            "uses parameters instead of groups": {"GROUPS": "model.parameters(), lr=options.lr"},
            "scales learning rates without declaring it": {"DECLARED": "'none'"},
            "sound, with run.param_groups": {"GROUPS": groups},
            "sound, with one learning rate": {"GROUPS": groups, "DECLARED": "'none'"},
            "sound, with a rule for widths that the kit does not test": {
                "LR": "options.lr",
                "DECLARED": "'custom'",
            },
            "drops parameters": {"GROUPS": "groups[:1]"},
            "decays biases": {"DECAY": "options.weight_decay"},
            "ignores the schedule": {"BODY": own_rate},
            "drops its state": {"BODY": "def load_state_dict(self, state): pass"},
            "maximizes the loss": {"GROUPS": "groups, maximize=True"},
            "ignores its betas": {"BETAS": "(0.9, 0.999)"},
            "ignores its weight decay": {"DECAY": "0.0"},
            "decays at the peak learning rate": {"BODY": own_decay},
            "needs a gradient of every parameter": {"BODY": clipping},
            "counts its steps outside its state": {"BODY": own_count},
            "shares its state with other runs": {"BODY": shared_state},
            "sound, with modes": {"KIND": "Averaging"},
            "has one mode": {"KIND": "Averaging", "EVAL": "pass"},
            "does not track its mode": {"KIND": "Averaging", "KNOWN": "None"},
            "counts an evaluation as a step": {"KIND": "Averaging", "EVAL": counted},
        },
    )
    output = capsys.readouterr().out
    assert (
        'width_scaling="adam": 0.weight must have the learning rate 0.0025 at width 32 with base width 8, and it '
        f"has 0.01. Make the optimizer from {groups}, or declare" in output
    )
    assert (
        'width_scaling="none": 0.weight must have the learning rate 0.01 at every width, and it has 0.0025 at '
        f"width 32 with base width 8. Make the optimizer from {groups}, or declare" in output
    )
    assert "test_its_state_goes_on_where_it_was_saved" in failed.pop("shares its state with other runs")
    assert failed == {
        "sound": set(),
        "ignores its lr": {
            "test_groups_start_at_the_peak_learning_rate",
            "test_a_tenth_of_the_learning_rate_is_a_smaller_first_step",
            "test_learning_rates_scale_with_the_width_as_declared",
        },
        "ignores widths": {"test_learning_rates_scale_with_the_width_as_declared"},
        "uses parameters instead of groups": {
            "test_learning_rates_scale_with_the_width_as_declared",
            "test_only_groups_that_may_decay_do",
        },
        "scales learning rates without declaring it": {"test_learning_rates_scale_with_the_width_as_declared"},
        "sound, with run.param_groups": set(),
        "sound, with one learning rate": set(),
        "sound, with a rule for widths that the kit does not test": set(),
        "drops parameters": {
            "test_a_parameter_without_gradient_stays",
            "test_every_parameter_is_in_one_group",
            "test_a_step_moves_every_parameter",
        },
        "decays biases": {"test_only_groups_that_may_decay_do"},
        "ignores the schedule": {
            "test_a_learning_rate_of_zero_moves_nothing",
            "test_a_tenth_of_the_learning_rate_is_a_smaller_first_step",
        },
        "drops its state": {"test_its_state_goes_on_where_it_was_saved"},
        "maximizes the loss": {"test_it_learns"},
        "ignores its betas": {"test_other_betas_are_another_run"},
        "ignores its weight decay": {"test_only_groups_that_may_decay_do"},
        "decays at the peak learning rate": {"test_a_learning_rate_of_zero_moves_nothing"},
        "needs a gradient of every parameter": {"test_a_parameter_without_gradient_stays"},
        "counts its steps outside its state": {"test_its_state_goes_on_where_it_was_saved"},
        "sound, with modes": set(),
        "has one mode": {"test_it_has_both_modes_or_none"},
        "does not track its mode": {
            "test_its_state_goes_on_where_it_was_saved",
            "test_a_mode_that_it_is_in_is_kept",
        },
        "counts an evaluation as a step": {"test_an_evaluation_changes_nothing"},
    }


SCHEDULE = """
import math

from flops_fit_core.plugins import ScheduleSpec, hookimpl
from flops_fit_core.testing import ScheduleConformance

calls = []

def build(options, run):
    return lambda step: MULTIPLIER

class Plugin:
    @hookimpl
    def flops_fit_schedules(self):
        yield ScheduleSpec(name="broken", build=build, branch=BRANCH)

class TestBroken(ScheduleConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_schedules_fail_the_kit(failures):
    multipliers = {
        "sound": "1 - step / run.steps",
        "is a learning rate": "0.001 * (1 - step / run.steps)",
        "exceeds the peak": "1.5 - step / run.steps",
        "falls below zero": "math.cos(math.pi * step / 300)",
        "divides by zero in a run of one step": "1 - step / (run.steps - 1)",
        "is zero in a run of one step": "min(1, step / 100)",
        "counts its calls": "calls.append(1) or 1 / len(calls)",
        "returns text": "str(1 - step / run.steps)",
        "is not a number at its end": "1 - step / run.steps if step < 900 else float('nan')",
    }
    cases = {name: {"MULTIPLIER": text} for name, text in multipliers.items()}
    cases["branches earlier in a longer run"] = {
        "MULTIPLIER": "1.0",
        "BRANCH": "lambda options, run: 1 + 6 // run.steps",
    }
    cases["branches while it falls"] = {"BRANCH": "lambda options, run: run.steps"}
    failed = failures(SCHEDULE, {"BRANCH": "None", "MULTIPLIER": multipliers["sound"]}, cases)
    assert failed == {
        "sound": set(),
        "branches while it falls": {"test_before_its_branch_a_run_does_as_every_longer_one"},
        "branches earlier in a longer run": {"test_before_its_branch_a_run_does_as_every_longer_one"},
        "returns text": {"test_it_is_a_share_of_the_peak_at_every_step"},
        "is not a number at its end": {"test_it_is_a_share_of_the_peak_at_every_step"},
        "is a learning rate": {"test_a_long_run_reaches_the_peak"},
        "exceeds the peak": {"test_it_is_a_share_of_the_peak_at_every_step"},
        "falls below zero": {"test_it_is_a_share_of_the_peak_at_every_step"},
        "divides by zero in a run of one step": {
            "test_it_is_a_share_of_the_peak_at_every_step",
            "test_no_run_stands_still",
        },
        "is zero in a run of one step": {"test_no_run_stands_still"},
        "counts its calls": {
            "test_a_long_run_reaches_the_peak",
            "test_it_depends_on_the_step_alone",
            "test_two_runs_do_not_disturb_each_other",
        },
    }


COUNTER = """
from flops_fit_core.plugins import FlopCount, FlopCounterSpec, hookimpl
from flops_fit_core.testing import FlopCounterConformance

def build(options, measured):
    n = measured.parameters.matmul
    return COUNT

class Plugin:
    @hookimpl
    def flops_fit_flop_counters(self):
        yield FlopCounterSpec(name="broken", build=build)

class TestBroken(FlopCounterConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_counters_fail_the_kit(failures):
    counts = {
        "sound": "FlopCount(6.0 * n, n, '6 N D', 'matmul parameters')",
        "sound, recomputing": "FlopCount(8.0 * n, n, '8 N D', 'matmul parameters')",
        "omits the backward pass": "FlopCount(2.0 * n, n, '2 N D', 'matmul parameters')",
        "returns the FLOPs of a sequence": "FlopCount(6.0 * n * measured.task.context, n, '6 N D', 'matmul')",
        "returns N in millions": "FlopCount(6.0 * n, n / 1e6, '6 N D', 'millions')",
        "does not name its formula": "FlopCount(6.0 * n, n, '', '')",
        "has terms with another sum": "FlopCount(6.0 * n, n, '6 N D', 'matmul', {'head': 5.0 * n})",
        "returns the FLOPs of a batch": "FlopCount(6.0 * n * 8, n, '6 N D', 'matmul parameters')",
        "requires a context of the task": "FlopCount(6.0 * n + measured.task.context, n, '6 N D', 'matmul')",
        "allocates the model": "measured.module.to_empty(device='cpu') and FlopCount(6.0 * n, n, '6 N D', 'N')",
        "leaves the model in evaluation mode": "measured.module.eval() and FlopCount(6.0 * n, n, '6 N D', 'N')",
        "leaves a hook behind": (
            "measured.module.register_forward_hook(print) and FlopCount(6.0 * n, n, '6 N D', 'matmul parameters')"
        ),
        "assumes that every family counts": "FlopCount(1.0 * measured.own_flops_per_token, n, 'own', 'N')",
        "reads the weights": "FlopCount(6.0 * n * bool(next(measured.module.parameters()).sum()), n, 'C', 'N')",
    }
    failed = failures(COUNTER, {}, {name: {"COUNT": text} for name, text in counts.items()})
    both_tasks = {"test_it_counts_forward_and_backward", "test_a_model_of_images_is_counted_or_refused"}
    assert "test_it_counts_without_reading_or_changing_the_model" in failed.pop("reads the weights")
    assert failed == {
        "sound": set(),
        "sound, recomputing": set(),
        "omits the backward pass": both_tasks,
        "returns the FLOPs of a sequence": both_tasks,
        "returns N in millions": {"test_n_is_a_number_of_the_model_s_parameters"},
        "does not name its formula": {"test_it_says_what_it_counts"},
        "has terms with another sum": {"test_it_says_what_it_counts"},
        "returns the FLOPs of a batch": both_tasks,
        "requires a context of the task": {"test_a_model_of_images_is_counted_or_refused"},
        "allocates the model": {"test_it_counts_without_reading_or_changing_the_model"},
        "leaves the model in evaluation mode": {"test_it_counts_without_reading_or_changing_the_model"},
        "leaves a hook behind": {"test_it_counts_without_reading_or_changing_the_model"},
        "assumes that every family counts": {"test_a_family_that_does_not_describe_itself_is_counted_or_refused"},
    }


RECIPE = """
import random

from flops_fit_core import Hyperparameters
from flops_fit_core.plugins import Options, RecipeSpec, hookimpl
from flops_fit_core.testing import RecipeConformance

class Scaled(Options):
    lr: float = 0.01

def build(options, inputs):
    BEFORE
    return Hyperparameters(batch_size=BATCH, lr=LR, warmup_tokens=WARMUP)

class Plugin:
    @hookimpl
    def flops_fit_recipes(self):
        yield RecipeSpec(name="broken", options=Scaled, build=build, lr_option="lr")

class TestBroken(RecipeConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_recipes_fail_the_kit(failures: Failures) -> None:
    root = "max(1, round(inputs.tokens**0.5 / inputs.task.tokens_per_sample))"
    sound = {"BEFORE": "pass", "BATCH": root, "LR": "options.lr", "WARMUP": "inputs.tokens // 20"}
    failed = failures(
        RECIPE,
        sound,
        {
            "sound": {},
            "returns a batch in tokens": {"BATCH": "round(inputs.tokens**0.5 * 16)"},
            "has a warmup longer than a short run": {"WARMUP": "375_000_000"},
            "uses the global generator": {"LR": "options.lr * random.random()"},
            "ignores the option that tuning writes": {"LR": "0.003"},
            "works only for large models": {"LR": "options.lr * max(0, 1 - 1e6 / inputs.params)"},
            "fails if the user sets the learning rate": {"BEFORE": "assert inputs.lr is None"},
            "fails in a trunk": {"BEFORE": "assert not inputs.trunk"},
            "returns a dictionary": {"BEFORE": "return {'lr': 0.01}"},
            "caches the batch of a size": {
                "class Scaled": "KNOWN = {}\n\nclass Scaled",
                "BATCH": f"KNOWN.setdefault(inputs.params, {root})",
            },
            "returns its warmup in steps": {"WARMUP": "min(inputs.tokens, 2000)"},
            "needs a width": {"LR": "options.lr * (64 / inputs.width) ** 0.5"},
            "needs a vocabulary": {"BEFORE": "inputs.task.vocab_size"},
        },
    )
    values = "test_it_gives_values_that_a_run_can_have"
    tuned = "test_the_option_that_tuning_writes_multiplies_the_learning_rate"
    same = "test_the_same_run_gets_the_same_values"
    assert failed.pop("works only for large models") >= {values, tuned}
    assert failed.pop("returns a dictionary") >= {values, same}
    assert failed == {
        "sound": set(),
        "returns a batch in tokens": {values},
        "has a warmup longer than a short run": {values},
        "uses the global generator": {same, tuned, "test_what_the_user_has_set_is_not_contradicted"},
        "ignores the option that tuning writes": {tuned},
        "fails if the user sets the learning rate": {"test_what_the_user_has_set_is_not_contradicted"},
        "fails in a trunk": {"test_a_shared_stable_phase_is_served_too"},
        "caches the batch of a size": {same},
        "returns its warmup in steps": {"test_a_warmup_is_in_tokens"},
        "needs a width": {"test_any_run_is_served_or_refused"},
        "needs a vocabulary": {"test_any_run_is_served_or_refused"},
    }


DEVICE = """
from flops_fit_core.plugins import Device, DeviceSpec, hookimpl
from flops_fit_core.testing import DeviceConformance

class Broken(Device):
    torch_device, name, precision = DEVICE, NAME, PRECISION

    def synchronize(self):
        pass

    def peak_memory(self):
        return MEMORY

    def release(self):
        pass

    def peak_flops(self, precision):
        return FLOPS

class Plugin:
    @hookimpl
    def flops_fit_devices(self):
        yield DeviceSpec(name="broken", build=lambda options: Broken(), slots=lambda options: SLOTS,
                         devices_per_run=lambda options, size: COUNT)

class TestBroken(DeviceConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_devices_fail_the_kit(failures: Failures) -> None:
    sound = {
        "DEVICE": "'cpu'",
        "NAME": "'a CPU'",
        "PRECISION": "'float32'",
        "MEMORY": "None",
        "FLOPS": "None",
        "SLOTS": "[{}]",
        "COUNT": "1",
    }
    failed = failures(
        DEVICE,
        sound,
        {
            "sound": {},
            "is not a device of torch": {"DEVICE": "'gpu'"},
            "has an unknown precision": {"PRECISION": "'fast'"},
            "has no name": {"NAME": "''"},
            "returns memory in GiB": {"MEMORY": "0.5"},
            "returns its peak in TFLOP/s": {"FLOPS": "989.0"},
            "has no slot": {"SLOTS": "[]"},
            "has slots with values that are not text": {"SLOTS": "[{'CUDA_VISIBLE_DEVICES': 0}]"},
            "needs fewer devices for larger runs": {"COUNT": "2 if size < 2**25 else 1"},
            "returns memory in KiB": {"MEMORY": "__import__('resource').getrusage(0).ru_maxrss"},
            "declares float32 and computes in bfloat16": {
                "class Broken(Device):": "import torch\n\nclass Broken(Device):\n"
                "    def __init__(self):\n        torch.set_default_dtype(torch.bfloat16)\n",
            },
            "names its slots differently at each call": {
                "SLOTS": "[{'SLOT': str(CALLS())}]",
                "class Broken(Device):": (
                    "import itertools\nCALLS = itertools.count().__next__\n\nclass Broken(Device):"
                ),
            },
        },
    )
    computes, precision = "test_it_computes_where_it_says", "test_its_precision_is_one_that_it_computes_in"
    slots = "test_its_slots_are_environment_variables"
    assert failed.pop("is not a device of torch") >= {computes, precision}
    assert failed.pop("declares float32 and computes in bfloat16") >= {
        precision,
        "test_it_leaves_torch_s_defaults_alone",
    }
    assert failed == {
        "sound": set(),
        "has an unknown precision": {precision},
        "has no name": {"test_it_has_a_name_for_people"},
        "returns memory in GiB": {"test_memory_is_bytes_or_unknown"},
        "returns its peak in TFLOP/s": {"test_its_peak_is_of_a_real_processor_or_unknown"},
        "has no slot": {slots},
        "has slots with values that are not text": {slots},
        "returns memory in KiB": {"test_memory_is_bytes_or_unknown"},
        "names its slots differently at each call": {slots},
        "needs fewer devices for larger runs": {"test_a_larger_run_needs_no_fewer_devices"},
    }
