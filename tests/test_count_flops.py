"""Comparison of counters, their exponents, and notes on families with a wrong FLOPs formula."""

import json
import math

import pytest
import torch
from small import text_table, write_text
from torch import nn

from flops_fit_core.cli.main import run
from flops_fit_core.config import choose_from_table
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.flops.audit import LossExponents, audit, every_counter, formula_notes, scalings
from flops_fit_core.flops.model_stats import SizeMeasurer, UsageTraces
from flops_fit_core.plugins import FlopCount, FlopCounterSpec, ModelSpec, Options, hookimpl
from flops_fit_core.plugins.registry import Registry, installed

TASK = LanguageTask(vocab_size=256, context=64)


def chosen(kind, name, registry=None, **options):
    return choose_from_table(kind, {"name": name, **options}, registry or installed(), kind)


def audited(family="gpt", task=TASK, widths=(64, 16, 256), own="model", registry=None, only="", **options):
    registry = registry or installed()
    model = chosen("model", family, registry, **options)
    sizes = [model.with_options(width=width).options for width in widths]
    other_counters = [counter for counter in every_counter(registry) if only in counter.name]
    return audit(model, sizes, task, chosen("counter", own, registry), other_counters)


# ---------------------------------------------------------------------------- comparing


def test_all_counters_are_listed_after_the_experiments_counter_smallest_size_first():
    result = audited(depth=2)
    assert [convention.label for convention in result.conventions] == [
        "counters/model",
        "counters/chinchilla",
        "counters/chinchilla n=total",
        "counters/chinchilla n=non-embedding",
        "counters/hoffmann",
        "counters/hoffmann vocabulary=head",
        "counters/hoffmann vocabulary=none",
        "counters/traced",
    ]
    assert [size.size for size in result.sizes] == [16, 64, 256]
    assert result.refused == {}


def test_ratios_are_relative_to_the_trace_and_to_6_n():
    result = audited(depth=2)
    by_label = {convention.label: convention for convention in result.conventions}
    d, s, v = 64, 64, 256
    products = 3 * (2 * (24 * d * d + 4 * s * d) + 2 * d * v)
    n = 2 * 12 * d * d + d * v + 2 * 2 * d + d  # with the norms' gains
    assert result.over_six_n(by_label["counters/traced"])[1] == pytest.approx(products / (6 * n))
    assert result.over_traced(by_label["counters/chinchilla"])[1] == pytest.approx(6 * n / products)
    assert result.over_traced(by_label["counters/model"]) == (1.0, 1.0, 1.0)
    total = by_label["counters/chinchilla n=total"]
    assert result.over_six_n(total)[1] == pytest.approx((n + d * v) / n)


def test_a_counter_that_cannot_count_a_family_is_listed_once_with_the_reason():
    result = audited("mlp", own="chinchilla")
    assert list(result.refused) == ["counters/hoffmann"]
    assert "does not describe its shape" in result.refused["counters/hoffmann"]


def test_options_that_do_not_change_the_count_are_not_listed():
    result = audited("mlp", SupervisedTask((8,), 2), own="chinchilla")
    assert [convention.label for convention in result.conventions] == [
        "counters/chinchilla",
        "counters/model",
        "counters/traced",
    ]


def test_without_a_trace_no_ratio_to_the_trace_is_reported():
    registry = Registry(disabled=["counters"])

    class Flat:
        @hookimpl
        def flops_fit_flop_counters(self):
            yield FlopCounterSpec(name="flat", build=lambda options, measured: FlopCount(9.0, 3, "9", "3"))

    registry = registry.with_plugins({"mine": Flat()})
    result = audited(own="flat", registry=registry)
    assert result.traced is None
    assert result.over_traced(result.conventions[0]) == (None, None, None)


# ---------------------------------------------------------------------------- exponents


def bent(phi, psi):
    """A counter with FLOPs per token 6 N^phi for the model's N, and with the size N^psi."""

    class Bent:
        @hookimpl
        def flops_fit_flop_counters(self):
            def build(options, measured):
                n = measured.parameters.matmul
                return FlopCount(6.0 * n**phi, round(n**psi), "6 N^phi", "N^psi")

            yield FlopCounterSpec(name="bent", build=build)

    return installed().with_plugins({"mine": Bent()})


def best_size(alpha, beta, phi, flops):
    """N of the smallest 1/N^alpha + 1/D^beta with 6 N^phi D = C, by ternary search."""

    def loss(log_n):
        log_d = math.log(flops / 6) - phi * log_n
        return math.exp(-alpha * log_n) + math.exp(-beta * log_d)

    low, high = 1.0, 60.0
    while high - low > 1e-9:  # ternary search: drop the third that cannot contain the minimum
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp(low)


