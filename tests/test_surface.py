"""The synthetic loss surface: a study with a known truth."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys

import pytest

from flops_fit_core import ConfigError, DataError, SweepFailed, run
from flops_fit_core.config import make_experiment
from flops_fit_core.plugins import LossSurface
from flops_fit_core.plugins.registry import installed
from flops_fit_core.study import Study
from flops_fit_surface import Surface, SurfaceOptions


def experiment(**changes):
    """A study of the surface that computes its runs in this process."""
    return {
        "name": "known",
        "sweep": {"budgets": [1e18, 1e19, 1e20, 1e21], "sizes": 7},
        "model": "surface",
        "dataset": "surface",
        "executor": "local",
        **changes,
    }


@pytest.fixture
def study(tmp_path):
    def study(**changes) -> Study:
        return run(experiment(**changes), out=tmp_path / "study")

    return study


def test_the_default_surface_is_chinchilla_s_as_besiroglu_et_al_published_it():
    # Their equation at N = 1e9, D = 2e10, by hand: 482.01 e^(-0.3478 * 20.7233) = 0.35715 and
    # 2085.43 e^(-0.3658 * 23.7190) = 0.35570.
    assert Surface(SurfaceOptions()).loss(1e9, 2e10) == pytest.approx(1.8172 + 0.35715 + 0.35570, abs=3e-5)


def test_every_constant_has_its_place_in_the_formula():
    surface = Surface(SurfaceOptions(E=1.0, A=8.0, B=27.0, alpha=0.5, beta=1 / 3))
    assert surface.loss(16, 27) == pytest.approx(1.0 + 8 / 4 + 27 / 3)


def test_without_noise_every_run_lies_on_the_surface():
    surface = Surface(SurfaceOptions())
    assert surface.synthetic_loss(1e9, 2e10, 3) == surface.loss(1e9, 2e10)


def test_noise_is_normal_on_the_logarithm_of_the_loss():
    surface = Surface(SurfaceOptions(noise=0.02))
    errors = [math.log(surface.synthetic_loss(1e9, 2e10, seed) / surface.loss(1e9, 2e10)) for seed in range(4000)]
    # Four standard errors.
    assert abs(statistics.fmean(errors)) < 4 * 0.02 / 4000**0.5
    assert statistics.pstdev(errors) == pytest.approx(0.02, rel=4 / 8000**0.5)
    assert statistics.fmean(abs(error) < 0.02 for error in errors) == pytest.approx(0.6827, abs=0.03)


def test_a_run_has_the_same_noise_in_every_process():
    code = (
        "from flops_fit_surface import Surface, SurfaceOptions\n"
        "print(repr(Surface(SurfaceOptions(noise=0.1)).synthetic_loss(1e9, 2e10, 3)))"
    )
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(process.stdout) == Surface(SurfaceOptions(noise=0.1)).synthetic_loss(1e9, 2e10, 3)


def test_noise_changes_with_the_noise_seed_the_seed_n_and_d():
    surfaces = [Surface(SurfaceOptions(noise=0.1, noise_seed=seed)) for seed in (0, 1)]
    runs = [(1e9, 2e10, 0), (1e9, 2e10, 1), (1e9, 3e10, 0), (2e9, 2e10, 0)]
    errors = {
        math.log(surface.synthetic_loss(*run) / surface.loss(*run[:2])) for surface in surfaces for run in runs
    }
    assert len(errors) == 8


def test_the_fingerprint_tells_surfaces_apart():
    options = [
        {},
        {"E": 2.0},
        {"A": 1.0},
        {"B": 1.0},
        {"alpha": 0.4},
        {"beta": 0.4},
        {"noise": 0.1},
        {"noise_seed": 1},
    ]
    assert len({Surface(SurfaceOptions(**values)).fingerprint for values in options}) == len(options)


@pytest.mark.parametrize("call", [lambda it: it.batches(4), lambda it: it.eval_batches(4096, 4)])
def test_a_surface_that_is_asked_for_data_says_which_trainer_it_needs(call):
    with pytest.raises(DataError, match="trainer 'surface'"):
        call(Surface(SurfaceOptions()))


def test_its_dataset_chooses_its_trainer():
    assert make_experiment(experiment(), installed()).trainer.name == "surface/surface"
    assert isinstance(Surface(SurfaceOptions()), LossSurface)


# ---------------------------------------------------------------------------- a study


def test_a_study_of_the_surface_finds_the_law_it_was_made_of(study):
    # N_opt and a in closed form: Hoffmann et al. 2022, equation 4.
    alpha, beta = 0.3478, 0.3658
    g = (alpha * 482.01 / (beta * 2085.43)) ** (1 / (alpha + beta))
    finished = study()
    assert finished.fit.exponents["a"].value == pytest.approx(beta / (alpha + beta), abs=0.01)
    assert finished.predict(1e22).params.value == pytest.approx(
        g * (1e22 / 6) ** (beta / (alpha + beta)), rel=0.03
    )


def test_every_record_it_makes_says_that_it_is_synthetic(study):
    results = study(dataset={"name": "surface", "noise": 0.01}).results
    assert len(results) == 28
    assert all(result.synthetic and result.status == "completed" for result in results)
    surface = Surface(SurfaceOptions())
    for result in results:
        error = math.log(result.loss / surface.loss(result.run.params, result.tokens))
        assert 0 < abs(error) < 0.05
        assert result.tokens == result.run.tokens
        assert result.seconds >= 0
        assert result.flops == pytest.approx(result.run.budget, rel=0.01)


def test_seeds_are_replicates_with_noise_of_their_own(study):
    results = study(
        dataset={"name": "surface", "noise": 0.01}, sweep={"budgets": [1e19], "sizes": 4, "seeds": [0, 1, 2]}
    ).results
    assert len({result.loss for result in results}) == len(results) == 12


def test_models_that_nobody_could_build_here_take_no_memory(study):
    finished = study(sweep={"budgets": [1e26], "sizes": 3})
    assert max(result.run.params for result in finished.results) > 1e11


def test_another_family_can_be_counted_on_the_surface(study):
    small = {"name": "surface", "context": 64, "vocab_size": 256}
    finished = study(
        model={"name": "gpt", "depth": 2}, dataset=small, counter="model", sweep={"budgets": [1e15], "sizes": 3}
    )
    surface = Surface(SurfaceOptions())
    assert [result.loss for result in finished.results] == [
        surface.loss(r.run.params, r.tokens) for r in finished.results
    ]


# ---------------------------------------------------------------------------- misuse


def test_its_trainer_refuses_data_that_has_no_formula(study, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for k in range(40):
        (text / f"{k}.txt").write_text(f"{k} says nothing. " * 400)
    with pytest.raises(SweepFailed, match="has no formula: choose dataset 'surface'"):
        study(
            model={"name": "gpt", "depth": 1, "width": 8},
            dataset={"name": "text", "path": str(text), "context": 16},
            trainer="surface",
            sweep={"budgets": [2e8], "sizes": 2, "allow_repeat": True},
        )


def test_a_trainer_that_trains_fails_on_the_surface_and_says_why(study):
    small = {"name": "surface", "context": 64, "vocab_size": 256}
    sweep = {"budgets": [1e12], "sizes": 1}
    with pytest.raises(SweepFailed, match=r"(?s)1 of 1 runs .*dataset 'surface' has no data"):
        study(model={"name": "gpt", "depth": 1}, dataset=small, trainer="torch", sweep=sweep)


def test_its_model_computes_nothing_and_says_so():
    import torch

    spec = installed().find("model", "surface").spec
    with torch.device("meta"):
        model = spec.build(spec.options(params=10**15), Surface(SurfaceOptions()).task)
    assert sum(parameter.numel() for parameter in model.parameters()) == 10**15
    with pytest.raises(ConfigError, match="cannot be trained"):
        model(torch.zeros(2, 3))
