"""The learning-rate sweep."""

import itertools
import json
import math
import stat

import numpy as np
import pytest
from small import Bench, text_table, write_text

from flops_fit_core import ConfigError, Hyperparameters, PlanError
from flops_fit_core.cli.main import run
from flops_fit_core.config import load_experiment, make_experiment, read_table
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import OptimizerSpec, Options, RecipeSpec, hookimpl
from flops_fit_core.plugins.registry import installed
from flops_fit_core.study import Study
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.tuning import LearningRateSweep, bootstrap_vertices, lowest_five, tune, vertex, write_value
from flops_fit_core.tuning.best_rate import best_rate, mean_interval, vertex_error

# ---------------------------------------------------------------------------- the best rate

RATES = np.arange(-10.0, -3.0)


def test_the_vertex_of_a_parabola_is_where_it_is():
    for center in (-8.2, -6.5, -5.9):
        assert vertex(RATES, 3 + 0.07 * (RATES - center) ** 2) == pytest.approx(center, abs=1e-9)


def test_only_the_lowest_five_points_count():
    losses = 3 + 0.07 * (RATES + 6.7) ** 2
    losses[[0, -1]] += 50
    assert vertex(RATES, losses) == pytest.approx(-6.7, abs=1e-9)
    assert list(lowest_five(RATES, losses)[0]) == [-9, -8, -7, -6, -5]


def test_a_curve_without_a_minimum_gives_its_lowest_point():
    assert vertex(RATES, -0.1 * (RATES + 7) ** 2 - 0.01 * RATES) == -4
    assert vertex(RATES[:2], np.array([2.0, 1.0])) == -9


def test_a_vertex_is_never_outside_of_what_was_tried():
    assert vertex(RATES, 0.001 * (RATES + 30) ** 2) == -10


def test_the_error_from_residuals_is_the_spread_of_the_vertex():
    generator = np.random.default_rng(0)
    x, sigma = np.arange(-2.0, 3.0), 0.004
    clean = 0.06 * (x - 0.3) ** 2
    noisy = [clean + generator.normal(0, sigma, 5) for _ in range(4000)]
    spread = np.std([vertex(x, y) for y in noisy])
    # Of the variance, whose estimate from two degrees of freedom is unbiased.
    assert np.sqrt(np.mean([vertex_error(x, y) ** 2 for y in noisy])) == pytest.approx(spread, rel=0.05)


def test_the_bootstrap_over_three_seeds_is_that_of_all_27_ways_to_draw_them():
    losses = 3 + 0.05 * (RATES[:, None] - np.array([-7.4, -6.8, -6.1])) ** 2
    draws = bootstrap_vertices(RATES, losses, draws=4000)
    exact = sorted(vertex(RATES, losses[:, list(ways)].mean(1)) for ways in itertools.product(range(3), repeat=3))
    assert np.mean(draws) == pytest.approx(np.mean(exact), abs=0.02)
    assert np.std(draws) == pytest.approx(np.std(exact), rel=0.05)
    assert set(np.round(draws, 9)) == set(np.round(exact, 9))


def table(center, seeds=1, curvature=0.05, noise=0.0):
    shift = np.random.default_rng(1).normal(0, noise, (len(RATES), seeds))
    return 3 + curvature * (RATES[:, None] - center) ** 2 + shift


def test_a_lowest_loss_at_the_first_or_last_rate_is_at_an_edge():
    assert best_rate(RATES, table(-6.6)).edge is None
    assert best_rate(RATES, table(-3.2)).edge == "high"
    assert best_rate(RATES, table(-11.0)).edge == "low"


def test_a_rate_that_diverged_bounds_the_others():
    losses = table(-4.0, seeds=2)
    losses[-1, 1] = losses[-2, 0] = np.nan
    found = best_rate(RATES, losses)
    assert found.edge is None
    assert found.x == pytest.approx(-6, abs=0.01)


def test_fewer_than_three_rates_that_lived_have_no_best():
    losses = table(-6.0)
    losses[2:] = np.nan
    assert best_rate(RATES, losses) is None


