"""Runs of one shape trained side by side as one model."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from small import Bench, events, text_table, train, write_text

from flops_fit_core import Job, PluginChoice, RunResult
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed
from flops_fit_core.training import work

SEEDS = [0, 1, 2, 3]


def losses(results):
    return {one.id: one.loss for one in results}


def table(bench, vmap_runs, **changes):
    one_step = bench.table(1)["sweep"]["budgets"][0]
    sweep = {"budgets": [40 * one_step, 90 * one_step], "seeds": SEEDS} | changes.pop("sweep", {})
    return bench.table(
        sweep=sweep,
        schedule={"name": "wsd", "warmup_tokens": 640},
        trainer={"num_evals": 2} | ({"vmap_runs": vmap_runs} if vmap_runs > 1 else {}),
        **changes,
    )


def test_packed_runs_end_with_the_losses_of_separate_ones_within_rounding():
    alone = train(table(Bench(), 1), Bench().registry())
    packed = train(table(Bench(), 4), Bench().registry())
    assert losses(packed) == pytest.approx(losses(alone), rel=1e-5)
    assert {one.vmap_runs for one in packed} == {4}
    assert {one.vmap_runs for one in alone} == {1}
    curves = {one.id: one.curve for one in alone}
    for one in packed:
        assert [point.step for point in one.curve] == [point.step for point in curves[one.id]]
        assert [point.loss for point in one.curve] == pytest.approx(
            [point.loss for point in curves[one.id]], rel=1e-5
        )
        assert one.tokens == one.run.tokens


class Tied(Bench):
    """Its head has the embedding's weight: one parameter under two names, as in a GPT-2."""

    def build_net(self, options, task):
        model = super().build_net(options, task)
        model[2].weight = model[0].weight
        return model


def test_a_model_whose_modules_share_a_weight_packs_too():
    alone = train(table(Tied(), 1), Tied().registry())
    packed = train(table(Tied(), 4), Tied().registry())
    assert {(one.status, one.vmap_runs) for one in packed} == {("completed", 4)}
    assert losses(packed) == pytest.approx(losses(alone), rel=1e-5)


def test_a_gpt_packs_too(tmp_path):
    text = write_text(tmp_path / "text")
    sweep = {"seeds": [0, 1, 2], "sizes": [{"width": 8}]}
    alone = train(text_table(text, sweep=sweep))
    packed = train(text_table(text, sweep=sweep, trainer={"vmap_runs": 3}))
    assert {one.vmap_runs for one in packed} == {3}
    assert losses(packed) == pytest.approx(losses(alone), rel=1e-4)


def test_only_runs_of_one_shape_are_packed():
    bench = Bench()
    one_step = bench.table(1)["sweep"]["budgets"][0]
    changes = {"sizes": [{"width": 8}, {"width": 12}], "budgets": [150 * one_step, 300 * one_step]}
    plan = make_plan(make_experiment(table(bench, 3, sweep=changes), bench.registry()))
    jobs = plan.jobs({run.id for run in plan.runs})
    assert sorted(len(job.trajectories) for job in jobs) == [1, 1, 3, 3]
    for job in jobs:
        assert len({run.size for run in job.runs}) == 1
    assert sorted(run.id for job in jobs for run in job.runs) == sorted(run.id for run in plan.runs)


def test_learning_rates_and_decays_may_differ_and_other_options_may_not():
    bench = Bench()

    def shape(**options):
        optimizer = {"name": "adamw", "lr": 0.01, **options}
        plan = make_plan(make_experiment(bench.table(50, optimizer=optimizer), bench.registry()))
        return plan.trajectories[0].shape

    assert shape() == shape(lr=0.02) == shape(weight_decay=0.3)
    assert shape() != shape(betas=[0.8, 0.9])


def test_packing_changes_no_id_and_no_trajectory():
    bench = Bench()
    plans = [make_plan(make_experiment(table(bench, vmap_runs), bench.registry())) for vmap_runs in (1, 4)]
    assert [run.id for run in plans[0].runs] == [run.id for run in plans[1].runs]
    assert plans[0].flops == plans[1].flops


def side_by_side(plans, registry):
    """Results of one run of each plan, trained as one job."""
    job = Job(
        id="together",
        trajectories=tuple(plan.trajectories[0] for plan in plans),
        device=PluginChoice(name="devices/cpu"),
    )
    with TemporaryDirectory() as folder:
        said = work(
            job.model_dump_json(),
            registry.setup.model_dump_json(),
            objects=registry.objects,
            folder=Path(folder),
        )
        return {one.id: one for one in said if isinstance(one, RunResult)}


