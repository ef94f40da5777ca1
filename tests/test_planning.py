"""Plans: budgets, sizes, batches, recipes and counters."""

import itertools
import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from small import Bench, text_table, write_text

from flops_fit_core import ConfigError, Hyperparameters, PlanError, PluginError, UserError
from flops_fit_core.config import make_experiment
from flops_fit_core.data import LanguageTask
from flops_fit_core.fitting.fitters.profiles import MIN_SIZES
from flops_fit_core.planning import make_plan, solve_batches
from flops_fit_core.planning.plan import PROFILE_SIZES
from flops_fit_core.plugins import (
    Dataset,
    DatasetSpec,
    FlopCount,
    FlopCounterSpec,
    ModelSpec,
    Options,
    RecipeSpec,
    hookimpl,
)
from flops_fit_core.plugins.registry import installed


def surface(**changes):
    """An experiment on endless data: 4 budgets, automatic sizes."""
    table = {
        "sweep": {"budgets": [1e17, 1e18, 1e19, 1e20], "sizes": 6},
        "model": {"name": "gpt", "depth": 6, "head_dim": 64},
        "dataset": {"name": "endless/endless"},
        "optimizer": {"name": "adamw"},
        "counter": {"name": "model"},
    }
    for kind, options in changes.items():
        keep = isinstance(options, dict) and "name" not in options
        table[kind] = {**table.get(kind, {}), **options} if keep else options
    return table


class Endless(Dataset):
    """A plugin and its dataset: a language task with no end of data, and none that is read."""

    fingerprint = "endless"

    def __init__(self, num_unique_tokens=None, context=128, vocab_size=512):
        self.task = LanguageTask(vocab_size=vocab_size, context=context)
        self.num_unique_tokens = num_unique_tokens

    def batches(self, batch_size, start=0):
        raise AssertionError("planning reads no data")

    def eval_batches(self, tokens, batch_size):
        raise AssertionError("planning reads no data")

    @hookimpl
    def flops_fit_datasets(self):
        yield DatasetSpec(name="endless", build=lambda options, seed: self)


def planned(table, **endless):
    """The plan; remembered, since some tests ask for the same."""
    return _planned(json.dumps(table), json.dumps(endless))


@cache
def _planned(table, endless):
    registry = installed().with_plugins({"endless": Endless(**json.loads(endless))})
    return make_plan(make_experiment(json.loads(table), registry))


def gpt_flops_per_token(width, depth, context, vocab_size):
    return 3 * (depth * (24 * width**2 + 4 * context * width) + 2 * width * vocab_size)


# ---------------------------------------------------------------------------- budgets are met


def test_every_run_meets_its_budget_within_one_percent_by_its_own_count():
    plan = planned(surface())
    assert len(plan.runs) == 24
    for run in plan.runs:
        flops = gpt_flops_per_token(run.size, 6, 128, 512) * run.tokens
        assert run.flops == pytest.approx(flops, rel=1e-12)
        assert abs(flops / run.budget - 1) < 0.01


def test_under_chinchillas_counter_the_budget_is_6_n_d():
    plan = planned(surface(counter="chinchilla"))
    for run in plan.runs:
        matmul = 6 * 12 * run.size**2 + 13 * run.size + 512 * run.size
        assert run.params == matmul
        assert abs(6 * matmul * run.tokens / run.budget - 1) < 0.01


def test_d_is_an_integer_number_of_steps_and_samples():
    for run in planned(surface()).runs:
        assert run.tokens == run.steps * run.batch_size * 128


def test_batches_grow_with_the_root_of_d():
    for run in planned(surface()).runs:
        wanted = 0.9 * math.sqrt(run.tokens) / 128
        assert run.batch_size == pytest.approx(wanted, rel=0.12, abs=1)


