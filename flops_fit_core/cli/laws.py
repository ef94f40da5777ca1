"""Get a law from the source on a command line: a study, a table of runs, or a saved fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core import numbers
from flops_fit_core.cli.arguments import open_study
from flops_fit_core.cli.printing import print_json, print_text
from flops_fit_core.config import DEFAULTS, Experiment, build_fitter, choose_from_table, override_value
from flops_fit_core.config import read_table as read_file
from flops_fit_core.errors import ConfigError, FitError
from flops_fit_core.plugins.protocols import Fitter, LossLaw
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.records import FAR, Diagnostic, Interval, LawFit, Observation, Optimum, Record
from flops_fit_core.report.answer import Formats, describe_distance
from flops_fit_core.study import Study
from flops_fit_core.study.law import ISOFLOP

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
    law: str | None = None
    """Name of the law to fit, instead of a fitter."""
    reader: str | None = None
    """The reader of logs, if several recognise them."""

    def changes_fit(self) -> bool:
        """Whether any option changes the fit, so that a command without it would give another answer."""
        fixed = (self.fitter, self.law, self.eval_set, self.reader)
        return bool(self.options or self.table_options()) or any(value is not None for value in fixed)

    def is_table(self, registry: Registry) -> bool:
        """Whether the source is a table, or logs that a reader recognises."""
        from flops_fit_core.fitting import is_table

        return self.reader is not None or is_table(self.source, registry)

    def read_options(self) -> dict[str, Any]:
        """Arguments of :func:`~flops_fit_core.fitting.read_table`."""
        best_of = (
            None if self.best_of is None else [name.strip() for name in self.best_of.split(",") if name.strip()]
        )
        return {
            "units": self.unit_factors(),
            "decimal": self.decimal,
            "best_of": best_of,
            "reader": self.reader,
            **self.law_options(),
        }

    def unit_factors(self) -> dict[str, str]:
        """Role -> factor of a table's column."""
        return _pairs("--units", self.units, "params=1e6")

    def law_options(self) -> dict[str, Any]:
        """Arguments of ``read_table`` that the law decides: its inputs, and the sign of its loss."""
        if self.law is None:
            return {}
        law = _find_law(self.law)
        further = [name for name in law.inputs if name not in ("params", "tokens", "unique_tokens")]
        return {
            "inputs": tuple(further),
            "signed_loss": law.response == "loss",
            "without_tokens": "tokens" not in law.inputs,
        }

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


def _find_law(name: str) -> LossLaw:
    """The law of ``--law``. Raises ConfigError that lists the laws."""
    try:
        return find_law(name)
    except FitError as error:
        raise ConfigError(
            f"--law {name}: {error}. With fit, --law lr-batch fits the best learning rate and batch of a grid"
        ) from None


