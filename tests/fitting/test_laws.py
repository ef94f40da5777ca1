"""Every law: its derivatives, its recovery from runs, published values, and laws of other plugins."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from simulated_laws import PUBLISHED_MUENNIGHOFF, PUBLISHED_VOCABULARY, TRUTH, evaluate, simulate
from surfaces import CHINCHILLA, study
from typer.testing import CliRunner

from flops_fit_core import FitError, Observation
from flops_fit_core.cli import app
from flops_fit_core.fitting import (
    LawFitter,
    ParametricFitter,
    Runs,
    load_fit,
    optimum,
    predict_loss,
    write_fit,
)
from flops_fit_core.fitting.laws.coordinates import Coordinates
from flops_fit_core.fitting.laws.surfaces import LawSurface
from flops_fit_core.fitting.solvers.law_problem import LawProblem
from flops_fit_core.fitting.solvers.objectives import LeastSquares
from flops_fit_core.planning.init_from_fit import fitter_of
from flops_fit_core.plugins import Parameter, Registry, hookspecs
from flops_fit_core.plugins.registry.law_index import find_law

OPTIMISED = [
    name
    for name in TRUTH
    if {"params", "tokens"} <= set(find_law(name).inputs) and find_law(name).response == "log-loss"
]
"""Laws whose loss has a logarithm and depends on N and D, so that a budget has an optimum."""


def inputs_of(runs, law):
    return Runs.of(runs).inputs_of(law)


def coordinates_of(name):
    law = find_law(name)
    inputs = inputs_of(simulate(name), law)
    coordinates = Coordinates(law, {key: float(np.mean(np.log(inputs[key]))) for key in law.inputs})
    values = {key: np.array([value]) for key, value in TRUTH[name].items()}
    return coordinates, values, inputs


def constant_inputs(name):
    further = set(find_law(name).inputs) - {"params", "tokens", "unique_tokens"}
    return dict.fromkeys(further, 4.0)


def test_every_bundled_law_has_simulated_runs():
    bundled = {offer.spec.name for offer in Registry().offers("law") if offer.source.startswith("flops-fit ")}
    assert bundled == set(TRUTH)


@pytest.mark.parametrize("name", TRUTH)
def test_the_derivatives_by_the_coordinates_agree_with_differences(name):
    coordinates, values, inputs = coordinates_of(name)
    theta = coordinates.theta(values)
    loss, gradient = coordinates.loss_and_gradient(theta, inputs)
    assert loss[0] == pytest.approx(evaluate(name, TRUTH[name], **inputs), rel=1e-12)
    for number, parameter in enumerate(coordinates.names):
        step = np.zeros_like(theta)
        step[0, number] = 1e-5
        up, down = (coordinates.loss(theta + sign * step, inputs)[0] for sign in (1, -1))
        size = np.max(np.abs(gradient[0, number]))
        assert size > 0
        assert (up - down) / 2e-5 == pytest.approx(gradient[0, number], rel=1e-5, abs=1e-6 * size), parameter


@pytest.mark.parametrize("name", OPTIMISED)
def test_the_derivatives_by_n_and_d_agree_with_differences(name):
    columns = {key: np.array([value]) for key, value in TRUTH[name].items()}
    inputs = {**constant_inputs(name), **({"unique_tokens": 1.1e9} if name in ("muennighoff", "bounded") else {})}
    surface = LawSurface(find_law(name), columns, inputs)
    x, y, step = np.log([[3e8]]), np.log([[4e9]]), 1e-5
    by_params, by_tokens = surface.slopes(x, y)
    slope = (surface.loss(x + step, y) - surface.loss(x - step, y)) / (2 * step)
    assert by_params == pytest.approx(slope, rel=1e-6)
    assert by_tokens == pytest.approx(
        (surface.loss(x, y + step) - surface.loss(x, y - step)) / (2 * step), rel=1e-6
    )


@pytest.mark.parametrize("name", TRUTH)
def test_parameters_survive_the_change_of_coordinates(name):
    coordinates, values, _ = coordinates_of(name)
    restored = coordinates.values(coordinates.theta(values))
    assert {key: value[0] for key, value in restored.items()} == pytest.approx(TRUTH[name], rel=1e-12)


@pytest.mark.parametrize("name", TRUTH)
def test_every_law_is_recovered_from_runs_without_noise(name):
    fit = LawFitter(law=name, prior=False, draws=0).fit(simulate(name))
    assert fit.law.name == name
    assert fit.law.parameters == pytest.approx(TRUTH[name], rel=1e-5)
    assert fit.excluded == {}


@pytest.mark.parametrize("name", ["chinchilla", "muennighoff", "joint-moe", "parallel"])
def test_noise_moves_a_law_by_less_than_its_interval(name):
    """Losses of a noisy fit stay within 1% of the law, also with the prior."""
    runs = simulate(name, sigma=0.01)
    fit = LawFitter(law=name, draws=40).fit(runs)
    inputs = inputs_of(runs, find_law(name))
    fitted, truth = (evaluate(name, values, **inputs) for values in (fit.law.parameters, TRUTH[name]))
    assert np.max(np.abs(np.log(fitted / truth))) < 0.02
    assert np.sqrt(np.mean(np.log(fitted / truth) ** 2)) < 0.006
    assert fit.draw_count == 40


# ---------------------------------------------------------------------------- published values


@pytest.mark.parametrize(("params", "tokens", "expected"), [(6.34e9, 242e9, 2.22564), (8.67e9, 178e9, 2.22696)])
def test_the_published_check_values_of_the_data_constrained_law(params, tokens, expected):
    loss = evaluate("muennighoff", PUBLISHED_MUENNIGHOFF, params=params, tokens=tokens, unique_tokens=25e9)
    assert f"{loss[0]:.5f}" == f"{expected:.5f}"


def test_without_repetition_the_data_constrained_law_is_chinchilla():
    same = {key: PUBLISHED_MUENNIGHOFF[key] for key in ("E", "A", "alpha", "B", "beta")}
    columns = {"params": np.array([1e7, 1e8, 2e8]), "tokens": np.array([1e10, 1e10, 1e10])}
    repeated = evaluate("muennighoff", PUBLISHED_MUENNIGHOFF, **columns, unique_tokens=np.full(3, 1e10))
    assert repeated == pytest.approx(evaluate("chinchilla", same, **columns), rel=1e-12)


def test_the_vocabulary_law_has_the_published_loss():
    """The units of the published script: N_nv and N_v in millions, training characters in billions."""
    params, vocabulary_params, characters = 302e6, 16e6, 21.3e9
    expected = (
        -5.53278
        + 1.83139 / (params / 1e6) ** 0.446606
        + 0.195842 / (vocabulary_params / 1e6) ** 0.670737
        + 2.12411 / (characters / 1e9) ** 0.446606
    )
    columns = {"params": params, "vocabulary_params": vocabulary_params, "tokens": characters}
    assert evaluate("vocabulary", PUBLISHED_VOCABULARY, **columns)[0] == pytest.approx(expected, rel=1e-12)
    assert expected < 0  # nats per character below a unigram model


def test_the_vocabulary_law_is_recovered_from_negative_losses():
    law = find_law("vocabulary")
    runs = Runs.of(simulate("vocabulary"))
    inputs = runs.inputs_of(law)
    problem = LawProblem.of(law, runs, inputs).changed(y=evaluate("vocabulary", PUBLISHED_VOCABULARY, **inputs))
    assert problem.y.max() < 0
    solved = problem.search(LeastSquares())
    values = {name: float(value[0]) for name, value in problem.values(solved.theta).items()}
    assert values == pytest.approx(PUBLISHED_VOCABULARY, rel=1e-5)


def test_skaling_with_k_of_1_is_chinchilla():
    values = {name: TRUTH["skaling"][name] for name in ("E", "A", "alpha", "B", "beta")}
    inputs = inputs_of(simulate("chinchilla"), find_law("chinchilla"))
    plain = evaluate("chinchilla", values, **inputs)
    assert evaluate("skaling", {**values, "k": 1.0}, **inputs) == pytest.approx(plain, rel=1e-12)


def test_skaling_is_the_published_form():
    """E + A' (N^-alpha' + R D^-beta')^k, with effective exponents k alpha' and k beta'."""
    value = TRUTH["skaling"]
    k = value["k"]
    scale, ratio = value["A"], (value["B"] / value["A"]) ** (1 / k)
    inner = (3e8) ** -(value["alpha"] / k) + ratio * (7e9) ** -(value["beta"] / k)
    expected = value["E"] + scale * inner**k
    assert evaluate("skaling", value, params=3e8, tokens=7e9)[0] == pytest.approx(expected, rel=1e-12)


