"""Samples shared by held-out and training data: windows of one text, equal items."""

import pytest
import torch
from test_inline_data import CONTEXT, PAIRS, ROWS, Net, notes, study
from torch.utils.data import Dataset, Subset, TensorDataset, random_split

from flops_fit_core import DataError, PlanError

LETTERS = torch.randint(0, 20, (1000,), generator=torch.Generator().manual_seed(4))


class Windows(Dataset):
    """Windows of a text that start at every position, or every few positions."""

    def __init__(self, step=1, length=CONTEXT):
        self.step, self.length = step, length

    def __len__(self):
        return (len(LETTERS) - self.length - 1) // self.step

    def __getitem__(self, index):
        row = LETTERS[index * self.step :][: self.length + 1]
        return row[:-1], row[1:]


def opened(planned):
    data = planned.experiment.dataset
    return data.spec.build(data.options, 0)


def places(dataset, indices):
    """Positions of the text in some items."""
    start = [dataset.step * index for index in indices]
    return {place for first in start for place in range(first, first + dataset.length + 1)}


@pytest.mark.parametrize("step", [1, 3, 10])
def test_no_letter_of_held_out_windows_is_trained_on(tmp_path, step):
    windows = Windows(step)
    planned = study(tmp_path, dataset=windows)
    data = opened(planned)
    assert len(data._held) == round(0.1 * len(windows))
    assert not places(windows, data._training) & places(windows, data._held)
    assert len(data._training) > 0.85 * len(windows) - CONTEXT / step
    assert f"each begins {step} positions after the one before" in " ".join(planned.plan.notes)
    inputs = {place for index in data._training for place in range(step * index, step * index + CONTEXT)}
    assert data.num_unique_tokens == len(inputs)


def test_a_text_is_repeated_before_its_windows_are(tmp_path):
    with pytest.raises(PlanError, match="epochs of the"):
        study(tmp_path, dataset=Windows(), allow_repeat=False)


@pytest.mark.parametrize("data", [Windows(CONTEXT), Windows(CONTEXT + 1), PAIRS, TensorDataset(ROWS * 0, ROWS)])
def test_rows_that_do_not_overlap_are_held_out_evenly(tmp_path, data):
    planned = study(tmp_path, dataset=data, copy_task=True)
    assert "overlap" not in " ".join(planned.plan.notes)
    held = opened(planned)._held
    assert held[0] < len(data) / 10


def test_a_subset_of_windows_overlaps_only_if_its_windows_do(tmp_path):
    mixed = torch.randperm(len(Windows()), generator=torch.Generator().manual_seed(0))[:700].tolist()
    data = opened(study(tmp_path, dataset=Subset(Windows(), mixed)))
    held, trained = ([mixed[index] for index in part] for part in (data._held, data._training))
    assert not places(Windows(), held) & places(Windows(), trained)
    spaced = Subset(Windows(), range(0, len(Windows()), CONTEXT + 1))
    assert "overlap" not in notes(tmp_path / "apart", dataset=spaced)


def test_a_random_split_of_windows_is_refused_and_consecutive_parts_are_accepted(tmp_path):
    training, eval_dataset = random_split(Windows(), [0.9, 0.1], generator=torch.Generator().manual_seed(0))
    with pytest.raises(DataError, match="samples of eval_dataset overlap training samples"):
        study(tmp_path, dataset=training, eval_dataset=eval_dataset)
    cut = 800
    parts = {"dataset": Subset(Windows(), range(cut)), "eval_dataset": Subset(Windows(), range(cut, 900))}
    assert study(tmp_path, **parts).plan.runs


@pytest.mark.parametrize("held", [ROWS[:40], ROWS[100:200:7]])
def test_equal_samples_are_refused_as_held_out_data(tmp_path, held):
    with pytest.raises(DataError, match="compared samples of eval_dataset equal training samples"):
        study(tmp_path, dataset=PAIRS, eval_dataset=TensorDataset(held[:, :-1].clone(), held[:, 1:].clone()))


def test_a_few_equal_samples_are_noted_unless_items_are_small(tmp_path):
    fresh = torch.randint(0, 20, (30, CONTEXT + 1), generator=torch.Generator().manual_seed(5))
    held = torch.cat([ROWS[:10], fresh])
    assert "about 25% of the samples of eval_dataset equal" in notes(
        tmp_path, dataset=Subset(PAIRS, range(500)), eval_dataset=TensorDataset(held[:, :-1], held[:, 1:])
    )
    bits = torch.randint(0, 2, (400, 5), generator=torch.Generator().manual_seed(6))
    few = [TensorDataset(part[:, :-1], part[:, 1:]) for part in (bits[:300], bits[300:])]
    assert "equal training" not in notes(tmp_path / "bits", Net, dataset=few[0], eval_dataset=few[1])