@pytest.mark.parametrize(("phi", "psi"), [(1.0, 1.0), (0.8, 1.0), (1.3, 1.2)])
def test_the_exponent_equals_that_of_the_numerical_minimum_at_each_budget(phi, psi):
    law = LossExponents(0.34, 0.28, "the test")
    result = audited(own="chinchilla", registry=bent(phi, psi), widths=(64, 256, 1024), only="bent")
    (scaling,) = [scaling for scaling in scalings(result, law) if scaling.convention.label == "mine/bent"]
    small, large = (best_size(0.34, 0.28, phi, flops) for flops in (1e15, 1e21))
    slope = math.log(large / small) / math.log(1e6)
    assert scaling.phi == pytest.approx(phi, abs=1e-6)
    assert scaling.a == pytest.approx(slope, abs=1e-3)
    assert scaling.b == pytest.approx(1 - phi * slope, abs=1e-3)
    assert scaling.own_a == pytest.approx(psi * slope, abs=1e-3)


def test_excluding_embeddings_raises_the_exponent_of_small_models():
    """Kaplan's convention (Pearce and Song 2024)."""
    result = audited(own="chinchilla", widths=(8, 16, 32), only="chinchilla", depth=1)
    own_a = {
        scaling.convention.label: scaling.own_a
        for scaling in scalings(result, LossExponents(0.35, 0.37, "the test"))
    }
    assert own_a["counters/chinchilla n=non-embedding"] > own_a["counters/chinchilla"] + 0.05


def test_a_single_size_has_no_slope():
    assert scalings(audited(widths=(64,), only="chinchilla"), LossExponents(0.3, 0.3, "the test")) == []


# ---------------------------------------------------------------------------- notes on families


class Width(Options):
    width: int = 8


def family(build, count=None):
    """A registry with a family ``mine/odd``."""

    class Plugin:
        @hookimpl
        def flops_fit_models(self):
            yield ModelSpec(name="odd", options=Width, build=build, size="width", flops_per_token=count)

    return installed().with_plugins({"mine": Plugin()})


def bigram(options, task):
    return nn.Sequential(nn.Embedding(task.vocab_size, options.width), nn.Linear(options.width, task.vocab_size))


def notes(registry, *widths, name="odd", task=TASK, **options):
    model = chosen("model", name, registry, **options)
    by_type = UsageTraces(model, task, by_type=True)  # the tests below count how often the model runs
    meter = SizeMeasurer(model, task, chosen("counter", "chinchilla", registry), by_type)
    return formula_notes(model, task, [meter.at(width) for width in widths])


def test_a_wrong_family_formula_is_noted_with_its_deviation():
    registry = family(
        bigram, lambda options, task: 6.0 * options.width * task.vocab_size * (1 + options.width / 500)
    )
    (note,) = notes(registry, 8, 4, 50, 8)
    assert note == (
        "mine/odd: its FLOPs formula differs from a trace of the model: +10.0% at size 50. "
        "Compare all counters with flops-fit count-flops"
    )


@pytest.mark.parametrize(("factor", "is_noted"), [(1.0, False), (0.995, False), (0.98, True), (1.02, True)])
def test_deviations_above_one_percent_are_noted(factor, is_noted):
    registry = family(bigram, lambda options, task: factor * 6.0 * options.width * task.vocab_size)
    assert bool(notes(registry, 8)) == is_noted


def test_a_backward_pass_of_less_than_two_forward_passes_is_noted_as_the_reason():
    (note,) = notes(installed(), 8, 64, name="mlp", task=SupervisedTask((64,), 10))
    forward = {width: 64 * width + width * width + width * 10 for width in (8, 64)}
    ratio = {width: 2 - 64 * width / forward[width] for width in (8, 64)}
    for width in (8, 64):
        off = 3 / (1 + ratio[width]) - 1
        assert (
            f"{off:+.1%} (it counts the backward pass as 2 forward passes; the trace has {ratio[width]:.2f})"
            in note
        )