def test_the_interval_of_several_sizes_is_that_of_their_mean():
    from scipy.stats import t

    sizes = [best_rate(RATES, table(center, noise=0.01)) for center in (-7.0, -6.0)]
    middle, low, high = mean_interval(sizes)
    assert middle == pytest.approx((sizes[0].x + sizes[1].x) / 2)
    error = math.hypot(sizes[0].error, sizes[1].error) / 2
    assert high - middle == pytest.approx(middle - low) == pytest.approx(t.ppf(0.95, 4) * error)


def test_from_three_seeds_on_the_interval_is_over_seeds():
    found = best_rate(RATES, table(-6.5, seeds=3, noise=0.02))
    _, low, high = mean_interval([found])
    assert (low, high) == pytest.approx(tuple(np.quantile(found.draws, [0.05, 0.95])))
    assert best_rate(RATES, table(-6.5, seeds=2)).draws is None


# ---------------------------------------------------------------------------- runs of a sweep


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text", files=12, words=300)


def lr_sweep(text, registry=None, /, given=None, **changes):
    experiment = make_experiment(text_table(text, **changes), registry or installed())
    return LearningRateSweep(experiment, make_plan(experiment), **(given or {}))


LADDER = {"budgets": [1e8, 4e8], "sizes": [{"width": width} for width in (4, 8, 12, 16, 20, 24)]}


def test_the_sizes_are_a_quarter_and_half_up_the_ladder_and_d_the_cheapest_budgets_median(text):
    found = lr_sweep(text, sweep=LADDER)
    assert [one.size for one in found.measured] == [8, 16]
    cheapest = sorted(run.tokens for run in found.plan.runs if run.budget == 1e8)
    assert found.tokens == cheapest[2]


def test_a_sweep_run_at_the_present_value_is_the_run_that_the_experiment_would_plan(text):
    found = lr_sweep(text, sweep=LADDER, given={"sizes": [12], "tokens": 20_000, "seeds": [3]})
    (own,) = found.runs(found.option.value)
    budget = own.flops_per_token * 20_000
    other = make_plan(
        make_experiment(
            text_table(text, sweep={"budgets": [budget], "sizes": [{"width": 12}], "seeds": [3]}), installed()
        )
    )
    assert [run.id for run in other.runs] == [own.id]


def test_a_size_is_trained_with_the_options_that_the_plan_gives_it(text):
    sizes = [{"width": 8, "depth": 4}, {"width": 8, "depth": 1}]
    found = lr_sweep(text, model={"name": "gpt", "depth": 2, "head_dim": 4}, sweep={"sizes": sizes})
    models = [run.model.options for run in found.runs(found.option.value)]
    # 4 is the family's default, and [model] says 2.
    assert [options.get("depth", 4) for options in models] == [1, 4]


def test_sizes_of_a_ladder_in_depth_and_width_are_named_as_in_the_plan(text):
    model = {"name": "gpt", "aspect_ratio": 8, "head_dim": 8}
    experiment = make_experiment(text_table(text, model=model, sweep={"budgets": [2e9], "sizes": 3}), installed())
    plan = make_plan(experiment)
    names = {run.size for run in plan.runs}
    assert {one.size for one in LearningRateSweep(experiment, plan).measured} <= names
    run = plan.runs[0]
    (chosen,) = LearningRateSweep(experiment, plan, sizes=[run.model.options["width"]]).measured
    assert chosen.size == run.size == f"{run.model.options['width']}x{run.model.options['depth']}"


def test_runs_share_no_trunk_and_get_the_batch_of_their_own_d(text):
    found = lr_sweep(text, sweep={**LADDER, "budgets": [4e9]}, schedule="wsd", given={"tokens": 20_000})
    for one in found.runs(found.option.value):
        assert one.branch_step is None
        assert one.schedule.options["warmup_tokens"] == pytest.approx(1000, rel=0.02)


