"""Loss-curve laws on published curves and on simulated curves.

    python tests/benchmarks/curve_law.py FOLDER [schedules] [forecasts] [coverage] [--quick]
    python tests/benchmarks/curve_law.py coverage --studies 300 --noise 0.0005 0.002 0.005

FOLDER holds a folder per model size, each with CSV tables (step, lr, loss) of one run: 25M/cosine_24000.csv and
others (arXiv 2503.12811). They are not part of this repository. ``coverage`` needs no data.

schedules  fitted on cosine_24000, constant_24000 and wsdcon_9: mean and worst relative error on the other
           schedules (the mean over curves of each curve's mean and of each curve's largest error, over all rows),
           the error of their final losses, and the share of rows and of final losses in their 90% intervals
forecasts  the final loss of each curve from its first 50%: with the decay term from the other curves of that size,
           and from the curve alone
coverage   simulated curves of a known law, with the law's error and correlated noise: coverage and width of 90%
           intervals of another schedule, of an unfinished run with two other curves, and of a run alone
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "fitting"))
from curve_samples import TRUTH, correlated_noise, rates, true_losses

from flops_fit_core import FitError
from flops_fit_core.fitting import CurveFit, LearningRates, LossCurve, fit_curves, forecast_loss, read_curves

PARTS = ("schedules", "forecasts", "coverage")
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")


def read_sizes(folder: Path) -> dict[str, dict[str, LossCurve]]:
    return {
        size.name: {path.stem: read_curves(path).curves[0] for path in sorted(size.glob("*.csv"))}
        for size in sorted(folder.iterdir())
        if size.is_dir()
    }


def print_schedules(sizes: dict[str, dict[str, LossCurve]]) -> None:
    for size, curves in sizes.items():
        for law in ("multi-power", "annealing"):
            started = time.perf_counter()
            fit = fit_curves([curves[name] for name in FITTED], law)
            seconds = time.perf_counter() - started
            values = ", ".join(f"{name} {value:.4g}" for name, value in fit.parameters.items())
            print(f"\n{size} {law}, {seconds:.2f} s: {values}")
            rows = []
            for name, curve in curves.items():
                if name in FITTED:
                    continue
                predictions = fit.predict(curve.rates, curve.steps)
                error = np.array([item.value for item in predictions]) / curve.losses - 1
                inside = [
                    item.low < loss < item.high for item, loss in zip(predictions, curve.losses, strict=True)
                ]
                rows.append((np.abs(error).mean(), np.abs(error).max(), error[-1], np.mean(inside), inside[-1]))
                print(
                    f"  {name:18} mean {rows[-1][0]:.5f}  worst {rows[-1][1]:.5f}  final {error[-1]:+.5f}  "
                    f"rows inside {rows[-1][3]:.0%}  final inside {inside[-1]}"
                )
            mean = np.array(rows, dtype=float).mean(axis=0)
            print(f"  mean {mean[0]:.5f}  worst {mean[1]:.5f}  rows inside {mean[3]:.0%}  finals {mean[4]:.0%}")


def print_forecasts(sizes: dict[str, dict[str, LossCurve]]) -> None:
    print(f"\n{'size':5} {'curve':18} {'decay seen':>10} {'with others':>24} {'alone':>24}")
    for size, curves in sizes.items():
        for name, curve in curves.items():
            half = curve.first(curve.last_step // 2)
            others = fit_curves([other for key, other in curves.items() if key != name])
            cells = [_describe(half, curve, others), _describe(half, curve, None)]
            seen = forecast_loss(half, others).decay_seen
            print(f"{size:5} {name:18} {seen:10.0%} {cells[0]:>24} {cells[1]:>24}")


def _describe(half: LossCurve, curve: LossCurve, others: CurveFit | None) -> str:
    """Relative error, half width of the interval, and whether it covers the final loss of the complete curve."""
    try:
        loss = forecast_loss(half, others).loss
    except FitError:
        return "refused"
    final = curve.losses[-1]
    width = (loss.high - loss.low) / (2 * loss.value)
    covers = "covers" if loss.low < final < loss.high else "misses"
    return f"{loss.value / final - 1:+.2%} +-{width:.2%} {covers}"


def simulate(random: np.random.Generator, name: str, deviation: float, rows: int) -> tuple[LossCurve, float]:
    """A curve with the law's error and noise, and its final loss."""
    steps = 8000
    values = rates(name, steps)
    at = np.unique(np.linspace(400, steps, rows).astype(int))
    log_at = np.log(at)
    error = correlated_noise(random, log_at, 1.75e-3, 0.5, 0.0) + correlated_noise(
        random, log_at, deviation, 0.1, deviation / 3
    )
    losses = true_losses(values, at) * np.exp(error)
    return LossCurve(name, at, losses, LearningRates(values)), float(losses[-1])


def print_coverage(studies: int, noise: list[float]) -> None:
    print(f"\nsimulated, {studies} studies per cell; truth {TRUTH}")
    print(f"{'noise':>6} {'interval':32} {'covers':>7} {'median half width':>18} {'rms error':>10}")
    for deviation in noise:
        cells: dict[str, list[tuple[bool, float, float]]] = {}
        random = np.random.default_rng(0)
        for _ in range(studies):
            fitted = [simulate(random, name, deviation, 60)[0] for name in ("constant", "cosine", "drop")]
            fit = fit_curves(fitted)
            target, final = simulate(random, "wsd", deviation, 60)
            _count(cells, "another schedule (wsd)", fit.predict(target.rates, [8000])[0], final)
            pair = fit_curves(fitted[1:])
            _count(cells, "wsd from 50%, two others", forecast_loss(target.first(4000), pair).loss, final)
            linear, last = simulate(random, "linear", deviation, 60)
            _count(cells, "linear from 50%, two others", forecast_loss(linear.first(4000), pair).loss, last)
            alone, last = simulate(random, "cosine", deviation, 60)
            _count(cells, "cosine from 60%, alone", forecast_loss(alone.first(4800)).loss, last)
        for name, results in cells.items():
            inside, half, error = np.array(results, dtype=float).T
            print(
                f"{deviation:6.2%} {name:32} {inside.mean():7.0%} {np.median(half):18.2%} "
                f"{np.sqrt((error**2).mean()):10.2%}"
            )


def _count(cells: dict, name: str, loss, final: float) -> None:
    half = (loss.high - loss.low) / (2 * loss.value)
    cells.setdefault(name, []).append((loss.low < final < loss.high, half, loss.value / final - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", help="FOLDER, and the parts to print")
    parser.add_argument("--quick", action="store_true", help="20 studies per cell")
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0005, 0.002, 0.005])
    options = parser.parse_args()
    parts = [word for word in options.words if word in PARTS] or list(PARTS)
    folders = [Path(word) for word in options.words if word not in PARTS]
    sizes = read_sizes(folders[0]) if folders else {}
    if "schedules" in parts:
        print_schedules(sizes)
    if "forecasts" in parts:
        print_forecasts(sizes)
    if "coverage" in parts:
        print_coverage(20 if options.quick else options.studies, options.noise)


if __name__ == "__main__":
    main()
