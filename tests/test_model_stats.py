from dataclasses import replace

import numpy as np
import pytest
import torch
from small import Bench
from torch import nn
from torch.utils.data import TensorDataset

from flops_fit_core import PlanError, PluginError, find_optimal
from flops_fit_core.config import make_experiment
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.flops.model_stats import SizeMeasurer, build_on_meta
from flops_fit_core.flops.parameter_counts import count_parameters
from flops_fit_core.planning.model_errors import describe_model_error
from flops_fit_core.plugins import ParameterGroup, hookimpl

TASK = LanguageTask(vocab_size=20, context=4)


class Tiny(nn.Module):
    """An embedding, a matrix that may be used twice, and a head that may be tied."""

    def __init__(self, *, tied=False, shared=False, bias=True):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.first = nn.Linear(6, 6)
        self.second = self.first if shared else nn.Linear(6, 6)
        self.head = nn.Linear(6, 20, bias=bias)
        if tied:
            self.head.weight = self.embedding.weight


def test_an_embedding_is_a_table_and_the_head_the_layer_over_the_vocabulary():
    counts = count_parameters(Tiny(), TASK)
    assert (counts.total, counts.lookup_table, counts.unembedding) == (120 + 42 + 42 + 140, 120, 140)
    assert counts.matmul == 42 + 42 + 140
    assert counts.non_embedding == 84


def test_a_tied_embedding_is_multiplied_and_counted_once():
    counts = count_parameters(Tiny(tied=True, bias=False), TASK)
    assert (counts.total, counts.lookup_table, counts.unembedding) == (120 + 84, 0, 120)
    assert counts.matmul == counts.total
    assert counts.non_embedding == 84


def test_a_shared_layer_is_counted_once():
    assert count_parameters(Tiny(shared=True), TASK).total == 120 + 42 + 140


def test_only_a_language_task_has_a_head_over_a_vocabulary():
    assert count_parameters(Tiny(), SupervisedTask((6,), 20)).unembedding == 0


def test_num_params_of_a_model_replaces_the_count():
    class Mixture(Tiny):
        def num_params(self):
            return 7

    counts = count_parameters(Mixture(), TASK)
    assert (counts.total, counts.matmul) == (7, 7)


@pytest.mark.parametrize(("own", "total", "active"), [(False, 344, 302), (True, 50, 8)])
def test_inactive_parameters_follow_from_the_familys_groups(own, total, active):
    model = Tiny()
    if own:
        model.num_params = lambda: 50
    groups = [
        ParameterGroup(list(model.first.parameters()), active=0.5),
        ParameterGroup(list(model.second.parameters()), active=0.5),
        ParameterGroup([*model.embedding.parameters(), *model.head.parameters()]),
    ]
    counts = count_parameters(model, TASK, groups)
    assert (counts.total, counts.active, counts.inactive) == (total, active, 42)


def test_a_partly_active_table_is_subtracted_from_n_once():
    model = Tiny()
    rest = [*model.first.parameters(), *model.second.parameters(), *model.head.parameters()]
    groups = [ParameterGroup(rest), ParameterGroup(model.embedding.parameters(), active=0.25)]
    counts, plain = count_parameters(model, TASK, groups), count_parameters(model, TASK)
    assert (counts.matmul, counts.non_embedding) == (plain.matmul, plain.non_embedding)
    assert (counts.lookup_table, counts.inactive) == (plain.lookup_table * 0.25, plain.lookup_table * 0.75)


def test_parameters_from_an_iterator_are_kept():
    model = Tiny()
    group = ParameterGroup(model.first.parameters(), active=0.5)
    assert [parameter.shape for parameter in group.parameters] == [
        parameter.shape for parameter in model.first.parameters()
    ]
    assert (
        count_parameters(model, TASK, [group]).inactive
        == sum(parameter.numel() for parameter in model.first.parameters()) / 2
    )


def test_num_params_without_inactive_parameters_is_refused():
    model = Tiny()
    model.num_params = lambda: 10
    with pytest.raises(
        PlanError, match=r"num_params\(\) returned 10, .* contain 126 inactive parameters: .* must count these too"
    ):
        count_parameters(model, TASK, [ParameterGroup(model.head.parameters(), active=0.1)])


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_an_invalid_share_is_refused(share):
    with pytest.raises(ValueError, match="active must be above 0 and at most 1"):
        ParameterGroup([], active=share)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(PlanError, match="ReLU has no parameters"):
        count_parameters(nn.ReLU(), TASK)


def meter_of(bench, **changes):
    experiment = make_experiment(bench.table(**changes), bench.registry())
    return SizeMeasurer(experiment.model, bench.build_walk(None, 0).task, experiment.counter)