def test_families_with_a_right_or_no_formula_or_without_a_trace_get_no_note():
    assert notes(installed(), 8, 64, 256, name="gpt") == []
    assert notes(installed(), 8, 64, name="mlp") == []
    assert notes(family(bigram), 8) == []

    class Peeking(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    registry = family(lambda options, task: Peeking(8, task.outputs_size), lambda options, task: 1.0)
    assert notes(registry, 8, task=SupervisedTask((8,), 2)) == []
    assert formula_notes(chosen("model", "gpt"), TASK, []) == []


@pytest.mark.parametrize(("width", "parts", "traced"), [(8, 0, True), (8, 299, False), (2001, 0, False)])
def test_large_and_deep_models_are_not_traced_for_a_note(width, parts, traced):
    ran = []

    class Watched(nn.Linear):
        def forward(self, x):
            ran.append(self.weight.device.type)
            return super().forward(x)

    def build(options, task):
        layers = [nn.Linear(8, 10**6), Watched(10**6, options.width), nn.Linear(options.width, 2)]
        return nn.Sequential(*layers, *(nn.Identity() for _ in range(parts)))

    registry = family(build, lambda options, task: 1e10)  # too large to run
    assert bool(notes(registry, width, task=SupervisedTask((8,), 2))) == traced
    assert ran == (["meta"] if traced else [])


def test_a_large_model_is_traced_only_if_its_formula_is_not_exact():
    devices = []

    class Watched(nn.Linear):
        def forward(self, x):
            devices.append((self.weight.device.type, self.in_features))
            return super().forward(x)

    def build(options, task):
        return nn.Sequential(nn.Embedding(256, options.width), Watched(options.width, 256, bias=False))

    exact = family(build, lambda options, task: 3 * 2.0 * options.width * 256)
    assert notes(exact, 100_000) == []
    assert devices == [("cpu", 2), ("cpu", 3)]
    devices.clear()
    (note,) = notes(family(build, lambda options, task: 3 * 2.0 * options.width * 250), 100_000)
    assert "-2.3% at size 100000" in note
    assert devices == [("cpu", 2), ("meta", 100_000)]


def test_small_models_are_run_on_the_cpu_and_do_not_advance_the_random_numbers():
    devices = []

    class Watched(nn.Dropout):
        def forward(self, x):
            devices.append(x.device.type)
            return super().forward(x)

    def build(options, task):
        return nn.Sequential(bigram(options, task), Watched())

    torch.manual_seed(7)
    expected = torch.random.get_rng_state()
    (note,) = notes(family(build, lambda options, task: 5.0 * options.width * task.vocab_size), 8)
    assert "-16.7%" in note
    assert devices == ["cpu"]
    assert torch.equal(torch.random.get_rng_state(), expected)


# ---------------------------------------------------------------------------- the command


@pytest.fixture
def run_cli(tmp_path, monkeypatch, capsys):
    """Run ``flops-fit`` in a folder with experiments; returns its exit status and standard output."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text")
    (tmp_path / "small.json").write_text(json.dumps(text_table(tmp_path / "text", **SIZES)))
    (tmp_path / "bent.py").write_text(BENT)
    monkeypatch.syspath_prepend(tmp_path)

    def call(*arguments):
        status = run(list(arguments))
        return status, capsys.readouterr().out

    return call


SIZES = {"sweep": {"budgets": [2.4e8], "sizes": [{"width": width} for width in (8, 12, 16, 24)]}}
BENT = """
from flops_fit_core.plugins import FlopCount, FlopCounterSpec, hookimpl

def build(options, measured):
    n = measured.parameters.matmul
    return FlopCount(6.0 * n**1.1 / 100, n, "bent", "N")

@hookimpl
def flops_fit_flop_counters():
    yield FlopCounterSpec(name="bent", build=build)
"""


def test_audit_prints_counts_terms_and_exponents(run_cli):
    status, output = run_cli("count-flops", "small.json")
    assert status == 0
    assert "Training FLOPs per token of gpt/gpt" in output
    for word in (
        "counters/traced",
        "feed-forward",
        "softmax",
        "counters/hoffmann vocabulary=none",
        "The exponent by counter",
    ):
        assert word in output
    assert "from Hoffmann et al. 2022, approach 3" in " ".join(output.split())


def test_audit_shows_three_sizes_or_all(run_cli):
    few = json.loads(run_cli("count-flops", "small.json", "--json")[1])
    every = json.loads(run_cli("count-flops", "small.json", "--json", "--all")[1])
    assert [list(dict.fromkeys(row["size"] for row in document["counts"])) for document in (few, every)] == [
        [8, 16, 24],
        [8, 12, 16, 24],
    ]
    assert few["exponents"] == every["exponents"], "slopes are over all sizes of the plan"


def test_audit_accepts_changes_and_lists_counters_that_cannot_count(run_cli):
    model = ["--set", 'model={name="mlp"}', "--set", "counter.name=traced"]
    result = json.loads(run_cli("count-flops", "small.json", "--json", *model)[1])
    assert result["family"] == "mlp/mlp"
    assert result["counts"][0]["counter"] == "counters/traced"
    assert "does not describe its shape" in result["refused"]["counters/hoffmann"]
    assert "counters/hoffmann cannot count it" in run_cli("count-flops", "small.json", *model)[1]


def test_the_runs_of_a_study_are_refitted_with_each_counter(run_cli, tmp_path):
    """On a surface without noise, the refit must recover the law."""
    table = {
        "name": "formula",
        "sweep": {"budgets": [1e18, 1e19, 1e20, 1e21], "sizes": 7},
        "model": "surface/surface",
        "dataset": {"name": "surface/surface", "noise": 0.0},
        "executor": "local",
        "fitter": {"name": "parametric", "draws": 100},
    }
    (tmp_path / "formula.json").write_text(json.dumps(table))
    assert run_cli("run", "formula.json")[0] == 0
    result = json.loads(run_cli("count-flops", "runs/formula", "-p", "bent", "--json")[1])
    assert result["law"]["source"] == "this study's fit"
    alpha, beta = result["law"]["alpha"], result["law"]["beta"]
    rows = {row["counter"]: row for row in result["exponents"]}
    for counter, phi in (("counters/chinchilla", 1.0), ("bent/bent", 1.1)):
        expected = beta / (alpha + phi * beta)
        assert rows[counter]["a"] == pytest.approx(expected, rel=1e-3)
        assert rows[counter]["refitted_a"]["value"] == pytest.approx(expected, rel=0.01)
        assert rows[counter]["refitted_b"]["value"] == pytest.approx(1 - phi * expected, rel=0.01)
    assert "cannot be trained" in result["refused"]["counters/traced"]
