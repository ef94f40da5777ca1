"""Figures, looked at through what was drawn."""

import math
import subprocess
import sys
from itertools import pairwise

import made_up_fits
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from flops_fit_core import Law
from flops_fit_core.report import isoflop_figure, optimum_figure, runs_figure, save_figure, tokens_per_param_figure
from flops_fit_core.report.axes import log_ticks, set_log_axis

BUDGETS = (1e18, 1e19, 1e20)


def stars(axes):
    """(x, y) of every star: IsoFLOP minima."""
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "*"]


def rings(axes):
    """(x, y) of every ring: lowest sizes at the edge of the grid."""
    lines = [line for line in axes.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]
    return [tuple(line.get_xydata()[0]) for line in lines]


def legend_texts(figure):
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def texts(figure):
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    for axes in figure.axes:
        texts += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")]
    return " | ".join(texts).replace("\n", " ")


def test_each_budget_has_a_star_at_its_minimum():
    figure = isoflop_figure(made_up_fits.runs(BUDGETS), made_up_fits.law_fit())
    positions = stars(figure.axes[0])
    sizes = [made_up_fits.best_params(budget) for budget in BUDGETS]
    assert [x for x, _ in positions] == pytest.approx(sizes)
    losses = [
        made_up_fits.loss(params, budget / 6 / params) for params, budget in zip(sizes, BUDGETS, strict=True)
    ]
    assert [y for _, y in positions] == pytest.approx(losses)


def test_a_minimum_is_a_hollow_star_and_the_lowest_size_at_an_edge_is_a_ring():
    minima = (made_up_fits.minimum(1e18, at_edge=True), made_up_fits.minimum(1e19))
    fit = made_up_fits.law_fit(minima=minima)
    figure = isoflop_figure(made_up_fits.runs(BUDGETS[:2]), fit)
    others = optimum_figure(fit, made_up_fits.true_optimum)
    assert legend_texts(figure) == ["IsoFLOP minimum", "lowest at the edge, not used"]
    assert {"IsoFLOP minimum", "lowest at the edge, not used"} <= set(legend_texts(others))
    sizes = made_up_fits.best_params(1e18), made_up_fits.best_params(1e19)
    for axes, edge, best in zip(
        [figure.axes[0], *others.axes], (sizes[0], 1e18, 1e18), (sizes[1], 1e19, 1e19), strict=True
    ):
        assert [x for x, _ in rings(axes)] == pytest.approx([edge])
        assert [x for x, _ in stars(axes)] == pytest.approx([best])
        faces = {line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "*"}
        assert faces == {"#ffffff"}, "hollow: filled with the background"


def test_every_run_is_drawn_once_in_its_budget_s_colour():
    runs = made_up_fits.runs(BUDGETS, sizes=5)
    figure = isoflop_figure(runs, made_up_fits.law_fit())
    drawn = {}
    for line in figure.axes[0].lines:
        if line.get_marker() == "o":
            drawn |= {(x, y): line.get_color() for x, y in line.get_xydata()}
    assert len(drawn) == len(runs)
    assert len({drawn[run.params, run.loss] for run in runs}) == len(BUDGETS)
    assert all(
        drawn[a.params, a.loss] == drawn[b.params, b.loss] for a in runs for b in runs if a.budget == b.budget
    )


