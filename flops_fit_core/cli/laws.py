"""From what a command line names to a fitted law: a study, a table of runs, a fit that was kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core.cli.arguments import existing
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
class Asked:
    """What a command line says of the law it wants."""

    source: Path
    fitter: str | None = None
    options: Sequence[str] = ()
    """``option=value`` of the fitter."""
    columns: Sequence[str] = ()
    """``ours=theirs`` column names of a table."""
    where: Sequence[str] = ()
    """``column=text`` that a table's rows must have."""
    eval_set: str | None = None
    """A study's further held-out set whose losses are fitted."""
    units: Sequence[str] = ()
    """``role=factor`` of a table's numbers."""
    decimal: str | None = None
    """How a table writes decimals, where no cell decides."""
    best_of: str | None = None
    """Hyperparameters of a table that is a grid, with commas between."""

    @property
    def is_table(self) -> bool:
        from flops_fit_core.fitting import is_table

        return is_table(self.source)

    def reading(self) -> dict[str, Any]:
        """How a table is to be read, as :func:`~flops_fit_core.fitting.read_table` takes it."""
        best_of = (
            None if self.best_of is None else [name.strip() for name in self.best_of.split(",") if name.strip()]
        )
        units = _pairs("--units", self.units, "params=1e6")
        return {"units": units, "decimal": self.decimal, "best_of": best_of}

    def options_of_tables(self) -> list[str]:
        """The options given that only a table has."""
        given = {"--column": self.columns, "--filter": self.where, "--units": self.units}
        names = [name for name, texts in given.items() if texts]
        names += ["--decimal"] if self.decimal is not None else []
        return names + (["--best-of"] if self.best_of is not None else [])

    def mapping(self) -> dict[str, str]:
        """Our column names -> the table's."""
        return _pairs("--column", self.columns, "params=n_params, our name first")

    def kept(self) -> dict[str, str]:
        """Column -> the text that rows must have in it."""
        return _pairs("--filter", self.where, "group=c4")


