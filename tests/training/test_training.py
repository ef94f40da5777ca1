"""One run, from its seed to its result."""

import gc
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Bench, events, text_table, train, write_text

from flops_fit_core import Progress, RunResult
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.training import work


@pytest.fixture
def bench():
    return Bench()


def train_run(bench, steps=60, batch_size=8, **changes):
    (result,) = train(bench.table(steps, batch_size, **changes), bench.registry())
    return result


# ---------------------------------------------------------------------------- contents of a result


def test_one_seed_gives_one_loss_to_the_last_bit_and_another_seed_another(tmp_path):
    text = write_text(tmp_path / "text")
    table = text_table(text, sweep={"seeds": [0, 1], "sizes": [{"width": 8}]})
    first, second = train(table), train(table)
    assert [result.loss for result in first] == [result.loss for result in second]
    assert first[0].loss != first[1].loss
    assert all(result.status == "completed" for result in first)


def test_a_result_reports_the_tokens_that_were_taken_and_their_flops(bench):
    result = train_run(bench, steps=37, batch_size=6)
    assert len(bench.served) == 37
    assert result.tokens == sum(batch[:, 1:].numel() for batch in bench.served) == 37 * 6 * 8
    # The embedding is looked up, so N is the head's 12 x 8 matrix and its 12 biases.
    assert result.flops == 6 * 108 * result.tokens
    assert result.run.tokens == result.tokens
    assert result.unique_tokens == result.tokens
    assert result.parameters.total == 12 * 8 + 108


def test_unique_tokens_are_at_most_those_there_are(bench):
    bench.cut = 4001
    result = train_run(bench, steps=100, batch_size=8, sweep={"allow_repeat": True})
    assert result.tokens == 6400
    assert result.unique_tokens == 4000


def test_heldout_loss_is_what_a_computation_by_hand_over_the_same_windows_gives(bench):
    models = []
    bench.built.append(models.append)
    result = train_run(bench)
    embedding, _, head = models[-1]
    table = embedding.weight.detach().double().numpy()
    weight, bias = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    held = bench.row[bench.cut :].astype(int)
    whole_windows = (len(held) - 1) // 8
    wanted = 400 // 8
    losses = []
    for k in range(wanted):
        window = (2 * k + 1) * whole_windows // (2 * wanted)
        ids = held[window * 8 : window * 8 + 9]
        logits = table[ids[:-1]] @ weight.T + bias
        losses += list(np.log(np.exp(logits).sum(1)) - logits[np.arange(8), ids[1:]])
    assert result.eval_tokens == len(losses) == 400
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(np.mean(losses) / math.log(2) / 0.5, rel=1e-6)


def test_training_learns_what_can_be_learned(bench):
    # The entropy of the steps is the least loss there is; a uniform guess costs ln 12.
    entropy = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    result = train_run(bench, steps=550, optimizer={"lr": 0.03})
    assert entropy - 0.05 < result.loss < entropy + 0.1 < math.log(12)


def test_a_result_says_where_and_with_what_it_was_trained(bench):
    result = train_run(bench)
    assert result.device.startswith("CPU")
    assert result.precision == "float32"
    assert result.versions["torch"] == torch.__version__
    assert result.flops_name == "6 N D"
    assert result.params_name
    assert result.seconds > 0
    assert result.flops_per_second > 0
    assert RunResult.model_validate_json(result.model_dump_json()) == result


# ---------------------------------------------------------------------------- evaluation


def test_evaluation_on_the_way_changes_nothing(bench):
    # Dropout draws random numbers in every step: one draw more or less would change the rest of the run.
    sizes = [{"width": 8, "dropout": 0.3}]
    plain = train_run(bench, sweep={"sizes": sizes})
    watched = train_run(bench, sweep={"sizes": sizes}, trainer={"num_evals": 3})
    assert watched.loss == plain.loss
    assert [point.step for point in watched.curve] == [15, 30, 45, 60]
    assert [point.tokens for point in watched.curve] == [960, 1920, 2880, 3840]
    assert watched.curve[-1].loss == watched.loss
    assert watched.curve[0].loss > watched.loss
    assert [point.step for point in plain.curve] == [60]


