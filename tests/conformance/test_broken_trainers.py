"""The kit for trainers finds those that break their contract."""

from __future__ import annotations

import pytest
from conftest import Failures

TRAINER = """
import torch

from flops_fit_core.plugins import Trainer, TrainerSpec, hookimpl
from flops_fit_core.testing import TrainerConformance

class Broken(Trainer):
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
                CLEAR
                (loss / count).backward()
                parts.optimizer.step()
            MODE
            with torch.no_grad():
                held = [task.loss(task.outputs(parts.model, b), b) for b in HELD]
            mean = MEAN
            mean = FINITE
            yield context.result(run, "completed", loss=mean, tokens=TOKENS)
            AGAIN

class Plugin:
    @hookimpl
    def flops_fit_trainers(self):
        yield TrainerSpec(name="broken", build=lambda options: Broken(), can=frozenset(CAN))

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
        "CLEAR": "parts.optimizer.zero_grad()",
        "MODE": "parts.model.eval()",
        "HELD": "parts.dataset.eval_batches(256, 64)",
        "FINITE": "mean",
        "MEAN": "sum(float(loss) for loss, _ in held) / sum(count for _, count in held)",
        "TOKENS": "run.tokens",
        "AGAIN": "pass",
        "CAN": "()",
    }
    every_result = "test_every_run_gets_one_result_that_says_what_was_done"
    in_order = "test_it_trains_on_the_samples_of_its_run_in_order"
    as_used = "test_the_loss_is_of_the_model_as_it_is_used"
    one_step = "test_gradients_are_those_of_one_step"
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
        "evaluates with dropout": {"MODE": "pass"},
        "trains in evaluation mode": {
            "SEED": "before = None",
            "CLEAR": "parts.optimizer.zero_grad(); parts.model.eval()",
        },
        "adds up the gradients of all steps": {"CLEAR": "pass"},
        "takes the mean of means": {"MEAN": "sum(float(loss) / count for loss, count in held) / len(held)"},
        "gives bits": {"MEAN": "sum(float(loss) for loss, _ in held) / sum(count for _, count in held) / 0.6931"},
        "evaluates on one batch": {"HELD": "[next(iter(parts.dataset.eval_batches(256, 64)))]"},
    }
    expected = {
        "sound": set(),
        "leaves out the last step": {in_order, rates},
        "ignores the schedule": {rates},
        "reports the training loss": {"test_the_loss_is_that_of_held_out_data", as_used},
        "evaluates with dropout": {as_used},
        "trains in evaluation mode": {as_used},
        "takes the mean of means": {as_used},
        "gives bits": {as_used},
        "evaluates on one batch": {as_used},
        "gives a result twice": {every_result, as_used, one_step},
        "counts no tokens": {every_result},
        "goes on when it should stop": {"test_it_stops_when_it_is_asked_to"},
        "hides what a model raises": {"test_what_the_model_raises_is_the_error_of_its_run"},
        "completes what has diverged": {"test_a_loss_that_is_not_finite_does_not_complete"},
        "has batches of its own": {in_order},
        "claims checkpoints that it does not write": {"test_it_goes_on_where_it_was_stopped"},
    }
    names = list(cases) if every else ["sound", "leaves out the last step", "evaluates with dropout"]
    found = failures(TRAINER, sound, {name: cases[name] for name in names})
    if every:
        assert found.pop("trains every seed on the same data") >= {every_result}
        assert found.pop("adds up the gradients of all steps") >= {one_step}
    assert found == {name: expected[name] for name in found}
