"""The figures of a report: IsoFLOP profiles, N_opt and D_opt against C, tokens per parameter against C.

Each function returns a new ``matplotlib.figure.Figure`` without pyplot or global state, so it can be called from
any thread and in any notebook.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import LawFit, Observation, Optimum, ProfileMinimum
from flops_fit_core.report import numbers
from flops_fit_core.report.axes import (
    INK,
    SMALL,
    add_margin,
    format_power,
    mark_synthetic,
    plain_names,
    plain_text,
    set_log_axis,
    style_axes,
)
from flops_fit_core.report.datatable import on_set, singular
from flops_fit_core.report.profiles import DrawnProfile, build_profiles, group_by_profile

DPI = 200
_LAW = "#0072B2"
COLOR_MAP = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.82, 256)))
"""Viridis without its last fifth: yellow is invisible on white."""
GREY = "#8c959f"
MAX_LEGEND_BUDGETS = 12
"""With more budgets, a colour bar replaces the legend."""


@contextmanager
def without_latex() -> Iterator[None]:
    """Draw text without LaTeX, also if a ``matplotlibrc`` asks for it: matplotlib reads that of the working
    directory, which may be the study of another user."""
    if not mpl.rcParams["text.usetex"]:  # rc_context is not safe with threads
        yield
        return
    with mpl.rc_context({"text.usetex": False}):
        yield


def save_figure(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg``, each atomically. Equal figures give equal SVG files."""
    return list(write_figure(figure, folder, stem)[0])


@without_latex()
def write_figure(figure: Figure, folder: Path, stem: str) -> tuple[tuple[Path, Path], str]:
    """As :func:`save_figure`. Returns the files and the text of the SVG file.

    Figures are drawn in memory: another process may write the same report at the same time.
    """
    files = folder / f"{stem}.png", folder / f"{stem}.svg"
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None})
    text = _make_ids_unique(svg.getvalue(), stem)
    write_atomically(files[0], png.getvalue(), durable=False)
    write_atomically(files[1], text, durable=False)
    return files, text


def _make_ids_unique(svg: str, prefix: str) -> str:
    """Replace matplotlib's random ids by numbered ids, unique among the figures of a page."""
    ids = {
        original: f"{prefix}-{place}"
        for place, original in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg)))
    }
    svg = re.sub(r'\bid="([^"]+)"', lambda match: f'id="{ids[match[1]]}"', svg)
    svg = re.sub(r'href="#([^"]+)"', lambda match: f'href="#{ids[match[1]]}"', svg)
    return re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{ids[match[1]]})", svg)


# ---------------------------------------------------------------------------- profiles


@without_latex()
def isoflop_figure(observations: Sequence[Observation], fit: LawFit, *, synthetic: bool = False) -> Figure:
    """Loss against N per budget: runs, their profile, and a star at its minimum.

    Points are measured losses; profiles hold at the nominal budget. For a fitted surface L(N, D), profiles are its
    slices. A hollow star is a minimum at the edge of the grid, which the law does not use; its profile is dashed.
    """
    fit = plain_names(fit)
    profiles = build_profiles(observations, fit)
    colors = choose_colors([profile.budget for profile in profiles])
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    groups = group_by_profile(observations, profiles)
    unassigned = groups.pop(None, [])
    axes.plot([run.params for run in unassigned], [run.loss for run in unassigned], "o", ms=4, color=GREY)
    for profile, color in zip(profiles, colors, strict=True):
        _draw_profile(
            axes, profile, groups.get(profile.budget, []), color, is_small=len(profiles) > MAX_LEGEND_BUDGETS
        )
    set_log_axis(
        axes,
        "x",
        *add_margin([run.params for run in observations] + [profile.lowest[0] for profile in profiles]),
        "count",
    )
    _add_bottom_margin(axes)
    style_axes(
        axes, f"N, {fit.params_name}", f"L, held-out loss{on_set(fit.eval_set)} (nats per {singular(fit.unit)})"
    )
    axes.set_title(f"C: training FLOPs, {fit.flops_name}", fontsize=SMALL, color=INK, loc="left")
    figure = _mark_if_synthetic(figure, synthetic)
    _add_budget_legend(figure, axes, profiles, colors, has_unassigned=bool(unassigned))
    return figure