def _pairs(option: str, texts: Sequence[str], example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{option} {text}: write {option} {example}")
        pairs[name] = value
    return pairs


def column_pairs(texts: Sequence[str], example: str) -> dict[str, str]:
    """The values of ``--column ROLE=COLUMN``. Raises ConfigError for another form."""
    return _pairs("--column", texts, example)


@dataclass(frozen=True)
class FittedLaw:
    """A law with its fitter, and the runs behind it."""

    law: LawFit
    fitter: Fitter
    study: Study | None = None
    """The study of the runs; None for a table and for a saved fit."""
    observations: Sequence[Observation] = ()
    """The runs of a table."""


def fit_law(request: LawRequest, registry: Registry) -> FittedLaw:
    """Fit the runs of a study or a table. Raises ConfigError and FitError."""
    if request.is_table(registry):
        from flops_fit_core.fitting import fit_table

        fitter, table = (
            build_request_fitter(request, registry, DEFAULTS["fitter"]),
            read_request_table(request, registry),
        )
        return FittedLaw(fit_table(fitter, table), fitter, observations=table.observations)
    study = open_request_study(request, registry)
    fitter = _fitter_of_study(request, study)
    return FittedLaw(study.fit_runs(fitter), fitter, study)


def fit_isoflop(request: LawRequest, registry: Registry, fitted: FittedLaw) -> tuple[LawFit | None, str]:
    """The IsoFLOP law of the same runs for comparison, or None and the reason.

    A table has one if its runs form budgets. The reason is empty if the law is an IsoFLOP law.
    """
    if fitted.law.fitter.name == ISOFLOP:
        return None, ""
    if fitted.study is not None:
        return fitted.study.isoflop, fitted.study.no_isoflop
    from flops_fit_core.fitting import has_profiles

    if request.law is not None or not has_profiles(fitted.observations):
        return None, "the runs do not form budgets with four or more sizes"
    fitter = build_fitter(choose_from_table("fitter", {"name": ISOFLOP}, registry, "isoflop"))
    try:
        return fitter.fit(fitted.observations), ""
    except FitError as error:
        return None, str(error)


def fit_groups(request: LawRequest, registry: Registry, column: str) -> dict[str, FittedLaw | FitError]:
    """A law, or a FitError, for each text in a column of a table.

    Raises ConfigError for a study, FitError if no group has a law.
    """
    from flops_fit_core.fitting import table_groups

    if not request.is_table(registry):
        raise ConfigError(f"--group-by {column} applies to tables, and {request.source} is not a table")
    laws: dict[str, FittedLaw | FitError] = {}
    filters = request.row_filters()
    for text in table_groups(request.source, column, filters, reader=request.reader, registry=registry):
        group = replace(request, filters=(*request.filters, f"{column}={text}"))
        try:
            laws[text] = fit_law(group, registry)
        except FitError as error:
            laws[text] = error
    if all(isinstance(law, FitError) for law in laws.values()):
        raise FitError("\n".join(f"{column} = {text}: {error}" for text, error in laws.items()))
    return laws


def load_or_fit(request: LawRequest, registry: Registry) -> FittedLaw:
    """Load a saved fit, or fit the runs of a study or a table. Raises ConfigError and FitError."""
    if request.source.is_file() and is_fit(request.source):
        from flops_fit_core.fitting import load_fit
        from flops_fit_core.planning.init_from_fit import fitter_of

        _refuse_to_refit(request)
        law = load_fit(request.source)
        return FittedLaw(law, fitter_of(law, registry))
    return fit_law(request, registry)


def _refuse_to_refit(request: LawRequest) -> None:
    """Raises ConfigError for an option that needs a new fit, because a saved fit has no runs."""
    values = {
        "--law": [request.law] if request.law else [],
        "--fitter": [request.fitter] if request.fitter else [],
        "--set": request.options,
        "--column": request.columns,
        "--filter": request.filters,
        "--eval-set": [request.eval_set] if request.eval_set else [],
        "--units": request.units,
        "--decimal": [request.decimal] if request.decimal is not None else [],
        "--best-of": [request.best_of] if request.best_of is not None else [],
        "--reader": [request.reader] if request.reader is not None else [],
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
    if request.is_table(registry):
        table = read_request_table(request, registry)
        return table.observations, build_request_fitter(request, registry, DEFAULTS["fitter"]), table.diagnostics
    study = open_request_study(request, registry)
    return study.observations, _fitter_of_study(request, study), []


def find_optimum(
    law: LawFit,
    law_fitter: Fitter,
    flops: float,
    inference_tokens: float,
    unique_tokens: float | None,
    inputs: Mapping[str, float],
) -> Optimum:
    """The optimum by the law's fitter; with inference or repetition, by the core's own computation."""
    from flops_fit_core.fitting import flag_outside

    if not inference_tokens and unique_tokens is None and not inputs:
        return flag_outside(law, law_fitter.optimum(law, flops))
    from flops_fit_core.fitting import optimum

    return optimum(law, flops, inference_tokens, unique_tokens, inputs)


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
        raise ConfigError(
            "--price needs the device's speed: add for example --device h100, or --peak-flops 989e12"
        )
    return additions


def print_loss(
    law: LawFit,
    params: float,
    tokens: float,
    unique_tokens: float | None,
    inputs: Mapping[str, float],
    json: bool,
) -> None:
    """Print the loss of N parameters after D tokens, with the intervals of the law and of one further run."""
    from flops_fit_core.fitting import flops_of_run, predict_loss

    loss = predict_loss(law, params, tokens, unique_tokens, inputs)
    new_run = None
    with contextlib.suppress(FitError):  # a fit without an estimate, or beyond the runs without a backtest
        new_run = predict_loss(law, params, tokens, unique_tokens, inputs, new_run=True)
    if json:
        print_json(
            {
                "params": params,
                "tokens": tokens,
                "loss": loss.model_dump(mode="json"),
                "new_run": None if new_run is None else new_run.model_dump(mode="json"),
            }
        )
        return
    flops = flops_of_run(law, params, tokens)
    factor = flops / law.flops_range[1]
    if distance := describe_distance(flops, law.flops_range):
        print_text(f"! {distance}{': orders of magnitude only' if factor > FAR else ''}", "yellow")
    print_text(
        f"N = {numbers.count(params)}, D = {numbers.count(tokens)}: loss "
        f"{_describe_loss(loss, new_run, factor)} by {law.fitter.name}, "
        f"{law.level:.0%}"
    )


def _describe_loss(loss: Interval, new_run: Interval | None, factor: float) -> str:
    """A loss with the interval of the law and that of a new run. ``factor``: C over the largest fitted C."""
    if factor <= FAR:
        of_run = "" if new_run is None else f", a new run {new_run.low:.4g} to {new_run.high:.4g}"
        return f"{loss}{of_run}"
    show = Formats.at(factor)
    of_run = "" if new_run is None else show.ends(new_run, show.loss)
    return f"{show.interval_first(loss, show.loss)}{', a new run ' if of_run else ''}{of_run}"


def parse_inputs(texts: Sequence[str]) -> dict[str, float]:
    """``["experts=8"]`` as numbers by name. Raises ConfigError."""
    inputs = {}
    for name, text in _pairs("--input", texts, "experts=8").items():
        try:
            inputs[name] = float(text)
        except ValueError:
            raise ConfigError(f"--input {name}={text}: {text!r} is not a number; write --input {name}=8") from None
    return inputs


def describe_extras(extra: Mapping[str, Any], law: LawFit) -> Iterator[str]:
    """Sentences for the results of :func:`extras`. Beyond 100 times the largest budget, with one digit."""
    if "off_optimum" in extra:
        off = extra["off_optimum"]
        factor = off.flops / law.flops_range[1]
        digits = Formats.at(factor)
        given_up = f"{off.loss_given_up:.4f}" if factor <= FAR else f"about {off.loss_given_up:.1g}"
        yield (
            f"N = {numbers.count(off.params)} would train on D = {digits.count(off.tokens)} to a loss of "
            f"{_describe_loss(off.loss, off.new_run, factor)}: {given_up} nats given up, "
            f"{_describe_extra(off.extra_flops)}"
        )
    if "cost" in extra:
        cost = extra["cost"]
        money = f", {cost.money:,.2f} at that price" if cost.money is not None else ""
        yield f"{cost.device_hours:,.4g} device hours{money}"


def _describe_extra(extra: float) -> str:
    """``4.2% more FLOPs than this loss needs``, ``370 times the FLOPs that this loss needs``."""
    needed = "the FLOPs that this loss needs" if extra > 1 else "more FLOPs than this loss needs"
    return f"{numbers.excess(extra)} {needed}"


def read_request_table(request: LawRequest, registry: Registry) -> RunTable:
    from flops_fit_core.fitting import read_table

    if request.eval_set is not None:
        raise ConfigError(
            f"--eval-set {request.eval_set}: a table has one loss column; name it with --column loss=COLUMN"
        )
    options = request.read_options()
    table = read_table(request.source, request.column_names(), request.row_filters(), registry=registry, **options)
    if not table.observations:
        raise FitError(f"{request.source}: no row can be fitted. {table.summary}")
    return table


def open_request_study(request: LawRequest, registry: Registry) -> Study:
    """The study that a command line names. Raises ConfigError for a saved fit and for options of tables."""
    if request.source.is_file() and is_fit(request.source):
        raise ConfigError(
            f"{request.source} is a saved fit without its runs. To use it, type 'flops-fit predict "
            f"{request.source} --flops C'; to fit, name the study or the table of runs"
        )
    if options := request.table_options():
        raise ConfigError(f"{', '.join(options)}: for tables only, and {request.source} is a study")
    _refuse_other_files(request.source)
    _refuse_other_folders(request.source, registry)
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


def _refuse_other_folders(path: Path, registry: Registry) -> None:
    """Raises ConfigError for a folder with files of neither a study nor a log that a reader recognises."""
    if path.is_dir() and any(path.iterdir()) and not (path / "experiment.json").exists():
        from flops_fit_core.fitting import describe_unknown_folder

        raise ConfigError(describe_unknown_folder(path, registry))


def _fitter_of_study(request: LawRequest, study: Study) -> Fitter:
    if request.fitter is None and request.law is None and not request.options:
        return study.fitter
    return build_request_fitter(request, study.registry, request.fitter or study.fitter_choice.name)


def build_request_fitter(request: LawRequest, registry: Registry, default: str) -> Fitter:
    if request.law is not None and request.fitter is not None:
        raise ConfigError(
            f"--law {request.law} and --fitter {request.fitter}: give one of them; --law chooses fitter law"
        )
    table: dict[str, Any] = {"name": request.fitter or default}
    if request.law == "lr-batch":
        raise ConfigError("--law lr-batch applies to 'flops-fit fit TABLE' only: it gives no loss by N and D")
    if request.law is not None:
        _find_law(request.law)
        table = {"name": "fitters/law", "law": request.law}
    for option in request.options:
        override_value(table, option)
    chosen = choose_from_table("fitter", table, registry, "--fitter")
    return build_fitter(chosen)


def is_fit(path: Path) -> bool:
    """Whether a JSON file is a fit rather than an experiment."""
    return path.suffix.lower() == ".json" and b'"exponents"' in path.read_bytes()