def test_runs_without_a_nominal_budget_join_the_nearest_profile_or_none():
    run = made_up_fits.runs([1.1e19], sizes=1)[0].model_copy(update={"budget": None})
    lost = run.model_copy(update={"id": "lost", "flops": 4e19, "loss": 3.5})
    figure = isoflop_figure([run, lost], made_up_fits.law_fit())
    counts = [len(line.get_xydata()) for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert counts == [1, 0, 1, 0], "no profile, 1e18, 1e19, 1e20"


def test_a_profile_is_drawn_through_its_minimum():
    figure = isoflop_figure(made_up_fits.runs(BUDGETS), made_up_fits.law_fit())
    curves = [line.get_xydata() for line in figure.axes[0].lines if len(line.get_xydata()) > 50]
    assert len(curves) == 3
    for curve, budget in zip(curves, BUDGETS, strict=True):
        lowest = curve[np.argmin(curve[:, 1])]
        params = made_up_fits.best_params(budget)
        assert lowest[0] == pytest.approx(params, rel=0.02)
        assert lowest[1] == pytest.approx(made_up_fits.loss(params, budget / 6 / params), rel=1e-5)


def test_a_fitted_surface_is_drawn_as_its_slices():
    law = {
        "E": made_up_fits.E,
        "A": made_up_fits.A,
        "B": made_up_fits.B,
        "alpha": made_up_fits.ALPHA,
        "beta": made_up_fits.BETA,
    }
    fit = made_up_fits.law_fit(minima=(), law=Law(name="parametric", parameters=law))
    runs = made_up_fits.runs(BUDGETS, sizes=5, shift=3.0)
    axes = isoflop_figure(runs, fit).axes[0]
    positions = stars(axes)
    assert [x for x, _ in positions] == pytest.approx(
        [made_up_fits.best_params(budget) for budget in BUDGETS], rel=1e-6
    )
    curves = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 50]
    for curve, budget in zip(curves, BUDGETS, strict=True):
        for params, loss in curve[::20]:
            assert loss == pytest.approx(made_up_fits.loss(params, budget / 6 / params), rel=1e-9)


def test_a_law_of_an_unknown_form_is_drawn_without_profiles():
    axes = isoflop_figure(made_up_fits.runs(BUDGETS), made_up_fits.law_fit(minima=())).axes[0]
    assert stars(axes) == []
    assert sum(len(line.get_xydata()) for line in axes.lines if line.get_marker() == "o") == 21


def test_the_band_has_the_ends_of_the_optimum_s_intervals():
    figure = optimum_figure(made_up_fits.law_fit(), lambda flops: made_up_fits.true_optimum(flops, spread=1.5))
    left, right = figure.axes
    for axes, power in ((left, 0), (right, 1)):
        vertices = axes.collections[0].get_paths()[0].vertices
        first = vertices[np.isclose(vertices[:, 0], 1e18, rtol=1e-9)][:, 1]
        params = made_up_fits.best_params(1e18)
        value = params if power == 0 else 1e18 / 6 / params
        assert (first.min(), first.max()) == pytest.approx((value / 1.5, value * 1.5))


def test_the_band_of_tokens_per_parameter_pairs_opposite_ends():
    figure = tokens_per_param_figure(
        made_up_fits.law_fit(), lambda flops: made_up_fits.true_optimum(flops, spread=1.5)
    )
    vertices = figure.axes[0].collections[0].get_paths()[0].vertices
    first = vertices[np.isclose(vertices[:, 0], 1e18, rtol=1e-9)][:, 1]
    value = 1e18 / 6 / made_up_fits.best_params(1e18) ** 2
    assert (first.min(), first.max()) == pytest.approx((value / 2.25, value * 2.25))


def test_a_fit_without_intervals_has_no_band():
    def bare(flops):
        full = made_up_fits.true_optimum(flops)
        ends = {"low": None, "high": None}
        return full.model_copy(
            update={name: getattr(full, name).model_copy(update=ends) for name in ("params", "tokens")}
        )

    figure = optimum_figure(made_up_fits.law_fit(), bare, budgets=[1e21])
    assert not [collection for axes in figure.axes for collection in axes.collections]
    assert not tokens_per_param_figure(made_up_fits.law_fit(), bare).axes[0].collections


def test_axes_state_the_conventions():
    fit = made_up_fits.law_fit(params_name="total parameters", flops_name="forward and backward", unit="samples")
    assert "nats per sample" in texts(isoflop_figure(made_up_fits.runs(BUDGETS), fit))
    for figure in (
        isoflop_figure(made_up_fits.runs(BUDGETS), fit),
        optimum_figure(fit, made_up_fits.true_optimum),
        tokens_per_param_figure(fit, made_up_fits.true_optimum),
    ):
        assert "total parameters" in texts(figure)
        assert "forward and backward" in texts(figure)
    assert "samples per parameter" in texts(tokens_per_param_figure(fit, made_up_fits.true_optimum))


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_data_is_marked_on_every_plot(synthetic):
    fit = made_up_fits.law_fit()
    for figure in (
        isoflop_figure(made_up_fits.runs(BUDGETS), fit, synthetic=synthetic),
        optimum_figure(fit, made_up_fits.true_optimum, synthetic=synthetic),
        tokens_per_param_figure(fit, made_up_fits.true_optimum, synthetic=synthetic),
    ):
        marks = [[text for text in axes.texts if text.get_text() == "synthetic"] for axes in figure.axes]
        assert all(len(mark) == synthetic for mark in marks)


