"""``Study.plot`` and ``LawFit.plot``: figures that notebooks display, in your axes and in your style."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from small import formula_table

from flops_fit_core import ConfigError, FitError, LawFit, Study, fit, run
from flops_fit_core.fitting import load_fit, write_fit
from flops_fit_core.report.figures import KINDS


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run(formula_table(), out=tmp_path_factory.mktemp("plot") / "study")


@pytest.fixture(scope="module")
def law(study: Study) -> LawFit:
    return study.fit


def test_a_study_plots_every_kind_that_its_results_allow(study: Study) -> None:
    drawn = set()
    for kind in KINDS:
        try:
            assert isinstance(study.plot(kind), Figure)
        except FitError:
            continue
        drawn.add(kind)
    assert {"isoflop", "optimum", "tokens-per-param", "frontier", "predicted"} <= drawn


def test_a_figure_of_formulas_is_marked(study: Study) -> None:
    assert [text.get_text() for text in study.plot("frontier").axes[0].texts][-1] == "synthetic"


def test_a_figure_displays_itself_in_a_notebook_without_pyplot() -> None:
    code = (
        "import sys, json\n"
        "from flops_fit_core import Interval, Law, LawFit, PluginChoice\n"
        "values = {'E': 1.8, 'A': 482.0, 'B': 2085.0, 'alpha': 0.35, 'beta': 0.37}\n"
        "law = Law(name='chinchilla', parameters=values)\n"
        "law = LawFit(fitter=PluginChoice(name='x'), law=law, exponents={},\n"
        "    level=0.9, objective=0.0, n_runs=9, flops_range=(1e18, 1e20))\n"
        "bundle, metadata = law.plot('optimum', width='column')._repr_mimebundle_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "print(json.dumps([bundle, metadata]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bundle, metadata = json.loads(done.stdout)
    png = base64.b64decode(bundle["image/png"])
    assert png.startswith(b"\x89PNG")
    width = int.from_bytes(png[16:20], "big")
    assert width == 3.3 * 200
    assert metadata["image/png"]["width"] == 330, "twice as sharp as its size on the page"


def test_axes_of_yours_are_drawn_into(law: LawFit, study: Study) -> None:
    figure = Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2)
    size = figure.get_size_inches().tolist()
    assert study.plot("frontier", ax=left) is figure
    assert law.plot("tokens-per-param", ax=right) is figure
    assert left.lines and right.lines
    assert left.get_legend() is not None
    assert figure.get_size_inches().tolist() == size


def test_isoflop_profiles_fit_into_a_single_panel_or_into_two(study: Study) -> None:
    single = Figure().subplots()
    study.plot(ax=single)
    assert single.get_xlabel().startswith("N, ")
    upper, lower = Figure().subplots(2, 1)
    study.plot(ax=[upper, lower])
    assert "residual" in lower.get_ylabel()


def test_a_wrong_number_of_axes_names_the_right_number(study: Study) -> None:
    with pytest.raises(ConfigError, match=r"kind 'optimum' has 2 panels, and ax has 1 axes: give ax=\[ax1, ax2\]"):
        study.plot("optimum", ax=Figure().subplots())
    with pytest.raises(ConfigError, match=r"kind 'isoflop' has 1 or 2 panels, and ax has 3 axes"):
        study.plot(ax=Figure().subplots(1, 3))
    with pytest.raises(ConfigError, match="give axes of matplotlib"):
        study.plot(ax=["left"])


def test_values_of_your_matplotlib_style_are_kept(study: Study) -> None:
    yours = {
        "font.size": 17.0, "axes.labelsize": "small", "legend.fontsize": 5.0, "lines.linewidth": 4.0,
        "figure.figsize": (5.0, 4.0), "grid.color": "#00ff00", "axes.facecolor": "#000000",
        "figure.facecolor": "#000000", "font.family": "serif",
    }  # fmt: skip
    with mpl.rc_context(yours):
        before = dict(mpl.rcParams)
        figure = study.plot("frontier")
        figure.draw_without_rendering()
        assert dict(mpl.rcParams) == before
        axes = figure.axes[0]
        assert figure.get_size_inches().tolist() == [5, 4]
        assert axes.xaxis.label.get_fontsize() == pytest.approx(17 * 0.833)
        assert figure.legends[0].get_texts()[0].get_fontsize() == 5
        assert axes.xaxis.get_gridlines()[0].get_color() == "#00ff00"
        assert axes.xaxis.label.get_fontfamily() == ["serif"]
        assert to_hex(axes.get_facecolor()) == "#000000"
        assert np.mean(mpl.colors.to_rgb(axes.xaxis.label.get_color())) > 0.8, "light text on your dark background"
    with mpl.rc_context(yours):
        assert to_hex(study.plot("frontier", style="light").axes[0].get_facecolor()) == "#ffffff"
        assert study.plot("frontier", width="column").get_figwidth() == 3.3


def test_a_path_saves_the_figure(study: Study, tmp_path: Path) -> None:
    for ending, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        study.plot("optimum", path=tmp_path / f"figure{ending}")
        assert (tmp_path / f"figure{ending}").read_bytes().startswith(start)
    with pytest.raises(ConfigError, match=r"end the name with .*\.pdf"):
        study.plot("optimum", path=tmp_path / "figure.docx")


def test_a_fit_of_a_table_plots_its_runs(study: Study, tmp_path: Path) -> None:
    lines = ["params,tokens,flops,loss"]
    lines += [f"{item.params},{item.tokens},{item.flops},{item.loss}" for item in study.observations]
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    law = fit(tmp_path / "runs.csv", fitter="parametric")
    assert len(law.observations) == len(study.observations)
    axes = law.plot().axes[0]
    dots = [point for line in axes.lines if line.get_marker() == "o" for point in line.get_xydata()]
    assert len(dots) == len(study.observations)


def test_the_runs_of_a_fit_are_neither_stored_nor_compared(law: LawFit, study: Study, tmp_path: Path) -> None:
    assert law.observations == tuple(study.observations)
    write_fit(law, tmp_path / "fit.json")
    stored = load_fit(tmp_path / "fit.json")
    assert stored == law
    assert stored.observations == ()
    assert "observations" not in law.model_dump()


def test_a_fit_without_runs_shows_its_optimum_and_takes_runs(law: LawFit, study: Study, tmp_path: Path) -> None:
    bare = law.model_copy(update={"minima": ()})
    assert len(bare.plot().axes) == 2
    assert "opt" in bare.plot().axes[0].get_ylabel()
    with pytest.raises(FitError, match="observations=runs"):
        bare.plot("isoflop")
    assert bare.plot("isoflop", observations=study.observations).axes[0].lines
