"""Held-out errors of laws on published tables, intervals for new runs, and the tasks of ScaleBench.

    OMP_NUM_THREADS=1 python tests/benchmarks/laws.py FOLDER [grids] [choice] [scalebench] [speed] [--quick]

FOLDER holds the tables (params, tokens, flops, loss, group), and scalebench/*.parquet. They are not part of this
repository.

grids       fit the runs of the lowest 75% of C, score the others: mean absolute relative error in % of each law
            alone and of the default (average); intervals for new runs
choice      the same for other rules of averaging, and the error if the rule is chosen on the other tables
scalebench  R2 of the test rows; form and objective are chosen on the training rows
speed       CPU seconds of a default fit with 1,000 draws
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from flops_fit_core import FitError, Observation
from flops_fit_core.fitting import AverageFitter, LawFitter, ParametricFitter, predict_loss
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.uncertainty.holdout import make_folds, predict_fold, weigh_laws
from flops_fit_core.plugins.registry.law_index import find_law

EIGHT = {
    "Farseer": None,
    "Chinchilla 240": ("epoch_chinchilla_240.csv", None),
    "Gadre C4": ("gadre_open_lm.csv", "c4_original__eval_c4_val"),
    "Gemstones cool-end": ("gemstones.csv", "gemstones_cool_end"),
    "misfitting best lr": ("misfitting_best_lr.csv", None),
    "Step Law best": ("steplaw_dense_best.csv", None),
    "OLMo ladder": ("olmo_ladder_c4.csv", None),
    "datablations, one epoch": ("datablations_c4.csv", None),
}
NAMES = ("chinchilla", "tied", "skaling")


def columns(table):
    return [table[name].to_numpy(float) for name in ("params", "tokens", "flops", "loss")]


def split(n, d, c, loss):
    """(N, D, C, L) with the mask of the runs to fit: the lowest 75% of C, ties together."""
    return n, d, c, loss, c <= np.quantile(c, 0.75) * (1 + 1e-9)


def eight(folder):
    for name, place in EIGHT.items():
        if place is None:
            parts = [
                pd.read_parquet(folder / "scalebench" / f"farseer_{part}.parquet") for part in ("train", "test")
            ]
            n, d, loss = np.concatenate([part[["N", "D", "loss"]].to_numpy(float) for part in parts]).T
            yield name, (n, d, 6 * n * d, loss, np.arange(len(n)) < len(parts[0]))
            continue
        table = pd.read_csv(folder / place[0])
        if place[1]:
            table = table[table.group == place[1]]
        if "epochs" in table:
            table = table[table.epochs <= 1.0001]
        yield name, split(*columns(table))


def isoflop(folder):
    for file in ("epoch_chinchilla_isoflop_snapped.csv", "misfitting_isoflop.csv", "porian_isoflop.csv"):
        table = pd.read_csv(folder / file)
        for group, rows in table.groupby("group"):
            yield f"{file.split('_iso')[0]}: {group}"[:48], split(*columns(rows))


def further(folder):
    for file in ("gadre_open_lm.csv", "gemstones.csv"):
        for group, rows in pd.read_csv(folder / file).groupby("group"):
            if (file[0], group) != ("g", "gemstones_cool_end") and ("c4_val" in group or "gemstones" in group):
                yield group[:48], split(*columns(rows))


def observations(n, d, c, loss, mask, extra=None):
    return [
        Observation(
            id=str(row),
            params=n[row],
            tokens=d[row],
            flops=c[row],
            loss=loss[row],
            inputs={} if extra is None else {key: float(values[row]) for key, values in extra.items()},
        )
        for row in np.flatnonzero(mask)
    ]


def error(fit, n, d, c, loss, mask):
    held_out = np.flatnonzero(~mask)
    return 100 * float(np.mean([abs(predict_loss(fit, n[r], d[r]).value / loss[r] - 1) for r in held_out]))


def geometric_mean(values):
    return np.exp(np.mean(np.log(values), axis=0))


def grids(folder, quick):
    draws = 100 if quick else 1000
    forms = [
        ("today", ParametricFitter(draws=0)),
        *((name, LawFitter(name, prior=False, draws=0)) for name in NAMES),
        *((f"{name}, prior", LawFitter(name, draws=0)) for name in NAMES),
        ("default", AverageFitter(draws=draws)),
    ]
    print(
        "held-out error in %: " + " | ".join(name for name, _ in forms) + " | a: today, default | 90% new-run"
        " intervals: share of held-out runs, median width of ln L, interval score | share in the law's interval"
    )
    for title, source in (("eight", eight), ("IsoFLOP", isoflop), ("further", further)):
        rows, shares, counts = [], [], []
        for name, data in source(folder):
            fits = [fitter.fit(observations(*data)) for _, fitter in forms]
            rows.append([error(fit, *data) for fit in fits])
            fit, (n, d, _, loss, mask) = fits[-1], data
            ends = [
                (predict_loss(fit, n[r], d[r], new_run=True), predict_loss(fit, n[r], d[r]), loss[r])
                for r in np.flatnonzero(~mask)
            ]
            inside = np.mean([new.low <= measured <= new.high for new, _, measured in ends])
            of_law = np.mean([law.low is not None and law.low <= y <= law.high for _, law, y in ends])
            low, high, y = np.log([(new.low, new.high, measured) for new, _, measured in ends]).T
            score = np.mean(high - low + 20 * np.maximum(low - y, 0) + 20 * np.maximum(y - high, 0))
            shares.append(inside)
            counts.append(len(ends))
            print(
                f"{name:48} {mask.sum():4}/{len(ends):<4}"
                + "".join(f"{value:7.2f}" for value in rows[-1])
                + f"   a {fits[0].exponents['a'].value:.3f} {fit.exponents['a'].value:.3f}"
                f"   {inside:4.0%} {np.median(high - low):.3f} {score:.3f} | {of_law:4.0%}",
                flush=True,
            )
        table = np.array(rows)
        large = [share for share, count in zip(shares, counts, strict=True) if count >= 20]
        print(
            f"{title}: geometric means "
            + " ".join(f"{value:.3f}" for value in geometric_mean(table))
            + f"; best law alone in hindsight {geometric_mean(table[:, :-1].min(axis=1)):.3f}; new runs "
            f"{np.mean(shares):.1%} on average, least {min(large, default=np.nan):.0%} (20 or more held out); "
            f"worse than today by at most {np.max(table[:, -1] - table[:, 0]):.2f} points\n"
        )


def choice(folder, quick):
    """Rules of averaging: which laws, which drifts, how the backtests count."""
    drifts = (0.0, 1.0, 3.0)
    members = list(itertools.product(NAMES, drifts))
    data = list(eight(folder))
    predictions, backtests = [], []
    for _, (n, d, c, loss, mask) in data:
        runs, rest = (Runs.of(observations(n, d, c, loss, rows)) for rows in (mask, ~mask))
        everything = Runs.of(observations(n, d, c, loss, np.ones_like(mask)))
        order = np.argsort(~mask, kind="stable")
        everything = everything.take(order)
        target = make_fold(len(runs), len(rest))
        predictions.append(
            [predict_fold(find_law(name), everything, target, drift).errors for name, drift in members]
        )
        folds = make_folds(runs, 8)
        backtests.append(
            [[predict_fold(find_law(name), runs, fold, drift).errors for fold in folds] for name, drift in members]
        )
    rules = {}
    for laws in (NAMES, ("chinchilla", "skaling"), ("tied", "skaling"), ("skaling",)):
        for used in ((0.0,), (1.0,), (3.0,), (0.0, 1.0), (0.0, 3.0), (1.0, 3.0), drifts):
            index = [row for row, (name, drift) in enumerate(members) if name in laws and drift in used]
            rules[laws, used] = [
                100
                * float(
                    np.mean(
                        np.abs(
                            np.expm1(weigh_laws([tests[i] for i in index]) @ np.array([errors[i] for i in index]))
                        )
                    )
                )
                for errors, tests in zip(predictions, backtests, strict=True)
            ]
    for (laws, used), errors in sorted(rules.items(), key=lambda item: geometric_mean(item[1])):
        print(
            f"{geometric_mean(errors):.3f} {', '.join(laws)}; drifts {used}: "
            + " ".join(f"{value:.2f}" for value in errors)
        )
    table = np.array(list(rules.values()))
    chosen = [
        table[np.argmin(np.log(np.delete(table, grid, axis=1)).mean(axis=1)), grid] for grid in range(len(data))
    ]
    print(
        f"rule chosen on the seven other tables: geometric mean {geometric_mean(chosen):.3f} "
        + " ".join(f"{value:.2f}" for value in chosen)
    )


def make_fold(fitted, held_out):
    from flops_fit_core.fitting.uncertainty.holdout import Fold

    rows = np.arange(fitted + held_out) < fitted
    return Fold(rows, ~rows, np.zeros(held_out), np.ones(held_out))


SCALEBENCH = {
    "farseer": ("farseer", "skaling", "chinchilla", "tied"),
    "data_constrained": ("muennighoff", "bounded"),
    "vocab": ("vocabulary",),
    "parallel": ("parallel",),
}


def scalebench_rows(folder, task, part):
    """(group, N, D, C, L, further inputs) of each group of a task."""
    table = pd.read_parquet(folder / "scalebench" / f"{task}_{part}.parquet")
    for group, rows in table.groupby("group"):
        get = {name: rows[name].to_numpy(float) for name in rows if name != "group"}
        if task == "farseer":
            yield group, get["N"], get["D"], 6 * get["N"] * get["D"], get["loss"], {}
        elif task == "data_constrained":
            n, d = get["params"], get["tokens"]
            yield group, n, d, 6 * n * d, get["loss"], {"unique_tokens": get["unique_tokens"]}
        elif task == "vocab":
            # Tokens per character by vocabulary, as fitted by Tao et al. 2024 (section 2.2).
            ln_v = np.log(get["vocab_size"])
            n, d = get["non_vocab_parameters"], get["num_characters"] * (0.0064 * ln_v**2 - 0.1581 * ln_v + 1.2047)
            width = 512 * (n / 33222784) ** (1 / 3)
            extra = {"vocabulary_params": get["vocab_size"] * width}
            yield group, n, d, 6 * n * d, get["unigram_normalized_loss"], extra
        else:
            n, streams = get["num_params"], get["parallel_size"]
            yield group, n, np.ones_like(n), n * streams, get["loss"], {"streams": streams}


def scalebench(folder, quick):
    print("vocabulary: N_v = V d with d = 512 (N_nv / 33,222,784)^(1/3)")
    for task, names in SCALEBENCH.items():
        tests = {group: rows for group, *rows in scalebench_rows(folder, task, "test")}
        for group, n, d, c, loss, extra in scalebench_rows(folder, task, "train"):
            unique = extra.pop("unique_tokens", None)
            runs = observations(n, d, c, loss, np.ones(len(n), bool), extra)
            if unique is not None:
                runs = [
                    run.model_copy(update={"unique_tokens": float(u)}) for run, u in zip(runs, unique, strict=True)
                ]
            inner = c <= np.quantile(c, 0.75)
            options = list(itertools.product(names, ("least-squares", "robust", "huber")))
            scores = {}
            for name, objective in options:
                try:
                    fit = LawFitter(name, objective, draws=0).fit([runs[row] for row in np.flatnonzero(inner)])
                    scores[name, objective] = r2(
                        fit,
                        *(part(v, ~inner) for v in (n, d, loss)),
                        take(extra, ~inner),
                        None if unique is None else unique[~inner],
                    )
                except FitError as problem:
                    scores[name, objective] = -np.inf
                    print(task, group, name, objective, problem)
            name, objective = max(scores, key=scores.get)
            fit = LawFitter(name, objective, draws=0).fit(runs)
            tn, td, _, tl, te = tests[group]
            tu = te.pop("unique_tokens", None)
            print(
                f"{task} {group}: {name}, {objective} (inner R2 "
                + ", ".join(f"{key[0]} {key[1]} {value:.3f}" for key, value in scores.items())
                + f"): test R2 {r2(fit, tn, td, tl, te, tu):.3f} on {len(tl)} rows; "
                + ", ".join(f"{key} = {value:.4g}" for key, value in fit.law.parameters.items()),
                flush=True,
            )


def part(values, rows):
    return values[rows]


def take(extra, rows):
    return {key: values[rows] for key, values in extra.items()}


def r2(fit, n, d, loss, extra, unique):
    predicted = [
        predict_loss(
            fit,
            n[row],
            d[row],
            None if unique is None else unique[row],
            {key: float(values[row]) for key, values in extra.items()},
        ).value
        for row in range(len(n))
    ]
    return 1 - float(np.sum((loss - predicted) ** 2) / np.sum((loss - loss.mean()) ** 2))


def speed(folder, quick):
    sources = dict(eight(folder))
    for name in ("OLMo ladder", "misfitting best lr", "Chinchilla 240"):
        n, d, c, loss, _ = sources[name]
        runs = observations(n, d, c, loss, np.ones(len(n), bool))
        AverageFitter(draws=10).fit(runs)
        seconds = {}
        for fitter in (AverageFitter(), ParametricFitter()):
            start = time.process_time()
            fitter.fit(runs)
            seconds[fitter.name] = time.process_time() - start
        print(
            f"{len(runs)} runs: " + ", ".join(f"{key} {value:.2f} s" for key, value in seconds.items()), flush=True
        )


def main():
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    folder, parts = Path(words[0]), words[1:] or ["grids", "choice", "scalebench", "speed"]
    for name in parts:
        {"grids": grids, "choice": choice, "scalebench": scalebench, "speed": speed}[name](
            folder, "--quick" in sys.argv
        )


if __name__ == "__main__":
    main()