@pytest.mark.parametrize("tokens", [997, 12_345, 10**6 + 7, 3.7e9])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 50])
def test_the_solved_batch_size_is_within_a_tenth_of_the_requested_batch_size(tokens, batch_size):
    batching = solve_batches(tokens, batch_size, 8, is_fixed=False)
    assert batching.tokens == batching.steps * batching.batch_size * 8
    assert batching.miss == pytest.approx(batching.tokens / tokens - 1)
    assert abs(batching.batch_size - batch_size) <= batch_size // 10
    nearest = min(
        abs(max(1, round(tokens / (batch * 8))) * batch * 8 / tokens - 1)
        for batch in range(batch_size - batch_size // 10, batch_size + batch_size // 10 + 1)
    )
    assert abs(batching.miss) <= max(nearest + 1e-12, 0.001)


def test_a_fixed_batch_that_misses_a_budget_names_a_budget_that_it_meets():
    def table(budget):
        sizes = [{"width": 64}]
        return surface(sweep={"budgets": [budget], "sizes": sizes, "batch_size": 1000, "min_steps": 1})

    with pytest.raises(PlanError, match=r"steps of 1000 samples miss it") as caught:
        planned(table(1.5e12))
    named = float(str(caught.value).split("nearest budget that this size can meet: ")[1])
    assert [run.batch_size for run in planned(table(named)).runs] == [1000]


def test_a_batch_size_in_the_sweep_is_used_exactly():
    plan = planned(surface(sweep={"batch_size": 4}))
    assert {run.batch_size for run in plan.runs} == {4}
    assert all(abs(run.flops / run.budget - 1) < 0.01 for run in plan.runs)


# ---------------------------------------------------------------------------- sizes


def test_a_further_budget_does_not_change_the_runs_of_other_budgets():
    few = planned(surface(sweep={"budgets": [1e17, 1e19]}))
    many = planned(surface(sweep={"budgets": [1e17, 1e18, 1e19, 1e20, 1e21]}))
    assert {run.id for run in few.runs} < {run.id for run in many.runs}


def test_neighbouring_budgets_share_most_sizes():
    plan = planned(surface(sweep={"budgets": [1e18, 2e18], "sizes": 7}))
    first, second = ({run.size for run in plan.runs if run.budget == budget} for budget in (1e18, 2e18))
    assert len(first & second) >= 5


def test_sizes_are_log_spaced_around_the_expected_optimum():
    plan = planned(surface(sweep={"budgets": [1e20], "sizes": 7, "tokens_per_param": 20}))
    params = sorted(run.params for run in plan.runs)
    ratios = [large / small for small, large in itertools.pairwise(params)]
    assert all(1.3 < ratio < 1.95 for ratio in ratios)
    middle = next(run for run in plan.runs if run.params == params[3])
    assert 20 / 2.6 < middle.tokens / middle.params < 20 * 2.6


def test_more_tokens_per_parameter_give_smaller_models():
    few = planned(surface(sweep={"tokens_per_param": 5.0}))
    many = planned(surface(sweep={"tokens_per_param": 80.0}))
    assert max(run.params for run in many.runs) < max(run.params for run in few.runs)


def test_sizes_are_distinct_multiples_of_multiple_of():
    plan = planned(surface(sweep={"multiple_of": 64}))
    for budget in plan.budgets:
        sizes = [run.size for run in plan.runs if run.budget == budget]
        assert len(set(sizes)) == len(sizes)
        assert all(size % 64 == 0 for size in sizes)


def test_every_budget_has_the_listed_sizes():
    plan = planned(surface(sweep={"sizes": [{"width": 128}, {"width": 64, "depth": 2}]}))
    assert len(plan.runs) == 8
    assert {(run.size, run.model.options["depth"]) for run in plan.runs} == {(128, 6), (64, 2)}


def test_a_previous_fit_centres_the_sizes(tmp_path):
    from flops_fit_core.api import plan as plan_study
    from flops_fit_core.fitting import IsoflopFitter
    from flops_fit_core.records import Observation

    def loss(n, d):
        return 1.7 + 400 / n**0.34 + 400 / d**0.34

    observations = [
        Observation(id=f"{c} {n}", params=n, tokens=c / 6 / n, flops=c, loss=loss(n, c / 6 / n), budget=c)
        for c in (1e17, 1e18, 1e19)
        for n in (math.sqrt(c / 6) * 0.1 * factor for factor in (0.3, 0.5, 0.8, 1.0, 1.3, 2.0, 3.5, 6.0, 20.0))
    ]
    law = IsoflopFitter(draws=0).fit(observations)
    kept = tmp_path / "fit.json"
    kept.write_text(law.model_dump_json())
    optimum = IsoflopFitter(draws=0).optimum(law, 1e20).params.value
    registry = installed().with_plugins({"endless": Endless()})
    table = surface(sweep={"budgets": [1e20], "init_from_fit": str(kept), "tokens_per_param": 1e4})
    params = sorted(run.params for run in plan_study(table, registry=registry).plan.runs)
    assert params[1] < optimum < params[-2]


def test_an_invalid_previous_fit_is_named(tmp_path):
    from flops_fit_core.api import plan as plan_study

    wrong = tmp_path / "fit.json"
    wrong.write_text("{}")
    with pytest.raises(UserError, match=r"fit.json is not a fit"):
        plan_study(text_table(write_text(tmp_path / "text"), sweep={"init_from_fit": str(wrong)}))


def test_a_size_that_cannot_be_built_is_named(tmp_path):
    table = text_table(write_text(tmp_path / "text"), sweep={"sizes": [{"width": 8}, {"width": 7}]})
    with pytest.raises(ConfigError, match=r"sweep.sizes.1.width: .*even"):
        make_experiment(table, installed())


def test_a_family_that_raises_is_named_with_its_options():
    class Fragile(Bench):
        def build_net(self, options, task):
            if options.width > 4:
                raise RuntimeError("too wide for me")
            return super().build_net(options, task)

    bench = Fragile()
    with pytest.raises(PluginError, match=r"bench/net.*width=8.*too wide for me"):
        make_plan(make_experiment(bench.table(), bench.registry()))


# ---------------------------------------------------------------------------- what is left out


def test_a_size_that_would_repeat_the_data_is_skipped_with_its_number_of_epochs():
    plan = planned(surface(), num_unique_tokens=30 * 10**9)
    assert plan.skipped
    for cell in plan.skipped:
        tokens = cell.budget / gpt_flops_per_token(cell.size, 6, 128, 512)
        assert tokens > 29.9e9
        assert f"{tokens / 30e9:.2f} epochs of the 30.0B" in cell.reason
        assert "sweep.allow_repeat = true" in cell.reason
    assert all(run.tokens <= 30 * 10**9 for run in plan.runs)
    assert len(plan.runs) + len(plan.skipped) == 24


def test_repeated_data_are_allowed_on_request():
    plan = planned(surface(sweep={"allow_repeat": True}), num_unique_tokens=30 * 10**9)
    assert not plan.skipped
    assert any(run.tokens > 30 * 10**9 for run in plan.runs)


def test_a_size_with_too_few_steps_is_skipped():
    everything = planned(surface())
    limit = sorted(run.steps for run in everything.runs)[3]
    plan = planned(surface(sweep={"min_steps": limit}))
    assert len(plan.runs) + len(plan.skipped) == 24
    assert 1 <= len(plan.skipped) <= 5
    assert all(f"fewer than sweep.min_steps = {limit} steps" in cell.reason for cell in plan.skipped)
    assert all(run.steps >= 0.99 * limit for run in plan.runs)


def test_a_budget_too_small_for_all_sizes_has_a_reason_for_each_size():
    with pytest.raises(PlanError, match="budget 1e7 can train none of its sizes") as caught:
        planned(surface(sweep={"budgets": [1e7, 1e19]}))
    assert str(caught.value).count("fewer than sweep.min_steps") == 6


# ---------------------------------------------------------------------------- hyperparameters, seeds


def test_options_of_the_user_override_the_recipe_with_a_note():
    plan = planned(surface(optimizer={"lr": 0.002}))
    assert {run.optimizer.options["lr"] for run in plan.runs} == {0.002}
    assert {tuple(run.optimizer.options["betas"]) for run in plan.runs} == {(0.9, 0.95)}
    assert any("optimizer.lr = 0.002 is set by you" in note for note in plan.notes)
    assert not any("betas" in note for note in plan.notes)


def test_the_recipe_sets_options_that_are_unset():
    for run in planned(surface()).runs:
        assert run.optimizer.options["lr"] == 0.008
        assert run.base_width == 64
        assert run.schedule.options["warmup_tokens"] == pytest.approx(0.05 * run.tokens, rel=0.011)


def test_a_warmup_that_is_longer_than_a_run_is_a_warning(tmp_path):
    def warnings(tokens):
        table = text_table(write_text(tmp_path / "text"), schedule={"name": "cosine", "warmup_tokens": tokens})
        notes = make_plan(make_experiment(table, installed())).notes
        return [note for note in notes if "before the warmup" in note]

    assert warnings(0) == []
    plan = make_plan(make_experiment(text_table(tmp_path / "text"), installed()))
    shortest = min(run.tokens for run in plan.runs)
    assert warnings(shortest) == []
    (warning,) = warnings(shortest + 1)
    assert "1 of 2 runs ends before" in warning
    assert f"{shortest:,} in the shortest run" in warning


def test_seeds_multiply_the_runs():
    single_seed, three_seeds = planned(surface()), planned(surface(sweep={"seeds": [0, 1, 2]}))
    assert len(three_seeds.runs) == 3 * len(single_seed.runs)
    assert {run.id for run in single_seed.runs} == {run.id for run in three_seeds.runs if run.seed == 0}


def test_a_recipe_with_values_that_an_optimizer_refuses_is_named():
    class Wild:
        @hookimpl
        def flops_fit_recipes(self):
            yield RecipeSpec(
                name="wild", build=lambda options, recipe_input: Hyperparameters(batch_size=4, betas=(0.9, 1.5))
            )

    registry = installed().with_plugins({"endless": Endless(), "wild": Wild()})
    with pytest.raises(ConfigError, match=r"'wild/wild' set values that 'optim/adamw' does not accept:\n  betas"):
        make_plan(make_experiment(surface(recipe="wild"), registry))


@pytest.mark.parametrize("given", [None, 3.0, FlopCount(0.0, 1, "none", "none"), FlopCount(math.nan, 1, "", "")])
def test_a_counter_without_a_result_is_named(given):
    class Wild:
        @hookimpl
        def flops_fit_flop_counters(self):
            yield FlopCounterSpec(name="wild", build=lambda options, measured: given)

    registry = installed().with_plugins({"endless": Endless(), "wild": Wild()})
    with pytest.raises(PluginError, match=r"counter 'wild/wild' returned .*, not a FlopCount above zero"):
        make_plan(make_experiment(surface(counter="wild"), registry))


# ---------------------------------------------------------------------------- the cost of planning


def test_a_hundred_billion_parameters_are_planned_without_memory():
    code = """
import json, resource, sys
sys.path.insert(0, {tests!r})
from test_planning import planned, surface
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
large = {{"depth": 80, "head_dim": 128}}
plan = planned(surface(model=large, sweep={{"sizes": [{{"width": 10240}}], "budgets": [1e25]}}))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([plan.runs[0].params, (after - before) / 1024]))
"""
    process = subprocess.run(
        [sys.executable, "-c", code.format(tests=str(Path(__file__).parent))],
        capture_output=True,
        text=True,
        check=True,
    )
    params, megabytes = json.loads(process.stdout)
    assert params == 80 * (12 * 10240**2 + 2 * 10240) + 10240 + 512 * 10240
    assert params > 1e11
    # Of which most is torch itself; the weights alone would be 400,000.
    assert megabytes < 500


def test_planning_does_not_change_the_global_random_state(tmp_path):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_plan(make_experiment(text_table(write_text(tmp_path / "text")), installed()))
    assert torch.equal(torch.rand(3), expected)


class AveragingOptions(Options):
    width: int = 8
    causal: bool = False


def averaging_net(options, task):
    """A model with outputs that depend on all inputs, or only on earlier inputs."""
    import torch
    from torch import nn

    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(task.vocab_size, options.width)
            self.head = nn.Linear(options.width, task.vocab_size)
            nn.init.zeros_(self.head.weight)  # which hides what the outputs depend on

        def forward(self, ids):
            x = self.embedding(ids)
            count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
            return self.head(x.cumsum(1) / count if options.causal else x.mean(1, keepdim=True).expand_as(x))

    return Averaging()


class AveragingPlugin:
    @hookimpl
    def flops_fit_models(self):
        yield ModelSpec(name="averaging", options=AveragingOptions, build=averaging_net, size="width")


def test_a_language_model_that_sees_later_tokens_is_refused():
    bench = Bench()
    registry = bench.registry().with_plugins({"own": AveragingPlugin()})

    def plan_of(**options):
        table = bench.table(model={"name": "own/averaging", **options})
        return make_plan(make_experiment(table, registry))

    assert plan_of(causal=True).runs
    with pytest.raises(PlanError, match=r"own/averaging.*not causal.*later tokens"):
        plan_of()


def test_a_budget_with_too_few_sizes_for_a_profile_has_a_warning():
    sizes = [{"width": width} for width in (64, 128, 256)]
    full = planned(surface(sweep={"sizes": sizes}))
    assert MIN_SIZES["parabola"] == PROFILE_SIZES
    assert not any("IsoFLOP profile" in note for note in full.notes)
    first, second, _ = sorted(run.steps for run in full.runs if run.budget == 1e17)
    plan = planned(surface(sweep={"sizes": sizes, "min_steps": (first + second) // 2}))
    counts = {budget: sum(run.budget == budget for run in plan.runs) for budget in plan.budgets}
    assert counts == {1e17: 2, 1e18: 3, 1e19: 3, 1e20: 3}
    (note,) = [note for note in plan.notes if "IsoFLOP profile" in note]
    assert note == (
        "WARNING: too few sizes for an IsoFLOP profile, which needs 3, at the budgets (sizes): 1e17 (2). A law "
        "through all runs uses them"
    )
