"""The law of learning rate and batch: coverage on simulated grids, and the public grid of Step Law.

    python tests/benchmarks/lr_batch.py --studies 300 [--quick] [--designs 0,1]
    python tests/benchmarks/lr_batch.py --steplaw PATH/steplaw_dense_grid.csv

Simulated grids: ln loss is a sum of two exponential bowls, e^{ku} - ku - 1, with a cross term. Losses thus rise
faster above the best learning rate than below, and the surface is no polynomial. ``noise`` is the standard
deviation of ln loss of a run. ``spread`` is the standard deviation of the cells' true optimum around the power
law, in ln lr and ln batch. With ``edges``, grids are centered up to a factor 7 off the optimum.

For each design, the first command prints how often the 90% intervals hold the exponents, the values at the center,
and the values at 10 times the largest N and D; the median width of the exponents' intervals; the share of cells
with a true optimum outside their grid; and the median true loss given up at 10 times the largest N and D.

The second compares laws on the public grid (arXiv 2503.04715): the published law, this law, and optima of single
cells followed by linear regressions. The loss given up is measured in cells left out of the complete procedure,
choice of the window included.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from flops_fit_core import FitError
from flops_fit_core.fitting import LrBatchTable, fit_lr_batch, read_lr_batch_table
from flops_fit_core.fitting.hyperparameters.regret import regret

LAWS = np.array([[math.log(2e-3), -0.7, 0.3], [math.log(4e5), -0.2, 0.6]])
"""ln value, exponents of N and D, at the center."""
CENTER = (math.log(3e8), math.log(2e10))
CURVATURE = (0.013, 0.012, -0.006)
SKEW = (0.5, -0.3)
DESIGNS = [
    # sizes, lengths per size, learning rates, batches, noise, spread, edges
    (3, 3, 5, 4, 0.001, 0.0, False),
    (3, 3, 5, 4, 0.003, 0.1, False),
    (3, 3, 5, 4, 0.003, 0.1, True),
    (4, 4, 8, 7, 0.001, 0.0, False),
    (4, 4, 8, 7, 0.003, 0.1, False),
    (4, 4, 8, 7, 0.003, 0.1, True),
    (3, 3, 7, 1, 0.003, 0.1, False),
    (2, 2, 5, 4, 0.003, 0.1, False),
]


def excess(u, v):
    """ln loss above the optimum."""
    bowls = [
        curvature * (np.exp(skew * z) - skew * z - 1) / skew**2
        for curvature, skew, z in zip(CURVATURE, SKEW, (u, v), strict=False)
    ]
    return bowls[0] + bowls[1] + CURVATURE[2] * u * v


def simulate(design, random):
    """A study, and the number of its cells with their optimum outside the grid."""
    sizes, lengths, rates, batches, noise, spread, edges = design
    columns, outside = {name: [] for name in ("lr", "batch", "params", "tokens", "loss", "cell")}, 0
    steps = [np.log(4) * (np.arange(count) - (count - 1) / 2) for count in (sizes, lengths)]
    for cell, (n, d) in enumerate((n, n + d) for n in steps[0] for d in steps[1]):
        law = LAWS @ [1, n, d]
        optimum = law + spread * random.standard_normal(2)
        middle = law + random.uniform(-1, 1, 2) * (2 if edges else 1)
        axes = [
            np.log(2) * (np.round(center / np.log(2)) + np.arange(count) - (count - 1) // 2)
            for center, count in zip(middle, (rates, batches), strict=True)
        ]
        if batches == 1:
            axes[1] = law[1:]  # one batch per cell, by the law: the learning rate alone is searched
        outside += any(
            not axis[0] < value < axis[-1] for axis, value in zip(axes, optimum, strict=True) if len(axis) > 1
        )
        lr, batch = (grid.ravel() for grid in np.meshgrid(*axes))
        loss = 1 - 0.07 * n - 0.09 * d + excess(lr - optimum[0], batch - optimum[1] if batches > 1 else 0 * batch)
        loss += noise * random.standard_normal(len(lr))
        full = [np.exp(lr), np.exp(batch), np.exp(n + CENTER[0]), np.exp(d + CENTER[1]), np.exp(loss), cell]
        for name, values in zip(columns, full, strict=True):
            columns[name].append(np.broadcast_to(values, lr.shape))
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    return LrBatchTable(**arrays, seeds=0, params_column="", excluded={}, diagnostics=()), outside


def covers(interval, truth):
    return interval.low is not None and interval.low <= truth <= interval.high


def measure(design, studies):
    """Hits of the exponents (4), the centers (2) and the extrapolations (2); NaN for an axis without a law."""
    hits, widths, outside, failed, given_up, windows = [], [], 0, 0, [], []
    cells = design[0] * design[1]
    for study in range(studies):
        table, beyond = simulate(design, np.random.default_rng(study))
        outside += beyond
        try:
            fit = fit_lr_batch(table)
        except FitError:
            failed += 1
            continue
        windows.append((fit.degree, fit.window))
        far = (10 * table.params.max(), 10 * table.tokens.max())
        at = np.array([1, math.log(far[0]) - CENTER[0], math.log(far[1]) - CENTER[1]])
        row, width, error = [], [], []
        for law, predict, truth in ((fit.lr, fit.predict_lr, LAWS[0]), (fit.batch, fit.predict_batch, LAWS[1])):
            if law is None:
                row += [math.nan] * 4
                width += [math.nan] * 2
                error.append(0.0)
                continue
            row += [covers(law.params, truth[1]), covers(law.tokens, truth[2])]
            row += [covers(law.center, math.exp(truth[0])), covers(predict(*far), math.exp(truth @ at))]
            width += [
                math.inf if interval.low is None else interval.high - interval.low
                for interval in (law.params, law.tokens)
            ]
            error.append(math.log(predict(*far).value) - truth @ at)
        hits.append(row)
        widths.append(width)
        given_up.append(excess(*error))
    rate = np.mean(np.array(hits, dtype=float), axis=0)
    width = np.median(np.array(widths), axis=0)
    return rate, width, outside / (cells * studies), failed, np.median(given_up), windows


def coverage(studies, numbers):
    print(
        "cells  grid  noise spread edges | lr: N    D   center  10x | batch: N    D   center  10x | width lr "
        "N    D  "
        "batch N    D | outside failed loss at 10x | most frequent window, s per study"
    )
    for number in numbers:
        design = DESIGNS[number]
        start = time.perf_counter()
        rate, width, outside, failed, given_up, windows = measure(design, studies)
        seconds = (time.perf_counter() - start) / studies
        most = max(set(windows), key=windows.count)
        shown = " ".join(f"{value:6.3f}" for value in rate)
        widths = " ".join(f"{value:7.3f}" for value in width)
        print(
            f"{design[0]} x {design[1]} {design[2]} x {design[3]} {design[4]:.3f} {design[5]:.1f} "
            f"{'yes' if design[6] else 'no ':>5} | {shown} | {widths} | {outside:.2f} {failed} {given_up:.3%} | "
            f"degree {most[0]}, {most[1]} ({windows.count(most) / len(windows):.0%}), {seconds:.2f}",
            flush=True,
        )


def published(params, tokens):
    """Li et al. 2025, equation 1: ln of the learning rate and of the batch in tokens."""
    return np.array([math.log(1.79 * params**-0.713 * tokens**0.307), math.log(0.58 * tokens**0.571)])


def select(table, rows):
    names = ("lr", "batch", "params", "tokens", "loss", "cell")
    return replace(table, **{name: getattr(table, name)[rows] for name in names})


def single_cells(table, window):
    """Vertices of the parabolas of single cells, then a linear regression of each hyperparameter."""
    points = []
    for cell in np.unique(table.cell):
        rows = table.cell == cell
        x, y = np.log([table.lr[rows], table.batch[rows]]).T, np.log(table.loss[rows])
        near = y < y.min() + window
        center = x[near].mean(axis=0)
        u, v = (x[near] - center).T
        design = np.stack([np.ones_like(u), u, v, u * u / 2, u * v, v * v / 2], axis=1)
        coefficients = np.linalg.lstsq(design, y[near], rcond=None)[0]
        curvature = coefficients[[3, 4, 4, 5]].reshape(2, 2)
        vertex = center - np.linalg.solve(curvature, coefficients[1:3])
        inside = (x.min(axis=0) < vertex).all() and (vertex < x.max(axis=0)).all()
        if near.sum() > 6 and np.linalg.eigvalsh(curvature)[0] > 0 and inside:
            points.append([1, math.log(table.params[rows][0]), math.log(table.tokens[rows][0]), *vertex])
    points = np.array(points)
    return np.linalg.lstsq(points[:, :3], points[:, 3:], rcond=None)[0].T


def crop(table, share, random):
    """A random part of each cell's grid, so that many optima lie at or beyond an edge."""
    keep = np.ones(len(table.loss), dtype=bool)
    for cell in np.unique(table.cell):
        rows = np.flatnonzero(table.cell == cell)
        for values in (np.round(np.log(table.lr[rows]), 3), np.round(np.log(table.batch[rows]), 3)):
            levels = np.unique(values)
            count = max(4, int(len(levels) * share))
            first = random.integers(len(levels) - count + 1)
            keep[rows] &= (values >= levels[first]) & (values <= levels[first + count - 1])
    return select(table, keep)


