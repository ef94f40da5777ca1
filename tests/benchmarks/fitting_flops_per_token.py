"""N_opt if FLOPs per token are not a multiple of N: scatter between sizes, and 100 times the largest budget.

    python tests/benchmarks/fitting_flops_per_token.py [jitter] [conventions] [coverage] [scattered] [ends]
        [--studies 300] [--noise .005]

Studies are simulated with L = 1.69 + 406.4 / N^.34 + 410.7 / D^.28.

jitter       C = 6 N D times a factor that differs between sizes. N_opt(1e20) relative to a fit of the same losses
             with C = 6 N D: the share of seeds within 3%, and the largest difference
conventions  GPT ladders with width d and d / 64 blocks (both), 16 blocks (width) or 6 + d / 128 blocks (offset).
             "whole" ladders have widths that are multiples of 64, and integer numbers of blocks. C counts every
             matrix product and attention at a context of 2048. Error of N_opt without noise, relative to the
             ladder of all real widths
coverage     the same with noise on ln L (--noise): how often the 90% interval contains the truth, and its median
             width in ln N_opt
scattered    GPT ladders with sizes that scatter by 5% (Gaussian) in FLOPs per token: N_opt(1e20) relative to the
             curve without scatter, and how often the nominal 90% interval contains it; noise as for coverage
ends         small GPTs with width / r blocks, rounded to integers, planned sizes a factor apart, and FLOPs per
             token of the family beyond them. The local exponent d ln N_opt / d ln C within a factor of 10 of the
             largest size (the range over budgets, without noise), and its largest change between budgets 1% apart
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from flops_fit_core.fitting.laws.forms import SURFACES

from flops_fit_core import Observation
from flops_fit_core.fitting import ParametricFitter, optimum
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import follow_family, minimise

BUDGETS = 10.0 ** np.arange(18, 22.1, 1)
CONTEXT = 2048
CONVENTIONS = ("total", "non-embedding", "body")
LADDERS = ("both", "width", "whole blocks", "offset", "whole offset")


def loss(params, tokens):
    return 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28


class Ladder:
    """N and FLOPs per token of a GPT by its width."""

    def __init__(self, kind: str, convention: str, vocabulary: int) -> None:
        self.kind, self.convention, self.vocabulary = kind, convention, vocabulary

    def count(self, width, is_built=False):
        width = np.asarray(width, dtype=float)
        blocks = 6 + width / 128 if "offset" in self.kind else width / 64
        blocks = np.full_like(width, 16.0) if self.kind == "width" else blocks
        blocks = np.round(blocks) if self.kind == "whole offset" and is_built else blocks
        body, head = 12 * blocks * width**2, self.vocabulary * width
        flops = 6 * body + 12 * CONTEXT * width * blocks + 6 * head
        params = body + {"total": 2, "non-embedding": 1, "body": 0}[self.convention] * head
        return params, flops

    def optimum(self, flops):
        """N_opt on the ladder of all real widths."""
        width = np.geomspace(16, 4e5, 400_001)
        params, per_token = self.count(width)
        return float(params[np.argmin(loss(params, flops / per_token))])

    def rungs(self):
        if "whole" in self.kind:
            return self.count(64 * np.arange(1, 200), is_built=True)
        width = np.geomspace(64, 3e4, 4000)
        params, _ = self.count(width)
        targets = np.geomspace(params[0], params[-1], int(np.log(params[-1] / params[0]) / np.log(1.4)))
        return self.count(np.interp(np.log(targets), np.log(params), width))


def observe(params, per_token, budgets, best, sigma, random, sizes=7):
    """Simulate ``sizes`` runs per budget, of the sizes nearest to ``best``."""
    observations = []
    for budget, centre in zip(budgets, best, strict=True):
        nearest = np.sort(np.argsort(np.abs(np.log(params / centre)))[:sizes])
        for rung in nearest:
            tokens = budget / per_token[rung]
            value = loss(params[rung], tokens) * np.exp(sigma * random.standard_normal())
            observations.append(
                Observation(
                    id=f"{budget:.0e}/{rung}",
                    params=params[rung],
                    tokens=tokens,
                    flops=budget,
                    loss=value,
                    budget=budget,
                )
            )
    return observations


def jitter(studies: int, noise: float) -> None:
    patterns = ("alternating", "two-valued", "gaussian")
    for size, pattern, sizes in itertools.product((0.02, 0.05), patterns, (12, 24)):
        errors = []
        for seed in range(min(studies, 100)):
            random = np.random.default_rng(seed)
            params = np.geomspace(3e7, 3e9, sizes) * np.exp(0.05 * random.standard_normal(sizes))
            factor = {
                "alternating": (-1.0) ** np.arange(sizes),
                "two-valued": random.choice([-1.0, 1.0], sizes),
                "gaussian": random.standard_normal(sizes),
            }[pattern]
            best = [Ladder("both", "body", 0).optimum(c) for c in BUDGETS[:1]] * len(BUDGETS)
            best = best[0] * (BUDGETS / BUDGETS[0]) ** (0.28 / 0.62)
            runs = observe(params, 6 * params * np.exp(size * factor), BUDGETS, best, 0.002, random)
            plain = [run.model_copy(update={"flops": 6 * run.params * run.tokens}) for run in runs]
            n_opt = [optimum(ParametricFitter(draws=0).fit(sample), 1e20).params.value for sample in (runs, plain)]
            errors.append(abs(n_opt[0] / n_opt[1] - 1))
        print(
            f"{pattern:12s} {size:.0%}, {sizes} sizes: within 3% in {np.mean(np.array(errors) < 0.03):.0%}, "
            f"largest {max(errors):.1%}, median {np.median(errors):.2%}",
            flush=True,
        )


def settings():
    return itertools.product(LADDERS, (50_257, 32_000), CONVENTIONS)


def conventions(studies: int, noise: float) -> None:
    for kind, vocabulary, convention in settings():
        ladder = Ladder(kind, convention, vocabulary)
        best = [ladder.optimum(c) for c in BUDGETS]
        runs = observe(*ladder.rungs(), BUDGETS, best, 0.0, np.random.default_rng(0))
        fit = ParametricFitter(draws=0).fit(runs)
        errors = [
            optimum(fit, factor * BUDGETS[-1]).params.value / ladder.optimum(factor * BUDGETS[-1]) - 1
            for factor in (0.01, 1, 10, 100, 1000)
        ]
        text = " ".join(f"{error:+.2%}" for error in errors)
        label = f"{kind:12s} vocabulary {vocabulary} N {convention:13s}"
        print(f"{label} error at x.01, 1, 10, 100, 1000: {text}", flush=True)


def coverage(studies: int, noise: float) -> None:
    for kind, vocabulary, convention in settings():
        if vocabulary != 50_257 and kind != "both":
            continue
        ladder = Ladder(kind, convention, vocabulary)
        best, truth = [ladder.optimum(c) for c in BUDGETS], ladder.optimum(100 * BUDGETS[-1])
        hits, widths, errors = [], [], []
        for seed in range(studies):
            runs = observe(*ladder.rungs(), BUDGETS, best, noise, np.random.default_rng(seed))
            n_opt = optimum(ParametricFitter(draws=400).fit(runs), 100 * BUDGETS[-1]).params
            if n_opt.low is not None:
                hits.append(n_opt.low <= truth <= n_opt.high)
                widths.append(np.log(n_opt.high / n_opt.low))
                errors.append(np.log(n_opt.value / truth))
        print(
            f"{kind:12s} vocabulary {vocabulary} N {convention:13s} contains the truth {np.mean(hits):.3f} of "
            f"{len(hits)}, median width {np.median(widths):.3f}, median error {np.median(errors):+.3f}",
            flush=True,
        )


def scattered(studies: int, noise: float) -> None:
    for convention, sizes in itertools.product(CONVENTIONS, (12, 24)):
        ladder = Ladder("both", convention, 50_257)
        best, truth = [ladder.optimum(c) for c in BUDGETS], ladder.optimum(1e20)
        width = np.geomspace(32, 2e4, 4000)
        params, _ = ladder.count(width)
        targets = np.geomspace(best[0] / 4, best[-1] * 4, sizes)
        hits, errors = [], []
        for seed in range(studies):
            random = np.random.default_rng(seed)
            built, per_token = ladder.count(np.interp(np.log(targets), np.log(params), width))
            per_token = per_token * np.exp(0.05 * random.standard_normal(sizes))
            runs = observe(built, per_token, BUDGETS, best, noise, random)
            n_opt = optimum(ParametricFitter(draws=400).fit(runs), 1e20).params
            errors.append(np.log(n_opt.value / truth))
            hits.append(n_opt.low is not None and n_opt.low <= truth <= n_opt.high)
        print(
            f"N {convention:13s} {sizes} sizes: contains the truth {np.mean(hits):.3f}, within 3% "
            f"{np.mean(np.abs(errors) < 0.03):.0%}, median error {np.median(errors):+.3f}, "
            f"deviation {np.std(errors):.3f}",
            flush=True,
        )


def ends(studies: int, noise: float) -> None:
    worst = []
    for blocks_per_width, step, factor in itertools.product((4, 6, 10, 16, 32), (4, 8), (1.2, 1.4, 2.0)):
        widths = step * np.arange(1, 400)
        blocks = np.maximum(1, np.round(widths / blocks_per_width))
        params = 12 * blocks * widths**2 + 256.0 * widths
        per_token = 6 * params + 12 * 64 * widths * blocks
        planned = np.unique([np.argmin(np.abs(np.log(params / n))) for n in 4000 * factor ** np.arange(16)])
        planned = planned[params[planned] < 1e5]
        if len(planned) < 4:
            continue
        family = np.unique([np.argmin(np.abs(np.log(params / n))) for n in 4000 * 1.5 ** np.arange(18)])
        runs = [
            Observation(
                id=f"{rung}/{ratio}",
                params=params[rung],
                tokens=ratio * params[rung],
                flops=per_token[rung] * ratio * params[rung],
                loss=loss(params[rung], ratio * params[rung]),
            )
            for rung in planned
            for ratio in (5, 20, 80)
        ]
        points = list(zip(params[family], per_token[family], strict=True))
        fit = follow_family(ParametricFitter(draws=0).fit(runs), points, runs)
        ln_flops, ln_params = optima_near(fit, params[planned[-1]])
        slopes = np.diff(ln_params) / np.diff(ln_flops)
        worst.append((float(np.ptp(slopes)), float(np.max(np.abs(np.diff(slopes))))))
        label = f"width / {blocks_per_width} blocks, widths {step} apart, N x {factor}: {len(planned)} sizes"
        print(
            f"{label}: exponent {slopes.min():.3f} to {slopes.max():.3f}, largest change {worst[-1][1]:.4f}",
            flush=True,
        )
    print(f"largest range {max(worst)[0]:.3f}, largest change {max(change for _, change in worst):.4f}")


def optima_near(fit, params):
    """Ln C and ln N_opt for N_opt within a factor of 10 of ``params``, at budgets 1% apart."""
    ln_flops = np.arange(np.log(100), np.log(1e18), 0.01)
    law = {name: np.full(len(ln_flops), value) for name, value in fit.law.parameters.items()}
    ln_params = minimise(SURFACES["parametric"], law, FlopsPerToken.of_fit(fit), np.exp(ln_flops))[0]
    is_near = np.abs(ln_params - np.log(params)) < np.log(10)
    return ln_flops[is_near], ln_params[is_near]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"jitter": jitter, "conventions": conventions, "coverage": coverage, "scattered": scattered}
    parts["ends"] = ends
    parser.add_argument("parts", nargs="*", choices=[[], *parts])
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.005)
    arguments = parser.parse_args()
    for part in arguments.parts or parts:
        print(f"--- {part}")
        parts[part](arguments.studies, arguments.noise)


if __name__ == "__main__":
    main()
