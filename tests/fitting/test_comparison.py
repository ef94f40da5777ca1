"""The compute-equivalent gain of one recipe over another, on losses with a known gain."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from surfaces import CHINCHILLA, LOPSIDED

from flops_fit_core import FitError, Observation
from flops_fit_core.fitting import compare
from flops_fit_core.fitting.comparison.design import join_runs
from flops_fit_core.fitting.comparison.gains import errors_to_detect
from flops_fit_core.fitting.comparison.noise import (
    DECAY_SCALE,
    LN_SIGMA,
    LN_SIGMA_SCALE,
    NoiseModel,
    prior_points,
)
from flops_fit_core.fitting.comparison.posterior import find_posterior
from flops_fit_core.fitting.comparison.surface import SharedSurface

BUDGETS = 1e18 * 4.0 ** np.arange(4)
PROFILE = (0.35, 0.6, 1.0, 1.7, 2.8)


def pair_of_studies(
    gain=1.0,
    *,
    change=0.0,
    offsets=(1.0,),
    seeds=2,
    noise=0.0,
    paired=None,
    surface=CHINCHILLA,
    budgets=BUDGETS,
    random_seed=0,
):
    """Runs of A and of B, which needs C / gain; ``gain`` is at the largest budget and grows with C^change.

    ``paired`` is the correlation of the noise of runs with equal seeds; None for different seeds.
    """
    random = np.random.default_rng(random_seed)
    recipes = [], []
    for budget in budgets:
        for offset in offsets:
            for seed in range(seeds):
                common = random.standard_normal()
                for second, runs in enumerate(recipes):
                    params = surface.n_opt(budget) * offset
                    tokens = budget / (6 * params)
                    factor = (gain * (budget / budgets[-1]) ** change) ** 0.5 if second else 1.0
                    correlation = paired or 0.0
                    shared = -common if second and correlation < 0 else common
                    error = abs(correlation) ** 0.5 * shared
                    error += (1 - abs(correlation)) ** 0.5 * random.standard_normal()
                    runs.append(
                        Observation(
                            id=f"{budget:.1e}/{offset}/{seed}",
                            params=params,
                            tokens=tokens,
                            flops=budget,
                            loss=surface.loss(params * factor, tokens * factor) * np.exp(noise * error),
                            seed=seed if paired is not None else seed + 10 * second,
                        )
                    )
    return recipes


def width(comparison):
    return np.log(comparison.gains[0].gain.high / comparison.gains[0].gain.low)


@pytest.mark.parametrize("surface", [CHINCHILLA, LOPSIDED])
@pytest.mark.parametrize("gain", [0.6, 1.0, 1.05, 1.7, 4.0])
def test_a_known_gain_is_recovered_without_noise(surface, gain):
    comparison = compare(*pair_of_studies(gain, offsets=PROFILE, seeds=1, surface=surface))
    item = comparison.gains[0]
    assert item.flops == BUDGETS[-1]
    assert item.gain.value == pytest.approx(gain, rel=0.01)
    assert item.gain.low <= gain * 1.005
    assert item.gain.high >= gain / 1.005


def test_a_gain_that_grows_with_compute_has_its_value_at_each_budget():
    first, second = pair_of_studies(1.8, change=0.15, offsets=PROFILE, noise=0.001)
    comparison = compare(first, second, [BUDGETS[0], BUDGETS[-1]])
    for item, truth in zip(comparison.gains, (1.8 * 64**-0.15, 1.8), strict=True):
        assert item.gain.low < truth < item.gain.high
    assert comparison.change.low < 0.15 < comparison.change.high
    assert comparison.shared_exponents < 0.01


def test_equal_exponents_are_reported_as_probable():
    comparison = compare(*pair_of_studies(1.3, noise=0.001))
    assert comparison.shared_exponents > 0.8
    assert comparison.change.low < 0 < comparison.change.high


def test_the_gain_of_a_over_b_is_the_inverse_of_that_of_b_over_a():
    first, second = pair_of_studies(1.3, noise=0.002)
    forward, backward = compare(first, second).gains[0], compare(second, first).gains[0]
    assert backward.gain.value == pytest.approx(1 / forward.gain.value, rel=0.02)
    assert backward.probability == pytest.approx(1 - forward.probability, abs=0.01)


def test_flops_count_for_the_recipe_that_spends_them():
    first, second = pair_of_studies(1.0, offsets=PROFILE, seeds=1)
    costly = [run.model_copy(update={"flops": 2 * run.flops}) for run in second]
    comparison = compare(first, costly, [BUDGETS[-1]])
    assert comparison.gains[0].gain.value == pytest.approx(0.5, rel=0.02)


def test_pairs_make_the_interval_narrower():
    common = {"gain": 1.1, "offsets": PROFILE, "noise": 0.003}
    paired = compare(*pair_of_studies(**common, paired=0.9))
    unpaired = compare(*pair_of_studies(**common))
    assert (paired.n_pairs, unpaired.n_pairs) == (40, 0)
    assert paired.pair_correlation == pytest.approx(0.9, abs=0.1)
    assert unpaired.pair_correlation is None
    assert width(paired) < 0.6 * width(unpaired)


def test_pairs_with_a_negative_correlation_make_the_interval_wider():
    common = {"gain": 1.1, "offsets": PROFILE, "noise": 0.003}
    opposed = compare(*pair_of_studies(**common, paired=-0.8))
    unpaired = compare(*pair_of_studies(**common))
    assert opposed.n_pairs == 40
    assert opposed.pair_correlation == pytest.approx(-0.8, abs=0.15)
    assert width(opposed) > 1.15 * width(unpaired)


def test_equal_seeds_with_independent_noise_have_a_correlation_near_0():
    correlations = [
        compare(*pair_of_studies(noise=0.003, offsets=PROFILE, paired=0.0, random_seed=study)).pair_correlation
        for study in range(12)
    ]
    assert min(correlations) < 0 < max(correlations)
    assert np.mean(correlations) == pytest.approx(0, abs=0.1)


def test_recipes_without_seeds_are_paired_by_size_and_tokens():
    recipes = pair_of_studies(1.1, offsets=PROFILE, seeds=1, noise=0.003, paired=0.9)
    first, second = ([run.model_copy(update={"seed": None}) for run in runs] for runs in recipes)
    comparison = compare(first, second)
    assert comparison.pair_correlation == pytest.approx(0.9, abs=0.15)


def test_the_noise_is_estimated():
    comparison = compare(*pair_of_studies(1.2, offsets=PROFILE, noise=0.004))
    assert comparison.noise == pytest.approx(0.004, rel=0.2)


def test_an_outlier_is_left_out_and_named():
    first, second = pair_of_studies(1.05, noise=0.001)
    second[3] = second[3].model_copy(update={"loss": 1.03 * second[3].loss})
    comparison = compare(first, second)
    assert list(comparison.excluded) == [f"B: {second[3].id}"]
    assert any(item.code == "outliers" and second[3].id in item.message for item in comparison.diagnostics)
    assert comparison.n_runs == (8, 7)
    assert comparison.gains[0].gain.low < 1.05 < comparison.gains[0].gain.high


def test_the_gate_tests_the_lower_bound():
    recipes = pair_of_studies(1.05, noise=0.0003)
    assert compare(*recipes, gate=1.02).promoted
    assert not compare(*recipes, gate=1.05).promoted
    assert not compare(*recipes, gate=1.3).promoted


def test_equal_runs_are_no_gain():
    first, _ = pair_of_studies(noise=0.003)
    comparison = compare(first, first)
    assert comparison.gains[0].gain.value == pytest.approx(1, abs=0.005)
    assert not comparison.promoted
    assert "same-losses" in {item.code for item in comparison.diagnostics}


def test_the_interval_covers_in_most_small_studies():
    held = promoted = 0
    for study in range(40):
        first, second = pair_of_studies(noise=0.003, random_seed=study, budgets=BUDGETS[:3])
        comparison = compare(first, second)
        held += comparison.gains[0].gain.low <= 1 <= comparison.gains[0].gain.high
        promoted += comparison.promoted
    assert held >= 32  # fewer has a chance of 2% if the coverage is 90%
    assert promoted <= 5


def test_the_smallest_detectable_gain_scales_with_the_noise():
    detectable = [
        compare(*pair_of_studies(noise=noise)).gains[0].smallest_detectable for noise in (0.0005, 0.001, 0.002)
    ]
    logs = np.log(detectable)
    assert logs[1] / logs[0] == pytest.approx(2, rel=0.2)
    assert logs[2] / logs[1] == pytest.approx(2, rel=0.2)


def test_a_gain_that_the_runs_do_not_determine_has_no_interval():
    budgets = BUDGETS[:1]
    first, second = pair_of_studies(1.5, noise=0.2, seeds=3, budgets=budgets)
    comparison = compare(first, second)
    assert comparison.gains[0].lower is None
    assert not comparison.answered
    assert not comparison.promoted
    assert "no-interval" in {item.code for item in comparison.diagnostics}


def test_a_budget_far_from_the_runs_is_reported_with_a_wider_interval():
    recipes = pair_of_studies(1.3, noise=0.001)
    far, near = compare(*recipes, [1e22]), compare(*recipes)
    assert width(far) > 1.5 * width(near)
    assert "extrapolation" in {item.code for item in far.diagnostics}


def test_recipes_without_common_budgets_are_refused():
    first, _ = pair_of_studies(budgets=BUDGETS[:2])
    _, second = pair_of_studies(budgets=BUDGETS[2:])
    with pytest.raises(FitError, match=r"do not overlap \(A: 1e18 to 4e18; B: 1.6e19 to 6.4e19 FLOPs\)"):
        compare(first, second)


def test_bits_and_nats_are_refused():
    first, second = pair_of_studies(1.1, noise=0.001)
    bits = [run.model_copy(update={"loss": run.loss / np.log(2)}) for run in second]
    with pytest.raises(FitError, match=r"losses of B are 1.44 times those of A.*give both in nats"):
        compare(first, bits)


def test_too_few_runs_are_refused():
    first, second = pair_of_studies()
    with pytest.raises(FitError, match="the second recipe has 2 completed runs"):
        compare(first, second[:2])


# ---------------------------------------------------------------------------- independent computations


def test_the_detectable_distance_has_its_power():
    random = np.random.default_rng(0)
    for dof in (5, 12, 40):
        first, second = np.sqrt(random.chisquare(dof, (2, 200_000)) / dof)
        estimate = random.standard_normal(200_000) + errors_to_detect(dof) * first
        power = np.mean(estimate > stats.t.ppf(0.95, dof) * second)
        assert power == pytest.approx(0.9, abs=0.01)


def test_the_covariance_of_the_noise_is_that_of_its_sources():
    design = join_runs(*pair_of_studies(seeds=2, paired=0.5))
    noise = NoiseModel.of(design)
    for row, x in enumerate(prior_points(noise.dimensions, 64)):
        _, factor = next(noise.factors(x[None]))
        (share,) = noise.shares(x)[1:]
        expected = np.eye(len(design))
        for first in range(8):
            expected[first, 8 + first] = expected[8 + first, first] = np.sign(x[2]) * share
        scale = np.exp(-DECAY_SCALE * x[0] * (design.ln_flops - design.ln_flops.mean()))
        assert factor[0] @ factor[0].T == pytest.approx(expected * np.outer(scale, scale), abs=1e-8), row


def test_derivatives_equal_differences():
    first, second = pair_of_studies(1.3, offsets=PROFILE, seeds=1)
    surface = SharedSurface.of(join_runs(first, second))
    random = np.random.default_rng(0)
    steps = 1e-5 * np.eye(len(surface.centre))
    for _ in range(5):
        z = random.standard_normal(len(surface.centre))
        differences = [(surface.predict(z + step) - surface.predict(z - step)) / 2e-5 for step in steps]
        assert surface.jacobian(z) == pytest.approx(np.stack(differences, axis=1), abs=1e-8)


def test_the_interval_equals_that_of_markov_chains():
    """Metropolis chains over the parameters and the noise, with the nonlinear surface."""
    first, second = pair_of_studies(1.3, noise=0.003)
    design = join_runs(first, second)
    posterior = find_posterior(design)
    surface, best = posterior.surface, posterior.most_probable
    parameters = len(posterior.z)
    decay = np.log(design.runs.flops) - np.log(design.runs.flops).mean()

    def log_density(state):
        z, ln_sigma, h = state[:, :parameters], state[:, parameters], state[:, parameters + 1]
        scale = np.exp(ln_sigma[:, None] - DECAY_SCALE * h[:, None] * decay)
        residuals = (design.ln_loss - surface.predict(z)) / scale
        prior = (state[:, :parameters] ** 2).sum(axis=1) + h**2 + ((ln_sigma - LN_SIGMA) / LN_SIGMA_SCALE) ** 2
        return -0.5 * (residuals**2).sum(axis=1) - np.log(scale).sum(axis=1) - 0.5 * prior

    random = np.random.default_rng(1)
    axes = posterior.axes[best] * np.sqrt(posterior.variances[best])
    chains = 200
    state = np.empty((chains, parameters + 2))
    state[:, :parameters] = posterior.z + random.standard_normal((chains, parameters)) @ axes.T
    state[:, parameters] = np.log(posterior.sigmas[best]) + 0.2 * random.standard_normal(chains)
    state[:, parameters + 1] = random.standard_normal(chains)
    density, draws = log_density(state), []
    for step in range(4000):
        proposal = state.copy()
        proposal[:, :parameters] += 0.6 * random.standard_normal((chains, parameters)) @ axes.T
        proposal[:, parameters] += 0.2 * random.standard_normal(chains)
        proposal[:, parameters + 1] += 0.5 * random.standard_normal(chains)
        proposed = log_density(proposal)
        accepted = np.log(random.random(chains)) < proposed - density
        state[accepted], density[accepted] = proposal[accepted], proposed[accepted]
        if step >= 1000 and step % 20 == 0:
            draws.append(state[:, :parameters] @ surface.direction(BUDGETS[-1]))
    mixture = posterior.ln_gain(BUDGETS[-1])
    spread = mixture.quantile(0.95) - mixture.quantile(0.05)
    for probability in (0.05, 0.5, 0.95):
        expected = np.quantile(np.concatenate(draws), probability)
        assert mixture.quantile(probability) == pytest.approx(expected, abs=0.08 * spread)
