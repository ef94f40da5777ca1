"""Every bundled fitter passes the conformance kit, on runs of its law."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np

from flops_fit_core import Observation
from flops_fit_core.testing import FitterConformance


class TestParametric(FitterConformance):
    name = "parametric"
    options = {"draws": 100}


class TestParametricByHuberLoss(FitterConformance):
    name = "parametric"
    options = {"draws": 50, "objective": "huber"}


class TestIsoflop(FitterConformance):
    name = "isoflop"
    options = {"draws": 100}


class TestAverage(FitterConformance):
    name = "average"
    options = {"draws": 50}
    needs = 6


class TestChinchillaWithItsPrior(FitterConformance):
    name = "law"
    options = {"law": "chinchilla", "draws": 50}
    needs = 6


class TestKaplan(FitterConformance):
    name = "law"
    options = {"law": "kaplan", "draws": 50}

    def loss(self, params, tokens):
        return ((8.8e13 / params) ** (0.076 / 0.095) + 5.4e13 / tokens) ** 0.095


class TestEnvelope(FitterConformance):
    """Fits 40 training curves of 40 points each."""

    name = "envelope"
    options = {"draws": 50}
    accuracy = 0.15

    def observations(self, noise, seed=0):
        generator = random.Random(seed)
        factors = [math.exp(noise * generator.gauss(0, 1)) for _ in range(40)]
        return [
            Observation(
                id=f"{number}/{tokens:.3e}",
                params=params,
                tokens=tokens,
                flops=6 * params * tokens,
                loss=self.loss(params, tokens) * factors[number],
                trajectory=f"run {number}",
            )
            for (number, params), tokens in itertools.product(
                enumerate(np.geomspace(1e7, 1e10, 40)), np.geomspace(1e9, 1e12, 40)
            )
        ]


class TestMuennighoff(FitterConformance):
    """Runs of up to 40 epochs, by equations 5 to 7 of Muennighoff et al. 2023."""

    name = "law"
    options = {"law": "muennighoff", "draws": 20}
    needs = 8
    e, a, b, power, r_d, r_n = math.exp(0.62548), math.exp(6.2554), math.exp(7.3050), 0.35266, 15.388, 5.310

    def loss(self, params, tokens):
        return self.e + self.a / params**self.power + self.b / tokens**self.power

    def observations(self, noise, seed=0):
        generator = random.Random(seed)
        observations = []
        for params, unique, epochs in itertools.product(
            np.geomspace(1e8, 1e10, 6), (1e9, 1e10, 1e11), (1, 3, 10, 40)
        ):
            tokens = unique * epochs
            effective_tokens = unique * (1 + self.r_d * (1 - math.exp(-(epochs - 1) / self.r_d)))
            # Optimal N for the unique tokens: alpha = beta, so N / D = (A / B)^(1 / alpha).
            optimal = unique * (self.a / self.b) ** (1 / self.power)
            excess = max(0.0, params / optimal - 1)
            effective_params = min(params, optimal) + optimal * self.r_n * (1 - math.exp(-excess / self.r_n))
            loss = self.loss(effective_params, effective_tokens) * math.exp(noise * generator.gauss(0, 1))
            observations.append(
                Observation(
                    id=str(len(observations)),
                    params=params,
                    tokens=tokens,
                    flops=6 * params * tokens,
                    loss=loss,
                    unique_tokens=unique,
                )
            )
        return observations
