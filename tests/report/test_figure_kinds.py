"""The kinds of figures: their data, their panels, their messages and their colours."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import made_up_fits
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flops_fit_core import ConfigError, FitError, Interval, Law, LawFit, PluginChoice
from flops_fit_core.fitting import Backtest, BacktestPoint
from flops_fit_core.report.figures import KINDS, FigureData, TrainingCurve, draw_all, draw_figure
from flops_fit_core.report.figures.frontier import find_envelope, find_irreducible_loss

BUDGETS = (1e18, 1e19, 1e20)
LAW = {
    "E": made_up_fits.E,
    "A": made_up_fits.A,
    "B": made_up_fits.B,
    "alpha": made_up_fits.ALPHA,
    "beta": made_up_fits.BETA,
}
CURVES = [
    TrainingCurve([budget * share for share in (0.001, 0.1, 0.5, 1)], [9, 4, 3.5, 3], budget) for budget in BUDGETS
]


def surface_fit(**changes) -> LawFit:
    """Chinchilla's law with 50 draws around it."""
    spread = np.linspace(0.95, 1.05, 50)
    draws = {name: tuple(value * spread) for name, value in LAW.items()}
    law = Law(name="chinchilla", parameters=LAW)
    defaults = {"minima": (), "law": law, "draws": draws, "fitter": PluginChoice(name="fitters/parametric")}
    return made_up_fits.law_fit(**{**defaults, **changes})


def held_out(runs) -> Backtest:
    points = [
        BacktestPoint(
            id=run.id,
            flops=run.flops,
            loss=run.loss,
            predicted=Interval(value=run.loss * 1.02, low=run.loss * 1.01, high=run.loss * 1.03),
        )
        for run in runs
    ]
    return Backtest(fit=surface_fit(), held_out=tuple(points), above=1e19)


def full_data(budgets=BUDGETS, **changes) -> FigureData:
    runs = made_up_fits.runs(budgets, noise=0.004)
    return FigureData(
        runs,
        surface_fit(excluded={runs[2].id: "mistuned"}, flops_range=(budgets[0], budgets[-1]), **changes),
        made_up_fits.true_optimum,
        [1e21, 1e22],
        run_backtest=lambda: held_out(runs[-7:]),
        read_curves=lambda: CURVES,
    )


# ---------------------------------------------------------------------------- colours