def test_the_batch_size_of_evaluation_changes_no_loss(bench):
    small = train_run(bench, trainer={"eval_batch_tokens": 24})
    large = train_run(bench, trainer={"eval_batch_tokens": 4000})
    assert small.loss == pytest.approx(large.loss, rel=1e-6)
    assert small.id == large.id
    assert small.runtime["trainer"] == {"eval_batch_tokens": 24}


# ---------------------------------------------------------------------------- divergence


def test_a_loss_that_is_not_a_number_ends_a_run_as_diverged(tmp_path):
    text = write_text(tmp_path / "text")
    table = text_table(text, optimizer={"lr": 1e30}, sweep={"sizes": [{"width": 8}]})
    (result,) = train(table)
    assert result.status == "diverged"
    assert result.loss is None
    assert result.bits_per_byte is None
    assert result.error is None
    assert 0 < result.tokens <= result.run.tokens
    assert result.flops == result.run.flops_per_token * result.tokens


def test_a_loss_that_explodes_ends_a_run_as_diverged_before_its_end(bench):
    result = train_run(
        bench, steps=400, optimizer={"lr": 50.0}, schedule={"name": "constant"}, recipe={"warmup": 0.0}
    )
    assert result.status == "diverged"
    assert result.loss is None
    assert result.tokens == 64 * len(bench.served) < result.run.tokens


def test_one_bad_batch_is_no_divergence(bench):
    def spoil(model):
        calls = iter(range(10**6))

        def forward_hook(module, inputs, output):
            if torch.is_grad_enabled() and next(calls) == 20:
                return output * 200.0
            return output

        model.register_forward_hook(forward_hook)

    bench.built.append(spoil)
    result = train_run(bench, steps=100, trainer={"grad_clip": 0.01})
    assert result.status == "completed"


def test_a_run_that_ends_far_above_its_start_has_diverged(bench):
    # Two steps: too few for anything but the held-out loss to tell.
    result = train_run(bench, steps=2, optimizer={"lr": 300.0}, recipe={"warmup": 0.0}, schedule="constant")
    assert result.status == "diverged"


# ---------------------------------------------------------------------------- the step


@pytest.mark.parametrize("clip", [1e-3, 1e-2])
def test_the_gradient_is_clipped_to_the_norm_that_was_asked_for(bench, clip):
    moved = one_step_of_descent(bench, clip)
    assert moved == pytest.approx(clip, rel=1e-3)


def test_without_clipping_the_gradient_is_used_as_it_is(bench):
    assert one_step_of_descent(bench, None) == one_step_of_descent(bench, 1e6) > 0.1


def one_step_of_descent(bench, clip):
    """How far one step of plain gradient descent at learning rate 1 moves the weights."""
    kept = []
    bench.built.append(lambda model: kept.append((model, [p.detach().clone() for p in model.parameters()])))
    train_run(
        bench,
        steps=1,
        optimizer={"name": "sgd", "lr": 1.0},
        schedule={"name": "constant"},
        recipe={"warmup": 0.0},
        trainer={"grad_clip": clip},
    )
    bench.built.pop()
    model, before = kept[-1]
    moves = [(after.detach() - start).flatten() for after, start in zip(model.parameters(), before, strict=True)]
    return float(torch.cat(moves).norm())


def test_bfloat16_runs_on_a_cpu_and_says_so(bench):
    exact = train_run(bench)
    coarse = train_run(bench, trainer={"precision": "bfloat16"})
    assert coarse.precision == "bfloat16"
    assert coarse.id != exact.id
    assert coarse.loss == pytest.approx(exact.loss, rel=0.02)
    assert coarse.loss != exact.loss


# ---------------------------------------------------------------------------- what can go wrong


def failing(message):
    def spoil(model):
        def hook(module, inputs):
            if torch.is_grad_enabled():
                raise OSError(message)

        model.register_forward_pre_hook(hook)

    return spoil


def test_a_model_that_raises_gives_a_failed_result_with_its_traceback(bench):
    bench.built.append(failing("the disk is full"))
    result = train_run(bench)
    assert result.status == "failed"
    assert (result.error.type, result.error.message) == ("OSError", "the disk is full")
    assert "in hook" in result.error.traceback
    assert result.loss is None


