"""Get a law from the source on a command line: a study, a table of runs, or a saved fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core.cli.arguments import open_study
from flops_fit_core.config import DEFAULTS, Experiment, build_fitter, choose_from_table, override_value
from flops_fit_core.config import read_table as read_file
from flops_fit_core.errors import ConfigError, FitError
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Diagnostic, LawFit, Observation, Optimum, Record
from flops_fit_core.study import Study

if TYPE_CHECKING:
    from flops_fit_core.fitting import RunTable


@dataclass(frozen=True)
class LawRequest:
    """The source of a law and the options of its fit, from a command line."""

    source: Path
    fitter: str | None = None
    options: Sequence[str] = ()
    """Options of the fitter, ``option=value``."""
    columns: Sequence[str] = ()
    """Column names of a table, ``params=n_params``."""
    filters: Sequence[str] = ()
    """Texts that a table's rows must have, ``column=text``."""
    eval_set: str | None = None
    """A further held-out set of a study, with the losses to fit."""
    units: Sequence[str] = ()
    """Factors of a table's columns, ``params=1e6``."""
    decimal: str | None = None
    """Decimal sign of a table, used if no cell shows it."""
    best_of: str | None = None
    """Hyperparameters of a table that is a grid, separated by commas."""

    @property
    def is_table(self) -> bool:
        from flops_fit_core.fitting import is_table

        return is_table(self.source)

    def read_options(self) -> dict[str, Any]:
        """Arguments of :func:`~flops_fit_core.fitting.read_table`."""
        best_of = (
            None if self.best_of is None else [name.strip() for name in self.best_of.split(",") if name.strip()]
        )
        units = _pairs("--units", self.units, "params=1e6")
        return {"units": units, "decimal": self.decimal, "best_of": best_of}

    def table_options(self) -> list[str]:
        """The options set that apply to tables only."""
        values = {"--column": self.columns, "--filter": self.filters, "--units": self.units}
        names = [name for name, texts in values.items() if texts]
        names += ["--decimal"] if self.decimal is not None else []
        return names + (["--best-of"] if self.best_of is not None else [])

    def column_names(self) -> dict[str, str]:
        """Column of flops-fit -> column of the table."""
        return _pairs("--column", self.columns, "params=n_params, with the name in flops-fit first")

    def row_filters(self) -> dict[str, str]:
        """Column -> the text that rows must have in it."""
        return _pairs("--filter", self.filters, "group=c4")