def test_the_saturating_number_of_experts_has_its_limits():
    """Clark et al. 2022: E' = E_start for a dense model, and at most E_max."""
    value = {**TRUTH["clark-moe"], "a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0}
    experts = evaluate("clark-moe", value, params=np.full(2, 1e9), experts=np.array([1.0, 1e12]))
    assert experts == pytest.approx([value["E_start"], value["E_max"]], rel=1e-8)


def test_a_stream_more_is_worth_parameters():
    """Chen et al. 2025: S streams multiply N by k ln S + 1."""
    value = TRUTH["parallel"]
    several = evaluate("parallel", value, params=1e9, streams=8.0)
    larger = evaluate("parallel", value, params=1e9 * (value["k"] * np.log(8) + 1), streams=1.0)
    assert several == pytest.approx(larger, rel=1e-12)


# ---------------------------------------------------------------------------- optimum


@pytest.mark.parametrize("name", OPTIMISED)
def test_the_optimum_of_every_law_is_the_lowest_loss_at_its_flops(name):
    fit = LawFitter(law=name, prior=False, draws=0).fit(simulate(name))
    inputs = constant_inputs(name)
    best = optimum(fit, 1e21, inputs=inputs)

    def loss(x):
        tokens = 1e21 / 6 / np.exp(x)
        columns = {"params": np.exp(x), "tokens": tokens, "unique_tokens": tokens, **inputs}
        return float(evaluate(name, TRUTH[name], **{key: columns[key] for key in find_law(name).inputs})[0])

    # Up to 1 token per parameter: Farseer's law falls again where a huge model sees a few tokens.
    grid = np.linspace(np.log(1e6), np.log(1e21 / 6) / 2, 2000)
    start = grid[np.argmin([loss(x) for x in grid])]
    scanned = minimize_scalar(
        loss, bounds=(start - 0.05, start + 0.05), method="bounded", options={"xatol": 1e-10}
    )
    assert best.params.value == pytest.approx(np.exp(scanned.x), rel=1e-5)
    assert best.loss.value == pytest.approx(scanned.fun, rel=1e-7)


def test_the_exponent_of_kaplans_law_follows_from_its_exponents():
    """Along a power law of two power laws, N_opt ~ C^(alpha_D / (alpha_D + alpha_N))."""
    fit = LawFitter(law="kaplan", draws=0).fit(simulate("kaplan"))
    assert fit.exponents["a"].value == pytest.approx(0.103 / 0.179, abs=1e-6)


def test_few_unique_tokens_change_the_optimum():
    fit = LawFitter(law="muennighoff", prior=False, draws=0).fit(simulate("muennighoff"))
    plain, constrained = optimum(fit, 1e22), optimum(fit, 1e22, unique_tokens=2e9)
    grid = np.linspace(np.log(1e8), np.log(1e12), 40_001)
    params, tokens = np.exp(grid), 1e22 / 6 / np.exp(grid)
    columns = {"params": params, "tokens": tokens, "unique_tokens": np.full(len(grid), 2e9)}
    best = int(np.argmin(evaluate("muennighoff", PUBLISHED_MUENNIGHOFF, **columns)))
    assert constrained.params.value == pytest.approx(params[best], rel=1e-3)
    assert constrained.loss.value > plain.loss.value
    assert predict_loss(fit, 6.34e9, 242e9, unique_tokens=25e9).value == pytest.approx(2.22564, abs=2e-5)


def test_intervals_of_laws_hold_the_truth():
    fit = LawFitter(law="kaplan", draws=100).fit(simulate("kaplan", sigma=0.005))
    a = fit.exponents["a"]
    assert a.low < 0.103 / 0.179 < a.high
    repeated = LawFitter(law="muennighoff", draws=60).fit(simulate("muennighoff", sigma=0.005))
    draws = np.array(repeated.draws["R_D"])
    assert np.quantile(draws, 0.02) < PUBLISHED_MUENNIGHOFF["R_D"] < np.quantile(draws, 0.98)


# ---------------------------------------------------------------------------- errors


def test_a_law_of_repetition_needs_repeated_runs():
    plain = study(CHINCHILLA, (1e18, 1e19, 1e20), np.geomspace(0.2, 5, 6))
    with pytest.raises(FitError, match="no run repeats its training tokens"):
        LawFitter(law="muennighoff").fit(plain)
    fit = LawFitter(law="kaplan", draws=0).fit(simulate("kaplan"))
    with pytest.raises(FitError, match="fit with --law muennighoff"):
        optimum(fit, 1e20, unique_tokens=1e9)
    with pytest.raises(FitError, match="3 runs cannot fit a law of 4 parameters: train 5 or more"):
        LawFitter(law="kaplan").fit(simulate("kaplan")[:3])


def test_an_unknown_law_is_an_error_with_the_laws():
    runs = simulate("chinchilla")
    with pytest.raises(FitError, match=r"no law named 'chincilla': the laws are .*chinchilla, .*skaling"):
        LawFitter(law="chincilla").fit(runs)
    with pytest.raises(FitError, match=r"no law named 'wiki/curved': install its plugin, or name it with -p wiki"):
        LawFitter(law="wiki/curved").fit(runs)


def test_a_fitter_without_a_law_is_an_error_with_the_laws():
    with pytest.raises(FitError, match=r"no law named '': the laws are .*chinchilla"):
        LawFitter().fit(simulate("chinchilla"))


@pytest.mark.parametrize("options", [{}, {"law": "skaling", "prior": False, "level": 0.8}])
def test_the_fitter_of_a_saved_fit_is_built_again(options, tmp_path):
    fit = LawFitter(**{"law": "chinchilla", "draws": 5, **options}).fit(simulate("chinchilla", sigma=0.003))
    write_fit(fit, tmp_path / "fit.json")
    loaded = load_fit(tmp_path / "fit.json")
    assert loaded.fitter.options == {"law": "chinchilla", "draws": 5, **options}
    fitter = fitter_of(loaded, Registry())
    assert fitter.optimum(loaded, 1e22) == optimum(fit, 1e22)


@pytest.mark.parametrize("name", ["vocabulary", "clark-moe", "joint-moe", "parallel"])
def test_missing_inputs_are_an_error_that_names_the_column(name):
    (column,) = set(find_law(name).inputs) - {"params", "tokens"}
    runs = simulate(name)
    incomplete = [runs[0].model_copy(update={"inputs": {}}), *runs[1:]]
    for observations in (incomplete, [run.model_copy(update={"inputs": {}}) for run in runs]):
        with pytest.raises(
            FitError, match=f"needs {column} of every run: name the columns, --column {column}=NAME"
        ):
            LawFitter(law=name, draws=0).fit(observations)


def test_an_optimum_without_a_further_input_is_an_error_that_names_it():
    fit = LawFitter(law="joint-moe", prior=False, draws=0).fit(simulate("joint-moe"))
    with pytest.raises(FitError, match=r"also depends on experts: give their values, --input experts=\.\.\."):
        optimum(fit, 1e20)
    dense, sparse = (optimum(fit, 1e20, inputs={"experts": count}).loss.value for count in (1.0, 32.0))
    assert sparse < dense


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "not a name"}, "the name must be a Python identifier"),
        ({"start": ()}, "give one or more starting values"),
        ({"start": (float("nan"),)}, "all values must be finite"),
        ({"start": (0.0,)}, "starting values on the log scale must be positive"),
        ({"low": 2.0, "high": 1.0}, "low = 2 must be below high = 1"),
        ({"scale": "linear", "over": {"params": "alpha"}}, "over is for parameters on the log scale"),
    ],
)
def test_a_parameter_that_cannot_be_fitted_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Parameter(**{"name": "A", **arguments})


