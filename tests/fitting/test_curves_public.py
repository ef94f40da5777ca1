"""Published loss curves (arXiv 2503.12811, 25M and 100M parameters), if they are next to the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flops_fit_core import FitError
from flops_fit_core.fitting import fit_curves, forecast_loss, read_curves

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "multipower"
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the published loss curves are not available")


def curves(size):
    return {path.stem: read_curves(path).curves[0] for path in sorted((FOLDER / size).glob("*.csv"))}


@pytest.mark.parametrize(("size", "mean", "worst"), [("25M", 0.0012, 0.0045), ("100M", 0.0015, 0.0062)])
def test_three_schedules_predict_the_others(size, mean, worst):
    table = curves(size)
    fit = fit_curves([table[name] for name in FITTED])
    others = [curve for name, curve in table.items() if name not in FITTED]
    errors = [np.abs(fit.losses(curve.rates, curve.steps) / curve.losses - 1) for curve in others]
    assert np.mean([error.mean() for error in errors]) <= mean
    assert np.mean([error.max() for error in errors]) <= worst


@pytest.mark.parametrize("size", ["25M", "100M"])
@pytest.mark.parametrize("name", ["cosine_24000", "wsd_20000_24000"])
def test_the_first_half_of_a_curve_gives_its_final_loss(size, name):
    table = curves(size)
    curve = table.pop(name)
    half = curve.first(curve.last_step // 2)
    forecast = forecast_loss(half, fit_curves(list(table.values())))
    assert forecast.loss.value == pytest.approx(curve.losses[-1], rel=0.005)
    if name.startswith("wsd"):
        with pytest.raises(FitError, match="effect of the decay"):
            forecast_loss(half)
    else:
        alone = forecast_loss(half).loss
        assert alone.low < curve.losses[-1] < alone.high
