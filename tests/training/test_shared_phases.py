"""Runs that differ in D only: one trunk, and a decay that branches off at each D."""

import pytest
import torch
from small import Bench, train

from flops_fit_core import Study
from flops_fit_core.config import make_experiment
from flops_fit_core.fitting import observations
from flops_fit_core.planning import make_plan

STEPS = (64, 128, 256)


@pytest.fixture
def bench():
    return Bench()


def table(bench, steps=STEPS, **changes):
    """The same size at several D; dropout, so that a random state that is lost would be seen."""
    one_step = bench.table(1)["sweep"]["budgets"][0]
    sweep = {"budgets": [one_step * count for count in steps], **changes.pop("sweep", {})}
    return bench.table(
        sweep=sweep,
        model={"name": "bench/net", "dropout": 0.1},
        schedule={"name": "wsd", "decay": 0.25, "warmup_tokens": 640},
        **changes,
    )


def plan_of(bench, **changes):
    return make_plan(make_experiment(table(bench, **changes), bench.registry()))


def trained(bench, folder, **changes):
    registry = bench.registry()
    experiment = make_experiment(table(bench, **changes), registry)
    study = Study(make_plan(experiment), registry, folder_of(folder), experiment=experiment)
    study.train()
    return study


def folder_of(path):
    from flops_fit_core.study.directory import StudyFolder

    return StudyFolder(path)


def test_a_branch_ends_with_the_loss_of_the_same_run_trained_alone_to_the_last_bit(bench):
    shared = train(table(bench, trainer={"num_evals": 2}), bench.registry())
    alone = train(table(bench, sweep={"share_stable_phase": False}, trainer={"num_evals": 2}), bench.registry())
    assert [result.run.tokens for result in shared] == sorted(result.run.tokens for result in alone)
    by_id = {result.id: result for result in alone}
    for result in shared:
        assert result.loss == by_id[result.id].loss
        assert result.curve == by_id[result.id].curve
        assert result.tokens == by_id[result.id].tokens


def test_the_trunk_is_trained_once(bench):
    shared = train(table(bench), bench.registry())
    decays = [count - round(0.75 * count) for count in STEPS]
    assert len(bench.served) == 256 - decays[-1] + sum(decays)
    per_step = 8 * 8
    assert sum(result.trained_tokens for result in shared) == len(bench.served) * per_step
    assert [result.tokens for result in shared] == [count * per_step for count in STEPS]


def test_the_plan_counts_a_trunk_once_and_says_what_it_would_cost_without(bench):
    plan = plan_of(bench)
    per_step = plan.runs[0].flops_per_token * 64
    assert plan.flops == pytest.approx(per_step * (0.75 * 256 + 0.25 * sum(STEPS)))
    assert plan.flops_without_sharing == pytest.approx(per_step * sum(STEPS))
    assert len(plan.trajectories) == len(plan.jobs({run.id for run in plan.runs})) == 1
    assert plan.flops_left({plan.runs[0].id}) == pytest.approx(per_step * (192 - 48 + 32 + 64))
    assert plan.flops_left({run.id for run in plan.runs}) == 0


def test_a_run_keeps_its_id_whether_it_shares_a_trunk_or_not(bench):
    shared, alone = plan_of(bench), plan_of(bench, sweep={"share_stable_phase": False})
    assert [run.id for run in shared.runs] == [run.id for run in alone.runs]
    assert len(alone.trajectories) == 3
    assert alone.flops == alone.flops_without_sharing


def test_runs_of_other_seeds_and_sizes_have_trunks_of_their_own(bench):
    plan = plan_of(bench, sweep={"seeds": [0, 1], "sizes": [{"width": 8}, {"width": 12}]})
    assert len(plan.trajectories) == 4
    for trajectory in plan.trajectories:
        assert len({(run.seed, run.size) for run in trajectory.runs}) == 1


def test_a_trajectory_does_not_depend_on_its_largest_budget(bench):
    short, long = plan_of(bench, steps=(64,)), plan_of(bench)
    assert short.runs[0].trajectory == long.runs[0].trajectory == long.runs[-1].trajectory


def test_a_budget_that_is_added_extends_the_trunk_and_leaves_finished_branches(bench, tmp_path):
    first = trained(bench, tmp_path, steps=STEPS[:2])
    before = len(bench.served)
    longer = trained(bench, tmp_path)
    assert len(bench.served) - before == 192 - 96 + 64
    assert longer.results[:2] == first.results
    uninterrupted = trained(Bench(), tmp_path / "uninterrupted")
    assert longer.results[2].loss == uninterrupted.results[2].loss
    assert longer.results[2].trained_tokens == (192 - 96 + 64) * 64


