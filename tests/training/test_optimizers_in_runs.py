"""Every optimizer in real training: resumed, on trunks, side by side, on two devices, evaluated on the way."""

from itertools import count

import pytest
import torch
from small import Bench, events, text_table, train, write_text

from flops_fit_core import RunResult
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed

NAMES = ("muon", "lion", "adafactor", "schedule-free")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"), files=10)


def table(text, name, steps=(30,), **changes):
    """Runs of a gpt of two blocks with so many steps, evaluated on the way."""
    per_step = 16 * 4
    flops = 3 * (2 * (24 * 8 * 8 + 4 * 16 * 8) + 2 * 8 * 256)  # of a token, as the family counts
    sweep = {"budgets": [flops * per_step * count for count in steps], "sizes": [{"width": 8}], "batch_size": 4}
    return text_table(
        text,
        sweep={**sweep, **changes.pop("sweep", {})},
        model={"depth": 2},
        optimizer={"name": name, "weight_decay": 0.1},
        trainer={"num_evals": 2, **changes.pop("trainer", {})},
        **changes,
    )


def stopped_after(steps):
    asked = count(1)
    return lambda: next(asked) > steps


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_stopped_again_and_again_ends_bit_identical(text, name, tmp_path):
    (uninterrupted,) = train(table(text, name))
    assert uninterrupted.status == "completed", uninterrupted.error
    rest = []
    for _ in range(5):
        rest += events(table(text, name), folder=tmp_path, should_stop=stopped_after(9), done=[r.id for r in rest])
        rest = [result for result in rest if isinstance(result, RunResult)]
        if rest:
            break
    (result,) = rest
    assert (result.loss, result.curve) == (uninterrupted.loss, uninterrupted.curve)


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_on_the_way_change_nothing(text, name):
    (watched,) = train(table(text, name, trainer={"num_evals": 7}))
    (plain,) = train(table(text, name, trainer={"num_evals": 0}))
    assert watched.loss == plain.loss
    assert len(watched.curve) == 8


WSD = {"schedule": {"name": "wsd", "decay": 0.25}}


@pytest.mark.parametrize(("name", "schedule"), [("muon", WSD), ("schedule-free", WSD), ("schedule-free", {})])
def test_a_branch_of_a_trunk_has_the_loss_of_the_run_alone_to_the_last_bit(text, name, schedule):
    changes = {**schedule, "recipe": {"name": "constant", "lr": 0.01, "warmup_tokens": 256}}
    shared = train(table(text, name, steps=(20, 33, 50), **changes))
    alone = train(table(text, name, steps=(20, 33, 50), sweep={"share_stable_phase": False}, **changes))
    assert sum(result.trained_tokens for result in shared) < sum(result.trained_tokens for result in alone)
    assert {result.id: (result.loss, result.curve) for result in shared} == {
        result.id: (result.loss, result.curve) for result in alone
    }


@pytest.mark.parametrize("name", NAMES)
def test_packed_runs_end_with_the_losses_of_separate_ones_within_rounding(text, name):
    seeds = {"sweep": {"seeds": [0, 1, 2]}}
    alone = train(table(text, name, **seeds))
    packed = train(table(text, name, trainer={"vmap_runs": 3}, **seeds))
    assert {result.vmap_runs for result in packed} == {3}
    # Newton-Schulz in bfloat16 makes more of a rounding, and the sign of a momentum near zero is either.
    within = {"muon": 5e-3, "lion": 5e-3}.get(name, 1e-4)
    for result, other in zip(packed, alone, strict=True):
        assert result.loss == pytest.approx(other.loss, rel=within)


SLOW = [pytest.param(name, "ddp", marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parallel"), [("muon", "fsdp"), ("lion", "fsdp"), ("schedule-free", "fsdp"), *SLOW]
)
def test_two_processes_reach_the_loss_of_one_within_rounding(text, name, parallel, tmp_path):
    (alone,) = train(table(text, name))
    (both,) = train(on_two(text, name, parallel), folder=tmp_path)
    assert both.status == "completed", both.error
    assert both.loss == pytest.approx(alone.loss, rel={"muon": 5e-3, "lion": 5e-3}.get(name, 1e-5))


def test_adafactor_says_that_it_needs_whole_weights_where_they_are_spread(text, tmp_path):
    (both,) = train(on_two(text, "adafactor", "fsdp"), folder=tmp_path)
    assert both.status == "failed"
    assert "optimizer 'adafactor' needs complete weights on its device" in both.error.message
    assert 'trainer.parallel = "ddp"' in both.error.message


def on_two(text, name, parallel):
    """Two processes of this machine."""
    return table(text, name, trainer={"parallel": parallel}, device={"name": "cpu", "devices_per_run": 2})


# ---------------------------------------------------------------------------- schedule-free


def test_the_held_out_loss_of_a_schedule_free_run_is_that_of_its_averaged_weights():
    """Compared with the package's own usage: step in train mode, evaluate in eval mode."""
    from schedulefree import AdamWScheduleFree

    bench = Bench()
    models = []
    bench.built.append(models.append)
    changes = {"optimizer": {"name": "schedule-free", "lr": 0.02}, "recipe": {"name": "constant"}}
    (result,) = train(bench.table(40, **changes), bench.registry())
    torch.manual_seed(0)
    own = bench.build_net(type("O", (), {"width": 8, "dropout": 0.0}), type("T", (), {"vocab_size": 12}))
    own.load_state_dict(initial_weights(bench))
    optimizer = AdamWScheduleFree(own.parameters(), lr=0.02)
    optimizer.train()
    for ids in bench.served[:40]:
        optimizer.zero_grad()
        logits = own(ids[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten().long()).backward()
        torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
        optimizer.step()
    trained = eval_data(bench, own)
    optimizer.eval()
    assert result.loss == pytest.approx(eval_data(bench, own), rel=1e-5)
    assert result.loss != pytest.approx(trained, rel=1e-3)


def initial_weights(bench):
    weights = []
    bench.built.append(lambda model: weights.append({k: v.clone() for k, v in model.state_dict().items()}))
    train(bench.table(1), bench.registry())
    return weights[-1]


def eval_data(bench, model):
    dataset = bench.build_walk(None, 0)
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten().long())
            for ids in dataset.eval_batches(400, 10**6)
        ]
    (loss,) = losses
    return float(loss)


def planned(text, **changes):
    experiment = text_table(text, **changes)
    return make_plan(make_experiment(experiment, installed()))


def test_a_schedule_free_run_has_a_constant_schedule_unless_another_one_is_asked_for(text):
    plan = planned(text, optimizer={"name": "schedule-free"})
    assert {run.schedule.name for run in plan.runs} == {"schedules/constant"}
    assert not [note for note in plan.notes if "is designed for schedule" in note]
    plan = planned(text, optimizer={"name": "schedule-free"}, schedule={"name": "cosine"})
    assert {run.schedule.name for run in plan.runs} == {"schedules/cosine"}
    (note,) = [note for note in plan.notes if "is designed for schedule" in note]
    assert "'optim/schedule-free' is designed for schedule 'schedules/constant'" in note
    assert "the experiment sets 'schedules/cosine'" in note


def test_a_checkpoint_of_a_schedule_free_run_is_in_train_mode(text, tmp_path):
    events(table(text, "schedule-free"), folder=tmp_path, should_stop=stopped_after(15))
    (file,) = tmp_path.rglob("latest.pt")
    groups = torch.load(file, weights_only=True)["optimizer"]["param_groups"]
    assert {group["train_mode"] for group in groups} == {True}