def held_out(table, train, methods):
    """Loss given up in each cell by methods that do not see it."""
    results = {name: [] for name in methods}
    for cell in np.unique(table.cell):
        rows = table.cell == cell
        hyper, losses = np.log([table.lr[rows], table.batch[rows]]).T, np.log(table.loss[rows])
        params, tokens = table.params[rows][0], table.tokens[rows][0]
        others = select(train, train.cell != cell)
        for name, method in methods.items():
            try:
                results[name].append(regret(hyper, losses, method(others, params, tokens)))
            except (FitError, np.linalg.LinAlgError, IndexError):
                results[name].append(math.nan)
    return results


def by_law(**options):
    def choose(table, params, tokens):
        fit = fit_lr_batch(table, **options)
        return np.log([fit.predict_lr(params, tokens).value, fit.predict_batch(params, tokens).value])

    return choose


def by_cells(window):
    def choose(table, params, tokens):
        return single_cells(table, window) @ [1, math.log(params), math.log(tokens)]

    return choose


def steplaw(path, crops):
    table = read_lr_batch_table(path, {"loss": "smooth loss", "steps": "ti"})
    start = time.perf_counter()
    fit = fit_lr_batch(table, n="non-embedding")
    print(
        f"fit: {time.perf_counter() - start:.2f} s, degree {fit.degree}, window {fit.window}, {fit.n_runs} runs\n"
    )
    print(f"{'law':<14} {'lr scale':<10} {'lr N':<30} {'lr D':<30} {'batch scale':<11} {'batch N':<30} batch D")
    print(f"{'published':<14} {1.79:<10} {-0.713:<30} {0.307:<30} {0.58:<11} {0:<30} 0.571")
    print(f"{'this law':<14} {row_of(fit.lr)} {row_of(fit.batch)}")
    for degree, window in [(3, 0.005), (3, 0.015), (3, 0.02), (2, 0.005), (2, 0.01)]:
        other = fit_lr_batch(table, degree=degree, window=window)
        print(f"{f'{degree}, {window}':<14} {row_of(other.lr)} {row_of(other.batch)}")
    print("\nN       D       lr published  this law                        batch published  this law")
    for params, tokens in [(215e6, 4e9), (429e6, 40e9), (1e9, 20e9), (1e9, 1e11), (7e9, 1.4e11), (7e9, 2e12)]:
        lr, batch = np.exp(published(params, tokens))
        print(
            f"{params:.3g} {tokens:.3g}  {lr:.3e}  {fit.predict_lr(params, tokens)}   {batch:.3e}  "
            f"{fit.predict_batch(params, tokens)}"
        )
    methods = {
        "published (its constants come from these runs)": lambda table, params, tokens: published(params, tokens),
        "this law": by_law(),
        "this law, degree 2": by_law(degree=2),
        "single cells, 1%": by_cells(0.01),
        "single cells, 2%": by_cells(0.02),
    }
    print("\nloss given up in held-out cells       mean     worst  no answer")
    print_results(held_out(table, table, methods))
    for share in (0.5, 0.4) if crops else ():
        total = {name: [] for name in methods}
        for seed in range(crops):
            train = crop(table, share, np.random.default_rng(seed))
            for name, values in held_out(table, train, methods).items():
                total[name] += values
        print(f"\nfitted to {share:.0%} of each axis, {crops} random crops")
        print_results(total)


def row_of(law):
    return f"{law.scale:<10.4g} {law.params!s:<30} {law.tokens!s:<30}"


def print_results(results):
    for name, values in results.items():
        print(f"{name:<48} {np.nanmean(values):.4%}  {np.nanmax(values):.3%}  {int(np.isnan(values).sum())}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--designs", default=",".join(map(str, range(len(DESIGNS)))), help="Numbers, 0,1,2.")
    parser.add_argument("--quick", action="store_true", help="Ten studies of two designs.")
    parser.add_argument("--steplaw", type=Path, help="The public grid, for the second command.")
    parser.add_argument("--crops", type=int, default=4, help="Random crops of the public grid; 0 for none.")
    options = parser.parse_args()
    if options.steplaw is not None:
        steplaw(options.steplaw, 0 if options.quick else options.crops)
        return
    numbers = [0, 2] if options.quick else [int(number) for number in options.designs.split(",")]
    coverage(10 if options.quick else options.studies, numbers)


if __name__ == "__main__":
    main()
