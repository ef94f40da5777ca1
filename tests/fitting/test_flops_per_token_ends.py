"""FLOPs per token, and the optima that follow them, are smooth where the sizes of the runs end."""

from __future__ import annotations

import numpy as np
import pytest

from flops_fit_core import Observation
from flops_fit_core.fitting import ParametricFitter, load_fit, optimum, write_fit
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.flops_per_token.curve import fit_curve
from flops_fit_core.fitting.laws.optima import follow_family

E, A, B, ALPHA, BETA = 1.27, 112.0, 386.0, 0.62, 0.52
VOCABULARY, CONTEXT = 256, 64


def small_gpt(width):
    """N without the embedding and FLOPs per token of a byte-level GPT with width / 16 blocks, rounded."""
    blocks = np.maximum(1, np.round(width / 16))
    body, head = 12 * blocks * width**2, VOCABULARY * width
    return body + head, 6 * (body + head) + 12 * CONTEXT * width * blocks


PLANNED = small_gpt(4.0 * np.arange(2, 14))
FAMILY = small_gpt(4.0 * np.unique(np.round(np.geomspace(2, 140, 24))))


def observe(params, per_token):
    """Runs of every size on the law above."""
    observations = []
    for size, flops in zip(params, per_token, strict=True):
        for ratio in (10, 40, 160):
            loss = E + A / size**ALPHA + B / (ratio * size) ** BETA
            values = {"params": size, "tokens": ratio * size, "flops": flops * ratio * size, "loss": loss}
            observations.append(Observation(id=f"{size:g}/{ratio}", **values))
    return observations


def local_exponents(fit, largest):
    """d ln N_opt / d ln C and d ln (D / N) / d ln C in 200 steps from N_opt = largest / 30 to 30 times it."""
    exponents = []
    steps = np.linspace(0, 1, 201)
    ends = [np.log(6 * 40 * (largest * factor) ** 2) for factor in (1 / 30, 30)]
    ln_flops = ends[0] + (ends[1] - ends[0]) * steps
    optima = [optimum(fit, float(flops)) for flops in np.exp(ln_flops)]
    ln_params = np.log([point.params.value for point in optima])
    ln_ratio = np.log([point.tokens.value for point in optima]) - ln_params
    assert ln_params[0] < np.log(largest) < ln_params[-1]
    for values in (ln_params, ln_ratio):
        exponents.append(np.diff(values) / np.diff(ln_flops))
    return exponents


def test_optima_cross_the_end_of_a_ladder_of_rounded_shapes_smoothly():
    runs = observe(*PLANNED)
    fit = follow_family(ParametricFitter(draws=0).fit(runs), list(zip(*FAMILY, strict=True)), runs)
    assert any("family's own" in diagnostic.message for diagnostic in fit.diagnostics)
    for exponents in local_exponents(fit, PLANNED[0][-1]):
        assert np.ptp(exponents) < 0.06
        assert np.max(np.abs(np.diff(exponents))) < 0.002


def test_a_size_counts_once_if_the_family_has_it_too():
    points = sorted({*zip(*FAMILY, strict=True), *zip(*PLANNED, strict=True)})
    curve = FlopsPerToken.of_family(points, Runs.of(observe(*PLANNED)))
    assert curve is not None
    params, per_token = np.log(np.array(points)).T
    assert curve.ln_flops == pytest.approx(fit_curve(params, per_token, curve.ln_params).ln_flops, abs=1e-6)


@pytest.mark.parametrize("end", [0, -1])
def test_a_count_of_no_known_shape_is_left_with_its_slope(end):
    params = np.geomspace(3e7, 1e10, 28)
    per_token = 6 * params * np.exp(0.1 * np.cos(1.5 * np.log(params)))
    curve = FlopsPerToken.of(Runs.of(observe(params, per_token)))
    assert curve(np.log(params)) == pytest.approx(np.log(per_token), abs=0.01)
    edge = np.log(params[end])
    grid = edge + np.linspace(-0.5, 0.5, 501)
    slope = curve.slope(grid)
    assert np.max(np.abs(np.diff(slope))) < 0.001
    assert np.gradient(curve(grid), grid)[1:-1] == pytest.approx(slope[1:-1], abs=1e-4)
    assert curve.slope(np.log(params[-1]) + 20.0) == pytest.approx(1, abs=0.02)


def test_value_slope_and_curvature_are_continuous_at_the_first_and_the_last_knot(tmp_path):
    runs = observe(*small_gpt(np.geomspace(10, 300, 9)))
    write_fit(ParametricFitter(draws=0).fit(runs), tmp_path / "fit.json")
    curve = FlopsPerToken.of_fit(load_fit(tmp_path / "fit.json"))
    for edge in (curve.ln_params[0], curve.ln_params[-1]):
        below, above = curve.slope(edge - 1e-4), curve.slope(edge + 1e-4)
        assert below == pytest.approx(above, abs=1e-7)
        assert curve(edge - 1e-7) == pytest.approx(curve(edge + 1e-7), abs=1e-6)
    assert curve.slope(curve.ln_params[-1]) == pytest.approx(1, abs=0.005)