# ---------------------------------------------------------------------------- saved fits


def test_a_fit_saved_under_an_earlier_name_of_the_law_predicts(tmp_path):
    runs = study(CHINCHILLA, (1e18, 1e19, 1e20, 1e21), np.geomspace(0.2, 5, 7), sigma=0.005)
    fit = ParametricFitter(draws=30).fit(runs)
    write_fit(
        fit.model_copy(update={"law": fit.law.model_copy(update={"name": "parametric"})}), tmp_path / "old.json"
    )
    old = load_fit(tmp_path / "old.json")
    assert old.law.name == "parametric"
    assert optimum(old, 1e23) == optimum(fit, 1e23)
    assert predict_loss(old, 1e9, 1e11) == predict_loss(fit, 1e9, 1e11)


@pytest.mark.parametrize("name", TRUTH)
def test_a_saved_fit_gives_the_same_losses(name, tmp_path):
    fit = LawFitter(law=name, draws=8).fit(simulate(name, sigma=0.003))
    write_fit(fit, tmp_path / "fit.json")
    loaded = load_fit(tmp_path / "fit.json")
    assert loaded == fit
    inputs = constant_inputs(name)
    assert predict_loss(loaded, 1e9, 1e11, inputs=inputs) == predict_loss(fit, 1e9, 1e11, inputs=inputs)


