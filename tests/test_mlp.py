import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flops_fit_core import ConfigError
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.flops.parameter_counts import count_parameters
from flops_fit_core.plugins.registry import installed

IMAGES = SupervisedTask(inputs=(3, 8, 8), outputs_size=10)
TEXT = LanguageTask(vocab_size=50, context=16)


@pytest.fixture
def mlp():
    return installed().find("model", "mlp/mlp").spec


@pytest.mark.parametrize("task", [IMAGES, TEXT], ids=["images", "text"])
def test_its_outputs_fit_the_task_and_it_learns(mlp, task):
    torch.manual_seed(0)
    model = mlp.build(mlp.options(width=32), task)
    batch = task.example(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss, count = task.loss(task.outputs(model, batch), batch)
        losses.append(loss.item() / count)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("task", [IMAGES, TEXT], ids=["images", "text"])
def test_its_flops_are_those_that_torch_counts(mlp, task, depth):
    options = mlp.options(width=24, depth=depth, window=5)
    model = mlp.build(options, task)
    batch = task.example(6)
    with FlopCounterMode(display=False) as forward:
        task.outputs(model, batch)
    predictions = 6 * task.tokens_per_sample
    assert mlp.flops_per_token(options, task) == 3 * forward.get_total_flops() / predictions


def test_a_prediction_sees_the_latest_tokens_and_none_that_come_later(mlp):
    torch.manual_seed(0)
    model = mlp.build(mlp.options(width=16, window=3), TEXT)
    ids = torch.randint(50, (1, 16))
    logits = model(ids)
    for changed in range(16):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 50
        differs = (model(other) != logits).any(-1)[0]
        assert differs.nonzero().flatten().tolist() == list(range(changed, min(changed + 3, 16)))


def test_the_groups_tell_matrices_that_the_width_feeds_from_the_others(mlp):
    def shapes(task):
        model = mlp.build(mlp.options(width=32, depth=2, window=4), task)
        groups = list(mlp.parameter_groups(model))
        assert sum(len(group.parameters) for group in groups) == len(list(model.parameters()))
        return [
            (group.width, group.decay, group.hidden, [tuple(p.shape) for p in group.parameters])
            for group in groups
        ]

    assert shapes(IMAGES) == [
        (32, True, True, [(32, 32)]),
        (32, True, False, [(10, 32)]),
        (None, True, False, [(32, 192)]),
        (None, False, False, [(32,), (32,), (10,)]),
    ]
    assert shapes(TEXT) == [
        (32, True, True, [(32, 128), (32, 32)]),
        (32, True, False, [(50, 32)]),
        (None, True, False, []),
        (None, False, False, [(50, 32), (32,), (32,), (50,)]),
    ]


def test_a_size_that_fits_no_memory_is_counted_without_any(mlp):
    with torch.device("meta"):
        model = mlp.build(mlp.options(width=100_000), TEXT)
    counts = count_parameters(model, TEXT)
    width = 100_000
    assert counts.lookup_table == 50 * width
    assert counts.total == 50 * width + (8 * width + 1) * width + (width + 1) * width + (width + 1) * 50


def test_a_task_of_another_kind_is_the_users_mistake(mlp):
    with pytest.raises(ConfigError, match="poses a object: choose another model"):
        mlp.build(mlp.options(), object())
