"""Accuracy of tasks: forecasts of larger runs, compared with the published two steps, and coverage in simulations.

    python tests/benchmarks/task_forecast.py olmo TABLE [--inner]
    python tests/benchmarks/task_forecast.py weights TABLE
    python tests/benchmarks/task_forecast.py simulate [--quick]

olmo      fits every task of the OLMo ladder (olmo_ladder_tasks.csv, arXiv 2412.04403) on the runs below 2B and
          forecasts the 3B runs. ``--inner`` uses the runs below 900M to forecast the 1B runs instead: forms and
          priors were chosen on this split. The table is not part of this repository.
weights   backtests on the OLMo runs to 1B: the mean error for weights of the direct curve, the same for all tasks,
          and for weights per task that minimise the error of the split before.
simulate  studies with a known law: coverage and median width of the 90% intervals at 10 times the largest C, and
          how many tasks without any signal are identified.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit, minimize

from flops_fit_core.fitting import TaskScores, fit_task, predict_accuracy, scores_of_table

CHOICES = {"piqa": 2, "winogrande": 2, "boolq": 2, "socialiqa": 3, "csqa": 5}
"""Answers per question; 4 for all other tasks."""


def chance_of(task):
    return 1 / next((count for name, count in CHOICES.items() if task.startswith(name)), 4)


def published_forecast(fitted, held_out):
    """Step 1: Huber with delta 1e-3 on ln L. Step 2: least squares, with a point of accuracy 1 at a loss of 0."""
    ln_loss = np.log(fitted.loss)

    def loss_at(theta, params, tokens):
        a, b, alpha, beta, irreducible = theta
        return np.exp(a - alpha * np.log(params)) + np.exp(b - beta * np.log(tokens)) + irreducible

    def objective(theta):
        r = np.abs(np.log(np.maximum(loss_at(theta, fitted.params, fitted.tokens), 1e-9)) - ln_loss)
        return 1e6 * np.where(r < 1e-3, r**2 / 2, 1e-3 * (r - 5e-4)).sum()

    starts = [
        (a, a, alpha, alpha, share * fitted.loss.min())
        for a in (0.0, 5.0, 10.0)
        for alpha in (0.1, 0.3, 0.5)
        for share in (0.3, 0.7)
    ]
    bounds = [(0, None)] * 5
    options = {"maxiter": 10_000, "maxfun": 100_000}
    step1 = min(
        (minimize(objective, start, bounds=bounds, method="L-BFGS-B", options=options) for start in starts),
        key=lambda result: result.fun,
    )

    def sigmoid(x, a, x0, k, b):
        return a / (1 + np.exp(-np.clip(k * (x - x0), -500, 500))) + b

    x, y = np.append(fitted.loss, 0.0), np.append(fitted.accuracy, 1.0)
    best = None
    for start in ([-1, 0.9, 3, 1], [-0.7, 0.6, 7, 1], [-0.7, 1.4, 3.2, 1]):
        limits = ([-1, 0, 0, 0], [0, np.inf, np.inf, 1])
        coefficients, _ = curve_fit(sigmoid, x, y, p0=start, bounds=limits, maxfev=500_000)
        value = ((sigmoid(x, *coefficients) - y) ** 2).sum()
        if best is None or value < best[0]:
            best = value, coefficients
    return sigmoid(loss_at(step1.x, held_out.params, held_out.tokens), *best[1])


def olmo(path, inner):
    header = path.read_text().split("\n")[0].split(",")
    low, high = (9e8, 2e9) if inner else (2e9, np.inf)
    rows = []
    for task in (name for name in header if name.endswith("_acc")):
        scores = scores_of_table(path, task, columns={"loss": "loss"}).scores
        fitted, held_out = (
            scores.take(scores.params < low),
            scores.take((scores.params > low) & (scores.params < high)),
        )
        fit = fit_task(fitted, chance=chance_of(task))
        forecasts = [
            predict_accuracy(fit, params=n, tokens=d)
            for n, d in zip(held_out.params, held_out.tokens, strict=True)
        ]
        truth = held_out.accuracy
        low_end, high_end = np.array([(f.new_run.low, f.new_run.high) for f in forecasts]).T

        def error(values, truth=truth):
            return 100 * float(np.mean(np.abs(np.asarray(values) / truth - 1)))

        rows.append(
            {
                "task": task,
                "published": error(published_forecast(fitted, held_out)),
                "two steps": error([f.two_step.value for f in forecasts]),
                "direct": error([f.direct.value for f in forecasts]),
                "ours": error([f.accuracy.value for f in forecasts]),
                "inside": float(np.mean((low_end <= truth) & (truth <= high_end))),
                "width": float(np.median(high_end - low_end)),
                "ok": fit.is_forecastable,
                "codes": " ".join(item.code for item in fit.diagnostics if item.severity == "warning"),
            }
        )
    show(rows)


def show(rows):
    names = ("published", "two steps", "direct", "ours")
    print(f"{'task':32s}" + "".join(f"{name:>11s}" for name in names) + "  inside  width  checks")
    for row in rows:
        numbers = "".join(f"{row[name]:10.2f}%" for name in names)
        print(
            f"{row['task']:32s}{numbers}  {row['inside']:5.0%}  {row['width']:.3f}  "
            f"{row['codes'] or 'forecastable'}"
        )
    for label, part in (("mean", rows), ("mean, forecastable", [row for row in rows if row["ok"]])):
        numbers = "".join(f"{np.mean([row[name] for row in part]):10.2f}%" for name in names)
        inside = np.mean([row["inside"] for row in part])
        width = np.median([row["width"] for row in part])
        print(f"{label:32s}{numbers}  {inside:5.0%}  {width:.3f}  {len(part)} tasks")


SPLITS = {"370M -> 760M": (5e8, 5e8, 9e8), "370M -> 1B": (5e8, 9e8, 2e9), "760M -> 1B": (9e8, 9e8, 2e9)}
"""Fitted sizes below the first N; forecast sizes between the other two."""


def forecast_split(scores, chance, split):
    """Relative errors of the two ways at the runs of the larger sizes, each of shape (runs,)."""
    below, low, high = SPLITS[split]
    fitted, held_out = (
        scores.take(scores.params < below),
        scores.take((scores.params > low) & (scores.params < high)),
    )
    fit = fit_task(fitted, chance=chance, draws=0)
    forecasts = [
        predict_accuracy(fit, params=n, tokens=d) for n, d in zip(held_out.params, held_out.tokens, strict=True)
    ]
    two_step, direct = np.array([(f.two_step.value, f.direct.value) for f in forecasts]).T
    return two_step / held_out.accuracy - 1, direct / held_out.accuracy - 1


def compare_weights(path):
    tasks = [name for name in path.read_text().split("\n")[0].split(",") if name.endswith("_acc")]
    errors = {}
    for task in tasks:
        scores = scores_of_table(path, task, columns={"loss": "loss"}).scores
        for split in SPLITS:
            errors[task, split] = forecast_split(scores, chance_of(task), split)

    def mean_error(split, weight):
        return 100 * np.mean(
            [
                np.abs((1 - weight[task]) * errors[task, split][0] + weight[task] * errors[task, split][1]).mean()
                for task in tasks
            ]
        )

    weights = np.linspace(0, 1, 5)
    print("weight of the direct curve  " + "  ".join(f"{weight:5.2f}" for weight in weights))
    for split in SPLITS:
        values = [mean_error(split, dict.fromkeys(tasks, weight)) for weight in weights]
        print(f"{split:26s}  " + "  ".join(f"{value:4.2f}%" for value in values))
    squares = {task: [np.mean(part**2) for part in errors[task, "370M -> 760M"]] for task in tasks}
    inverse = {task: two_step / (two_step + direct) for task, (two_step, direct) in squares.items()}
    better = {task: float(two_step > direct) for task, (two_step, direct) in squares.items()}
    for label, weight in (("by the inverse of squares", inverse), ("the better way alone", better)):
        print(f"760M -> 1B, per task from 370M -> 760M, {label}: {mean_error('760M -> 1B', weight):.2f}%")


def simulated_scores(random, questions, signal):
    """A ladder of 4 sizes by 5 D / N, with noise, and one run at 10 times the largest C."""
    sizes, ratios = np.geomspace(1.5e8, 1.2e9, 4), np.array([10.0, 20.0, 40.0, 100.0, 200.0])
    params, ratio = (axis.ravel() for axis in np.meshgrid(sizes, ratios))
    params = np.append(params, params.max() * 10**0.5)
    tokens = params * np.append(ratio, 20.0 * 10**0.5 * 10**0.5)
    irreducible, a, alpha, beta = random.uniform(0.3, 0.6), random.uniform(100, 300), 0.32, 0.3
    loss = irreducible + a / params**alpha + 2 * a / tokens**beta
    floor = random.uniform(0.2, 0.3)
    midpoint = irreducible + random.uniform(0.3, 1.0) * (loss[:-1].mean() - irreducible)
    slope = random.uniform(4, 9) if signal else 0.0
    true = floor + (1 - floor) / (1 + np.exp(slope * (loss - midpoint))) if signal else np.full(len(loss), floor)
    shared = random.standard_normal(len(loss))
    loss = loss * np.exp(0.004 * shared)
    accuracy = true + np.sqrt(true * (1 - true) / questions) * random.standard_normal(len(true))
    ids = tuple(map(str, range(len(params))))
    scores = TaskScores(
        "accuracy", "loss", ids, params, tokens, 6 * params * tokens, loss, np.clip(accuracy, 0, 1), ids, loss
    )
    return scores, true[-1]


def simulate(studies):
    random = np.random.default_rng(1)
    for questions in (300, 1000, 10_000):
        law, new, widths, flagged = [], [], [], []
        for _ in range(studies):
            scores, truth = simulated_scores(random, questions, signal=True)
            last = len(scores) - 1
            fit = fit_task(scores.take(np.arange(last)), chance=0.25, questions=questions, draws=200)
            forecast = predict_accuracy(fit, params=scores.params[-1], tokens=scores.tokens[-1])
            law.append(forecast.accuracy.low <= truth <= forecast.accuracy.high)
            new.append(forecast.new_run.low <= scores.accuracy[-1] <= forecast.new_run.high)
            widths.append(forecast.new_run.high - forecast.new_run.low)
            flagged.append(not fit.is_forecastable)
        noise = [simulated_scores(random, questions, signal=False)[0] for _ in range(studies // 3)]
        identified = [
            not fit_task(scores.take(np.arange(20)), chance=0.25, questions=questions, draws=100).is_forecastable
            for scores in noise
        ]
        print(
            f"{questions:6d} questions: law {np.mean(law):.1%}, new run {np.mean(new):.1%}, median width "
            f"{np.median(widths):.3f}; identified as not forecastable: {np.mean(flagged):.1%} of tasks with "
            f"signal, {np.mean(identified):.1%} of tasks without ({studies} and {studies // 3} studies)",
            flush=True,
        )


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "olmo":
        olmo(Path(arguments[0]), "--inner" in arguments)
    elif command == "weights":
        compare_weights(Path(arguments[0]))
    else:
        simulate(20 if "--quick" in arguments else 300)
