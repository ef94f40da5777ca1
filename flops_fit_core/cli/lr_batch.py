"""``fit TABLE --law lr-batch``: the best learning rate and batch from a grid of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core import numbers
from flops_fit_core.cli.laws import LawRequest
from flops_fit_core.cli.printing import print_json, print_message, print_notes, print_table, print_text
from flops_fit_core.config import override_value
from flops_fit_core.config import read_table as read_file
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Interval

if TYPE_CHECKING:
    from flops_fit_core.fitting import LrBatchFit
    from flops_fit_core.report import DataTable

LAW = "lr-batch"
OPTIONS = {"window": float, "degree": int, "level": float, "n": str}
N_NAMES = ("matmul", "total", "non-embedding")


def fit_grid(
    request: LawRequest, registry: Registry, unused: Mapping[str, object], out: Path | None, *, json: bool
) -> None:
    """Fit, print and save the law. Raises ConfigError for options that do not apply, and FitError."""
    from flops_fit_core.fitting import fit_lr_batch, read_lr_batch_table, recipe_table

    _check_request(request, registry, unused, out)
    options = _read_options(request)
    columns = request.column_names()
    table = read_lr_batch_table(
        request.source, columns, request.row_filters(), units=request.unit_factors(), decimal=request.decimal
    )
    fit = fit_lr_batch(table, **options)
    if json:
        print_json(fit.model_dump(mode="json"))
    else:
        print_fit(fit)
        print_notes(fit.diagnostics)
        if "n" not in options:
            print_text(
                f"- N is column {table.params_column!r}; the recipe takes it as n = {fit.n!r}. If it counts "
                f"otherwise, write --set n=NAME ({', '.join(N_NAMES)})"
            )
        print_text("")
        print_text(recipe_table(fit).rstrip("\n"))
    if out is not None:
        _write(out, fit)


def _check_request(
    request: LawRequest, registry: Registry, unused: Mapping[str, object], out: Path | None
) -> None:
    if not request.is_table(registry) or request.source.is_dir():
        raise ConfigError(
            f"--law {LAW} fits a table of runs (CSV, JSON, parquet), and {request.source} is not a table"
        )
    options = {**unused, "--fitter": request.fitter, "--best-of": request.best_of, "--eval-set": request.eval_set}
    if present := [name for name, value in options.items() if value]:
        raise ConfigError(f"--law {LAW} cannot be combined with {', '.join(present)}")
    if out is not None and out.suffix.lower() not in (".toml", ".json"):
        raise ConfigError(
            f"--out {out}: write a .toml file for the recipe (a new file, or an experiment whose recipe is "
            "replaced), or a .json file for the fit"
        )


def _read_options(request: LawRequest) -> dict[str, Any]:
    """Options of the fit from --set."""
    values: dict[str, Any] = {}
    for text in request.options:
        override_value(values, text)
    for name, value in values.items():
        if name not in OPTIONS:
            raise ConfigError(f"--set {name}: law {LAW} has the options {', '.join(OPTIONS)}")
        if name == "n" and value not in N_NAMES:
            raise ConfigError(f"--set n={value}: write one of {', '.join(N_NAMES)}")
        if name == "degree" and value not in (2, 3):
            raise ConfigError(f"--set degree={value}: write 2 or 3")
        if name in ("window", "level") and not (isinstance(value, float) and 0 < value < 1):
            raise ConfigError(
                f"--set {name}={value}: write a number between 0 and 1, such as "
                f"0.{'01' if name == 'window' else '9'}"
            )
    return values


def _write(out: Path, fit: LrBatchFit) -> None:
    from flops_fit_core.fitting import recipe_table
    from flops_fit_core.plugins.utilities import write_atomically
    from flops_fit_core.tuning import write_recipe

    if out.suffix.lower() == ".json":
        write_atomically(out, fit.model_dump_json(indent=1) + "\n")
        print_message(f"wrote the fit to {out}")
        return
    write_recipe(out, recipe_table(fit))
    print_message(f"wrote [recipe] to {out}")
    content = read_file(out)
    for table, option in (("optimizer", "lr"), ("sweep", "batch_size")):
        section = content.get(table)
        if isinstance(section, dict) and option in section:
            print_message(f"{out} sets {table}.{option}, which wins over the recipe: delete it to use the law")


def print_fit(fit: LrBatchFit) -> None:
    """Print the laws and the table of cells."""
    from flops_fit_core.fitting.hyperparameters.diagnostics import count_pairs

    print_table(cells_table(fit))
    center = f"N = {numbers.count(fit.center[0])}, D = {numbers.count(fit.center[1])}"
    for name, law, show in (("lr*", fit.lr, _number), ("batch* (tokens)", fit.batch, numbers.count)):
        if law is None:
            continue
        exponents = [(letter, value) for letter, value in (("N", law.params), ("D", law.tokens)) if value.value]
        factors = [f"{letter}^{interval.value:.3f}" for letter, interval in exponents]
        print_text(f"{name} = {' '.join([f'{law.scale:.4g}', *factors])}")
        if exponents:
            ends = [f"{letter} {_ends(interval, '{:.3f}'.format)}" for letter, interval in exponents]
            print_text(f"  exponents, {fit.level:.0%} intervals: {'; '.join(ends)}")
        print_text(f"  at {center}: {show(law.center.value)} {_ends(law.center, show)}")
    method = (
        "from leaving out one pair of N and D at a time"
        if fit.interval_method == "jackknife"
        else "from the residuals"
    )
    shape = "Quadratic" if fit.degree == 2 else "Cubic"
    print_text(
        f"{shape} surface of ln loss in {fit.n_runs} of {fit.n_table} runs, at most {fit.window:.2%} above the "
        f"lowest loss of their N and D; {count_pairs(len(fit.cells))}; residual "
        f"{numbers.share(fit.residual, 2)}. Intervals {method}, Student's t with "
        f"{fit.degrees_of_freedom} degrees of freedom."
    )
    if fit.mean_regret is not None:
        worst = max(cell.regret for cell in fit.cells if cell.regret is not None)
        print_text(
            f"Loss given up in held-out pairs of N and D: {numbers.share(fit.mean_regret, 3)} on average, "
            f"{numbers.share(worst, 3)} at worst, compared with their lowest run."
        )


def _number(value: float) -> str:
    return f"{value:.4g}"


def _ends(interval: Interval, show: Callable[[float], str]) -> str:
    if interval.low is None or interval.high is None:
        return "(no interval)"
    return f"({show(interval.low)} to {show(interval.high)})"


def cells_table(fit: LrBatchFit) -> DataTable:
    """Best learning rate and batch by the law in each cell, with its lowest run and held-out regret."""
    from flops_fit_core.report import DataTable
    from flops_fit_core.report.datatable import column

    rows = [
        {
            "params": cell.params,
            "tokens": cell.tokens,
            "runs": cell.n_runs,
            "loss": cell.loss,
            "best_lr": cell.best_lr,
            "best_batch": cell.best_batch,
            "lr": _cell_text(cell.lr, cell.lr_edge, _number),
            "batch": _cell_text(cell.batch, cell.batch_edge, numbers.count),
            "regret": cell.regret,
        }
        for cell in fit.cells
    ]
    columns = [
        column("N", "params", numbers.count),
        column("D", "tokens", numbers.count),
        column("runs used", "runs"),
        column("lowest loss", "loss", numbers.loss),
        column("its lr", "best_lr", _number),
        column("its batch", "best_batch", numbers.count),
        column("lr*", "lr"),
        column("batch*", "batch"),
        column("held-out regret", "regret", lambda value: numbers.share(value, 3)),
    ]
    present = {name for name in rows[0] if any(row[name] is not None for row in rows)} if rows else set()
    fields = tuple(name for name in rows[0] if name in present)
    names = dict(zip(rows[0], columns, strict=True))
    return DataTable(
        title="Best learning rate and batch",
        caption=(
            f"lr* and batch* (tokens) by the law, with {fit.level:.0%} intervals; < or >: beyond the values tried."
        ),
        fields=fields,
        rows=tuple(rows),
        columns=tuple(names[name] for name in fields),
    )


def _cell_text(interval: Interval | None, edge: str | None, show: Callable[[float], str]) -> str | None:
    if interval is None:
        return None
    mark = {"below": "< ", "above": "> ", None: ""}[edge]
    if interval.low is None or interval.high is None:
        return f"{mark}{show(interval.value)}"
    return f"{mark}{show(interval.value)} ({show(interval.low)} to {show(interval.high)})"
