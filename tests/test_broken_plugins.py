"""The kits for trainers, executors, recipes, devices and fitters find those that break their contract."""

from __future__ import annotations

import pytest
from conftest import Failures

TRAINER = """
import torch

from flops_fit_core import TrainerSpec, hookimpl
from flops_fit_core.testing import TrainerConformance

class Trainer:
    def train(self, job, context):
        for run in RUNS:
            SEED
            parts = context.build(run)
            task, groups = parts.dataset.task, parts.optimizer.param_groups
            peaks = [group["lr"] for group in groups]
            batches = parts.dataset.batches(BATCH)
            for step in range(STEPS):
                if STOP:
                    return
                for group, peak in zip(groups, peaks, strict=True):
                    group["lr"] = RATE
                batch = next(batches)
                try:
                    loss, count = task.loss(task.outputs(parts.model, batch), batch)
                except RuntimeError:
                    HIDE
                parts.optimizer.zero_grad()
                (loss / count).backward()
                parts.optimizer.step()
            with torch.no_grad():
                held = [task.loss(task.outputs(parts.model, b), b) for b in HELD]
            mean = sum(float(loss) for loss, _ in held) / sum(count for _, count in held)
            mean = FINITE
            yield context.result(run, "completed", loss=mean, tokens=TOKENS)
            AGAIN

class Plugin:
    @hookimpl
    def flops_fit_trainers(self):
        yield TrainerSpec(name="broken", build=lambda options: Trainer(), can=frozenset(CAN))

class TestBroken(TrainerConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])
def test_broken_trainers_are_caught(failures: Failures, every: bool) -> None:
    sound = {
        "RUNS": "job.runs",
        "SEED": "pass",
        "BATCH": "run.batch_size",
        "STEPS": "run.steps",
        "STOP": "context.should_stop()",
        "RATE": "peak * parts.schedule(step)",
        "HIDE": "raise",
        "HELD": "parts.dataset.heldout(256, 64)",
        "FINITE": "mean",
        "TOKENS": "run.tokens",
        "AGAIN": "pass",
        "CAN": "()",
    }
    every_result = "test_every_run_gets_one_result_that_says_what_was_done"
    in_order = "test_it_trains_on_the_samples_of_its_run_in_order"
    rates = "test_the_learning_rate_follows_the_schedule"
    cases: dict[str, dict[str, str]] = {
        "sound": {},
        "leaves out the last step": {"STEPS": "run.steps - 1"},
        "ignores the schedule": {"RATE": "peak"},
        "reports the training loss": {"HELD": "[batch]"},
        "gives a result twice": {"AGAIN": "yield context.result(run, 'completed', loss=mean, tokens=run.tokens)"},
        "counts no tokens": {"TOKENS": "0"},
        "goes on when it should stop": {"STOP": "False"},
        "trains every seed on the same data": {
            "SEED": "run = run.model_copy(update={'seed': 0})",
            "AGAIN": "pass",
        },
        "hides what a model raises": {"HIDE": "yield context.result(run, 'diverged'); return"},
        "completes what has diverged": {"FINITE": "mean if mean == mean else 9.9"},
        "has batches of its own": {"BATCH": "4"},
        "claims checkpoints that it does not write": {"CAN": "['checkpoint']"},
    }
    expected = {
        "sound": set(),
        "leaves out the last step": {in_order, rates},
        "ignores the schedule": {rates},
        "reports the training loss": {"test_the_loss_is_that_of_held_out_data"},
        "gives a result twice": {every_result},
        "counts no tokens": {every_result},
        "goes on when it should stop": {"test_it_stops_when_it_is_asked_to"},
        "hides what a model raises": {"test_what_the_model_raises_is_the_error_of_its_run"},
        "completes what has diverged": {"test_a_loss_that_is_not_finite_does_not_complete"},
        "has batches of its own": {in_order},
        "claims checkpoints that it does not write": {"test_it_goes_on_where_it_was_stopped"},
    }
    names = list(cases) if every else ["sound", "leaves out the last step", "reports the training loss"]
    found = failures(TRAINER, sound, {name: cases[name] for name in names})
    if every:
        assert found.pop("trains every seed on the same data") >= {every_result}
    assert found == {name: expected[name] for name in found}


EXECUTOR = """
from collections import deque

from flops_fit_core import ExecutorSpec, JobEnded, RunResult, hookimpl, work
from flops_fit_core.testing import ExecutorConformance

class Executor:
    capacity = 1

    def __init__(self, context):
        self.context, self.waiting, self.running, self.cancelled = context, deque(), None, set()

    def submit(self, job):
        SUBMIT

    def events(self, timeout):
        while self.running or self.waiting:
            self.running = self.running or self.work_on(self.waiting.popleft())
            for event in self.running:
                yield event
            self.running = None

    def work_on(self, job):
        BEFORE
        for event in work(job.model_dump_json(), self.context.plugins, objects=self.context.live,
                          folder=self.context.folder, should_stop=lambda: STOP):
            EVENT
        yield JobEnded(job.id, REASON)
        AFTER

    def cancel(self, job_id):
        self.cancelled.add(job_id)

    def close(self):
        self.waiting.clear()
        self.running = None

