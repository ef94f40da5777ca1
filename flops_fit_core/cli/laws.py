"""From what a command line names to a fitted law: a study, a table of runs, a fit that was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flops_fit_core.cli.arguments import existing
from flops_fit_core.config import DEFAULTS, choose_from_table, override_value
from flops_fit_core.contracts import Fitter
from flops_fit_core.errors import ConfigError
from flops_fit_core.records import LawFit, Observation
from flops_fit_core.registry import Registry
from flops_fit_core.study import Study

TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Asked:
    """What a command line says of the law it wants."""

    source: Path
    fitter: str | None = None
    options: Sequence[str] = ()
    """``option=value`` of the fitter."""
    columns: Sequence[str] = ()
    """``ours=theirs`` column names of a table."""

    @property
    def is_table(self) -> bool:
        return self.source.suffix.lower() in TABLES

    def mapping(self) -> dict[str, str]:
        """Our column names -> the table's."""
        mapping: dict[str, str] = {}
        for text in self.columns:
            ours, equals, theirs = text.partition("=")
            if not equals or not ours or not theirs:
                raise ConfigError(f"--map {text}: write --map params=n_params, our name first")
            mapping[ours] = theirs
        return mapping


def fitted(asked: Asked, registry: Registry) -> tuple[LawFit, Fitter, Study | None]:
    """Fit now. Raises ConfigError and FitError."""
    if asked.is_table:
        from flops_fit_core.fitting import fit_table, read_table

        fitter = _fitter(asked, registry, DEFAULTS["fitter"])
        return fit_table(fitter, read_table(asked.source, asked.mapping())), fitter, None
    study = _study(asked, registry)
    fitter = _fitter_of_study(asked, study)
    return study.fit_with(fitter, study.observations), fitter, study


def kept_or_fitted(asked: Asked, registry: Registry) -> tuple[LawFit, Fitter, Study | None]:
    """A fit that was kept as JSON, or one that is made now."""
    if asked.source.is_file() and _is_fit(asked.source):
        from flops_fit_core.api import fitter_of
        from flops_fit_core.fitting import load_fit

        law = load_fit(asked.source)
        return law, fitter_of(law, registry), None
    return fitted(asked, registry)


def observations(asked: Asked, registry: Registry) -> tuple[list[Observation], Fitter]:
    """The runs and the fitter."""
    if asked.is_table:
        from flops_fit_core.fitting import read_runs

        return read_runs(asked.source, asked.mapping()), _fitter(asked, registry, DEFAULTS["fitter"])
    study = _study(asked, registry)
    return study.observations, _fitter_of_study(asked, study)


def _study(asked: Asked, registry: Registry) -> Study:
    if asked.columns:
        raise ConfigError("--map names columns of a table, and a study has none")
    return existing(asked.source, registry, None)


def _fitter_of_study(asked: Asked, study: Study) -> Fitter:
    if asked.fitter is None and not asked.options:
        return study.fitter
    return _fitter(asked, study.registry, study.fitter_choice.name)


def _fitter(asked: Asked, registry: Registry, default: str) -> Fitter:
    table: dict[str, Any] = {"name": asked.fitter or default}
    for option in asked.options:
        override_value(table, option)
    chosen = choose_from_table("fitter", table, registry, "--fitter")
    fitter: Fitter = chosen.spec.build(chosen.options)
    return fitter


def _is_fit(path: Path) -> bool:
    """Whether a JSON file is a fit rather than an experiment."""
    return path.suffix.lower() == ".json" and '"exponents"' in path.read_text(encoding="utf-8")