# ---------------------------------------------------------------------------- laws of other plugins

OVERFITTING = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28, "G": 0.05, "gamma": 0.6}


def example_law():
    """The law in the docstring of the hook, as a module."""
    _, _, code = (hookspecs.flops_fit_laws.__doc__ or "").partition("::\n")
    return textwrap.dedent(code).strip() + "\n"


def runs_of_the_example():
    runs = []
    for number, (params, tokens) in enumerate(
        (params, tokens) for params in np.geomspace(1e7, 1e10, 7) for tokens in np.geomspace(1e8, 1e12, 7)
    ):
        loss = (
            OVERFITTING["E"]
            + OVERFITTING["A"] / params ** OVERFITTING["alpha"]
            + OVERFITTING["B"] / tokens ** OVERFITTING["beta"]
            + OVERFITTING["G"] * (params / tokens) ** OVERFITTING["gamma"]
        )
        runs.append(
            Observation(id=str(number), params=params, tokens=tokens, flops=6 * params * tokens, loss=loss)
        )
    return runs


def test_a_law_of_another_plugin_is_fitted_saved_and_predicted(tmp_path):
    plugin = type("Plugin", (), {})()
    names: dict = {}
    exec(compile(example_law(), "<example of flops_fit_laws>", "exec"), names)
    plugin.flops_fit_laws = names["flops_fit_laws"]
    registry = Registry({"wiki": plugin})
    offer = registry.find("fitter", "law")
    fitter = offer.spec.build(offer.spec.options(law="wiki/overfitting", prior=False, draws=5))
    fit = fitter.fit(runs_of_the_example())
    assert fit.law.name == "wiki/overfitting"
    assert fit.law.parameters == pytest.approx(OVERFITTING, rel=1e-5)
    write_fit(fit, tmp_path / "fit.json")
    assert optimum(load_fit(tmp_path / "fit.json"), 1e23) == fitter.optimum(fit, 1e23)