class Plugin:
    @hookimpl
    def flops_fit_executors(self):
        yield ExecutorSpec(name="broken", build=lambda options, context: Executor(context))

class TestBroken(ExecutorConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
    isolated = False
"""


@pytest.mark.slow
def test_broken_executors_are_caught(failures: Failures) -> None:
    sound = {
        "SUBMIT": "self.waiting.append(job)",
        "BEFORE": "pass",
        "STOP": "job.id in self.cancelled",
        "EVENT": "yield event",
        "REASON": "'cancelled' if job.id in self.cancelled else None",
        "AFTER": "pass",
    }
    found = failures(
        EXECUTOR,
        sound,
        {
            "sound": {},
            "returns a job twice": {"SUBMIT": "self.waiting.extend([job, job])"},
            "ends a job twice": {"AFTER": "yield JobEnded(job.id)"},
            "ends a job before its results": {"BEFORE": "yield JobEnded(job.id)", "REASON": "'again'"},
            "loses results": {"EVENT": "None if isinstance(event, RunResult) else (yield event)"},
            "loses what is submitted later": {"SUBMIT": "self.running or self.waiting.append(job)"},
            "cannot cancel": {"STOP": "False"},
            "gives no reason": {"REASON": "None"},
        },
    )
    once = "test_every_job_gives_its_results_and_ends_exactly_once"
    later = "test_jobs_may_be_submitted_while_events_are_read"
    cancelled = "test_a_cancelled_job_ends_and_others_go_on"
    assert found == {
        "sound": set(),
        "returns a job twice": {once, later, cancelled},
        "ends a job twice": {once, later, cancelled},
        "ends a job before its results": {once, later, cancelled},
        "loses results": {once, later, cancelled},
        "loses what is submitted later": {later},
        "cannot cancel": {cancelled},
        "gives no reason": {cancelled},
    }


RECIPE = """
import random

from flops_fit_core import Hyperparameters, Options, RecipeSpec, hookimpl
from flops_fit_core.testing import RecipeConformance

class Scaled(Options):
    lr: float = 0.01

def build(options, about):
    TROUBLE
    return Hyperparameters(batch_size=BATCH, lr=LR, warmup_tokens=WARMUP)

class Plugin:
    @hookimpl
    def flops_fit_recipes(self):
        yield RecipeSpec(name="broken", options=Scaled, build=build, lr_option="lr")

class TestBroken(RecipeConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_recipes_are_caught(failures: Failures) -> None:
    root = "max(1, round(about.tokens**0.5 / about.task.tokens_per_sample))"
    sound = {"TROUBLE": "pass", "BATCH": root, "LR": "options.lr", "WARMUP": "about.tokens // 20"}
    found = failures(
        RECIPE,
        sound,
        {
            "sound": {},
            "gives a batch in tokens": {"BATCH": "round(about.tokens**0.5 * 16)"},
            "has a warmup longer than a short run": {"WARMUP": "375_000_000"},
            "follows the global generator": {"LR": "options.lr * random.random()"},
            "ignores the option that tuning writes": {"LR": "0.003"},
            "is made for large models": {"LR": "options.lr * max(0, 1 - 1e6 / about.params)"},
            "forgets that a user may have chosen": {"TROUBLE": "assert about.lr is None"},
            "knows no trunk": {"TROUBLE": "assert not about.trunk"},
            "gives a dictionary": {"TROUBLE": "return {'lr': 0.01}"},
        },
    )
    values = "test_it_gives_values_that_a_run_can_have"
    tuned = "test_the_option_that_tuning_writes_multiplies_the_learning_rate"
    same = "test_the_same_run_gets_the_same_values"
    assert found.pop("is made for large models") >= {values, tuned}
    assert found.pop("gives a dictionary") >= {values, same}
    assert found == {
        "sound": set(),
        "gives a batch in tokens": {values},
        "has a warmup longer than a short run": {values},
        "follows the global generator": {same, tuned, "test_what_the_user_has_set_is_not_contradicted"},
        "ignores the option that tuning writes": {tuned},
        "forgets that a user may have chosen": {"test_what_the_user_has_set_is_not_contradicted"},
        "knows no trunk": {"test_a_trunk_is_served_too"},
    }


DEVICE = """
from flops_fit_core import DeviceSpec, hookimpl
from flops_fit_core.testing import DeviceConformance

class Device:
    torch_device, name, precision = WHERE, NAME, PRECISION

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
        yield DeviceSpec(name="broken", build=lambda options: Device(), slots=lambda options: SLOTS,
                         devices_per_run=lambda options, size: COUNT)

class TestBroken(DeviceConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_devices_are_caught(failures: Failures) -> None:
    sound = {
        "WHERE": "'cpu'",
        "NAME": "'a CPU'",
        "PRECISION": "'float32'",
        "MEMORY": "None",
        "FLOPS": "None",
        "SLOTS": "[{}]",
        "COUNT": "1",
    }
    found = failures(
        DEVICE,
        sound,
        {
            "sound": {},
            "is none of torch's": {"WHERE": "'gpu'"},
            "has a precision of its own": {"PRECISION": "'fast'"},
            "has no name": {"NAME": "''"},
            "gives memory in GiB": {"MEMORY": "0.5"},
            "gives its peak in TFLOP/s": {"FLOPS": "989.0"},
            "has no place": {"SLOTS": "[]"},
            "has places that no environment can hold": {"SLOTS": "[{'CUDA_VISIBLE_DEVICES': 0}]"},
            "needs fewer devices for larger runs": {"COUNT": "2 if size < 2**25 else 1"},
        },
    )
    computes, precision = "test_it_computes_where_it_says", "test_its_precision_is_one_that_it_computes_in"
    places = "test_its_places_are_environment_variables"
    assert found.pop("is none of torch's") >= {computes, precision}
    assert found == {
        "sound": set(),
        "has a precision of its own": {precision},
        "has no name": {"test_it_has_a_name_for_people"},
        "gives memory in GiB": {"test_memory_is_bytes_or_unknown"},
        "gives its peak in TFLOP/s": {"test_its_peak_is_of_a_real_processor_or_unknown"},
        "has no place": {places},
        "has places that no environment can hold": {places},
        "needs fewer devices for larger runs": {"test_a_larger_run_needs_no_fewer_devices"},
    }


FITTER = """
import math

from flops_fit_core import FitError, FitterSpec, Interval, LawFit, Optimum, hookimpl
from flops_fit_core.fitting import IsoflopFitter
from flops_fit_core.testing import FitterConformance

class Fitter:
    def __init__(self):
        self.inner = IsoflopFitter(draws=50, name="mine/broken")
        self.calls = 0

    def fit(self, observations):
        self.calls += 1
        GIVEN
        fit = self.inner.fit(observations)
        return fit.model_copy(update=dict(CHANGES))

    def optimum(self, fit, flops):
        best = self.inner.optimum(fit, FLOPS)
        return Optimum(flops=flops, params=PARAMS, tokens=TOKENS, loss=LOSS)

class Plugin:
    @hookimpl
    def flops_fit_fitters(self):
        yield FitterSpec(name="broken", build=lambda options: Fitter())

class TestBroken(FitterConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_fitters_are_caught(failures: Failures) -> None:
    sound = {
        "GIVEN": "pass",
        "CHANGES": "",
        "FLOPS": "flops",
        "PARAMS": "best.params",
        "TOKENS": "best.tokens",
        "LOSS": "best.loss",
    }
    finds, costs = (
        "test_it_finds_the_law_that_the_runs_have",
        "test_an_optimum_costs_its_budget_and_has_the_surface_s_loss",
    )
    named, same = (
        "test_every_run_is_fitted_or_named_as_left_out",
        "test_the_same_runs_in_any_order_give_the_same_fit",
    )
    few = "test_too_few_runs_are_refused"
    found = failures(
        FITTER,
        sound,
        {
            "sound": {},
            "is off by a factor": {"PARAMS": "Interval(value=1.5 * best.params.value)"},
            "forgets that C is 6 N D": {"TOKENS": "Interval(value=flops / best.params.value)"},
            "gives ln L": {"LOSS": "Interval(value=math.log(best.loss.value))"},
            "swaps a and b": {"CHANGES": "exponents={'a': fit.exponents['b'], 'b': fit.exponents['a']}"},
            "drops runs in silence": {"GIVEN": "observations = observations[:-2]"},
            "depends on the order": {
                "GIVEN": "observations = observations[:29] if self.calls == 3 else observations"
            },
            "remembers earlier fits": {"CHANGES": "seed=self.calls"},
            "has an interval beside its estimate": {
                "PARAMS": "Interval(value=best.params.value, low=2 * best.params.value, high=1e99)"
            },
            "fits anything": {
                "GIVEN": "observations = observations if len(observations) > 2 else STUDY",
                "class Fitter:": "STUDY = FitterConformance().observations(0.0)\nclass Fitter:",
            },
            "says the name of another": {"CHANGES": "fitter=fit.fitter.model_copy(update={'name': 'isoflop'})"},
            "keeps to itself what it needs to predict": {
                "FLOPS": "flops if fit is self.last else 10 * flops",
                "return fit.model_copy(update=dict())": "self.last = fit; return fit",
            },
        },
    )
    assert found.pop("is off by a factor") >= {finds, costs}
    assert found.pop("drops runs in silence") >= {named}
    assert found == {
        "sound": set(),
        "forgets that C is 6 N D": {costs},
        "gives ln L": {costs},
        "swaps a and b": {"test_its_exponents_are_those_of_the_law"},
        "depends on the order": {same},
        "remembers earlier fits": {same},
        "has an interval beside its estimate": {"test_intervals_hold_their_estimate"},
        "fits anything": {few},
        "says the name of another": {"test_it_says_what_it_fitted"},
        "keeps to itself what it needs to predict": {"test_a_fit_survives_json", same},
    }
