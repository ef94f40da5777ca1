import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import installed

TASK = SupervisedTask(inputs=(3, 8, 12), outputs_size=7)
SPEC = installed().find("model", "vit/vit").spec


def options(**given):
    return SPEC.options.model_validate({"width": 32, "depth": 2, "head_dim": 8, "patch": 4, **given})


def built(task=TASK, **given):
    torch.manual_seed(0)
    return SPEC.build(options(**given), task)


def images(batch=3, task=TASK, seed=1):
    return torch.randn(batch, *task.inputs, generator=torch.Generator().manual_seed(seed))


def counted(chosen, task, batch=2):
    """What torch counts forward and backward on the meta device, where no fused kernel hides attention."""
    with torch.device("meta"):
        model = SPEC.build(chosen, task)
        inputs = torch.zeros(batch, *task.inputs)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs).sum().backward()
    return counter.get_total_flops() / batch


@pytest.mark.parametrize("width", [16, 48, 768])
@pytest.mark.parametrize("pool", ["mean", "class"])
@pytest.mark.parametrize(
    ("shape", "patch"), [((1, 8, 8), 2), ((28, 28), 7), ((3, 32, 48), 4), ((3, 224, 224), 16)]
)
def test_flops_a_sample_are_what_torch_counts_forward_and_backward(width, pool, shape, patch):
    task = SupervisedTask(inputs=shape, outputs_size=10)
    chosen = options(width=width, depth=3, head_dim=16, patch=patch, pool=pool)
    assert SPEC.flops_per_token(chosen, task) == pytest.approx(counted(chosen, task), rel=1e-3)


@pytest.mark.parametrize("mlp_ratio", [1, 3])
def test_other_ratios_of_the_feed_forward_part_are_counted_as_well(mlp_ratio):
    chosen = options(mlp_ratio=mlp_ratio)
    assert SPEC.flops_per_token(chosen, TASK) == pytest.approx(counted(chosen, TASK), rel=1e-3)


def test_with_a_feed_forward_ratio_of_4_the_count_is_the_documented_formula():
    d, depth, p, q, k = 32, 2, 6, 48, 7
    for pool, t in (("mean", p), ("class", p + 1)):
        expected = 3 * (depth * (24 * t * d * d + 4 * t * t * d) + 2 * d * k) + 2 * (2 * p * q * d)
        assert SPEC.flops_per_token(options(pool=pool), TASK) == expected


@pytest.mark.parametrize(("pool", "extra"), [("mean", 0), ("class", 32 + 32)])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_parameters_are_12_l_d_squared_with_gains_patches_positions_and_head(pool, extra, norm):
    total = sum(p.numel() for p in built(pool=pool, norm=norm).parameters())
    assert total == 2 * (12 * 32 * 32 + 2 * 32) + 32 + 48 * 32 + 6 * 32 + 32 * 7 + extra


def test_a_patch_is_a_square_of_the_image_and_they_come_in_rows():
    model = built()
    image = images(1)
    patches = model.patches(image)
    assert patches.shape == (1, 6, 48)
    for row in range(2):
        for column in range(3):
            square = image[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(patches[0, 3 * row + column], square.flatten())


def test_images_without_channels_are_images_of_one():
    flat = SupervisedTask(inputs=(8, 12), outputs_size=7)
    deep = SupervisedTask(inputs=(1, 8, 12), outputs_size=7)
    batch = images(task=flat)
    with torch.no_grad():
        assert torch.equal(built(flat)(batch), built(deep)(batch[:, None]))


def test_the_patch_embedding_is_a_convolution_whose_stride_is_its_side():
    model = built(patch=2)
    batch = images()
    kernel = model.embedding.weight.reshape(32, 3, 2, 2)
    expected = functional.conv2d(batch, kernel, stride=2).flatten(2).transpose(1, 2)
    assert torch.allclose(model.embedding(model.patches(batch)), expected, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_where_a_patch_lies_matters(pool):
    model = built(pool=pool)
    image = images(1)
    shifted = image.roll(4, dims=3)
    with torch.no_grad():
        assert not torch.allclose(model(image), model(shifted), atol=1e-4)
        # The same patches in another order: without positions nothing would tell them apart.
        model.positions.weight.zero_()
        assert torch.allclose(model(image), model(shifted), atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_every_patch_reaches_the_outputs(pool):
    model = built(pool=pool)
    image = images(1).requires_grad_()
    model(image).square().sum().backward()
    seen = model.patches(image.grad).abs().sum(-1)
    assert (seen > 0).all()


def test_the_class_token_alone_is_read_by_the_head():
    model = built(pool="class", depth=1)
    with torch.no_grad():
        for block in model.blocks:
            block.mix.weight.zero_()
        # Without attention a token sees itself only, so the image changes nothing.
        assert torch.equal(model(images(1)), model(images(1, seed=2)))
    mean = built(pool="mean", depth=1)
    with torch.no_grad():
        for block in mean.blocks:
            block.mix.weight.zero_()
        assert not torch.allclose(mean(images(1)), mean(images(1, seed=2)), atol=1e-3)


def test_every_width_that_planning_may_choose_can_be_built_and_used():
    for width in range(SPEC.multiple_of, 260, SPEC.multiple_of):
        chosen = options(width=width, depth=1, head_dim=16)
        assert width % chosen.heads == 0
        assert width // chosen.heads >= min(16, width)
        with torch.device("meta"):
            assert SPEC.build(chosen, TASK)(torch.zeros(1, 3, 8, 12)).shape == (1, 7)


def test_groups_hold_every_parameter_once_and_scale_what_the_width_feeds():
    for given in ({}, {"pool": "class"}, {"norm": "layer"}):
        model = built(**given)
        groups = list(SPEC.parameter_groups(model))
        grouped = [id(p) for group in groups for p in group.parameters]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())
        hidden, head = (group for group in groups if group.width is not None)
        assert (hidden.width, head.width) == (32, 32)
        assert {tuple(p.shape) for p in hidden.parameters} == {(96, 32), (32, 32), (128, 32), (32, 128)}
        assert [tuple(p.shape) for p in head.parameters] == [(7, 32)]
        assert [group for group in groups if group.hidden] == [hidden]
        plain = [group for group in groups if group.width is None and group.decay]
        assert [p is model.embedding.weight for group in plain for p in group.parameters] == [True]


def test_activations_are_of_one_size_at_every_width():
    for width in (16, 64, 256):
        model = built(width=width)
        seen = []
        model.norm.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0].std()))
        with torch.no_grad():
            outputs = model(images(32))
        assert 0.5 < float(seen[0]) < 3
        loss = functional.cross_entropy(outputs, torch.arange(32) % 7)
        assert float(loss) == pytest.approx(torch.tensor(7.0).log().item(), abs=0.15)


def test_tasks_that_are_not_of_images_are_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"one target per image.*LanguageTask"):
        SPEC.build(options(), LanguageTask(vocab_size=5, context=4))
    with pytest.raises(ConfigError, match=r"inputs have shape \(6,\): choose another model, such as mlp"):
        SPEC.build(options(), SupervisedTask(inputs=(6,), outputs_size=2))
    with pytest.raises(
        ConfigError, match=r"patches of 5 x 5 do not tile images of 8 x 12; model.patch may be 1, 2, 4"
    ):
        SPEC.build(options(patch=5), TASK)
