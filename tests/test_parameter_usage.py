"""N of models by the use of their parameters, compared with hand-written sums and torch's counter."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from flops_fit_core.config import choose_from_table
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.data.custom_task import CustomTask
from flops_fit_core.flops.model_stats import UsageTraces, build_on_meta
from flops_fit_core.flops.parameter_counts import UNTRACED, count_parameters, is_language_task
from flops_fit_core.flops.parameter_usage import pattern
from flops_fit_core.plugins import Options, hookimpl
from flops_fit_core.plugins.registry import installed
from flops_fit_core.plugins.specs import ModelSpec

V, D, T = 40, 8, 6
TASK = LanguageTask(vocab_size=V, context=T)


class Body(nn.Module):
    """A residual feed-forward layer without biases; subclasses add tables and heads."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(D, 5 * D, bias=False), nn.Linear(5 * D, D, bias=False)

    def body(self, x):
        return x + self.down(functional.gelu(self.up(x)))


BODY = 2 * 5 * D * D


class Tied(Body):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(V, D)

    def forward(self, ids):
        return self.head(self.body(self.table(ids)))

    def head(self, x):
        return functional.linear(x, self.table.weight)


class TiedByTranspose(Tied):
    def head(self, x):
        return x @ self.table.weight.t()


class TiedByEinsum(Tied):
    def head(self, x):
        return torch.einsum("btd,vd->btv", x, self.table.weight * D**-0.5)


class TiedByRows(Tied):
    def head(self, x):
        return functional.linear(x, self.table.weight[torch.arange(V, device=x.device)])


class TiedInBfloat16(Tied):
    def head(self, x):
        return functional.linear(x.bfloat16(), self.table.weight.bfloat16()).float()


@pytest.mark.parametrize("made", [Tied, TiedByTranspose, TiedByEinsum, TiedByRows, TiedInBfloat16])
def test_a_head_that_is_tied_by_hand_is_multiplied(made):
    counts = count_parameters(made(), TASK)
    assert (counts.matmul, counts.non_embedding, counts.unembedding) == (BODY + V * D, BODY, V * D)
    assert six_n_over_torch(made()) == pytest.approx(1)


def six_n_over_torch(module):
    ids = torch.randint(0, V, (2, T + 1))
    with FlopCounterMode(display=False) as counter:
        TASK.loss(module(ids[:, :-1]), ids)[0].backward()
    return 6 * count_parameters(module, TASK).matmul * 2 * T / counter.get_total_flops()


class TableAsParameter(Body):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Parameter(torch.randn(V, D)), nn.Parameter(torch.randn(D, V))

    def forward(self, ids):
        return self.body(self.look_up(ids)) @ self.out

    def look_up(self, ids):
        return functional.embedding(ids, self.table)


class TableByIndex(TableAsParameter):
    def look_up(self, ids):
        return self.table[ids] * D**0.5


class TableBySelect(TableAsParameter):
    def look_up(self, ids):
        return self.table.index_select(0, ids.flatten()).view(*ids.shape, D)


@pytest.mark.parametrize("made", [TableAsParameter, TableByIndex, TableBySelect])
def test_a_table_that_is_a_parameter_is_a_table(made):
    counts = count_parameters(made(), TASK)
    assert (counts.lookup_table, counts.matmul, counts.non_embedding) == (V * D, BODY + V * D, BODY)
    assert six_n_over_torch(made()) == pytest.approx(1)


class OneHot(TableAsParameter):
    def look_up(self, ids):
        return functional.one_hot(ids, V).float() @ self.table


def test_a_lookup_by_a_product_is_a_product():
    assert count_parameters(OneHot(), TASK).lookup_table == 0