def luminance(color) -> float:
    """WCAG 2.2, definition of relative luminance, written down again."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first, second) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def drawn_colors(figure: Figure) -> dict[str, object]:
    """The colours of all lines, markers, texts and axes by name."""
    colors: dict[str, object] = {}
    for axes in figure.axes:
        for number, line in enumerate(axes.lines):
            colors |= line_colors(f"{number}", line, axes.get_facecolor())
        for number, collection in enumerate(axes.collections):
            if isinstance(collection, LineCollection | PathCollection) and not is_color_bar(axes):
                colors |= {f"collection {number} {k}": c for k, c in enumerate(collection.get_edgecolor())}
        texts = [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
        colors |= {f"text {text.get_text()}": text.get_color() for text in texts if text.get_text()}
        spines = [spine for spine in axes.spines.values() if spine.get_visible()]
        colors |= {f"spine {number}": spine.get_edgecolor() for number, spine in enumerate(spines)}
    for legend in figure.legends:
        texts = [*legend.get_texts(), legend.get_title()]
        colors |= {f"legend {text.get_text()}": text.get_color() for text in texts if text.get_text()}
    return colors


def line_colors(name: str, line: Line2D, background) -> dict[str, object]:
    """The colour of a line, and of the visible part of its marker: the edge of a hollow marker."""
    colors = {}
    if line.get_linestyle() not in ("None", "none", ""):
        colors[f"line {name}"] = line.get_color()
    if line.get_marker() not in ("None", "none", ""):
        face, edge = line.get_markerfacecolor(), line.get_markeredgecolor()
        is_hollow = face == "none" or contrast(face, background) < 1.01
        colors[f"marker {name}"] = edge if is_hollow else face
    return colors


def is_color_bar(axes) -> bool:
    return axes.get_label() == "<colorbar>"


@pytest.mark.parametrize("style", ["light", "dark"])
@pytest.mark.parametrize("count", [3, 14], ids=["named budgets", "colour bar"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_colour_has_contrast_3_against_a_painted_background(kind: str, count: int, style: str) -> None:
    budgets = tuple(1e18 * 10 ** (2 * k / (count - 1)) for k in range(count))
    figure = draw_figure(full_data(budgets), kind, style=style)
    panels = [axes for axes in figure.axes if not is_color_bar(axes)]
    (background,) = {to_rgba(figure.get_facecolor()), *(to_rgba(axes.get_facecolor()) for axes in panels)}
    assert background[3] == 1, "painted"
    assert (luminance(background) > 0.9) == (style == "light")
    colors = drawn_colors(figure)
    assert len(colors) > 8
    assert {name: c for name, c in colors.items() if contrast(c, background) < 3} == {}
    assert {name for name, c in colors.items() if to_rgba(c)[3] < 1} == set(), "translucent lines lose contrast"


@pytest.mark.parametrize("style", ["light", "dark"])
def test_budgets_differ_for_readers_with_red_green_blindness(style: str) -> None:
    """Machado et al. 2009, deuteranopia of severity 1, in linear RGB; distances in OKLab."""
    deuteranopia = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    figure = draw_figure(full_data((1e18, 3e18, 1e19, 3e19, 1e20)), "isoflop", style=style)
    lines = [line for line in figure.axes[0].lines if len(line.get_xydata()) > 50]
    seen = []
    for line in lines:
        channels = np.array(to_rgb(line.get_color()))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        seen.append(oklab(np.clip(deuteranopia @ linear, 0, 1)))
    assert len(seen) == 5
    # The JND of OKLab is about 0.02.
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 0.06


def oklab(linear) -> np.ndarray:
    """Ottosson 2020."""
    to_lms = np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]
    )  # fmt: skip
    to_lab = np.array(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    )  # fmt: skip
    return to_lab @ np.cbrt(to_lms @ linear)


# ---------------------------------------------------------------------------- data


def test_residuals_of_profiles_lie_below_on_the_same_sizes() -> None:
    runs = made_up_fits.runs(BUDGETS)
    changed = [
        run.model_copy(update={"loss": run.loss * math.exp(0.02)}) if run.id == runs[8].id else run for run in runs
    ]
    profiles, residuals = draw_figure(FigureData(changed, surface_fit()), "isoflop").axes
    assert profiles.get_xlim() == residuals.get_xlim()
    drawn = [tuple(point) for line in residuals.lines if line.get_marker() == "o" for point in line.get_xydata()]
    assert len(drawn) == len(runs)
    assert dict(drawn)[runs[8].params] == pytest.approx(2.0, abs=1e-9)
    assert sorted(abs(y) for _, y in drawn)[:-1] == pytest.approx([0] * 20, abs=1e-9)


def test_the_envelope_is_the_lowest_loss_at_or_below_each_budget() -> None:
    runs = made_up_fits.runs([1e18, 1e19])
    flops, losses = find_envelope(runs)
    assert flops[-1] == 1e19
    for c, loss in zip(flops, losses, strict=True):
        assert loss == min(run.loss for run in runs if run.flops <= c)


def test_the_frontier_shows_e_with_its_interval() -> None:
    fit = surface_fit()
    estimate = find_irreducible_loss(fit)
    assert estimate.value == made_up_fits.E
    assert estimate.low == pytest.approx(made_up_fits.E * 0.955, rel=1e-3)
    axes = draw_figure(full_data(), "frontier").axes[0]
    level = [line for line in axes.lines if set(np.atleast_1d(line.get_ydata())) == {made_up_fits.E}]
    assert len(level) == 1
    assert any(text.get_text().startswith("E = 1.82 (1.74 to 1.9") for text in axes.texts)


def test_the_frontier_of_a_law_without_e_has_no_line() -> None:
    fit = made_up_fits.law_fit()
    assert find_irreducible_loss(fit) is None
    axes = draw_figure(FigureData(made_up_fits.runs(BUDGETS), fit, made_up_fits.true_optimum), "frontier").axes[0]
    assert not [text for text in axes.texts if text.get_text().startswith("E =")]


def test_contours_pass_through_points_of_their_loss() -> None:
    axes = draw_figure(full_data(), "contours").axes[0]
    (contours,) = [item for item in axes.collections if hasattr(item, "levels")]
    assert 5 <= len(contours.levels) <= 15
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        for params, tokens in path.vertices[1:-1:40]:
            assert made_up_fits.loss(params, tokens) == pytest.approx(level, rel=2e-3)


def test_held_out_losses_are_diamonds_with_their_intervals() -> None:
    data = full_data()
    axes = draw_figure(data, "predicted").axes[0]
    diamonds = [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "D"]
    assert diamonds == [pytest.approx((run.loss, run.loss * 1.02)) for run in data.observations[-7:]]
    dots = [tuple(point) for line in axes.lines if line.get_marker() == "o" for point in line.get_xydata()]
    assert len(dots) == 21
    for run in data.observations:
        assert dict(dots)[run.loss] == pytest.approx(made_up_fits.loss(run.params, run.tokens))


def test_the_held_out_budget_is_a_power_of_ten() -> None:
    labels = [text.get_text() for text in draw_figure(full_data(), "predicted").legends[0].get_texts()]
    assert "held out, C > $10^{19}$" in labels


def test_a_law_of_the_optimum_only_is_compared_at_its_minima() -> None:
    data = FigureData(made_up_fits.runs(BUDGETS), made_up_fits.law_fit(), made_up_fits.true_optimum)
    axes = draw_figure(data, "predicted").axes[0]
    dots = [tuple(point) for line in axes.lines if line.get_marker() == "o" for point in line.get_xydata()]
    assert len(dots) == 3
    assert all(x == pytest.approx(y) for x, y in dots)


def test_a_training_curve_ends_at_its_budget_and_leaves_out_the_first_percent() -> None:
    axes = draw_figure(full_data(), "training").axes[0]
    curves = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 1]
    assert [curve[-1, 0] for curve in curves] == list(BUDGETS)
    assert {len(curve) for curve in curves} == {3}


def test_of_many_training_curves_a_few_per_budget_are_drawn_and_counted() -> None:
    curves = [
        TrainingCurve([0.5 * budget, budget], [4.0, 3.0 + seed / 100], budget)
        for budget in BUDGETS
        for seed in range(100)
    ]
    (axes,) = draw_figure(FigureData(read_curves=lambda: curves), "training").axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert len(lines) == 39
    widest = max(line.get_linewidth() for line in lines)
    assert [line.get_ydata()[-1] for line in lines if line.get_linewidth() == widest] == [3.0] * 3
    assert axes.get_title(loc="left") == "39 of 300 runs. Thick: lowest loss of each budget."


def test_every_draw_of_alpha_and_beta_is_a_dot() -> None:
    axes = draw_figure(full_data(), "draws").axes[0]
    (dots,) = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 50]
    assert dots[:, 0] == pytest.approx(made_up_fits.ALPHA * np.linspace(0.95, 1.05, 50))
    assert any(tuple(line.get_xydata()[0]) == (LAW["alpha"], LAW["beta"]) for line in axes.lines)


# ---------------------------------------------------------------------------- labels


def test_named_budgets_stand_next_to_their_curves_without_overlap() -> None:
    figure = draw_figure(full_data(), "isoflop")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [text for text in axes.texts if "10^" in text.get_text()]
    assert len(labels) == 3
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    points = np.concatenate(
        [axes.transData.transform(line.get_xydata()) for line in axes.lines if len(line.get_xydata())]
    )
    for box in boxes:
        assert not np.any((points > box.min).all(axis=1) & (points < box.max).all(axis=1)), "covers data"
        assert axes.get_window_extent().contains(box.x0, box.y0)


def test_the_tick_labels_of_two_panels_keep_a_distance() -> None:
    data = replace(full_data((1e11, 1.002e11)), budgets=[1e12, 1e13])
    figure = draw_figure(data, "optimum", width="page")
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        gaps = [right.x0 - left.x1 for left, right in itertools.pairwise(boxes)]
        assert min(gaps) > 6


@pytest.mark.parametrize("kind", ["optimum", "tokens-per-param", "frontier", "contours"])
def test_the_legend_of_a_single_budget_names_only_what_is_drawn(kind: str) -> None:
    """C of the runs of one budget varies by a fraction of a per cent, which no solid line can show."""
    figure = draw_figure(full_data((1e18, 1.002e18)), kind)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label for label in labels if label.endswith(", beyond the runs")]
    assert not {"range of the runs", "fitted law", "efficient frontier", "lowest measured"} & set(labels)


def test_without_room_for_labels_there_is_a_legend() -> None:
    budgets = tuple(1e18 * 1.05**k for k in range(10))
    figure = draw_figure(full_data(budgets), "isoflop")
    assert not [text for text in figure.axes[0].texts if "10^" in text.get_text()]
    assert sum("10^" in text.get_text() for legend in figure.legends for text in legend.get_texts()) == 10


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_cut_off(kind: str, width: str) -> None:
    figure = draw_figure(full_data(params_name="matmul parameters (all but lookup tables)"), kind, width=width)
    figure.draw_without_rendering()
    assert figure.get_figwidth() == {"column": 3.3, "page": 7.0}[width]
    for axes in figure.axes:
        texts = [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.texts]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        for box in boxes:
            assert box.x0 >= -1 and box.x1 <= figure.bbox.width + 1, (box, figure.bbox)
            assert box.y0 >= -1 and box.y1 <= figure.bbox.height + 1, (box, figure.bbox)


# ---------------------------------------------------------------------------- errors


def test_an_unknown_kind_names_all_kinds_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"kind='isoflops'.*isoflop, optimum.*did you mean 'isoflop'"):
        draw_figure(full_data(), "isoflops")
    with pytest.raises(ConfigError, match="to save a figure, use path="):
        draw_figure(full_data(), "figure.png")


@pytest.mark.parametrize("look", [{"style": "blue"}, {"width": "wide"}])
def test_an_unknown_style_or_width_names_the_choices(look) -> None:
    with pytest.raises(ConfigError, match=r"choose 'light' or 'dark'|choose 'column' or 'page'"):
        draw_figure(full_data(), "optimum", **look)


@pytest.mark.parametrize("kind", ["contours", "residuals", "draws"])
def test_a_law_of_the_optimum_only_is_refused_where_the_surface_is_needed(kind: str) -> None:
    data = FigureData(made_up_fits.runs(BUDGETS), made_up_fits.law_fit(), made_up_fits.true_optimum)
    with pytest.raises(FitError, match=rf"kind '{kind}'.*(fitter average|fitter parametric)"):
        draw_figure(data, kind)


def test_a_fit_without_draws_has_no_figure_of_them() -> None:
    with pytest.raises(FitError, match=r"needs bootstrap draws"):
        draw_figure(FigureData([], surface_fit(draws={})), "draws")


def test_training_curves_need_evaluations() -> None:
    with pytest.raises(FitError, match=r"--set trainer.num_evals=30"):
        draw_figure(FigureData(made_up_fits.runs(BUDGETS), surface_fit()), "training")


def test_losses_that_are_not_positive_have_no_logarithmic_figure() -> None:
    runs = made_up_fits.runs(BUDGETS)
    runs[3] = runs[3].model_copy(update={"loss": -0.5})
    data = FigureData(runs, surface_fit(), made_up_fits.true_optimum)
    with pytest.raises(FitError, match="some losses are not positive"):
        draw_figure(data, "predicted")


def test_all_kinds_for_which_the_data_suffice_are_drawn() -> None:
    assert list(draw_all(full_data())) == list(KINDS)
    assert list(draw_all(FigureData(made_up_fits.runs(BUDGETS), no_law="too few runs"))) == ["isoflop"]


def test_a_backtest_that_fails_leaves_the_figure_without_diamonds() -> None:
    def fail() -> Backtest:
        raise FitError("too few budgets")

    data = FigureData(made_up_fits.runs(BUDGETS), surface_fit(), made_up_fits.true_optimum, run_backtest=fail)
    axes = draw_figure(data, "predicted").axes[0]
    assert not [line for line in axes.lines if line.get_marker() == "D"]
