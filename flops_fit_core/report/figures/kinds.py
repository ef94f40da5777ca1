"""The kinds of figures by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flops_fit_core.errors import ConfigError, FitError
from flops_fit_core.report.figures.canvas import png_dpi, without_latex
from flops_fit_core.report.figures.contours import draw_contours
from flops_fit_core.report.figures.data import FigureData
from flops_fit_core.report.figures.draws import draw_draws
from flops_fit_core.report.figures.frontier import draw_frontier
from flops_fit_core.report.figures.isoflop import draw_isoflop
from flops_fit_core.report.figures.optimum import draw_optimum
from flops_fit_core.report.figures.predicted import draw_predicted
from flops_fit_core.report.figures.residuals import draw_residuals
from flops_fit_core.report.figures.tokens_per_param import draw_tokens_per_param
from flops_fit_core.report.figures.training import draw_training


@dataclass(frozen=True)
class FigureKind:
    """How to draw a kind of figure, and its caption."""

    draw: Callable[..., Figure]
    caption: str


KINDS: dict[str, FigureKind] = {
    "isoflop": FigureKind(
        draw_isoflop,
        "IsoFLOP profiles: held-out loss of every run against N, with each budget's fitted profile and its "
        "minimum (hollow star). Points are measured losses; profiles are fitted at the nominal budget. Below: "
        "residuals of the runs.",
    ),
    "optimum": FigureKind(
        draw_optimum,
        "Optimal N and D against C. Dashed: beyond the fitted budgets. Bands and bars are the intervals of "
        "the fit, if any. Hollow stars: IsoFLOP minima of the runs.",
    ),
    "tokens-per-param": FigureKind(
        draw_tokens_per_param,
        "Data over parameters at the optimum, against C. The band reaches from the low end of D over the high "
        "end of N to the high end of D over the low end of N.",
    ),
    "frontier": FigureKind(
        draw_frontier,
        "Lowest loss against C: the law at its optimum, the irreducible loss E if the law has one, all runs, "
        "and the lowest measured loss at or below each C.",
    ),
    "contours": FigureKind(
        draw_contours,
        "Lines of equal loss over N and D by the law, the runs, and the efficient frontier: the optimal N and "
        "D along C.",
    ),
    "predicted": FigureKind(
        draw_predicted,
        "The law's loss against the measured loss. Hollow diamonds: the largest budget, predicted by a fit "
        "without it, with the intervals of that fit.",
    ),
    "residuals": FigureKind(
        draw_residuals,
        "Residuals: the loss of every run relative to the law, against its size over the optimal size at its "
        "C. If the law has the right form, runs scatter about zero at every size, and 90% lie in the band. A "
        "pattern along the parabola means that the form of the law decides the optimum.",
    ),
    "training": FigureKind(
        draw_training,
        "Held-out loss during training against training FLOPs so far, one line per run. Of many runs, a few per "
        "budget.",
    ),
    "draws": FigureKind(
        draw_draws,
        "Exponents alpha and beta of every bootstrap draw, with the point estimate. On the dashed line, N and "
        "D grow equally with C.",
    ),
}


@without_latex()
def draw_figure(
    data: FigureData,
    kind: str = "isoflop",
    *,
    ax: Axes | Sequence[Axes] | None = None,
    style: str | None = None,
    width: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw a figure of a kind, and save it if a path is given (PNG, SVG, PDF).

    Raises ConfigError for an unknown kind, style, width or ending of ``path``, and for a wrong number of ``ax``.
    Raises FitError if the data lack what the kind shows.
    """
    if kind not in KINDS:
        close = difflib.get_close_matches(str(kind), KINDS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        hint = "; to save a figure, use path=" if Path(str(kind)).suffix else hint
        raise ConfigError(f"kind={kind!r} is not a kind of figure: choose {', '.join(KINDS)}{hint}")
    figure = KINDS[kind].draw(data, ax=ax, style=style, width=width)
    if path is not None:
        _save(figure, Path(path))
    return figure


def _save(figure: Figure, path: Path) -> None:
    endings = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in endings:
        raise ConfigError(
            f"path={str(path)!r}: end the name with .png, .svg, .pdf or another of {', '.join(endings)}"
        )
    figure.savefig(path, dpi=png_dpi())


def draw_all(data: FigureData, *, style: str | None = None, width: str | None = None) -> dict[str, Figure]:
    """Every kind for which the data suffice, by name."""
    figures = {}
    for kind in KINDS:
        try:
            figures[kind] = draw_figure(data, kind, style=style, width=width)
        except FitError:
            continue
    return figures
