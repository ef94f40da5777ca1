"""Recipes, against the formulas worked out by hand and the settings that their authors published."""

import math

import pytest
from small import text_table, write_text

from flops_fit_core import ConfigError, Hyperparameters, ParameterCounts
from flops_fit_core.config import make_experiment
from flops_fit_core.data import LanguageTask
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import RecipeInput, RecipeSpec, hookimpl
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.registry import installed

PUBLISHED = ["steplaw", "deepseek", "power-lines"]


def recipe_input(**changes):
    """A model of a billion parameters, a fifth of them in the vocabulary, on 20 tokens each."""
    defaults = {
        "params": 10**9,
        "tokens": 2 * 10**10,
        "width": 2048,
        "task": LanguageTask(vocab_size=50_000, context=2048),
        "width_scaling": "adam",
        "flops": 6 * 10**9 * 2e10,
        "parameters": ParameterCounts(total=11 * 10**8, lookup_table=10**8, unembedding=10**8, active=11 * 10**8),
    }
    return RecipeInput(**{**defaults, **changes})


def built(name, run, **options):
    spec = installed().find("recipe", name).spec
    return spec.build(spec.options.model_validate(options), run)


# ---------------------------------------------------------------------------- constant


def test_constant_gives_every_size_what_is_written():
    options = {"lr": 0.003, "batch_size": 24, "weight_decay": 0.05, "betas": (0.8, 0.9), "warmup_tokens": 5000}
    small = recipe_input(params=1000, tokens=10**5, width=16)
    assert (
        built("constant", small, **options)
        == built("constant", recipe_input(), **options)
        == Hyperparameters(**options)
    )


def test_constant_scales_nothing_with_the_width():
    assert built("constant", recipe_input(), lr=0.003).base_width is None


def test_constant_leaves_betas_to_an_optimizer_that_has_none():
    assert built("constant", recipe_input(width_scaling="none"), betas=(0.8, 0.9)).betas is None


# ---------------------------------------------------------------------------- Step Law


def test_steplaw_by_hand():
    run = recipe_input(
        tokens=10**11,
        parameters=ParameterCounts(total=12 * 10**8, lookup_table=10**8, unembedding=10**8, active=12 * 10**8),
    )
    hyper = built("steplaw", run)
    # N = 1e9 without embeddings: log10 of it is 0.25285 - 0.713 x 9 + 0.307 x 11 = -2.78715
    assert hyper.lr == pytest.approx(10**-2.78715, rel=1e-4)
    assert hyper.lr == pytest.approx(1.6325e-3, rel=1e-3)
    # tokens: -0.23657 + 0.571 x 11 = 6.04443, in sequences of 2,048
    assert hyper.batch_size == round(10**6.04443 / 2048) == 541
    assert (hyper.weight_decay, hyper.betas, hyper.base_width) == (0.1, (0.9, 0.95), None)
    assert hyper.warmup_tokens == 5 * 10**9


@pytest.mark.parametrize("unembedding", [0, 5 * 10**8])
def test_steplaws_n_has_no_embeddings_and_no_head(unembedding):
    counts = ParameterCounts(
        total=10**9 + unembedding + 7, lookup_table=7, unembedding=unembedding, active=10**9 + unembedding + 7
    )
    assert built("steplaw", recipe_input(parameters=counts)).lr == pytest.approx(
        1.79 * math.exp(-0.713 * math.log(1e9) + 0.307 * math.log(2e10)), rel=1e-9
    )


# ---------------------------------------------------------------------------- DeepSeek