def test_the_command_line_fits_and_predicts_a_law_of_a_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curved.py").write_text(example_law())
    lines = [f"{run.params},{run.tokens},{run.flops},{run.loss}" for run in runs_of_the_example()]
    (tmp_path / "runs.csv").write_text("\n".join(["params,tokens,flops,loss", *lines]) + "\n")
    plugin = ["-p", "./curved.py"]
    runner = CliRunner()
    listed = runner.invoke(app, ["laws", *plugin, "--json"])
    assert listed.exit_code == 0, listed.output
    laws = json.loads(listed.output)
    (name,) = [name for name in laws if name.endswith("/overfitting")]
    assert laws[name]["formula"] == "L = E + A / N^alpha + B / D^beta + G (N / D)^gamma"
    assert set(TRUTH) <= set(laws)
    options = ["--law", name, "--set", "draws=5", "--set", "prior=false"]
    fitted = runner.invoke(app, ["fit", "runs.csv", *plugin, *options, "--out", "fit.json"])
    assert fitted.exit_code == 0, fitted.output
    predicted = runner.invoke(app, ["predict", "fit.json", *plugin, "--flops", "1e23", "--json"])
    assert predicted.exit_code == 0, predicted.output
    assert json.loads(predicted.output)["params"]["value"] == pytest.approx(
        optimum(load_fit(tmp_path / "fit.json"), 1e23).params.value
    )


def test_the_command_line_fits_a_law_with_a_further_column(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = simulate("joint-moe")
    lines = [f"{run.params},{run.tokens},{run.flops},{run.inputs['experts']},{run.loss}" for run in runs]
    (tmp_path / "runs.csv").write_text("\n".join(["params,tokens,flops,n_experts,loss", *lines]) + "\n")
    runner = CliRunner()
    law = ["--law", "joint-moe", "--set", "draws=0"]
    missing = runner.invoke(app, ["fit", "runs.csv", *law])
    assert missing.exit_code != 0
    fitted = runner.invoke(app, ["fit", "runs.csv", *law, "--column", "experts=n_experts", "--out", "fit.json"])
    assert fitted.exit_code == 0, fitted.output
    predicted = runner.invoke(app, ["predict", "fit.json", "--flops", "1e21", "--input", "experts=8", "--json"])
    assert predicted.exit_code == 0, predicted.output
    expected = optimum(load_fit(tmp_path / "fit.json"), 1e21, inputs={"experts": 8.0})
    assert json.loads(predicted.output)["loss"]["value"] == expected.loss.value
