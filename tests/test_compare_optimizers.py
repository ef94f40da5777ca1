"""The documented comparison of two sweeps, on losses with a known gain."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "compare-optimizers.py"
BUDGETS = np.geomspace(1e10, 8e10, 4)
ALPHA, BETA = 0.4, 0.35


@pytest.fixture(scope="module")
def example():
    return SimpleNamespace(**runpy.run_path(str(EXAMPLE)))


def gains(example, gain, floor=1.4):
    """Both estimates, for a second study with ``1 / gain`` of the first study's FLOPs and a different E."""
    sizes = np.sqrt(BUDGETS / 240)[:, None] * np.array([0.35, 0.6, 1.0, 1.7, 2.8])
    tokens = BUDGETS[:, None] / (6 * sizes)
    reducible = 20 / sizes**ALPHA + 40 / tokens**BETA
    better = gain ** (-ALPHA * BETA / (ALPHA + BETA))
    losses = [1.4 + reducible, floor + better * reducible]
    columns = [np.tile(column.ravel(), 2) for column in (sizes, tokens, 6 * sizes * tokens)]
    runs = example.Runs(*columns, np.concatenate(losses, axis=None), np.repeat([0, 1], sizes.size))
    units = float(np.exp(np.log(runs.params).mean())), float(np.exp(np.log(runs.tokens).mean()))
    return [example.gains(*laws, runs, units, BUDGETS) for laws in example.both_ways(runs, units)]


@pytest.mark.parametrize("gain", [1.0, 1.7, 6.0, 0.2])
def test_a_known_gain_is_found_at_every_budget(example, gain):
    shared, own = gains(example, gain)
    assert shared == pytest.approx(gain, rel=0.05)
    assert own == pytest.approx(gain, rel=0.05)


def test_a_loss_that_the_first_study_never_reaches_is_an_infinite_gain(example):
    _, own = gains(example, 1.7, floor=0.5)
    assert np.isinf(own).all()
