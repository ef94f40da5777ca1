"""A study's optima beyond its sizes follow its family's own FLOPs per token, kept in its folder."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flops_fit_core import Study, run
from flops_fit_core.errors import DamagedFile
from flops_fit_core.fitting import optimum, recounted
from flops_fit_core.plugins.registry import installed
from flops_fit_core.study.copy import copy_study
from flops_fit_core.study.directory import StudyFolder

VOCABULARY, CONTEXT = 4096, 512
E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28


def experiment(**changes):
    return {
        "name": "family",
        "sweep": {"budgets": [1e14, 1e15, 1e16], "sizes": 5, "size_ratio": 1.6},
        "model": {"name": "gpt", "depth": 4, "head_dim": 16},
        "dataset": {
            "name": "surface",
            "E": E,
            "A": A,
            "B": B,
            "alpha": ALPHA,
            "beta": BETA,
            "vocab_size": VOCABULARY,
            "context": CONTEXT,
        },
        "counter": "model",
        "trainer": "surface",
        "executor": "local",
        **changes,
    }


def best_size(flops, depth=4):
    """N_opt over all widths: N without the embedding, and every product of the forward pass times three."""
    width = np.geomspace(4, 1e5, 400_001)
    params = 12 * depth * width**2 + VOCABULARY * width
    per_token = 3 * (depth * (24 * width**2 + 4 * CONTEXT * width) + 2 * width * VOCABULARY)
    loss = E + A / params**ALPHA + B / (flops / per_token) ** BETA
    return params[np.argmin(loss)]


def message(fit):
    return next(
        (diagnostic.message for diagnostic in fit.diagnostics if "family's own" in diagnostic.message), None
    )


def test_optima_far_beyond_the_sizes_are_those_of_the_family(tmp_path):
    study = run(experiment(), out=tmp_path / "study")
    fit = study.fit
    for flops in (1e16, 1e18, 1e20):
        assert study.predict(flops).params.value == pytest.approx(best_size(flops), rel=0.003)
    largest = max(result.run.params for result in study.results)
    beyond = message(fit).split("N = ")[1]
    assert beyond.endswith("B")
    assert float(beyond.removesuffix("B")) * 1e9 > 900 * largest
    assert Study.open(tmp_path / "study").fit == fit
    copy_study(StudyFolder(tmp_path / "study"), StudyFolder(tmp_path / "copy"), installed(), "json")
    assert Study.open(tmp_path / "copy").fit == fit


def test_the_familys_count_is_kept_with_the_study(tmp_path):
    study = run(experiment(), out=tmp_path / "study")
    file = tmp_path / "study" / "flops_per_token.json"
    points = json.loads(file.read_text())["points"]
    for params, per_token in points:
        # N = 48 d^2 + V d has one positive root; the gains of norms are the rest.
        width = (np.sqrt(VOCABULARY**2 + 4 * 48 * params) - VOCABULARY) / (2 * 48)
        expected = 3 * (96 * width**2 + 16 * CONTEXT * width + 2 * width * VOCABULARY)
        assert per_token == pytest.approx(expected, rel=0.005)
    file.write_text("{")
    with pytest.raises(DamagedFile, match=r"flops_per_token\.json is damaged: it is not JSON.*writes the file"):
        _ = Study.open(tmp_path / "study").fit
    file.unlink()
    assert message(Study.open(tmp_path / "study").fit) is None
    assert study.predict(1e16).params.value == pytest.approx(
        optimum(Study.open(tmp_path / "study").fit, 1e16).params.value, rel=0.003
    )


def test_six_n_d_asks_no_family(tmp_path):
    study = run(experiment(counter="chinchilla"), out=tmp_path / "study")
    assert study.fit.flops_per_token == ()
    assert not (tmp_path / "study" / "flops_per_token.json").exists()


def test_sizes_whose_shapes_are_listed_by_hand_are_the_tables_own(tmp_path):
    shapes = [{"width": width, "depth": depth} for width, depth in ((32, 2), (48, 3), (64, 3), (80, 5), (112, 5))]
    sweep = {"budgets": [1e14, 1e15, 1e16], "sizes": shapes}
    study = run(experiment(sweep=sweep), out=tmp_path / "study")
    assert message(study.fit) is None
    assert study.fit.flops_per_token


def test_the_fit_under_another_count_follows_that_count(tmp_path):
    study = run(experiment(), out=tmp_path / "study")
    assert study.fit_with(study.fitter, recounted(study.observations)).flops_per_token == ()