def test_data_that_changed_after_planning_fails_the_run(bench):
    registry = bench.registry()
    plan = make_plan(make_experiment(bench.table(), registry))
    bench.fingerprint = "another walk"
    (result,) = work_on(plan, registry)
    assert result.status == "failed"
    assert "data has changed since this run was planned" in result.error.message
    assert "plan again" in result.error.message
    assert bench.served == []


def test_a_model_that_changed_after_planning_fails_the_run(bench):
    registry = bench.registry()
    plan = make_plan(make_experiment(bench.table(), registry))
    bench.built.append(lambda model: model.append(torch.nn.Linear(12, 12)))
    (result,) = work_on(plan, registry)
    assert result.status == "failed"
    assert "N = 264, but was planned with N = 108" in result.error.message


def test_a_model_that_counts_its_flops_otherwise_than_planned_fails_the_run(tmp_path):
    registry = Bench().registry()
    table = text_table(write_text(tmp_path / "text"), sweep={"sizes": [{"width": 8}]})
    plan = make_plan(make_experiment(table, registry))
    (run,) = plan.runs
    other = plan.model_copy(
        update={"runs": (run.model_copy(update={"flops_per_token": run.flops_per_token * 2}),)}
    )
    (result,) = work_on(other, registry)
    assert result.status == "failed"
    assert "FLOPs per token" in result.error.message


def work_on(plan, registry):
    (job,) = plan.jobs({run.id for run in plan.runs})
    setup = registry.setup.model_dump_json()
    return [
        event
        for event in work(job.model_dump_json(), setup, objects=registry.objects, folder=Path())
        if isinstance(event, RunResult)
    ]


def test_a_run_that_is_asked_to_stop_ends_without_a_result(bench):
    outcomes = events(bench.table(steps=500), bench.registry(), should_stop=lambda: len(bench.served) >= 40)
    assert not any(isinstance(event, RunResult) for event in outcomes)
    assert 40 <= len(bench.served) < 60


def test_progress_says_how_far_a_run_is(bench, monkeypatch):
    monkeypatch.setattr("flops_fit_core.training.throughput.PROGRESS_SECONDS", 0.0)
    progress = [event for event in events(bench.table(steps=50), bench.registry()) if isinstance(event, Progress)]
    assert len(progress) > 10
    assert all(event.steps == 50 and event.tokens == 64 * event.step and event.loss > 0 for event in progress)


def test_nothing_of_a_run_stays_in_memory(bench):
    models = []
    bench.built.append(lambda model: models.append(weakref.ref(model)))
    train_run(bench)
    gc.collect()
    assert models
    assert all(model() is None for model in models)


def test_nothing_of_a_failed_run_stays_in_memory(bench):
    models = []
    bench.built.append(failing("no"))
    bench.built.append(lambda model: models.append(weakref.ref(model)))
    train_run(bench)
    gc.collect()
    assert models
    assert all(model() is None for model in models)


@pytest.mark.parametrize("vmap_runs", [1, 2])
def test_a_model_is_freed_before_the_next_one_is_built(bench, vmap_runs):
    models, alive = [], []

    def count_models(model):
        alive.append(sum(earlier() is not None for earlier in models))
        models.append(weakref.ref(model))

    bench.built.append(count_models)
    one_step = bench.table(1)["sweep"]["budgets"][0]
    table = bench.table(
        sweep={"budgets": [20 * one_step, 40 * one_step], "seeds": [0, 1]},
        schedule={"name": "wsd", "decay": 0.25},
        trainer={"vmap_runs": vmap_runs},
    )
    results = train(table, bench.registry())
    assert [(result.status, result.vmap_runs) for result in results] == [("completed", vmap_runs)] * 4
    assert alive[-4:] == ([0, 0, 0, 0] if vmap_runs == 1 else [0, 1, 0, 1])  # earlier builds are those of the plan


def test_further_heldout_sets_are_measured_at_the_end(tmp_path):
    text = write_text(tmp_path / "text")
    other = write_text(tmp_path / "other", files=2)
    table = text_table(text, sweep={"sizes": [{"width": 8}]})
    table["dataset"] |= {"eval_sets": {"other": str(other / "*.txt")}}
    (result,) = train(table)
    assert set(result.losses) == {"other"}
    assert result.losses["other"] == pytest.approx(result.loss, rel=0.1)
    assert result.losses["other"] != result.loss
