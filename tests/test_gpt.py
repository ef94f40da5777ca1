import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flops_fit_core.data import LanguageTask
from flops_fit_core.data.tasks import SupervisedTask
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import installed

TASK = LanguageTask(vocab_size=50, context=24)
SPEC = installed().find("model", "gpt/gpt").spec


def options(**given):
    return SPEC.options.model_validate({"width": 32, "depth": 2, "head_dim": 8, **given})


def built(task=TASK, **given):
    torch.manual_seed(0)
    return SPEC.build(options(**given), task)


def ids(batch=3, seed=1, task=TASK):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(task.vocab_size, (batch, task.context), generator=generator)


@pytest.mark.parametrize("width", [16, 48, 128])
@pytest.mark.parametrize("context", [8, 64])
@pytest.mark.parametrize("mlp_ratio", [4, 2])
def test_flops_a_token_are_what_torch_counts_forward_and_backward(width, context, mlp_ratio):
    task = LanguageTask(vocab_size=256, context=context)
    chosen = options(width=width, depth=3, head_dim=16, mlp_ratio=mlp_ratio)
    model = SPEC.build(chosen, task)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids(2, task=task)).sum().backward()
    assert SPEC.flops_per_token(chosen, task) == pytest.approx(counter.get_total_flops() / (2 * context), rel=1e-3)


def test_with_a_feed_forward_ratio_of_4_the_count_is_the_documented_formula():
    d, depth, s, v = 32, 2, 24, 50
    assert SPEC.flops_per_token(options(), TASK) == 3 * (depth * (24 * d * d + 4 * s * d) + 2 * d * v)


@pytest.mark.parametrize(
    ("given", "extra"),
    [({}, 50 * 32), ({"tied": True}, 0), ({"positions": "learned"}, 50 * 32 + 24 * 32)],
)
def test_parameters_are_12_l_d_squared_with_gains_head_and_tables(given, extra):
    counted = sum(p.numel() for p in built(**given).parameters())
    assert counted == 2 * (12 * 32 * 32 + 2 * 32) + 32 + 50 * 32 + extra


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("tied", [False, True])
def test_no_token_sees_the_future(positions, tied):
    model = built(positions=positions, tied=tied)
    before, after = ids(), ids()
    after[:, 10:] = ids(seed=2)[:, 10:]
    with torch.no_grad():
        first, second = model(before), model(after)
    assert torch.allclose(first[:, :10], second[:, :10], atol=1e-6)
    assert not torch.allclose(first[:, 10:], second[:, 10:], atol=1e-3)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_order_of_earlier_tokens_matters(positions):
    model = built(positions=positions)
    straight = ids(1)
    swapped = straight.clone()
    swapped[0, 0], swapped[0, 1] = 3, 4
    straight[0, 0], straight[0, 1] = 4, 3
    with torch.no_grad():
        # Without positions, attention from the last token on is blind to the order of the first two.
        assert not torch.allclose(model(straight)[0, -1], model(swapped)[0, -1], atol=1e-5)


def test_rotary_positions_only_depend_on_distances():
    from flops_fit_gpt.model import rotary_table, rotate

    cos, sin = rotary_table(40, 8)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=generator)
    here = torch.stack((q, k)).expand(1, 40, 2, 8).reshape(1, 40, 2, 1, 8)
    turned = rotate(here, cos, sin)[0, :, :, 0]
    products = turned[:, 0] @ turned[:, 1].T
    assert torch.allclose(products[5, 2], products[25, 22], atol=1e-4)
    assert not torch.allclose(products[5, 2], products[5, 3], atol=1e-2)
    assert torch.allclose(turned[:, 0].norm(dim=1), q.norm().expand(40), atol=1e-5)


def test_tied_embeddings_are_one_tensor_and_get_both_gradients():
    model = built(tied=True)
    assert model.head.weight is model.embedding.weight
    model(ids()).sum().backward()
    assert model.embedding.weight.grad.abs().sum() > 0


def test_every_width_that_planning_may_choose_can_be_built_and_used():
    for width in range(SPEC.multiple_of, 260, SPEC.multiple_of):
        chosen = options(width=width, depth=1, head_dim=16)
        assert width % chosen.heads == 0
        assert width // chosen.heads >= min(16, width)
        assert (width // chosen.heads) % 2 == 0
        with torch.device("meta"):
            assert SPEC.build(chosen, TASK)(torch.zeros(1, 24, dtype=torch.long)).shape == (1, 24, 50)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="even"):
        options(width=15)


def test_groups_hold_every_parameter_once_and_scale_only_matrices():
    for given in ({}, {"tied": True}, {"positions": "learned"}):
        model = built(**given)
        groups = list(SPEC.parameter_groups(model))
        grouped = [id(p) for group in groups for p in group.parameters]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())
        scaled = [group for group in groups if group.width is not None]
        assert all(group.width == 32 and group.decay for group in scaled)
        assert all(p.ndim == 2 for group in scaled for p in group.parameters)
        table = model.embedding.weight
        assert not any(p is table for group in scaled for p in group.parameters)


def test_the_first_loss_is_that_of_a_uniform_guess_at_every_width():
    for width in (8, 64, 256):
        model = built(width=width)
        batch = torch.cat((ids(8), ids(8, seed=3)[:, :1]), 1)
        with torch.no_grad():
            loss, count = TASK.loss(TASK.outputs(model, batch), batch)
        assert float(loss) / count == pytest.approx(torch.tensor(50.0).log().item(), abs=0.15)


def test_a_task_that_is_no_language_task_is_refused():
    with pytest.raises(ConfigError, match=r"predicts the next token.*SupervisedTask"):
        SPEC.build(options(), SupervisedTask(inputs=(4,), outputs_size=2))