def test_many_budgets_get_a_colour_bar_instead_of_a_legend():
    budgets = [1e18 * 2**k for k in range(14)]
    fit = made_up_fits.law_fit(minima=tuple(map(made_up_fits.minimum, budgets)))
    figure = isoflop_figure(made_up_fits.runs(budgets, sizes=3), fit)
    assert len(figure.axes) == 3, "profiles, residuals, colour bar"
    assert "C (FLOPs)" in texts(figure)


# ---------------------------------------------------------------------------- ticks


@given(st.floats(min_value=1e-2, max_value=1e24), st.floats(min_value=1.03, max_value=1e9))
def test_ticks_are_few_ascending_and_inside(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert low * (1 - 1e-9) <= ticks[0]
    assert ticks[-1] <= low * ratio * (1 + 1e-9)


@pytest.mark.parametrize("ratio", [1.1, 1.5, 2, 4, 9, 30, 300, 1e5, 1e9])
@pytest.mark.parametrize(("low", "show"), [(1.3e6, "count"), (7.7e17, "power")])
def test_tick_labels_do_not_overlap(low, show, ratio):
    figure = Figure(figsize=(4.0, 3.0), layout="constrained")
    axes = figure.add_subplot()
    set_log_axis(axes, "x", low, low * ratio, show, most=6)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in axes.get_xticklabels()]
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_one_size_only_still_has_an_axis():
    runs = [made_up_fits.runs([budget], sizes=1)[0].model_copy(update={"params": 1e6}) for budget in BUDGETS]
    figure = isoflop_figure(runs, made_up_fits.law_fit(minima=()))
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] != []


# ---------------------------------------------------------------------------- files


def test_figures_are_saved_sharp_and_as_vectors(tmp_path):
    figure = isoflop_figure(made_up_fits.runs(BUDGETS), made_up_fits.law_fit())
    png, svg = save_figure(figure, tmp_path, "isoflop")
    width = imread(png).shape[1]
    assert width / figure.get_figwidth() >= 150
    assert svg.read_text().count("<path") > 20
    assert "<image" not in svg.read_text()


def test_the_same_figure_gives_the_same_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_figure(isoflop_figure(made_up_fits.runs(BUDGETS), made_up_fits.law_fit()), tmp_path / name, "isoflop")
    for ending in ("png", "svg"):
        assert (tmp_path / f"one/isoflop.{ending}").read_bytes() == (
            tmp_path / f"two/isoflop.{ending}"
        ).read_bytes()


def test_drawing_touches_no_global_state_of_matplotlib():
    code = (
        "import sys, flops_fit_core.report as report\n"
        "assert 'matplotlib' not in sys.modules and 'numpy' not in sys.modules\n"
        "report.isoflop_figure\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_budgets_keep_their_order_of_lightness_so_that_grey_prints_can_be_read():
    figure = isoflop_figure(made_up_fits.runs(BUDGETS), made_up_fits.law_fit())
    colors = [line.get_color() for line in figure.axes[0].lines if len(line.get_xydata()) > 50]
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b, _ in colors]
    assert lightness == sorted(lightness)
    assert lightness[-1] < 0.75, "the lightest can be seen on white"
    assert min(b - a for a, b in pairwise(lightness)) > 0.1
    assert math.isclose(lightness[0], 0.07, abs_tol=0.05)


@pytest.mark.parametrize("name", ["$x{$", "a $b", "\x1b[2J", "100% of C_1^2 \\frac"])
def test_names_are_shown_as_they_are_and_are_no_formulas(name, tmp_path):
    names = {"params_name": name, "flops_name": name, "unit": name, "eval_set": name}
    law, runs = made_up_fits.law_fit(**names), made_up_fits.runs(BUDGETS)
    figures = [
        isoflop_figure(runs, law),
        optimum_figure(law, made_up_fits.true_optimum),
        tokens_per_param_figure(law, made_up_fits.true_optimum),
        runs_figure(runs, **names),
    ]
    for number, figure in enumerate(figures):
        _, svg = save_figure(figure, tmp_path, f"figure{number}")
        assert "\x1b" not in svg.read_text()