@without_latex()
def runs_figure(
    observations: Sequence[Observation],
    *,
    params_name: str,
    flops_name: str,
    unit: str,
    eval_set: str | None = None,
    synthetic: bool = False,
) -> Figure:
    """Loss against N per budget, without a law, for studies to which no law can be fitted."""
    groups: dict[float | None, list[Observation]] = {}
    for run in sorted(observations, key=lambda run: run.params):
        groups.setdefault(run.budget, []).append(run)
    budgets = sorted(budget for budget in groups if budget is not None)
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for budget, color in zip(budgets, choose_colors(budgets), strict=True):
        runs = groups[budget]
        axes.plot([run.params for run in runs], [run.loss for run in runs], "o-", ms=5, lw=0.8, color=color)
        axes.lines[-1].set_label(format_power(budget))
    unassigned = groups.get(None, [])
    axes.plot([run.params for run in unassigned], [run.loss for run in unassigned], "o", ms=4, color=GREY)
    if observations:
        set_log_axis(axes, "x", *add_margin([run.params for run in observations]), "count")
    loss = f"L, held-out loss{on_set(eval_set)} (nats per {singular(unit)})"
    style_axes(axes, plain_text(f"N, {params_name}"), plain_text(loss))
    flops_name = plain_text(flops_name)
    axes.set_title(f"C: training FLOPs, {flops_name}. No law fitted.", fontsize=SMALL, color=INK, loc="left")
    if budgets:
        figure.legend(loc="outside right upper", title="C (FLOPs)", fontsize=SMALL, frameon=False, labelcolor=INK)
    return _mark_if_synthetic(figure, synthetic)


def choose_colors(budgets: Sequence[float]) -> list[Any]:
    """A colour per ascending budget: by rank, to separate neighbours, or by ln C to match a colour bar."""
    if len(budgets) > MAX_LEGEND_BUDGETS:
        norm = LogNorm(budgets[0], budgets[-1])
        return [COLOR_MAP(float(norm(budget))) for budget in budgets]
    return [COLOR_MAP(place / max(1, len(budgets) - 1)) for place in range(len(budgets))]


def _draw_profile(
    axes: Axes, profile: DrawnProfile, runs: Sequence[Observation], color: Any, *, is_small: bool
) -> None:
    size = 3.2 if is_small else 5
    params, loss = [run.params for run in runs], [run.loss for run in runs]
    axes.plot(params, loss, "o", ms=size, color=color, mec="white", mew=0.5, zorder=5)
    axes.plot(profile.params, profile.loss, "--" if profile.at_edge else "-", color=color, lw=1.4, zorder=1.5)
    # A hollow star lies on its run, so draw it above; other stars must not hide runs.
    axes.plot(*profile.lowest, **_star_style(profile.at_edge, color, is_small), zorder=6 if profile.at_edge else 4)
    if profile.label:
        left = not runs or profile.lowest[0] <= float(np.median(params))
        axes.annotate(
            profile.label,
            profile.lowest,
            xytext=(-2 if left else 2, -15),
            textcoords="offset points",
            ha="left" if left else "right",
            fontsize=SMALL,
            color=INK,
        )


def _star_style(at_edge: bool, color: Any, is_small: bool = False) -> dict[str, Any]:
    colors = {"mfc": "white", "mec": color, "mew": 1.5} if at_edge else {"mfc": color, "mec": INK, "mew": 0.9}
    return {"marker": "*", "linestyle": "none", "markersize": 9 if is_small else 13, **colors}


def _add_bottom_margin(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.06 * (high - low), high)