def test_rates_are_trained_side_by_side_where_the_trainer_is_told_to(text):
    found = lr_sweep(text, sweep=LADDER, trainer={"vmap_runs": 8}, given={"tokens": 20_000})
    plan = found.plan_runs(found.values(range(-2, 3)))
    jobs = plan.jobs({run.id for run in plan.runs})
    assert [len(job.runs) for job in jobs] == [5, 5]
    assert [len({run.size for run in job.runs}) for job in jobs] == [1, 1]


def test_d_that_is_too_short_is_refused(text):
    with pytest.raises(
        PlanError,
        match=r"the learning-rate sweep cannot train size 8: D = 50 tokens is fewer than sweep\.min_steps",
    ):
        lr_sweep(text, sweep={**LADDER, "min_steps": 100}, given={"tokens": 50})


def test_a_size_that_cannot_be_built_is_refused(text):
    with pytest.raises(ConfigError, match=r"--sizes: model 'gpt/gpt':\n  width: must be even"):
        lr_sweep(text, given={"sizes": [7]})


def test_a_loss_surface_has_no_learning_rate():
    table = {"sweep": {"budgets": [1e18]}, "model": "surface/surface", "dataset": "surface/surface"}
    experiment = make_experiment(table, installed())
    with pytest.raises(ConfigError, match="a formula without a learning rate"):
        LearningRateSweep(experiment, make_plan(experiment))


# ---------------------------------------------------------------------------- which number is tuned


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({}, "recipe.lr", 0.008),
        ({"recipe": {"name": "default", "lr": 0.02}}, "recipe.lr", 0.02),
        ({"optimizer": {"name": "adamw", "lr": 0.03}}, "optimizer.lr", 0.03),
        ({"optimizer": "sgd"}, "recipe.lr", 0.01),
        ({"recipe": {"name": "steplaw", "batch_scale": 0.1}}, "recipe.lr_scale", 1.79),
        ({"recipe": {"name": "deepseek", "lr_scale": 0.2}}, "recipe.lr_scale", 0.2),
        ({"recipe": "constant"}, "recipe.lr", 0.001),
    ],
)
def test_what_is_tuned_is_the_number_that_sets_every_rate(text, changes, name, value):
    found = lr_sweep(text, **changes)
    assert (found.option.name, found.option.value) == (name, pytest.approx(value))
    once, twice = ([found.lr(run) for run in found.runs(factor * found.option.value)] for factor in (1, 2))
    assert twice == pytest.approx([2 * lr for lr in once])


def test_what_follows_from_the_rate_follows_in_the_sweep(text):
    found = lr_sweep(text, recipe={"name": "power-lines", "batch_scale": 0.002}, given={"sizes": [8]})
    once, twice = (found.runs(factor * found.option.value)[0].optimizer.options for factor in (1, 2))
    assert once["weight_decay"] == pytest.approx(2 * twice["weight_decay"])


class Others:
    """Recipes and an optimizer that cannot be tuned as they are."""

    class Lr(Options):
        lr: float | None = None

    @hookimpl
    def flops_fit_recipes(self):
        yield RecipeSpec(
            name="by-size", build=lambda options, about: Hyperparameters(batch_size=4, lr=1 / about.params)
        )
        yield RecipeSpec(name="plain", build=lambda options, about: Hyperparameters(batch_size=4, lr=0.01))
        yield RecipeSpec(
            name="stubborn",
            options=self.Lr,
            lr_option="lr",
            build=lambda options, about: Hyperparameters(batch_size=4, lr=0.01),
        )

    @hookimpl
    def flops_fit_optimizers(self):
        import torch

        build = lambda options, model, run: torch.optim.SGD(model.parameters(), lr=0.01)  # noqa: E731
        yield OptimizerSpec(name="rateless", build=build, width_scaling="none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "by-size"}, r"gives sizes different learning rates .* set optimizer\.lr in the experiment"),
        ({"recipe": "stubborn"}, r"doubling recipe\.lr multiplies the learning rate of size 8 by 1, not 2"),
        ({"optimizer": "rateless"}, "has no option lr to tune"),
    ],
)
def test_where_no_number_sets_the_rates_that_is_said(text, changes, message):
    with pytest.raises(ConfigError, match=message):
        lr_sweep(text, installed().with_plugins({"others": Others()}), **changes)