def test_a_budget_between_two_goes_on_from_the_branch_before_it(bench, tmp_path):
    trained(bench, tmp_path, steps=(64, 256))
    before = len(bench.served)
    between = trained(bench, tmp_path)
    assert len(bench.served) - before == 96 - 48 + 32
    uninterrupted = trained(Bench(), tmp_path / "uninterrupted")
    assert between.results[1].loss == uninterrupted.results[1].loss


def test_a_fit_knows_which_runs_share_a_trunk(bench, tmp_path):
    study = trained(bench, tmp_path, sweep={"seeds": [0, 1]})
    seen = observations(study.results)
    assert len({result.trajectory for result in seen}) == 2
    assert len(seen) == 6


def test_a_trunk_that_diverges_ends_its_longer_runs_without_training_them(bench):
    def explode(model):
        calls = iter(range(10_000))

        def forward(module, inputs, output):
            return output * float("nan") if next(calls) > 20 else output

        model[-1].register_forward_hook(forward)

    bench.built.append(explode)
    results = train(table(bench), bench.registry())
    assert [result.status for result in results] == ["diverged"] * 3
    assert len(bench.served) == 32
    assert [result.trained_tokens for result in results] == [32 * 64, 0, 0]
    assert [result.tokens for result in results] == [32 * 64] * 3


def test_branches_of_a_trunk_are_kept_and_what_only_a_stopped_pass_needs_is_not(bench, tmp_path):
    trained(bench, tmp_path)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert sorted(file.name for file in folder.glob("*.pt")) == [
        "step-00000048.pt",
        "step-00000096.pt",
        "step-00000192.pt",
    ]


def test_the_plan_says_how_far_a_branch_is_from_what_the_recipe_would_give_it(bench):
    plan = plan_of(bench, sweep={"batch_size": None, "reference_tokens": 8192})
    (note,) = [note for note in plan.notes if "share a stable phase" in note]
    assert "8.19K tokens (sweep.reference_tokens)" in note
    # The default recipe's batch goes with the root of D; D is 4096, 8192 and 16384 here.
    assert len({run.batch_size for run in plan.runs}) == 1
    assert "batch" in note


def test_the_batch_of_a_trunk_is_the_recipes_at_the_reference_whatever_the_budgets(bench):
    few = plan_of(bench, sweep={"batch_size": None, "reference_tokens": 8192})
    more = plan_of(bench, steps=(64, 128, 256, 512), sweep={"batch_size": None, "reference_tokens": 8192})
    assert few.runs[0].id == more.runs[0].id
    assert {run.batch_size for run in few.runs} == {run.batch_size for run in more.runs}


def test_the_constant_schedule_branches_at_each_runs_end(bench):
    changes = {"schedule": {"name": "constant", "warmup_tokens": 64}}
    one_step = bench.table(1)["sweep"]["budgets"][0]
    shared = train(bench.table(sweep={"budgets": [40 * one_step, 100 * one_step]}, **changes), bench.registry())
    assert len(bench.served) == 100
    alone = train(
        bench.table(sweep={"budgets": [40 * one_step, 100 * one_step], "share_stable_phase": False}, **changes),
        Bench().registry(),
    )
    assert sorted(result.loss for result in shared) == sorted(result.loss for result in alone)


def test_wsd_rises_stays_and_falls_as_its_formula_says():
    from flops_fit_core.plugins import RunInfo
    from flops_fit_core.plugins.registry import installed

    spec = installed().find("schedule", "wsd").spec
    view = RunInfo(
        steps=100, tokens=1000, tokens_per_step=10, base_width=None, groups=lambda model: [], width_scaling="none"
    )
    options = spec.options(warmup_tokens=90, decay=0.2, shape="1-sqrt")
    schedule = spec.build(options, view)
    assert spec.branch(options, view) == 80
    assert [schedule(step) for step in (0, 8, 9, 79, 80)] == pytest.approx([0.1, 0.9, 1, 1, 1])
    assert schedule(85) == pytest.approx(1 - 0.25**0.5)
    linear = spec.build(spec.options(decay=0.2, shape="linear", final=0.1), view)
    assert linear(90) == pytest.approx(0.1 + 0.9 * 0.5)


def test_weights_of_a_checkpoint_are_read_without_running_code(bench, tmp_path):
    trained(bench, tmp_path, steps=(64,))
    (file,) = (tmp_path / "checkpoints").glob("*/step-*.pt")
    content = torch.load(file, weights_only=True)
    assert content["position"]["step"] == 48