def _add_budget_legend(
    figure: Figure, axes: Axes, profiles: Sequence[DrawnProfile], colors: Sequence[Any], *, has_unassigned: bool
) -> None:
    signs = [Line2D([], [], **_star_style(False, GREY), label="minimum")]
    if any(profile.at_edge for profile in profiles):
        signs.append(Line2D([], [], **_star_style(True, "#57606a"), label="minimum at the\ngrid's edge, not used"))
    if has_unassigned:
        signs.append(Line2D([], [], marker="o", ls="none", ms=4, color=GREY, label="no profile"))
    style: dict[str, Any] = {"fontsize": SMALL, "frameon": False, "labelcolor": INK, "alignment": "left"}
    figure.legend(handles=signs, loc="outside right lower", **style)
    if len(profiles) > MAX_LEGEND_BUDGETS:
        norm = LogNorm(profiles[0].budget, profiles[-1].budget)
        figure.colorbar(ScalarMappable(norm, COLOR_MAP), ax=axes, label="C (FLOPs)", pad=0.01)
        return
    # In the order of the curves from top to bottom: the smallest budget has the highest losses.
    lines = [
        Line2D([], [], marker="o", ms=5, lw=1.4, color=color, label=format_power(profile.budget))
        for profile, color in zip(profiles, colors, strict=True)
    ]
    figure.legend(handles=lines, loc="outside right upper", title="C (FLOPs)", title_fontsize=SMALL, **style)


# ---------------------------------------------------------------------------- against C


class _Curve(NamedTuple):
    """A quantity against C; ``low`` and ``high`` are None without an interval."""

    flops: Any
    value: Any
    low: Any
    high: Any


@without_latex()
def optimum_figure(
    fit: LawFit,
    optimum: Callable[[float], Optimum],
    *,
    budgets: Sequence[float] = (),
    synthetic: bool = False,
) -> Figure:
    """N_opt and D_opt against C, log-log, with the fit's intervals as bands.

    The curve is dashed beyond the fitted budgets, up to the largest of ``budgets``. Each of ``budgets`` gets a
    point.
    """
    fit = plain_names(fit)
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    curve = [optimum(flops) for flops in _flops_grid(fit, budgets)]
    points = [optimum(flops) for flops in budgets]
    for axes, name, letter, exponent in ((left, "params", "N", "a"), (right, "tokens", "D", "b")):
        _draw_law(axes, fit, _build_curve(curve, name), _build_curve(points, name), attrgetter(name))
        quantity = fit.params_name if name == "params" else fit.unit
        _label_axes_against_flops(axes, fit, rf"${letter}_{{\mathrm{{opt}}}}$, {quantity}", "count", wrap=44)
        if exponent in fit.exponents:
            text = rf"${letter}_{{\mathrm{{opt}}}} \propto C^{{\,{exponent}}}$,  {exponent} = "
            axes.set_title(text + numbers.exponent(fit.exponents[exponent]), fontsize=10, color=INK, loc="left")
    _add_law_legend(left, fit, _build_curve(curve, "params"), budgets)
    return _mark_if_synthetic(figure, synthetic)