def _pairs(option: str, texts: Sequence[str], example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{option} {text}: write {option} {example}")
        pairs[name] = value
    return pairs


def fitted(asked: Asked, registry: Registry) -> tuple[LawFit, Fitter, Study | None]:
    """Fit now. Raises ConfigError and FitError."""
    if asked.is_table:
        from flops_fit_core.fitting import fit_table

        fitter = _fitter(asked, registry, DEFAULTS["fitter"])
        return fit_table(fitter, _table(asked)), fitter, None
    study = _study(asked, registry)
    fitter = _fitter_of_study(asked, study)
    return study.fit_runs(fitter), fitter, study


def fitted_groups(asked: Asked, registry: Registry, column: str) -> dict[str, LawFit | FitError]:
    """A law for each text in a column of a table; a FitError where its rows have none.

    Raises ConfigError for a study, FitError where no group has a law.
    """
    from flops_fit_core.fitting import table_groups

    if not asked.is_table:
        raise ConfigError(f"--group-by {column}: for the columns of a table, and {asked.source} is none")
    laws: dict[str, LawFit | FitError] = {}
    for text in table_groups(asked.source, column, asked.kept()):
        try:
            laws[text], _, _ = fitted(replace(asked, where=(*asked.where, f"{column}={text}")), registry)
        except FitError as error:
            laws[text] = error
    if all(isinstance(law, FitError) for law in laws.values()):
        raise FitError("\n".join(f"{column} = {text}: {error}" for text, error in laws.items()))
    return laws


def kept_or_fitted(asked: Asked, registry: Registry) -> tuple[LawFit, Fitter, Study | None]:
    """A fit that was kept as JSON, or one that is made now."""
    if asked.source.is_file() and _is_fit(asked.source):
        from flops_fit_core.fitting import load_fit
        from flops_fit_core.planning.init_from_fit import fitter_of

        _refuse_to_refit(asked)
        law = load_fit(asked.source)
        return law, fitter_of(law, registry), None
    return fitted(asked, registry)


def _refuse_to_refit(asked: Asked) -> None:
    """A kept fit has no runs: raises ConfigError for an option that only a new fit could follow."""
    values = {
        "--fitter": [asked.fitter] if asked.fitter else [],
        "--set": asked.options,
        "--column": asked.columns,
        "--filter": asked.where,
        "--eval-set": [asked.eval_set] if asked.eval_set else [],
        "--units": asked.units,
        "--decimal": [asked.decimal] if asked.decimal is not None else [],
        "--best-of": [asked.best_of] if asked.best_of is not None else [],
    }
    options = [f"{option} {value}" for option, texts in values.items() for value in texts]
    if options:
        raise ConfigError(
            f"{', '.join(options)}: {asked.source} is a law that was fitted before, without its runs, so it "
            f"cannot be fitted again: leave this out, or give the study or the table of runs instead"
        )


def observations(asked: Asked, registry: Registry) -> tuple[list[Observation], Fitter, list[Diagnostic]]:
    """The runs, the fitter, and how the runs were read where they come from a table."""
    if asked.is_table:
        table = _table(asked)
        return table.observations, _fitter(asked, registry, DEFAULTS["fitter"]), table.diagnostics
    study = _study(asked, registry)
    return study.observations, _fitter_of_study(asked, study), []


def optimum(
    law: LawFit, made_by: Fitter, flops: float, inference_tokens: float, unique_tokens: float | None
) -> Optimum:
    """The optimum, by the fitter that made the law; with serving or repetition, by the law itself."""
    from flops_fit_core.fitting import flag_outside

    if not inference_tokens and unique_tokens is None:
        return flag_outside(law, made_by.optimum(law, flops))
    from flops_fit_core.fitting import optimum as of_law

    return of_law(law, flops, inference_tokens, unique_tokens)


def extras(
    law: LawFit, flops: float, params: float | None, peak_flops: float | None, mfu: float, price: float | None
) -> dict[str, Record]:
    """What was asked for beside the optimum: the cost of another size, of the training."""
    from flops_fit_core.fitting import off_optimum, training_cost

    found: dict[str, Record] = {}
    if params is not None:
        found["off_optimum"] = off_optimum(law, flops, params)
    if peak_flops is not None:
        found["cost"] = training_cost(flops, peak_flops, mfu, price)
    elif price is not None:
        raise ConfigError("--price needs the device's speed: add --peak-flops 989e12, say")
    return found


def describe(extra: Mapping[str, Any]) -> Iterator[str]:
    """The extras in words."""
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


def _table(asked: Asked) -> RunTable:
    from flops_fit_core.fitting import read_table

    if asked.eval_set is not None:
        raise ConfigError(
            f"--eval-set {asked.eval_set}: a table has one loss a run; name its column with --column loss=COLUMN"
        )
    table = read_table(asked.source, asked.mapping(), asked.kept(), **asked.reading())
    if not table.observations:
        raise FitError(f"{asked.source}: no row can be fitted. {table.summary}")
    return table


def _study(asked: Asked, registry: Registry) -> Study:
    if asked.source.is_file() and _is_fit(asked.source):
        raise ConfigError(
            f"{asked.source} is a law that was fitted before, without its runs: 'flops-fit predict "
            f"{asked.source} --flops C' uses it; to fit, give the study or the table of runs"
        )
    if options := asked.options_of_tables():
        raise ConfigError(f"{', '.join(options)}: for the columns of a table, and {asked.source} is a study")
    _refuse_other_files(asked.source)
    return existing(asked.source, registry, None).on(asked.eval_set)


def _refuse_other_files(path: Path) -> None:
    """Raises ConfigError for a file that is neither a table nor an experiment."""
    if not path.is_file():
        return
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json", ".yaml", ".yml"):
        raise ConfigError(
            f"{path} is no table of runs that is read here (CSV, TSV, JSON, JSON lines, parquet) and no "
            "experiment file: save a workbook or a pickle as CSV"
        )
    if suffix == ".json" and not set(Experiment.model_fields) & set(read_file(path)):
        raise ConfigError(
            f'{path} holds no table of runs and no experiment: write a list of records such as {{"params": 1e8, '
            '"tokens": 2e9, "loss": 3.1}'
        )


def _fitter_of_study(asked: Asked, study: Study) -> Fitter:
    if asked.fitter is None and not asked.options:
        return study.fitter
    return _fitter(asked, study.registry, study.fitter_choice.name)


def _fitter(asked: Asked, registry: Registry, default: str) -> Fitter:
    table: dict[str, Any] = {"name": asked.fitter or default}
    for option in asked.options:
        override_value(table, option)
    chosen = choose_from_table("fitter", table, registry, "--fitter")
    return build_fitter(chosen)


def _is_fit(path: Path) -> bool:
    """Whether a JSON file is a fit rather than an experiment."""
    return path.suffix.lower() == ".json" and '"exponents"' in path.read_text(encoding="utf-8")