@pytest.mark.parametrize(
    ("layers", "width", "lr", "sequences"),
    [(30, 4096, 4.2e-4, 2304), (95, 8192, 3.2e-4, 4608)],
    ids=["7B", "67B"],
)
def test_deepseek_comes_near_what_its_authors_trained_with(layers, width, lr, sequences):
    """DeepSeek LLM, table 2: two trillion tokens at context 4,096."""
    tokens, context, vocabulary = 2 * 10**12, 4096, 102_400
    blocks = 12 * layers * width**2
    head = vocabulary * width
    run = recipe_input(
        tokens=tokens,
        task=LanguageTask(vocab_size=vocabulary, context=context),
        parameters=ParameterCounts(
            total=blocks + 2 * head, lookup_table=head, unembedding=head, active=blocks + 2 * head
        ),
        flops=3 * (2 * blocks + 4 * layers * width * context + 2 * head) * tokens,
    )
    hyper = built("deepseek", run)
    assert hyper.lr == pytest.approx(lr, rel=0.04)
    assert hyper.batch_size == pytest.approx(sequences, rel=0.1)


def test_deepseek_by_hand():
    head = 10**8
    run = recipe_input(
        flops=1e20 + 6 * head * 2e10, parameters=ParameterCounts(total=3 * head, unembedding=head, active=3 * head)
    )
    hyper = built("deepseek", run)
    assert hyper.lr == pytest.approx(0.3118 * 10**-2.5, rel=1e-9)
    assert hyper.batch_size == round(0.2920 * 10**6.542 / 2048)


@pytest.mark.parametrize("counter", ["model", "chinchilla", {"name": "chinchilla", "n": "non-embedding"}])
def test_deepseeks_c_leaves_the_vocabulary_out_whatever_the_plan_counts(counter, tmp_path):
    plan = planned(
        tmp_path, recipe="deepseek", counter=counter, sweep={"budgets": [1e10], "sizes": [{"width": 32}]}
    )
    (run,) = plan.runs
    tokens = run.budget / run.flops_per_token
    blocks = 12 * 32**2 + 2 * 32 + 32
    attention = 12 * 32 * 16 if counter == "model" else 0
    matrices = 6 * (12 * 32**2 if counter == "model" else blocks)
    lr = run.optimizer.options["lr"]
    assert lr == pytest.approx(0.3118 * ((matrices + attention) * tokens) ** -0.125, rel=1e-3)


# ---------------------------------------------------------------------------- Power Lines


def test_power_lines_by_hand():
    hyper = built("power-lines", recipe_input())
    # sequences of 2,048: log10 is -1.51428 + 0.383 x 10.30103 = 2.43101
    assert hyper.batch_size == round(10**2.43101) == 270
    # the timescale at 20 tokens a parameter: 0.03503 - 0.527 x 1.30103 = -0.65061
    assert hyper.weight_decay == pytest.approx(270 * 2048 / (10**-0.65061 * 0.008 * 2e10), rel=1e-4)
    assert (hyper.lr, hyper.base_width, hyper.betas) == (0.008, 64, (0.9, 0.95))


def test_power_lines_counts_its_batch_in_tokens_whatever_the_context():
    long, short = (
        built("power-lines", recipe_input()),
        built("power-lines", recipe_input(task=LanguageTask(50_000, 256))),
    )
    assert short.batch_size == pytest.approx(8 * long.batch_size, abs=4)


def test_power_lines_takes_the_decay_from_what_the_user_has_fixed():
    free = built("power-lines", recipe_input())
    fixed = built("power-lines", recipe_input(lr=0.004, batch_size=135))
    assert fixed.weight_decay == pytest.approx(free.weight_decay, rel=1e-9)
    assert (fixed.lr, fixed.batch_size) == (0.004, 135)


def test_a_planned_run_has_the_timescale_that_power_lines_asks_for(tmp_path):
    small = {"batch_scale": 0.002, "name": "power-lines"}
    sweep = {"budgets": [2e9, 1e10], "sizes": [{"width": 8}, {"width": 24}]}
    plan = planned(tmp_path, recipe=small, optimizer={"name": "adamw", "lr": 0.02}, sweep=sweep)
    assert len(plan.runs) == 4
    for run in plan.runs:
        options = run.optimizer.options
        timescale = run.batch_size * 16 / (options["lr"] * options["weight_decay"] * run.tokens)
        # The planner moves a batch by up to a tenth to meet the budget.
        assert timescale == pytest.approx(1.084 * (run.tokens / run.params) ** -0.527, rel=0.12)


