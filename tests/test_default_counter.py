"""Which FLOPs counter a plan uses if none is named, and what a plan reports of its counter."""

import pytest
import torch
from small import text_table, train, write_text
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from flops_fit_core import PlanError, Study, find_optimal, run
from flops_fit_core import plan as plan_study
from flops_fit_core.config import make_experiment
from flops_fit_core.flops.audit import ReferenceFlops
from flops_fit_core.flops.model_stats import SizeMeasurer
from flops_fit_core.planning import make_plan, open_dataset
from flops_fit_core.planning.counter import counter_notes, partly_used
from flops_fit_core.plugins import ModelSpec, Options, ParameterGroup, hookimpl
from flops_fit_core.plugins.registry import installed

IMAGES = {
    "sweep": {"budgets": [1e9], "sizes": [{"width": 16}, {"width": 32}], "allow_repeat": True, "min_steps": 1},
    "model": {"name": "vit", "depth": 2, "patch": 2},
    "dataset": {"name": "images"},
    "optimizer": "adamw",
}


def planned(table):
    return make_plan(make_experiment(table, installed()))


def counters(plan):
    return {run.counter.name for run in plan.runs}


class CNN(nn.Module):
    def __init__(self, width):
        super().__init__()
        convolutions = (nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.layers = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

    def forward(self, x):
        return self.layers(x)


PICTURES = TensorDataset(torch.zeros(40, 3, 8, 8), torch.arange(40) % 10)
ROWS = torch.randint(50, (400, 9), generator=torch.Generator().manual_seed(0))
TOKENS = TensorDataset(ROWS[:, :-1], ROWS[:, 1:])


def optimal(tmp_path, model, dataset, **more):
    settings = {"compute_budgets": [1e7], "sizes": [4, 8], "allow_repeat": True, "min_steps": 1, "train": False}
    return find_optimal(
        model, "width", dataset=dataset, output_dir=tmp_path / "study", **{**settings, **more}
    ).plan


# ---------------------------------------------------------------------------- the default


def test_a_language_task_is_counted_as_6_n_d_and_the_plan_gives_the_reason(tmp_path):
    table = text_table(write_text(tmp_path / "text"))
    del table["counter"]
    plan = planned(table)
    assert counters(plan) == {"counters/chinchilla"}
    assert any("counters/chinchilla, by default: in a language task" in note for note in plan.notes)


def test_a_family_that_counts_as_torch_does_counts_itself_on_images():
    plan = planned(IMAGES)
    assert counters(plan) == {"counters/model"}
    assert any("counters/model, by default" in note and "equals a trace" in note for note in plan.notes)


def test_a_family_whose_own_count_is_not_torch_s_is_traced():
    plan = planned({**IMAGES, "model": {"name": "mlp"}})
    assert counters(plan) == {"counters/traced"}


def test_a_convolutional_net_is_counted_as_torch_counts_it(tmp_path):
    plan = optimal(tmp_path, CNN, PICTURES, compute_budgets=[1e8])
    assert counters(plan) == {"counters/traced"}
    for planned_run in plan.runs:
        model, (inputs, targets) = CNN(planned_run.size), PICTURES[:4]
        with FlopCounterMode(display=False) as counter:
            functional.cross_entropy(model(inputs), targets).backward()
        assert planned_run.flops_per_token == pytest.approx(counter.get_total_flops() / 4)


def test_rows_of_tokens_given_to_find_optimal_are_a_language_task(tmp_path):
    assert counters(optimal(tmp_path, Bigram, TOKENS)) == {"counters/chinchilla"}


class Bigram(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table, self.head = nn.Embedding(50, width), nn.Linear(width, 50)

    def forward(self, ids):
        return self.head(self.table(ids))


def test_options_without_a_name_are_those_of_the_default():
    plan = planned({**IMAGES, "counter": {"n": "total"}})
    assert counters(plan) == {"counters/model"}
    assert plan.params_name == "all parameters"


def test_a_counter_that_is_named_stays_and_is_compared():
    plan = planned({**IMAGES, "counter": "chinchilla"})
    assert counters(plan) == {"counters/chinchilla"}
    (note,) = [note for note in plan.notes if "over a trace" in note]
    own = {run.size: run.flops_per_token for run in planned(IMAGES).runs}
    ratios = {run.size: run.flops_per_token / own[run.size] for run in plan.runs}
    assert f"{ratios[16]:.3g} at size 16 and {ratios[32]:.3g} at size 32" in note


def test_a_study_plans_again_with_the_same_default(tmp_path):
    table = {**IMAGES, "counter": {"n": "total"}, "executor": "local", "device": "cpu"}
    table["sweep"] = {**IMAGES["sweep"], "budgets": [1e8], "sizes": [{"width": 16}]}
    study = run(table, out=tmp_path / "study")
    assert [result.status for result in study.results] == ["completed"]
    again = Study.open(tmp_path / "study")._settings.load()
    assert again.counter.depends_on_task
    assert [run.id for run in make_plan(again).runs] == [run.id for run in study.plan.runs]
    assert [run.id for run in plan_study(table, out=tmp_path / "study").plan.runs] == [
        run.id for run in study.plan.runs
    ]


class Peeking(CNN):
    def forward(self, x):
        return super().forward(x) if x.sum() >= 0 else -super().forward(x)


def test_a_model_that_cannot_be_traced_is_planned_with_a_note(tmp_path):
    plan = optimal(tmp_path, Peeking, PICTURES)
    assert counters(plan) == {"counters/chinchilla"}
    assert any("the model cannot be traced (it reads the values of a tensor" in note for note in plan.notes)
    assert any("not compared with a trace" in note for note in plan.notes)


def test_numbers_of_a_model_that_another_program_builds_are_planned_with_a_note():
    plan = planned(
        {
            "sweep": {"budgets": [1e12], "sizes": [{"params": 100_000}, {"params": 400_000}], "batch_size": 4},
            "model": "declared",
            "dataset": {"name": "external", "label": "corpus", "vocab_size": 1000, "context": 128},
            "trainer": {"name": "command", "command": ["python", "train.py"]},
        }
    )
    assert [run.params for run in plan.runs] == [100_000, 400_000]
    assert any("not compared with a trace of callable/declared" in note for note in plan.notes)


# ---------------------------------------------------------------------------- refusals


def compared(table, *, is_named):
    experiment = make_experiment(table, installed())
    task = open_dataset(experiment, 0).task
    meter = SizeMeasurer(experiment.model, task, experiment.counter)
    sizes = [meter.measure(experiment.model.with_options(**size).options) for size in experiment.sweep.sizes]
    return counter_notes(meter, sizes, ReferenceFlops(experiment.model, task), is_named=is_named)


def test_a_default_that_is_far_off_is_refused_with_the_choices():
    with pytest.raises(
        PlanError, match=r'counters/chinchilla over a trace.*counter = "traced".*counter = "chinchilla"'
    ):
        compared({**IMAGES, "counter": "chinchilla"}, is_named=False)
    assert len(compared({**IMAGES, "counter": "chinchilla"}, is_named=True)) == 1


def test_a_language_task_gets_a_warning_for_a_long_context(tmp_path):
    text = write_text(tmp_path / "text")
    sweep = {"budgets": [1e9], "sizes": [{"width": 8}, {"width": 64}], "min_steps": 1}
    changes = {"counter": "chinchilla", "dataset": {"context": 256}, "sweep": sweep}
    (note,) = compared(text_table(text, **changes), is_named=False)
    d, s, v = 8, 256, 256
    ratio = 6 * (12 * d * d + d * v + 3 * d) / (3 * (24 * d * d + 4 * s * d + 2 * d * v))
    assert note.startswith("warning: ")
    assert f"{ratio:.3g} at size 8" in note


def test_a_counter_within_five_percent_needs_no_note(tmp_path):
    """At width 64 and context 16, attention is 3% of a gpt's products."""
    sizes = {"sizes": [{"width": 64}], "budgets": [1e9]}
    assert (
        compared(text_table(write_text(tmp_path / "text"), counter="chinchilla", sweep=sizes), is_named=False)
        == []
    )


# ---------------------------------------------------------------------------- mixtures of experts


class Experts(nn.Module):
    """Each token goes to one of four experts."""

    def __init__(self, width):
        super().__init__()
        self.table, self.router, self.head = nn.Embedding(50, width), nn.Linear(width, 4), nn.Linear(width, 50)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, ids):
        x = self.table(ids)
        flat = x.flatten(0, 1)
        gates, chosen = self.router(flat).softmax(-1).max(-1)
        y = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(-1)
            y = y.index_add(0, rows, expert(flat[rows]) * gates[rows, None])
        return self.head(x + y.view_as(x))


class Stacked(Experts):
    def __init__(self, width):
        super().__init__(width)
        self.experts = nn.Parameter(torch.randn(4, width, width))

    def forward(self, ids):
        x = self.table(ids)
        gates, chosen = self.router(x).softmax(-1).max(-1)
        return self.head(x + torch.einsum("btd,btdf->btf", x, self.experts[chosen]) * gates[..., None])


class Sorted(Experts):
    """Tokens sorted by expert, and one grouped product for all."""

    def __init__(self, width):
        super().__init__(width)
        self.experts = nn.Parameter(torch.randn(4, width, width))

    def forward(self, ids):
        x = self.table(ids)
        flat = x.flatten(0, 1)
        gates, chosen = self.router(flat).softmax(-1).max(-1)
        order = chosen.argsort()
        ends = (chosen[:, None] == torch.arange(4)).sum(0).cumsum(0).to(torch.int32)
        rows = nn.functional.grouped_mm(flat[order], self.experts, offs=ends) * gates[order, None]
        return self.head(x + torch.zeros_like(flat).index_add(0, order, rows).view_as(x))


def test_a_grouped_product_of_experts_is_counted_as_the_products_of_the_experts(tmp_path):
    flops = [
        {run.size: run.flops_per_token for run in optimal(tmp_path / name, model, TOKENS, counter="traced").runs}
        for name, model in (("sorted", Sorted), ("stacked", Stacked))
    ]
    assert flops[0] == flops[1]
    plan = optimal(tmp_path / "default", Sorted, TOKENS)
    assert any("experts (25%)" in note for note in plan.notes)


class Grouped(Experts):
    def parameter_groups(self):
        own = {id(parameter) for parameter in self.experts.parameters()}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in own]
        return [ParameterGroup(self.experts.parameters(), active=0.25), ParameterGroup(rest)]