def test_a_recipe_that_names_no_option_is_tuned_by_the_optimizers(text):
    found = lr_sweep(text, installed().with_plugins({"others": Others()}), recipe="plain")
    assert (found.option.name, found.option.value) == ("optimizer.lr", 0.01)


# ---------------------------------------------------------------------------- training it


def bench(lr, **changes):
    """One size of a tiny real model, about 60 steps a run."""
    plugin = Bench()
    table = plugin.table(optimizer={"name": "adamw", "lr": lr}, **changes)
    experiment = make_experiment(table, plugin.registry())
    return LearningRateSweep(experiment, make_plan(experiment)), plugin


def test_a_sweep_that_starts_too_low_goes_on_upwards(tmp_path):
    small, plugin = bench(0.02)
    found = tune(small, plugin.registry(), StudyFolder(tmp_path / "tune"), rates=3)
    assert found.values[:3] == (0.01, 0.02, 0.04)
    assert len(found.values) > 3
    assert found.edges == frozenset()
    losses = {value: found.loss(small.measured[0].params, value) for value in found.values}
    best = min(losses, key=losses.get)
    assert best not in (found.values[0], found.values[-1])
    assert found.best.value == pytest.approx(best, rel=1.0)


def test_a_sweep_that_starts_too_high_goes_on_downwards(tmp_path):
    small, plugin = bench(40.0)
    found = tune(small, plugin.registry(), StudyFolder(tmp_path / "tune"), rates=3, extensions=1)
    assert found.values == (5.0, 10.0, 20.0, 40.0, 80.0)
    assert found.edges == {"low"}
    assert found.best is None


def test_an_edge_that_is_not_reached_is_told(tmp_path):
    small, plugin = bench(1e-6)
    found = tune(small, plugin.registry(), StudyFolder(tmp_path / "tune"), rates=3, extensions=1)
    assert found.edges == {"high"}
    assert found.best is None


def test_a_sweep_that_is_asked_for_again_trains_nothing(tmp_path):
    small, plugin = bench(0.02)
    folder = StudyFolder(tmp_path / "tune")
    first = tune(small, plugin.registry(), folder, rates=3, extensions=0)
    served = len(plugin.served)
    assert served > 0
    assert tune(small, plugin.registry(), folder, rates=3, extensions=0) == first
    assert len(plugin.served) == served


def test_the_losses_are_those_of_the_sweep_store(tmp_path):
    small, plugin = bench(0.02)
    found = tune(small, plugin.registry(), StudyFolder(tmp_path / "tune"), rates=3, extensions=0)
    study = Study.open(tmp_path / "tune", plugin.registry())
    assert {run.id: run.loss for run in found.runs} == {result.id: result.loss for result in study.results}
    assert json.loads((tmp_path / "tune" / "tune.json").read_text())["option"] == "optimizer.lr"


def test_two_rates_have_no_minimum(tmp_path):
    small, plugin = bench(0.02)
    with pytest.raises(ConfigError, match="--rates 5"):
        tune(small, plugin.registry(), StudyFolder(tmp_path / "tune"), rates=2)


# ---------------------------------------------------------------------------- writing


COMMENTED = """\
# what this is
name = "mine"   # a name

[sweep]
budgets = [1e8]

[recipe]        # ours
name = "constant"
# the rate
lr = 0.5        # too high
batch_size = 4
"""


def written(tmp_path, name, text, table="recipe", option="lr", value=0.0125):
    path = tmp_path / name
    path.write_text(text)
    write_value(path, table, option, value)
    return path.read_text()