def test_power_lines_needs_a_learning_rate_where_no_width_gives_one():
    assert built("power-lines", recipe_input(width=None), lr=0.001).base_width is None
    with pytest.raises(ConfigError, match=r"write optimizer\.lr or recipe\.lr"):
        built("power-lines", recipe_input(width=None))


# ---------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_law_for_adam_says_so_of_another_optimizer(name):
    with pytest.raises(ConfigError, match=f"recipe '{name}' is a law for AdamW.*choose recipe"):
        built(name, recipe_input(width_scaling="none"))


@pytest.mark.parametrize("name", ["steplaw", "deepseek"])
def test_a_model_that_is_all_vocabulary_has_no_such_law(name):
    counts = ParameterCounts(total=100, lookup_table=40, unembedding=60, active=100)
    with pytest.raises(ConfigError, match="counts parameters except embeddings and output head"):
        built(name, recipe_input(parameters=counts, flops=6 * 60 * 2e10))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("steplaw", {"lr_scale": 3.58}),
        ("steplaw", {"lr_params": -0.6}),
        ("steplaw", {"lr_tokens": 0.4}),
        ("steplaw", {"batch_scale": 1.16}),
        ("steplaw", {"batch_tokens": 0.5}),
        ("deepseek", {"lr_scale": 0.6}),
        ("deepseek", {"lr_flops": -0.1}),
        ("deepseek", {"batch_scale": 0.6}),
        ("deepseek", {"batch_flops": 0.3}),
        ("power-lines", {"lr": 0.001}),
        ("power-lines", {"base_width": 32}),
        ("power-lines", {"batch_scale": 0.06}),
        ("power-lines", {"batch_tokens": 0.4}),
        ("power-lines", {"sequence": 1024}),
        ("power-lines", {"timescale_scale": 2.0}),
        ("power-lines", {"timescale_ratio": -0.4}),
        *((name, {"betas": (0.8, 0.9)}) for name in PUBLISHED),
        *((name, {"warmup": 0.01}) for name in PUBLISHED),
        *((name, {"weight_decay": 0.2}) for name in PUBLISHED[:2]),
    ],
)
def test_every_constant_of_a_law_can_be_changed(name, changes):
    assert built(name, recipe_input(), **changes) != built(name, recipe_input())


@pytest.mark.parametrize("name", ["width-scaled", *PUBLISHED])
def test_a_trunk_has_a_warmup_of_its_own(name):
    assert built(name, recipe_input(trunk=True)).warmup_tokens == 2 * 10**8
    assert built(name, recipe_input(trunk=True), trunk_warmup=0.02).warmup_tokens == 4 * 10**8
    assert built(name, recipe_input(), trunk_warmup=0.02).warmup_tokens == 10**9


@pytest.mark.parametrize("name", ["width-scaled", "constant", *PUBLISHED])
def test_the_option_that_tuning_writes_multiplies_the_learning_rate(name):
    option = installed().find("recipe", name).spec.lr_option
    once, twice = built(name, recipe_input(), **{option: 0.01}), built(name, recipe_input(), **{option: 0.02})
    assert twice.lr == pytest.approx(2 * once.lr, rel=1e-12)


def test_an_option_for_tuning_that_is_none_is_refused():
    with pytest.raises(ValueError, match="lr_option 'rate' is not one of its options"):
        RecipeSpec(name="mine", options=Options, build=lambda options, run: Hyperparameters(), lr_option="rate")


# ---------------------------------------------------------------------------- in a plan


def planned(folder, registry=None, **changes):
    table = text_table(write_text(folder / "text", files=12, words=300), **changes)
    return make_plan(make_experiment(table, registry or installed()))