def _pairs(option: str, texts: Sequence[str], example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{option} {text}: write {option} {example}")
        pairs[name] = value
    return pairs


def fit_law(request: LawRequest, registry: Registry) -> tuple[LawFit, Fitter, Study | None]:
    """Fit the runs of a study or a table. Raises ConfigError and FitError."""
    if request.is_table:
        from flops_fit_core.fitting import fit_table

        fitter = _fitter(request, registry, DEFAULTS["fitter"])
        return fit_table(fitter, _table(request)), fitter, None
    study = open_requested_study(request, registry)
    fitter = _fitter_of_study(request, study)
    return study.fit_runs(fitter), fitter, study


def fit_groups(request: LawRequest, registry: Registry, column: str) -> dict[str, LawFit | FitError]:
    """A law, or a FitError, for each text in a column of a table.

    Raises ConfigError for a study, FitError if no group has a law.
    """
    from flops_fit_core.fitting import table_groups

    if not request.is_table:
        raise ConfigError(f"--group-by {column} applies to tables, and {request.source} is not a table")
    laws: dict[str, LawFit | FitError] = {}
    for text in table_groups(request.source, column, request.row_filters()):
        group = replace(request, filters=(*request.filters, f"{column}={text}"))
        try:
            laws[text], _, _ = fit_law(group, registry)
        except FitError as error:
            laws[text] = error
    if all(isinstance(law, FitError) for law in laws.values()):
        raise FitError("\n".join(f"{column} = {text}: {error}" for text, error in laws.items()))
    return laws


def load_or_fit(request: LawRequest, registry: Registry) -> tuple[LawFit, Fitter, Study | None]:
    """Load a saved fit, or fit the runs of a study or a table. Raises ConfigError and FitError."""
    if request.source.is_file() and _is_fit(request.source):
        from flops_fit_core.fitting import load_fit
        from flops_fit_core.planning.init_from_fit import fitter_of

        _refuse_to_refit(request)
        law = load_fit(request.source)
        return law, fitter_of(law, registry), None
    return fit_law(request, registry)


def _refuse_to_refit(request: LawRequest) -> None:
    """Raises ConfigError for an option that needs a new fit, because a saved fit has no runs."""
    values = {
        "--fitter": [request.fitter] if request.fitter else [],
        "--set": request.options,
        "--column": request.columns,
        "--filter": request.filters,
        "--eval-set": [request.eval_set] if request.eval_set else [],
        "--units": request.units,
        "--decimal": [request.decimal] if request.decimal is not None else [],
        "--best-of": [request.best_of] if request.best_of is not None else [],
    }
    options = [f"{option} {value}" for option, texts in values.items() for value in texts]
    if options:
        raise ConfigError(
            f"{', '.join(options)}: {request.source} is a saved fit without its runs and cannot be fitted "
            f"again. Omit the option, or name the study or the table of runs"
        )


def read_observations(
    request: LawRequest, registry: Registry
) -> tuple[list[Observation], Fitter, list[Diagnostic]]:
    """The runs, the fitter, and diagnostics of reading a table."""
    if request.is_table:
        table = _table(request)
        return table.observations, _fitter(request, registry, DEFAULTS["fitter"]), table.diagnostics
    study = open_requested_study(request, registry)
    return study.observations, _fitter_of_study(request, study), []


def find_optimum(
    law: LawFit, law_fitter: Fitter, flops: float, inference_tokens: float, unique_tokens: float | None
) -> Optimum:
    """The optimum by the law's fitter; with inference or repetition, by the core's own computation."""
    from flops_fit_core.fitting import flag_outside

    if not inference_tokens and unique_tokens is None:
        return flag_outside(law, law_fitter.optimum(law, flops))
    from flops_fit_core.fitting import optimum

    return optimum(law, flops, inference_tokens, unique_tokens)


def extras(
    law: LawFit, flops: float, params: float | None, peak_flops: float | None, mfu: float, price: float | None
) -> dict[str, Record]:
    """The requested additions to an optimum: the loss of another size, the cost of training."""
    from flops_fit_core.fitting import off_optimum, training_cost

    additions: dict[str, Record] = {}
    if params is not None:
        additions["off_optimum"] = off_optimum(law, flops, params)
    if peak_flops is not None:
        additions["cost"] = training_cost(flops, peak_flops, mfu, price)
    elif price is not None:
        raise ConfigError("--price needs the device's speed: add for example --peak-flops 989e12")
    return additions


def describe_extras(extra: Mapping[str, Any]) -> Iterator[str]:
    """Sentences for the results of :func:`extras`."""
    if "off_optimum" in extra:
        off = extra["off_optimum"]
        yield (
            f"N = {off.params:.4g} would train on D = {off.tokens:.4g} to a loss of {off.loss}: "
            f"{off.loss_given_up:.4f} nats given up, {off.extra_flops:.1%} more FLOPs than that loss needs"
        )
    if "cost" in extra:
        cost = extra["cost"]
        money = f", {cost.money:,.2f} at that price" if cost.money is not None else ""
        yield f"{cost.device_hours:,.4g} device hours{money}"


def _table(request: LawRequest) -> RunTable:
    from flops_fit_core.fitting import read_table

    if request.eval_set is not None:
        raise ConfigError(
            f"--eval-set {request.eval_set}: a table has one loss column; name it with --column loss=COLUMN"
        )
    table = read_table(request.source, request.column_names(), request.row_filters(), **request.read_options())
    if not table.observations:
        raise FitError(f"{request.source}: no row can be fitted. {table.summary}")
    return table


def open_requested_study(request: LawRequest, registry: Registry) -> Study:
    """The study that a command line names. Raises ConfigError for a saved fit and for options of tables."""
    if request.source.is_file() and _is_fit(request.source):
        raise ConfigError(
            f"{request.source} is a saved fit without its runs. To use it, type 'flops-fit predict "
            f"{request.source} --flops C'; to fit, name the study or the table of runs"
        )
    if options := request.table_options():
        raise ConfigError(f"{', '.join(options)}: for tables only, and {request.source} is a study")
    _refuse_other_files(request.source)
    return open_study(request.source, registry, None).on(request.eval_set)


def _refuse_other_files(path: Path) -> None:
    """Raises ConfigError for a file that is neither a table nor an experiment."""
    if not path.is_file():
        return
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json", ".yaml", ".yml"):
        raise ConfigError(
            f"{path} is neither a table of runs (CSV, TSV, JSON, JSON lines, parquet) nor an experiment file: "
            "save a workbook or a pickle as CSV"
        )
    if suffix == ".json" and not set(Experiment.model_fields) & set(read_file(path)):
        raise ConfigError(
            f'{path} has neither a table of runs nor an experiment: write a list of records such as {{"params": '
            '1e8, "tokens": 2e9, "loss": 3.1}'
        )


def _fitter_of_study(request: LawRequest, study: Study) -> Fitter:
    if request.fitter is None and not request.options:
        return study.fitter
    return _fitter(request, study.registry, request.fitter or study.fitter_choice.name)


def _fitter(request: LawRequest, registry: Registry, default: str) -> Fitter:
    table: dict[str, Any] = {"name": request.fitter or default}
    for option in request.options:
        override_value(table, option)
    chosen = choose_from_table("fitter", table, registry, "--fitter")
    return build_fitter(chosen)


def _is_fit(path: Path) -> bool:
    """Whether a JSON file is a fit rather than an experiment."""
    return path.suffix.lower() == ".json" and b'"exponents"' in path.read_bytes()