def test_a_toml_file_keeps_its_comments(tmp_path):
    assert written(tmp_path, "a.toml", COMMENTED) == COMMENTED.replace("lr = 0.5 ", "lr = 0.0125 ")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.toml", "x = 1 # one\n", "x = 1 # one\n\n[recipe]\nlr = 0.0125\n"),
        ("a.toml", 'recipe = "constant" # c\nx = 1\n', 'recipe = {name = "constant", lr = 0.0125} # c\nx = 1\n'),
        ("a.toml", 'recipe = {name = "constant"}\n', 'recipe = {name = "constant", lr = 0.0125}\n'),
        ("a.toml", 'recipe.name = "constant"\n', 'recipe.name = "constant"\nrecipe.lr = 0.0125\n'),
        ("a.yaml", "# c\nx: 1 # one\n", "# c\nrecipe: {lr: 0.0125}\nx: 1 # one\n"),
        ("a.yaml", "recipe: constant # c\nx: 1\n", "recipe: {name: constant, lr: 0.0125} # c\nx: 1\n"),
        ("a.yaml", "recipe:\n  name: constant\nx: 1\n", "recipe:\n  lr: 0.0125\n  name: constant\nx: 1\n"),
        ("a.yml", "recipe:\n  lr: 3 # c\nx: 1\n", "recipe:\n  lr: 0.0125 # c\nx: 1\n"),
        ("a.yaml", "recipe: {name: constant}\n", "recipe: {lr: 0.0125, name: constant}\n"),
        ("a.yaml", "recipe: {}\nx: 1\n", "recipe: {lr: 0.0125}\nx: 1\n"),
        ("a.yaml", "recipe:\nx: 1\n", "recipe: {lr: 0.0125}\nx: 1\n"),
        ("a.yaml", "{x: 1}\n", "{recipe: {lr: 0.0125}, x: 1}\n"),
        ("a.json", '{\n  "x": "é"\n}\n', '{\n  "x": "é",\n  "recipe": {\n    "lr": 0.0125\n  }\n}\n'),
        ("a.json", '{\n\t"recipe": "c"\n}', '{\n\t"recipe": {\n\t\t"name": "c",\n\t\t"lr": 0.0125\n\t}\n}\n'),
    ],
)
def test_the_number_is_put_where_it_belongs(tmp_path, name, text, expected):
    assert written(tmp_path, name, text) == expected


@pytest.mark.parametrize("name", ["a.toml", "a.yaml", "a.json"])
def test_a_small_number_is_read_back_as_that_number(tmp_path, name):
    text = {"a.toml": "x = 1\n", "a.yaml": "x: 1\n", "a.json": '{"x": 1}'}[name]
    written(tmp_path, name, text, value=1e-05)
    assert read_table(tmp_path / name) == {"x": 1, "recipe": {"lr": 1e-05}}


def test_a_file_that_cannot_be_changed_safely_is_left_alone(tmp_path):
    text = "base: &shared {lr: 1}\nrecipe: *shared\n"
    with pytest.raises(ConfigError, match=r"Write recipe\.lr = 0\.0125 by hand"):
        written(tmp_path, "a.yaml", text)
    assert (tmp_path / "a.yaml").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_link_and_the_rights_of_its_file_stay(tmp_path):
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    real.write_text("x = 1\n")
    real.chmod(0o640)
    link.symlink_to(real)
    write_value(link, "recipe", "lr", 0.5)
    assert link.is_symlink()
    assert read_table(real)["recipe"] == {"lr": 0.5}
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


# ---------------------------------------------------------------------------- the command


FILE = """\
# A small one.
[sweep]
budgets = [1e8, 2e8, 4e8]
sizes = [{width = 8}, {width = 12}]   # both
allow_repeat = true
min_steps = 1

[model]
name = "gpt"
depth = 1
head_dim = 4

[dataset]
name = "text"
path = "text"
context = 16

[optimizer]
name = "adamw"

[counter]
name = "model"

[trainer]
eval_tokens = 512

[device]
name = "cpu"

[executor]
name = "local"
"""