class Positions(TableAsParameter):
    """Learned positions as in minGPT, and a bias per head, which also has two dimensions."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, T, D))
        self.bias = nn.Parameter(torch.zeros(2, D // 2))

    def body(self, x):
        x = x + self.positions[:, : x.shape[1]]
        return super().body((x.view(*x.shape[:2], 2, D // 2) + self.bias).flatten(2))


def test_learned_positions_are_a_table_and_biases_of_heads_are_not():
    counts = count_parameters(Positions(), TASK)
    assert (counts.lookup_table, counts.matmul) == (V * D + T * D, BODY + V * D + D)


class HeadFirst(nn.Module):
    """The head is registered before blocks with a layer that has a bias and as many outputs as the vocabulary."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
        self.up, self.down = nn.Linear(D, V), nn.Linear(V, D)

    def forward(self, ids):
        x = self.table(ids)
        return self.head(x + self.down(self.up(x).relu()))


def test_the_head_is_the_layer_that_returns_the_outputs_not_the_last_layer_of_its_size():
    assert count_parameters(HeadFirst(), TASK).unembedding == V * D
    assert count_parameters(HeadFirst(), TASK, (), UNTRACED).unembedding == V * D + V


def test_counting_does_not_change_a_module():
    module = nn.Sequential(nn.Embedding(V, D), nn.BatchNorm1d(T), nn.Dropout(), nn.Linear(D, V))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.random.get_rng_state()
    count_parameters(module, TASK)
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_model_that_cannot_be_traced_is_counted_by_its_modules():
    class Broken(HeadFirst):
        def forward(self, ids):
            raise RuntimeError("a kernel for another machine")

    assert count_parameters(Broken(), TASK) == count_parameters(HeadFirst(), TASK, (), UNTRACED)


# ---------------------------------------------------------------------------- sizes of a family


class Depth(Options):
    depth: int = 2


class Deep(nn.Module):
    def __init__(self, depth, vocabulary, ran):
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocabulary, D))
        self.layers = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(depth))
        self.ran = ran

    def forward(self, ids):
        self.ran.append((len(self.layers), ids.device.type))
        x = self.table[ids]
        for layer in self.layers:
            x = layer(x)
        return x @ self.table.t()


def family(build):
    class Plugin:
        @hookimpl
        def flops_fit_models(self):
            yield ModelSpec(name="deep", options=Depth, build=build, size="depth")

    registry = installed().with_plugins({"mine": Plugin()})
    return choose_from_table("model", {"name": "deep"}, registry, "test")


def test_one_size_is_traced_and_other_sizes_follow_from_their_parameter_names():
    ran = []
    model = family(lambda options, task: Deep(options.depth, task.vocab_size, ran))
    usages = UsageTraces(model, TASK)
    for depth in (2, 1, 7):
        module = build_on_meta(model, model.with_options(depth=depth).options, TASK)
        usage = usages.of(model.with_options(depth=depth).options, module)
        counts = count_parameters(module, TASK, (), usage)
        assert (counts.lookup_table, counts.unembedding, counts.non_embedding) == (0, V * D, depth * D * D)
    assert ran == [(2, "cpu")]


def test_a_large_size_is_not_run():
    ran = []
    model = family(lambda options, task: Deep(options.depth, 3_000_000 if options.depth > 16 else V, ran))
    usages = UsageTraces(model, TASK)
    options = model.with_options(depth=20).options
    assert usages.of(options, build_on_meta(model, options, TASK)).uses["table"].multiplied
    assert ran == [(2, "cpu")]


def test_names_that_differ_in_numbers_are_alike():
    assert pattern("blocks.3.mlp.12.weight") == "blocks.*.mlp.*.weight"
    assert pattern("0.weight") == "*.weight"
    assert pattern("conv1.weight2") == "conv1.weight2"


# ---------------------------------------------------------------------------- language tasks


def custom(inputs, targets, **more):
    return CustomTask(loss_fn=functional.cross_entropy, sample=(inputs, targets), **more)


IDS = torch.zeros(2, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("task", "language"),
    [
        (TASK, True),
        (SupervisedTask((4,), 3), False),
        (custom(IDS, IDS), True),
        (custom(torch.zeros(2, 5, 3), IDS), False),
        (custom(torch.zeros(2, 3, 4, 4), IDS[:, 0]), False),
        (custom(IDS, IDS[:, 0]), False),
        (custom(IDS, torch.zeros(2, 5)), False),
    ],
)
def test_a_language_task_predicts_a_token_at_every_position(task, language):
    assert is_language_task(task) == language