@pytest.mark.parametrize(("model", "named"), [(Experts, r"experts.*.weight (1 of 4)"), (Stacked, "experts (25%)")])
def test_a_mixture_that_counts_all_experts_is_told_how_to_name_the_share(tmp_path, model, named):
    notes = optimal(tmp_path, model, TOKENS).notes
    (note,) = [note for note in notes if "some tokens were not multiplied" in note]
    assert named in note
    assert "parameter_groups()" in note


def test_a_mixture_that_gives_the_share_needs_no_note(tmp_path):
    plan = optimal(tmp_path, Grouped, TOKENS)
    assert not any("some tokens were not multiplied" in note for note in plan.notes)
    width = 4
    used = width * 4 + 4 + (width * width + width) + width * 50 + 50
    assert next(run.params for run in plan.runs if run.size == width) == used


def test_a_dense_model_has_no_part_that_a_token_leaves_out():
    experiment = make_experiment(IMAGES, installed())
    meter = SizeMeasurer(experiment.model, open_dataset(experiment, 0).task, experiment.counter)
    meter.measure(experiment.model.with_options(width=16).options)
    (usage,) = meter.usages.traced
    assert partly_used(usage) == {}


# ---------------------------------------------------------------------------- the worker


class TiedByHand(Bigram):
    def __init__(self, width):
        super().__init__(width)
        self.head = None

    def forward(self, ids):
        return functional.linear(self.table(ids), self.table.weight)


