"""The provenance of a study's numbers: conventions, choices, seeds, versions, machines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from flops_fit_core import numbers
from flops_fit_core.config.secrets import mask_secrets
from flops_fit_core.records import LawFit, PluginChoice, RunResult, RunSpec, SweepPlan
from flops_fit_core.report.datatable import conventions
from flops_fit_core.report.tables import run_conventions

_KINDS = {
    "model": "Model",
    "dataset": "Dataset",
    "optimizer": "Optimizer",
    "schedule": "Schedule",
    "trainer": "Trainer",
    "counter": "FLOPs counter",
}


class ProvenanceItem(NamedTuple):
    """A fact about a study, with its heading."""

    name: str
    value: str


def provenance(
    fit: LawFit | None, results: Sequence[RunResult] = (), plan: SweepPlan | None = None
) -> list[ProvenanceItem]:
    """The facts required to judge or to repeat the numbers of a study, with or without a law."""
    runs = [result.run for result in results] or list(plan.runs if plan else ())
    facts = [
        *(_fit_items(fit) if fit is not None else ()),
        *(_choice_items(runs) if runs else ()),
        *(_result_items(results, plan) if results else ()),
        *_counting_items(fit, results, plan),
    ]
    return [fact for fact in facts if fact.value]


def _fit_items(fit: LawFit) -> Iterator[ProvenanceItem]:
    yield ProvenanceItem("N", fit.params_name)
    yield ProvenanceItem("C", f"training FLOPs (forward and backward), {fit.flops_name}")
    yield ProvenanceItem("D", fit.unit)
    yield ProvenanceItem("Fitter", describe_choice(fit.fitter))
    for law, weight in [(member.law, f", weight {member.weight:.0%}") for member in fit.members] or [
        (fit.law, "")
    ]:
        values = ", ".join(f"{name} = {value:.6g}" for name, value in law.parameters.items())
        yield ProvenanceItem("Law", f"{law.name}{weight}: {values}")
    low, high = fit.flops_range
    yield ProvenanceItem(
        "Fitted", f"{fit.n_runs} runs, C from {numbers.scientific(low)} to {numbers.scientific(high)}"
    )
    draws = fit.draw_count
    failed = f", {fit.failed_draws} more failed" if fit.failed_draws else ""
    yield ProvenanceItem(
        "Bootstrap", f"{draws} draws{failed}, seed {fit.seed}, {fit.level:.0%} intervals" if draws else "none"
    )


def _choice_items(runs: Sequence[RunSpec]) -> Iterator[ProvenanceItem]:
    for kind, name in _KINDS.items():
        yield ProvenanceItem(name, _describe_common([getattr(run, kind) for run in runs]))
    yield ProvenanceItem("Data", _join_unique(run.fingerprint for run in runs))
    yield ProvenanceItem("Seeds of the runs", _join_unique(str(run.seed) for run in runs))


def _result_items(results: Sequence[RunResult], plan: SweepPlan | None) -> Iterator[ProvenanceItem]:
    counts = {
        status: sum(result.status == status for result in results)
        for status in ("completed", "diverged", "failed")
    }
    planned = f" of {len(plan.runs)} planned" if plan else ""
    yield ProvenanceItem(
        "Runs", ", ".join(f"{count} {status}" for status, count in counts.items() if count) + planned
    )
    trained = [result for result in results if not result.synthetic]
    flops, seconds = (
        math.fsum(result.flops_spent for result in trained),
        math.fsum(result.seconds for result in trained),
    )
    cost = f"{numbers.scientific(flops)} FLOPs, {numbers.duration(seconds)} wall time, summed over runs"
    yield ProvenanceItem("Trained", cost if trained else "no model was trained: the losses are those of a formula")
    yield ProvenanceItem(
        "Device", _join_unique(" ".join(filter(None, (result.device, result.precision))) for result in results)
    )
    eval_tokens = {result.eval_tokens for result in results if result.eval_tokens}
    yield ProvenanceItem("Held-out", _join_unique(f"{count:,}" for count in sorted(eval_tokens)))
    yield ProvenanceItem("Versions", _describe_versions(results))
    yield ProvenanceItem("Last result", max(result.finished for result in results).strftime("%Y-%m-%d %H:%M UTC"))


def _counting_items(
    fit: LawFit | None, results: Sequence[RunResult], plan: SweepPlan | None
) -> Iterator[ProvenanceItem]:
    """The conventions of the runs, if they differ from those of the fit."""
    run_caption = run_conventions(results, plan)
    fit_caption = "" if fit is None else conventions(fit.params_name, fit.flops_name, fit.unit)
    if (results or plan) and run_caption != fit_caption:
        yield ProvenanceItem("Conventions of the runs", run_caption)


def describe_choice(choice: PluginChoice) -> str:
    """``optim/adamw (lr 0.008, weight_decay 0.1)``: a plugin and its options that differ from their defaults."""
    options = ", ".join(f"{name} {_format_value(value)}" for name, value in choice.options.items())
    return f"{choice.name} ({options})" if options else choice.name


def _describe_common(choices: Sequence[PluginChoice]) -> str:
    """A description for all runs; an option with several values ``varies``."""
    descriptions = []
    for name in dict.fromkeys(choice.name for choice in choices):
        matching = [choice for choice in choices if choice.name == name]
        keys = dict.fromkeys(key for choice in matching for key in choice.options)
        values = {key: {_format_value(choice.options.get(key, "default")) for choice in matching} for key in keys}
        options = [
            f"{key} {options_seen.pop() if len(options_seen) == 1 else 'varies'}"
            for key, options_seen in values.items()
        ]
        descriptions.append(f"{name} ({', '.join(options)})" if options else name)
    return "; ".join(descriptions)


def _format_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    shown = mask_secrets(value)
    return shown if isinstance(shown, str) else json.dumps(shown)


def _describe_versions(results: Sequence[RunResult]) -> str:
    versions_by_name: dict[str, dict[str, None]] = {}
    for result in results:
        for name, version in result.versions.items():
            versions_by_name.setdefault(name, {})[version] = None
    return ", ".join(
        f"{name} {' and '.join(sorted(versions))}" for name, versions in sorted(versions_by_name.items())
    )


def _join_unique(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(text for text in texts if text))
