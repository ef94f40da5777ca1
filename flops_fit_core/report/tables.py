"""Tables: minima of the profiles, predictions, runs, plans.

The caption of each table states its N, its count of C and its unit of D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from flops_fit_core import numbers
from flops_fit_core.records import FAR, Diagnostic, LawFit, Optimum, ProfileMinimum, RunResult, RunSpec, SweepPlan
from flops_fit_core.report.answer import describe_distance
from flops_fit_core.report.datatable import Column, DataTable, Row, column, conventions, show_exponent
from flops_fit_core.report.run_errors import summarise_errors

# ---------------------------------------------------------------------------- of a fit


def minima_table(fit: LawFit) -> DataTable:
    """The minimum of each IsoFLOP profile, smallest budget first."""
    caption = conventions(fit.params_name, fit.flops_name, fit.unit, fit.eval_set)
    return table_of_minima(fit.minima, caption, fit.diagnostics)


def table_of_minima(
    minima: Iterable[ProfileMinimum], caption: str, diagnostics: Sequence[Diagnostic] = ()
) -> DataTable:
    """Minima of profiles, with or without a law through them; ``caption`` states their N, C and D."""
    rows = tuple(_minimum_row(minimum) for minimum in sorted(minima, key=lambda minimum: minimum.budget))
    note = " At an edge, the best size lies outside the grid; the law does not use it."
    return DataTable(
        title="Minimum of each IsoFLOP profile",
        caption=caption + (note if any(row["at_edge"] for row in rows) else ""),
        fields=("budget", "params", "tokens", "tokens_per_param", "loss", "at_edge", "n_runs"),
        rows=rows,
        columns=(
            column("C", "budget", numbers.scientific),
            column("N_opt", "params", numbers.count),
            column("D_opt", "tokens", numbers.count),
            column("D/N", "tokens_per_param", numbers.ratio),
            column("loss", "loss", numbers.loss),
            column("runs", "n_runs"),
            *((Column("", lambda row: row["flag"], align_left=True),) if any(row["flag"] for row in rows) else ()),
        ),
        style=lambda row: "yellow" if row["at_edge"] else "",
        diagnostics=tuple(diagnostics),
    )


def _minimum_row(minimum: ProfileMinimum) -> Row:
    return {
        "budget": minimum.budget,
        "params": minimum.params,
        "tokens": minimum.tokens,
        "tokens_per_param": minimum.tokens / minimum.params,
        "loss": minimum.loss,
        "at_edge": minimum.at_edge,
        "n_runs": minimum.n_runs,
        "flag": describe_flag(minimum),
    }


def describe_flag(minimum: ProfileMinimum) -> str:
    """Why the law does not use a minimum; empty if it does."""
    if not minimum.at_edge:
        return ""
    return "no minimum" if minimum.curve.get("c2", 1.0) <= 0 else "at the grid's edge"


def laws_table(fit: LawFit) -> DataTable:
    """The laws of an average: their weights and backtests, and how far their answers differ."""
    from flops_fit_core.fitting import member_answers

    target = 10 * fit.flops_range[1]
    rows = tuple(member_answers(fit, target))
    return DataTable(
        title="Laws of the average",
        caption=f"Weights come from {len(fit.members[0].errors)} backtests: fit up to a scale, predict the larger "
        f"runs. Errors are in % of the loss, of the largest backtest. N_opt and L are at C = "
        f"{numbers.scientific(target)}. Each law is fitted with equal weights and with weights that favour the "
        "largest runs.",
        fields=("law", "runs", "weight", "error", "a", "params", "loss"),
        rows=rows,
        columns=(
            Column("law", lambda row: str(row["law"]), align_left=True),
            Column("runs", lambda row: str(row["runs"]), align_left=True),
            Column("weight", lambda row: f"{row['weight']:.0%}"),
            Column("error", lambda row: "–" if row["error"] is None else numbers.share(row["error"], 2)),
            Column("a", lambda row: f"{row['a']:.3f}"),
            column("N_opt", "params", numbers.count),
            column("L", "loss", numbers.loss),
        ),
        diagnostics=fit.diagnostics,
    )


_PREDICTION_FIELDS = (
    *("flops", "params", "params_low", "params_high", "tokens", "tokens_low", "tokens_high"),
    *(
        "tokens_per_param",
        "loss",
        "loss_low",
        "loss_high",
        "new_run_low",
        "new_run_high",
        "outside_sizes",
        "notes",
    ),
)


def predictions_table(fit: LawFit, optima: Iterable[Optimum], new_run: bool = True) -> DataTable:
    """The optimum per budget, with the intervals of the fit, and of a new run, if any."""
    optima = list(optima)
    rows = tuple(_prediction_row(optimum) for optimum in optima)
    has_new_run = new_run and any(row["new_run_low"] is not None for row in rows)

    def has_remark(row: Row) -> bool:
        return bool(_describe_row(fit, row))

    explanation = (
        " The law's interval holds the mean loss of many runs, the new run's that of one." if has_new_run else ""
    )
    return DataTable(
        title="What to train for a budget",
        caption=conventions(fit.params_name, fit.flops_name, fit.unit, fit.eval_set)
        + f" Fitted by {fit.fitter.name}.{explanation}",
        fields=_PREDICTION_FIELDS,
        rows=rows,
        columns=(
            column("C", "flops", numbers.scientific),
            *_estimate_columns(fit, rows, "N_opt", "params", numbers.count),
            *_estimate_columns(fit, rows, "D_opt", "tokens", numbers.count),
            Column("D/N", lambda row: numbers.ratio(row["tokens_per_param"], 1 if _is_far(fit, row) else 3)),
            *_estimate_columns(fit, rows, "loss", "loss", numbers.loss, " law" if has_new_run else ""),
            *(_span_columns(fit, rows, "new_run", numbers.loss, " new run") if has_new_run else ()),
            *((Column("", partial(_describe_row, fit), align_left=True),) if any(map(has_remark, rows)) else ()),
        ),
        style=lambda row: "yellow" if row["outside_sizes"] else "",
        diagnostics=(*fit.diagnostics, *_check_sizes(fit, optima)),
    )


def _is_far(fit: LawFit, row: Row) -> bool:
    """Whether C is so far beyond the runs that numbers have one digit."""
    return bool(row["flops"] > FAR * fit.flops_range[1])


def _describe_row(fit: LawFit, row: Row) -> str:
    if _is_far(fit, row):
        return describe_distance(row["flops"], fit.flops_range)
    return f"N {row['outside_sizes']} the trained sizes" if row["outside_sizes"] else ""


def _estimate_columns(
    fit: LawFit, rows: Sequence[Row], heading: str, name: str, show: Callable[..., str], label: str = ""
) -> list[Column]:
    """A value and its interval. The interval comes first if a row is far beyond the runs."""

    def show_value(row: Row) -> str:
        if not _is_far(fit, row):
            return show(row[name])
        return f"~{show(row[name], 1)}"

    value = Column(heading, show_value)
    spans = _span_columns(fit, rows, name, show, label)
    return [*spans, value] if any(_is_far(fit, row) for row in rows) else [value, *spans]


def _check_sizes(fit: LawFit, optima: Iterable[Optimum]) -> list[Diagnostic]:
    """One warning per budget with N_opt outside the trained sizes, unless the fit already reports them."""
    low, high = fit.flops_range
    is_reported = any(diagnostic.code == "outside-sizes" for diagnostic in fit.diagnostics)
    return [
        Diagnostic(
            code="outside-sizes",
            message=f"C = {numbers.scientific(optimum.flops)}: N_opt lies {optimum.outside} the trained sizes",
        )
        for optimum in optima
        if optimum.outside is not None and not (is_reported and low <= optimum.flops <= high)
    ]


def _span_columns(
    fit: LawFit, rows: Iterable[Row], name: str, show: Callable[..., str], label: str = ""
) -> list[Column]:
    low, high = f"{name}_low", f"{name}_high"
    if all(row[low] is None for row in rows):
        return []

    def show_ends(row: Row) -> str:
        format_end = (lambda value: show(value, 1)) if _is_far(fit, row) else show
        return numbers.span(row[low], row[high], format_end, "–")

    return [Column(f"{fit.level:.0%}{label}", show_ends)]


def _prediction_row(optimum: Optimum) -> Row:
    row: dict[str, Any] = {
        "flops": optimum.flops,
        "tokens_per_param": optimum.tokens.value / optimum.params.value,
        "outside_sizes": optimum.outside,
        "notes": "; ".join(optimum.notes),
    }
    for name in ("params", "tokens", "loss"):
        interval = getattr(optimum, name)
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    new_run = optimum.new_run
    return row | {
        "new_run_low": None if new_run is None else new_run.low,
        "new_run_high": None if new_run is None else new_run.high,
    }


def exponents(fit: LawFit) -> str:
    """``N_opt ~ C^a, a = 0.513 (0.480 to 0.543); D_opt ~ C^b, b = ...``"""
    laws = {"a": "N_opt ~ C^a, ", "b": "D_opt ~ C^b, "}
    if not fit.exponents:
        return "No exponents: the law has no D"
    return "; ".join(
        f"{laws.get(name, '')}{name} = {show_exponent(interval)}" for name, interval in fit.exponents.items()
    )


def exponents_line(fit: LawFit) -> str:
    """The exponents, with the number of runs, the fitter and the conventions."""
    level = (
        f"{fit.level:.0%} intervals, "
        if any(interval.low is not None for interval in fit.exponents.values())
        else ""
    )
    caption = conventions(fit.params_name, fit.flops_name, fit.unit, fit.eval_set).rstrip(".")
    return f"{exponents(fit)} ({level}{fit.n_runs} runs, {fit.fitter.name}. {caption})"


# ---------------------------------------------------------------------------- of runs

_STYLES = {"completed": "", "diverged": "yellow", "failed": "red", "planned": "dim"}


def runs_table(results: Sequence[RunResult], plan: SweepPlan | None = None) -> DataTable:
    """The latest result of every run; with a plan, also runs without a result, as ``planned``.

    D and C are those actually trained, and those of the plan for planned runs. Errors are grouped in the
    diagnostics; the field ``error`` has that of each run.
    """
    measured_fields = _measured_fields(results)
    rows = [_result_row(result) for result in results]
    with_result = {result.id for result in results}
    rows += [_planned_row(run) for run in (plan.runs if plan else ()) if run.id not in with_result]
    rows = [{**dict.fromkeys(measured_fields), **row} for row in rows]
    seeds = {row["seed"] for row in rows}
    optional = {"bits_per_byte": column("bits/byte", "bits_per_byte", numbers.loss)}
    synthetic = any(row["synthetic"] for row in rows)
    return DataTable(
        title="Runs" + (" (synthetic: computed from a formula, nothing was trained)" if synthetic else ""),
        caption=run_conventions(results, plan),
        fields=(*_result_fields(), *measured_fields),
        rows=tuple(rows),
        columns=(
            column("id", "id", align_left=True),
            column("status", "status", align_left=True),
            column("C", "budget", numbers.scientific),
            column("size", "size"),
            column("N", "params", numbers.count),
            column("D", "tokens", numbers.count),
            column("loss", "loss", numbers.loss),
            *(column(heading, field, numbers.loss) for field, heading in measured_fields.items()),
            *(
                optional_column
                for field, optional_column in optional.items()
                if any(row[field] is not None for row in rows)
            ),
            *((column("seed", "seed"),) if len(seeds) > 1 else ()),
            column("time", "seconds", numbers.duration),
        ),
        style=lambda row: _STYLES[row["status"]],
        diagnostics=tuple(Diagnostic(code="failed-runs", message=line) for line in summarise_errors(results)),
    )


def _result_fields() -> list[str]:
    first = ["id", "status", "params", "tokens", "flops", "loss", "seed"]
    return [*first, "size", "budget", "bits_per_byte", "seconds", "attempt", "synthetic", "error"]


def _measured_fields(results: Sequence[RunResult]) -> dict[str, str]:
    """Field -> heading of further measurements: losses on other held-out sets, and metrics of the task."""
    losses = {f"loss_{name}": f"loss on {name}" for result in results for name in result.losses}
    metrics = {name: name for result in results for name in result.metrics if name not in _result_fields()}
    return losses | metrics


def _planned_row(run: RunSpec) -> Row:
    blank: dict[str, Any] = dict.fromkeys(_result_fields())
    planned = {"id": run.id, "params": run.params, "tokens": run.tokens, "flops": run.flops}
    cell = {"seed": run.seed, "size": run.size, "budget": run.budget}
    return blank | {"status": "planned", "synthetic": False} | planned | cell


def _result_row(result: RunResult) -> Row:
    error = result.error
    return {
        **_planned_row(result.run),
        "status": result.status,
        "tokens": result.tokens,
        "flops": result.flops,
        "loss": result.loss,
        "bits_per_byte": result.bits_per_byte,
        "seconds": result.seconds,
        "attempt": result.attempt,
        "synthetic": result.synthetic,
        "error": error.line if error else None,
        **{f"loss_{name}": loss for name, loss in result.losses.items()},
        **{name: value for name, value in result.metrics.items() if name not in _result_fields()},
    }


def run_conventions(results: Sequence[RunResult], plan: SweepPlan | None) -> str:
    """The conventions of N, C and D of the runs; alternatives are joined by "or"."""
    params_names = {result.params_name for result in results} | ({plan.params_name} if plan else set())
    flops_names = {result.flops_name for result in results} | ({plan.flops_name} if plan else set())
    return conventions(
        " or ".join(sorted(params_names - {""})) or "not recorded",
        " or ".join(sorted(flops_names - {""})) or "not recorded",
        plan.unit if plan else "tokens",
    )


# ---------------------------------------------------------------------------- of a plan


def _count_runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


_PLAN_FIELDS = (
    *("id", "budget", "size", "params", "tokens", "tokens_per_param"),
    *("steps", "batch_size", "flops", "seed", "trunk", "branch_step", "state", "heads", "head_dim"),
)


def plan_table(plan: SweepPlan, states: Mapping[str, str] | None = None) -> DataTable:
    """Every run of a plan. ``states`` maps run ids to states; the default is ``to do``."""
    state_by_id = dict(states or {})
    return DataTable(
        title=f"Plan {plan.name}: {_count_runs(len(plan.runs))}, {numbers.scientific(plan.flops)} FLOPs",
        caption=conventions(plan.params_name, plan.flops_name, plan.unit),
        fields=_PLAN_FIELDS,
        rows=tuple(_plan_row(run, state_by_id.get(run.id, "to do")) for run in plan.runs),
        columns=(
            column("C", "budget", numbers.scientific),
            column("size", "size"),
            *([Column("heads", _format_heads)] if any(run.heads for run in plan.runs) else []),
            column("N", "params", numbers.count),
            column("D", "tokens", numbers.count),
            column("D/N", "tokens_per_param", numbers.ratio),
            column("steps", "steps", lambda steps: f"{steps:,}"),
            column("batch", "batch_size"),
            column("FLOPs", "flops", numbers.scientific),
            column("seed", "seed"),
            column("state", "state", align_left=True),
        ),
        style=lambda row: "" if row["state"] == "to do" else "dim",
    )


def _format_heads(row: Row) -> str:
    """Number of attention heads, and channels per head: ``3 x 16``."""
    return f"{row['heads']} x {row['head_dim']}" if row["heads"] else ""


def _plan_row(run: RunSpec, state: str) -> Row:
    return {
        "id": run.id,
        "budget": run.budget,
        "size": run.size,
        "params": run.params,
        "tokens": run.tokens,
        "tokens_per_param": run.tokens / run.params,
        "steps": run.steps,
        "batch_size": run.batch_size,
        "flops": run.flops,
        "seed": run.seed,
        "trunk": run.trajectory if run.branch_step is not None else None,
        "branch_step": run.branch_step,
        "state": state,
        "heads": run.heads,
        "head_dim": run.head_dim,
    }


def skipped_table(plan: SweepPlan) -> DataTable:
    """The sizes left out at each budget, and the reasons."""
    return DataTable(
        title="Left out of the plan",
        caption=conventions(plan.params_name, plan.flops_name, plan.unit),
        fields=("budget", "size", "params", "reason"),
        rows=tuple(cell.model_dump() for cell in plan.skipped),
        columns=(
            column("C", "budget", numbers.scientific),
            column("size", "size"),
            column("N", "params", numbers.count),
            column("why", "reason", align_left=True),
        ),
    )