def test_a_size_is_measured_once_without_memory_for_weights():
    built = []

    class Watched(Bench):
        def build_net(self, options, task):
            module = super().build_net(options, task)
            built.append(module)
            return module

    meter = meter_of(Watched())
    assert meter.at(16) is meter.at(16)
    shapes, real = built  # the second is run once, to see how its parameters are used
    assert all(parameter.is_meta for parameter in shapes.parameters())
    assert sum(parameter.numel() for parameter in real.parameters()) == 16 * 24 + 12
    # 10^12 parameters.
    assert meter.at(10**11 // 2).parameters.total == 10**11 // 2 * 24 + 12


class WithConstants(nn.Module):
    """Drop rates from ``linspace``, positions from NumPy, a table that is registered twice."""

    def __init__(self):
        super().__init__()
        print("built")
        self.rates = [float(rate) for rate in torch.linspace(0, 0.1, 3)]
        self.net = nn.Linear(4, 4)
        self.register_buffer("positions", torch.from_numpy(np.ones((4, 4), dtype="float32")))
        self.net.register_buffer("again", self.positions)
        self.register_buffer("scale", torch.from_numpy(np.array(2.0)))
        self.frozen = nn.Parameter(torch.from_numpy(np.ones((2, 2), dtype="float32")), requires_grad=False)
        self.lazy, self.nothing = nn.LazyLinear(3), None


def test_constants_of_a_model_have_values_and_its_tensors_only_shapes(capsys):
    class Family(Bench):
        def build_net(self, options, task):
            return WithConstants()

    bench = Family()
    model = make_experiment(bench.table(), bench.registry()).model
    module = build_on_meta(model, model.options, TASK)
    assert module.rates == pytest.approx([0, 0.05, 0.1])
    assert module.positions.is_meta
    assert module.net.again is module.positions
    assert module.frozen.is_meta
    assert not module.frozen.requires_grad
    assert module.scale.item() == 2  # scalars may be read
    assert capsys.readouterr().out == ""


def test_a_model_that_reads_its_weights_is_refused(tmp_path):
    class Family(Bench):
        def build_net(self, options, task):
            return nn.Linear(4, int(nn.Linear(4, 4).weight.sum()))

    bench = Family()
    model = make_experiment(bench.table(), bench.registry()).model
    with pytest.raises(PluginError, match="called on meta tensors") as caught:
        build_on_meta(model, model.options, TASK)
    assert "a model is built on torch's meta device" in describe_model_error(caught.value)


def test_the_error_for_an_invalid_size_names_the_size():
    with pytest.raises(PlanError, match="cannot have width = many"):
        meter_of(Bench()).at("many")


def test_a_family_that_does_not_build_a_module_is_a_broken_plugin():
    class Broken(Bench):
        def build_net(self, options, task):
            return "a model"

    with pytest.raises(PluginError, match=r"bench/net.*built a str, not a torch.nn.Module"):
        meter_of(Broken()).at(4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            lambda module: [ParameterGroup([])],
            r"returned 0 parameters, 0 of them distinct; each of the model's 3 parameters must be in exactly one",
        ),
        (lambda module: [{"params": list(module.parameters())}], "returned a dict, not a ParameterGroup"),
        (lambda module: module.layers, r"parameter_groups\(\.\.\.\): AttributeError"),
    ],
)
def test_a_family_with_wrong_parameter_groups_is_refused_before_training(groups, message):
    class Wrong(Bench):
        @hookimpl
        def flops_fit_models(self):
            (spec,) = super().flops_fit_models()
            yield replace(spec, parameter_groups=groups)

    with pytest.raises(PluginError, match=f"model 'bench/net'.*{message}"):
        meter_of(Wrong()).at(4)


def test_the_error_for_outputs_of_a_wrong_shape_names_both_shapes():
    class Wrong(Bench):
        def build_net(self, options, task):
            return nn.Sequential(super().build_net(options, task), nn.Linear(12, 13))

    meter = meter_of(Wrong())
    with pytest.raises(PlanError, match=r"\(2, 8, 13\).*\(2, 8, 12\)"):
        meter.check_fit(meter.model.options)


def test_initialization_is_skipped_on_the_meta_device_only():
    bench = Bench()
    meter = meter_of(bench)
    build_on_meta(meter.model, meter.model.options, meter.task)
    torch.manual_seed(0)
    first = nn.Linear(3, 3).weight.detach().clone()
    torch.manual_seed(0)
    assert torch.equal(first, nn.Linear(3, 3).weight)
    assert first.std() > 0.1


class Flex(nn.Module):
    """Attention through torch's compiler, for which torch 2.13 has no gradient on a CPU."""

    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.mixed = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, 50)

    def forward(self, tokens):
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = self.mixed(self.embedding(tokens)).unsqueeze(1).chunk(3, dim=-1)
        y = flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: torch.where(i >= j, score, -float("inf")))
        return self.head(y.squeeze(1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without", "ignore:Dynamo")
def test_attention_that_calls_the_compiler_is_planned_without_a_trace(tmp_path):
    rows = torch.randint(0, 50, (3000, 17))
    study = find_optimal(
        Flex,
        "width",
        dataset=TensorDataset(rows[:, :-1], rows[:, 1:]),
        compute_budgets=[6e7],
        sizes=[8],
        optimizer="adamw",
        train=False,
        output_dir=tmp_path,
    )
    assert [run.params for run in study.plan.runs] == [666]
    assert any("cannot be traced" in notice for notice in study.plan.notes)
