"""The figure of residuals against the distance from the optimum."""

from __future__ import annotations

import math

import made_up_fits
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from flops_fit_core import Law
from flops_fit_core.report import residual_figure, save_figure, write_report
from flops_fit_core.report.residuals import compute_residuals

BUDGETS = (1e18, 1e19, 1e20)
LAW = {
    "E": made_up_fits.E,
    "A": made_up_fits.A,
    "B": made_up_fits.B,
    "alpha": made_up_fits.ALPHA,
    "beta": made_up_fits.BETA,
}


def surface_fit(**changes):
    return made_up_fits.law_fit(minima=(), law=Law(name="parametric", parameters=LAW), **changes)


def dots(figure):
    """(x, y, face colour) of each run."""
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    return [(*point, line.get_markerfacecolor()) for line in lines for point in line.get_xydata()]


def test_a_residual_is_the_percentage_of_a_run_above_the_law_at_its_distance_from_the_optimum():
    runs = made_up_fits.runs(BUDGETS, sizes=5, step=2.0)
    runs[1] = runs[1].model_copy(update={"loss": runs[1].loss * math.exp(0.03)})
    residuals = compute_residuals(runs, surface_fit())
    assert residuals.ratio == pytest.approx(np.tile(2.0 ** np.arange(-2, 3), 3), rel=1e-4)
    assert residuals.percent == pytest.approx([0, 3] + [0] * 13, abs=1e-9)
    # Student's t with 10 degrees of freedom is below 1.8125 in 95% of cases.
    assert residuals.half_width == pytest.approx(1.8125 * math.sqrt(9 / 10), rel=1e-4)


def test_every_run_has_a_dot_in_its_budgets_colour_and_a_run_left_out_is_hollow():
    runs = made_up_fits.runs(BUDGETS, noise=0.01)
    figure = residual_figure(runs, surface_fit(excluded={runs[3].id: "mistuned"}))
    positions = dots(figure)
    residuals = compute_residuals(runs, surface_fit())
    assert sorted((x, y) for x, y, _ in positions) == [
        pytest.approx(pair) for pair in sorted(zip(residuals.ratio, residuals.percent, strict=True))
    ]
    hollow = [(x, y) for x, y, color in positions if color == "#ffffff"]
    assert hollow == [pytest.approx((residuals.ratio[3], residuals.percent[3]))]
    assert len({str(color) for *_, color in positions}) == 1 + len(BUDGETS)


def test_the_band_spans_the_noise_of_the_runs_that_the_fit_uses():
    runs = made_up_fits.runs(BUDGETS, noise=0.01)
    outlier = runs[3].model_copy(update={"loss": runs[3].loss * 1.5})
    changed = [*runs[:3], outlier, *runs[4:]]
    fit = surface_fit(excluded={outlier.id: "mistuned"})
    assert compute_residuals(changed, fit).half_width == compute_residuals(runs, fit).half_width
    low, high = residual_figure(changed, fit).axes[0].patches[0].get_extents().intervaly
    assert high > low


def test_a_law_of_the_optimum_only_has_no_residuals(tmp_path):
    runs = made_up_fits.runs(BUDGETS)
    assert residual_figure(runs, made_up_fits.law_fit()) is None
    names = [
        path.name
        for path in write_report(
            tmp_path, observations=runs, fit=made_up_fits.law_fit(), optimum=made_up_fits.true_optimum
        )
    ]
    assert "residuals.png" not in names


def test_the_page_of_a_surface_shows_the_residuals(tmp_path):
    runs = made_up_fits.runs(BUDGETS, noise=0.01)
    files = write_report(tmp_path, observations=runs, fit=surface_fit(), optimum=made_up_fits.true_optimum)
    assert {"residuals.png", "residuals.svg"} <= {path.name for path in files}
    assert '"residuals":{"run":["1.000e+18 0",' in files[0].read_text()


@pytest.mark.parametrize("budgets", [BUDGETS, tuple(1e18 * 2**k for k in range(14))], ids=["legend", "colour bar"])
def test_the_axes_have_units_and_nothing_overlaps(budgets, tmp_path):
    runs = made_up_fits.runs(budgets, sizes=5, noise=0.01)
    figure = residual_figure(runs, surface_fit(excluded={runs[0].id: "mistuned"}), synthetic=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    assert axes.get_ylabel() == "ln L - ln L of the law (%)"
    assert "matmul parameters" in axes.get_xlabel()
    assert "synthetic" in [text.get_text() for text in axes.texts]
    renderer = canvas.get_renderer()
    boxes = [part.get_tightbbox(renderer) for part in (*figure.axes, *figure.legends)]
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]
    assert overlaps == []
    save_figure(figure, tmp_path, "residuals")