def test_a_worker_counts_a_model_that_is_tied_by_hand_as_its_plan_does(tmp_path):
    study = find_optimal(
        TiedByHand,
        "width",
        dataset=TOKENS,
        compute_budgets=[2e7],
        sizes=[4, 8],
        allow_repeat=True,
        min_steps=1,
        executor="local",
        device="cpu",
        output_dir=tmp_path / "study",
    )
    assert [(result.status, result.run.params) for result in study.results] == [
        ("completed", 50 * 4),
        ("completed", 50 * 8),
    ]
    assert all(result.parameters.lookup_table == 0 for result in study.results)


def test_a_table_that_is_a_plain_parameter_is_counted_alike_in_the_plan_and_in_the_worker(tmp_path):
    class Widths(Options):
        width: int = 8

    class Plugin:
        @hookimpl
        def flops_fit_models(self):
            yield ModelSpec(
                name="late", options=Widths, build=lambda options, task: Late(options.width), size="width"
            )

    class Late(nn.Module):
        """Its table is a parameter, which module types count as a matrix."""

        def __init__(self, width):
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(256, width)), nn.Linear(width, 256, bias=False)

        def forward(self, ids):
            return self.head(self.table[ids])

    registry = installed().with_plugins({"mine": Plugin()})
    sweep = {"budgets": [6 * 4096 * 6400], "sizes": [{"width": 8}], "batch_size": 4}
    changes = {"model": {"name": "late"}, "counter": "chinchilla", "sweep": sweep}
    table = text_table(write_text(tmp_path / "text"), **changes)
    (result,) = train(table, registry)
    assert (result.status, result.run.params) == ("completed", 256 * 8)