@without_latex()
def tokens_per_param_figure(
    fit: LawFit,
    optimum: Callable[[float], Optimum],
    *,
    budgets: Sequence[float] = (),
    synthetic: bool = False,
) -> Figure:
    """D_opt / N_opt against C.

    The band reaches from the low end of D over the high end of N to the high end of D over the low end of N: at a
    given C, a large D means a small N.
    """
    fit = plain_names(fit)
    figure = Figure(figsize=(6.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    curve = _build_ratio_curve([optimum(flops) for flops in _flops_grid(fit, budgets)])
    points = _build_ratio_curve([optimum(flops) for flops in budgets])
    _draw_law(axes, fit, curve, points, lambda minimum: minimum.tokens / minimum.params)
    _label_axes_against_flops(
        axes, fit, f"{fit.unit} per parameter at the optimum\nN: {fit.params_name}", "ratio", wrap=46
    )
    _add_law_legend(axes, fit, curve, budgets)
    return _mark_if_synthetic(figure, synthetic)


def _flops_grid(fit: LawFit, budgets: Sequence[float]) -> list[float]:
    ends = [*fit.flops_range, *budgets, *(minimum.budget for minimum in fit.minima)]
    return [float(flops) for flops in np.geomspace(min(ends), max(ends) * (1 + 1e-9), 80)]


def _build_curve(optima: Sequence[Optimum], name: str) -> _Curve:
    intervals = [getattr(optimum, name) for optimum in optima]
    flops, value = [optimum.flops for optimum in optima], [interval.value for interval in intervals]
    if any(interval.low is None or interval.high is None for interval in intervals):
        return _Curve(flops, value, None, None)
    return _Curve(
        flops, value, [interval.low for interval in intervals], [interval.high for interval in intervals]
    )


def _build_ratio_curve(optima: Sequence[Optimum]) -> _Curve:
    params, tokens = _build_curve(optima, "params"), _build_curve(optima, "tokens")
    value = np.divide(tokens.value, params.value)
    if params.low is None or tokens.low is None:
        return _Curve(params.flops, value, None, None)
    return _Curve(params.flops, value, np.divide(tokens.low, params.high), np.divide(tokens.high, params.low))


def _draw_law(
    axes: Axes, fit: LawFit, curve: _Curve, points: _Curve, quantity: Callable[[ProfileMinimum], float]
) -> None:
    flops, value = np.array(curve.flops), np.array(curve.value)
    if curve.low is not None:
        axes.fill_between(flops, curve.low, curve.high, color=_LAW, alpha=0.18, lw=0)
    is_fitted = (flops >= fit.flops_range[0] * 0.999) & (flops <= fit.flops_range[1] * 1.001)
    axes.plot(flops, value, "--", color=_LAW, lw=1.4)
    axes.plot(flops[is_fitted], value[is_fitted], "-", color=_LAW, lw=2.0)
    if len(points.flops) and points.low is not None:
        errors = [np.subtract(points.value, points.low), np.subtract(points.high, points.value)]
        axes.errorbar(points.flops, points.value, errors, fmt="none", ecolor=INK, elinewidth=1, capsize=3)
    axes.plot(points.flops, points.value, "D", ms=5, color="white", mec=INK, mew=1.1, zorder=3)
    minima = sorted(fit.minima, key=lambda minimum: minimum.budget)
    for minimum, color in zip(minima, choose_colors([minimum.budget for minimum in minima]), strict=True):
        axes.plot(minimum.budget, quantity(minimum), **_star_style(minimum.at_edge, color), zorder=4)


def _label_axes_against_flops(axes: Axes, fit: LawFit, y_label: str, show: Any, wrap: int) -> None:
    xs, ys = _extent(axes)
    set_log_axis(axes, "x", *add_margin(xs), "power", most=6)
    set_log_axis(axes, "y", *add_margin(ys), show)
    style_axes(axes, f"C, training FLOPs ({fit.flops_name})", y_label, wrap=wrap)


def _extent(axes: Axes) -> tuple[list[float], list[float]]:
    box = axes.dataLim
    return [float(box.x0), float(box.x1)], [float(box.y0), float(box.y1)]


def _add_law_legend(axes: Axes, fit: LawFit, curve: _Curve, budgets: Sequence[float]) -> None:
    extrapolates = curve.flops[0] < fit.flops_range[0] * 0.99 or curve.flops[-1] > fit.flops_range[1] * 1.01
    handles: list[Any] = [Line2D([], [], color=_LAW, lw=2.0, label="fitted law")]
    if curve.low is not None:
        handles.append(Patch(color=_LAW, alpha=0.18, lw=0, label=f"{fit.level:.0%} interval"))
    if extrapolates:
        handles.append(Line2D([], [], color=_LAW, lw=1.4, ls="--", label="beyond the fitted budgets"))
    if fit.minima:
        handles.append(Line2D([], [], **_star_style(False, GREY), label="minimum of a profile"))
    if any(minimum.at_edge for minimum in fit.minima):
        handles.append(Line2D([], [], **_star_style(True, "#57606a"), label="at the grid's edge, not used"))
    if budgets:
        handles.append(Line2D([], [], marker="D", ls="none", ms=5, color="white", mec=INK, label="predicted"))
    axes.legend(handles=handles, fontsize=SMALL, frameon=False, labelcolor=INK, loc="best")


def _mark_if_synthetic(figure: Figure, synthetic: bool) -> Figure:
    for axes in figure.axes if synthetic else ():
        mark_synthetic(axes)
    return figure