def test_a_law_fills_what_the_user_left_unset(tmp_path):
    plan = planned(tmp_path, recipe={"name": "steplaw", "batch_scale": 0.1})
    assert len({run.optimizer.options["lr"] for run in plan.runs}) == len(plan.runs)
    for run in plan.runs:
        assert run.optimizer.options["weight_decay"] == 0.1
        assert run.base_width is None
    own = planned(
        tmp_path, recipe={"name": "steplaw", "batch_scale": 0.1}, optimizer={"name": "adamw", "lr": 0.01}
    )
    assert {run.optimizer.options["lr"] for run in own.runs} == {0.01}
    assert "optimizer.lr = 0.01 is set by you; the recipe's value is not used" in own.notes


def test_a_value_that_the_optimizer_does_not_have_is_left_out(tmp_path):
    plan = planned(
        tmp_path,
        recipe={"name": "constant", "lr": 0.1, "weight_decay": 0.2, "betas": [0.8, 0.9], "batch_size": 4},
        optimizer={"name": "sgd"},
    )
    for run in plan.runs:
        assert run.optimizer.options == {"lr": 0.1, "weight_decay": 0.2}


def test_a_recipe_sees_its_run(tmp_path):
    seen = []

    class Curious:
        @hookimpl
        def flops_fit_recipes(self):
            yield RecipeSpec(name="curious", build=self.build)

        def build(self, options, run):
            seen.append(run)
            return Hyperparameters(batch_size=4)

    registry = installed().with_plugins({"curious": Curious()})
    planned(tmp_path, registry, recipe="curious", sweep={"budgets": [2e8], "sizes": [{"width": 8}]})
    (run,) = seen
    assert run.flops == pytest.approx(2e8)
    assert run.parameters.unembedding == 256 * 8
    assert (run.lr, run.batch_size, run.width, run.width_scaling) == (None, None, 8, "adam")
    planned(
        tmp_path,
        registry,
        recipe="curious",
        sweep={"budgets": [2e8], "sizes": [{"width": 8}], "batch_size": 3},
        optimizer={"name": "adamw", "lr": 0.02},
    )
    assert (seen[-1].lr, seen[-1].batch_size) == (0.02, 3)


# ---------------------------------------------------------------------------- power-law


def test_power_law_by_hand():
    options = {"lr_scale": 2.0, "lr_params": -0.5, "lr_tokens": 0.25, "batch_scale": 3.0}
    run = recipe_input(tokens=10**12)
    hyper = built("power-law", run, **options, batch_params=0.125, batch_tokens=0.5, weight_decay=0.3)
    # N = 1e9 matmul parameters: 2 x 10^(-4.5 + 3); the batch is 3 x 10^(1.125 + 6) tokens
    assert hyper.lr == pytest.approx(2 * 10**-1.5)
    assert hyper.batch_size == round(3 * 10**7.125 / 2048)
    assert (hyper.weight_decay, hyper.betas, hyper.base_width) == (0.3, None, None)


@pytest.mark.parametrize(("n", "params"), [("matmul", 10**9), ("total", 11 * 10**8), ("non-embedding", 9 * 10**8)])
def test_power_law_takes_the_n_of_its_option(n, params):
    assert built("power-law", recipe_input(), n=n, lr_scale=1.0, lr_params=-1.0).lr == pytest.approx(1 / params)


def test_power_law_equals_steplaw_with_the_constants_of_steplaw():
    constants = {"lr_scale": 1.79, "lr_params": -0.713, "lr_tokens": 0.307, "batch_scale": 0.58}
    run = recipe_input()
    hyper = built("power-law", run, n="non-embedding", **constants, batch_tokens=0.571)
    published = built("steplaw", run)
    assert (hyper.lr, hyper.batch_size) == (pytest.approx(published.lr), published.batch_size)


def test_power_law_leaves_open_values_to_the_optimizer_and_the_sweep():
    hyper = built("power-law", recipe_input())
    assert (hyper.lr, hyper.batch_size) == (None, None)


def test_power_laws_batch_is_at_most_the_run():
    run = recipe_input(tokens=2048 * 10)
    assert built("power-law", run, batch_scale=1e9).batch_size == 10