@pytest.fixture
def here(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(FILE)
    return tmp_path


@pytest.fixture
def said(capsys):
    def call(*arguments):
        status = run([str(argument) for argument in arguments])
        output, error = capsys.readouterr()
        return status, output, " ".join(error.split())

    return call


QUICK = ("tune", "small.toml", "--tokens", "4000", "--sizes", "8")


def test_tune_writes_the_best_rate_into_the_file(here, said):
    status, output, error = said(*QUICK, "--sizes", "8,12")
    assert status == 0
    text = (here / "small.toml").read_text()
    before, after = text[: len(FILE)], text[len(FILE) :]
    assert before == FILE
    lr = load_experiment(here / "small.toml", installed()).recipe.options.lr
    assert after == f"\n[recipe]\nlr = {lr}\n"
    plan = make_plan(load_experiment(here / "small.toml", installed()))
    assert {one.optimizer.options["lr"] for one in plan.runs} == {lr}
    assert f"wrote recipe.lr = {lr} into small.toml" in error
    assert "Best recipe.lr: " in output
    assert "it was 0.008" in output
    kept = json.loads((here / "runs" / "small" / "tune" / "tune.json").read_text())
    assert lr == float(f"{kept['best']['value']:.3g}")
    assert not (here / "runs" / "small" / "plan.json").exists()


def test_a_dry_run_leaves_the_file_alone(here, said):
    status, output, _ = said(*QUICK, "--dry-run", "--json")
    assert status == 0
    assert (here / "small.toml").read_text() == FILE
    found = json.loads(output)
    assert (found["option"], found["before"], found["written"]) == ("recipe.lr", 0.008, False)
    assert found["value"] == float(f"{found['best']['value']:.3g}")
    assert len(found["runs"]) == len(found["values"]) == 5


def test_finished_runs_that_become_other_runs_are_told(here, said):
    said("run", "small.toml", "--set", "sweep.budgets=[1e8]")
    _, _, error = said(*QUICK, "--set", "sweep.budgets=[1e8]")
    assert "the 2 finished runs with recipe.lr = 0.008 stay in the store" in error


def test_a_minimum_outside_is_told_and_nothing_is_written(here, said):
    low = ("--set", "recipe.lr=1e-7", "--sizes", "8", "--rates", "3")
    status, output, error = said("tune", "small.toml", "--tokens", "4000", *low)
    assert status == 1
    largest = 1e-7 * 2 ** (1 + 3 * 2)
    assert f"for size 8 the best value lies above the values tried, above {largest:.4g}. Nothing is" in " ".join(
        output.split()
    )
    assert f"flops-fit tune small.toml --set recipe.lr={largest:.4g}" in " ".join(output.split())
    assert (here / "small.toml").read_text() == FILE
    assert "wrote" not in error


def test_what_was_found_for_another_recipe_is_not_written(here, said):
    other = [f"--set=recipe.{value}" for value in ("name=constant", "batch_size=4", "lr=0.02")]
    status, _, error = said("tune", "small.toml", "--tokens", "4000", "--sizes", "8", *other)
    assert status == 0
    assert "small.toml without --set is another experiment, so it is unchanged. Write recipe.lr = " in error
    assert (here / "small.toml").read_text() == FILE


def test_a_studys_folder_is_not_written_into(here, said):
    said("run", "small.toml", "--set", "sweep.budgets=[1e8]")
    before = (here / "runs" / "small" / "experiment.json").read_text()
    status, _, error = said("tune", "runs/small", "--tokens", "4000", "--sizes", "8")
    assert status == 0
    assert "run with --set recipe.lr=" in error
    assert (here / "runs" / "small" / "experiment.json").read_text() == before


def test_seeds_are_the_experiments_own_first(here, said):
    at_best = ("--set", "recipe.lr=0.013", "--rates", "3", "--sizes", "8")
    more = ("--json", "--dry-run", "--seeds", "3", "--set", "sweep.seeds=[2]")
    status, output, _ = said("tune", "small.toml", "--tokens", "2000", *at_best, *more)
    assert status == 0
    found = json.loads(output)
    assert sorted(run["seed"] for run in found["runs"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found["best"]["low"] is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sizes", "a,b"), "write whole numbers with commas"),
        (("--seeds", "0"), "there must be at least one"),
        (("--rates", "2"), "try at least 3"),
    ],
)
def test_the_users_mistakes_are_told(here, said, arguments, message):
    status, _, error = said("tune", "small.toml", *arguments)
    assert status == 2
    assert message in error