def plan_at(bench, **changes):
    return make_plan(make_experiment(bench.table(60, **changes), bench.registry()))


def test_each_of_a_pack_keeps_its_own_learning_rate_and_clipping():
    bench = Bench()
    rates = [{"optimizer": {"lr": lr}} for lr in (0.003, 0.03)]
    alone = [losses(train(bench.table(60, **rate), bench.registry())) for rate in rates]
    packed = side_by_side([plan_at(bench, **rate) for rate in rates], bench.registry())
    assert losses(packed.values()) == pytest.approx(alone[0] | alone[1], rel=1e-5)
    assert len({one.loss for one in packed.values()}) == 2


def test_a_pack_that_is_stopped_ends_as_one_that_was_not(tmp_path):
    def stop_after(count):
        calls = iter(range(10_000))
        return lambda: next(calls) > count

    bench = Bench()
    whole = train(table(bench, 4), bench.registry())
    first = events(table(Bench(), 4), Bench().registry(), tmp_path, should_stop=stop_after(55))
    done = [one for one in first if isinstance(one, RunResult)]
    rest = train(table(Bench(), 4), Bench().registry(), tmp_path, done={one.id for one in done})
    assert losses(done + rest) == losses(whole)
    assert {one.vmap_runs for one in rest} == {4}


def test_one_that_diverges_leaves_the_others_alone():
    bench = Bench()
    plans = [plan_at(bench, optimizer={"lr": lr}) for lr in (0.01, 1e30)]
    (alone,) = train(bench.table(60, optimizer={"lr": 0.01}), bench.registry())
    found = side_by_side(plans, bench.registry())
    assert found[plans[0].runs[0].id].loss == pytest.approx(alone.loss, rel=1e-5)
    assert found[plans[1].runs[0].id].status == "diverged"


def test_a_first_run_that_diverges_in_the_shared_phase_leaves_the_others_alone():
    bench = Bench()
    one_step = bench.table(1)["sweep"]["budgets"][0]
    changes = {"sweep": {"budgets": [40 * one_step, 90 * one_step]}, "schedule": {"name": "wsd", "decay": 0.25}}
    plans = [plan_at(bench, optimizer={"lr": lr}, **changes) for lr in (1e30, 0.01)]
    results = side_by_side(plans, bench.registry())
    alone = train(bench.table(60, optimizer={"lr": 0.01}, **changes), bench.registry())
    assert [results[run.id].status for run in plans[0].runs] == ["diverged", "diverged"]
    assert [results[run.id].trained_tokens for run in plans[0].runs][1] == 0
    assert [results[run.id].loss for run in plans[1].runs] == pytest.approx([one.loss for one in alone], rel=1e-5)
    assert [results[run.id].vmap_runs for run in plans[1].runs] == [2, 1]


def test_trajectories_of_other_shapes_in_one_job_are_trained_one_after_another():
    bench = Bench()
    plans = [plan_at(bench), plan_at(bench, optimizer={"lr": 0.02, "betas": [0.8, 0.9]})]
    found = side_by_side(plans, bench.registry())
    assert {one.vmap_runs for one in found.values()} == {1}
    (alone,) = train(bench.table(60), bench.registry())
    assert found[alone.id].loss == alone.loss


@pytest.mark.parametrize("option", [{"micro_batch": 2}, {"compile": True}])
def test_runs_that_are_to_be_trained_in_parts_or_compiled_are_not_packed(option, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    bench = Bench()
    changes = table(bench, 4)
    changes["trainer"] |= option
    results = train(changes, bench.registry())
    assert {one.vmap_runs for one in results} == {1}
    assert {one.micro_batch for one in results} == {option.get("micro_batch")}


def test_models_that_cannot_be_vectorized_are_trained_one_after_another(caplog):
    def spoil(model):
        def decide(module, inputs, output):
            return output if float(output.sum().detach()) < 1e30 else output * 0

        model.register_forward_hook(decide)

    bench = Bench()
    bench.built.append(spoil)
    drops = {"model": {"name": "bench/net", "dropout": 0.2}}  # a random state that is not its own would be seen
    with caplog.at_level(logging.WARNING, "flops_fit"):
        packed = train(table(bench, 4, **drops), bench.registry())
    assert "are trained one after another" in caplog.text
    plain = train(table(Bench(), 1, **drops), Bench().registry())
    assert losses(packed) == losses(plain)
    assert {one.vmap_runs for one in packed} == {1}


def test_the_bundled_trainer_says_what_it_can():
    assert installed().find("trainer", "torch").spec.can == {"branch", "checkpoint", "distribute", "vmap_runs"}
