"""Write the page that overlays two sources: studies, tables of runs, saved fits."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_core.cli.laws import (
    LawRequest,
    build_request_fitter,
    is_fit,
    load_or_fit,
    open_request_study,
    read_request_table,
)
from flops_fit_core.cli.report_sources import refuse_other_law
from flops_fit_core.config import DEFAULTS
from flops_fit_core.errors import ConfigError, FitError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.study.overlay import file_name, fit_side, write_overlay_page

if TYPE_CHECKING:
    from flops_fit_core.report.overlay import Side


@dataclass(frozen=True)
class OverlayRequest:
    """Two sources on a command line, and the options that choose their rows and what is compared."""

    first: LawRequest
    others: Sequence[Path] = ()
    filter_a: Sequence[str] = ()
    filter_b: Sequence[str] = ()
    allow_differences: bool = False

    def check(self) -> bool:
        """Whether there are two sources. Raises ConfigError for more, and for options of two with one source."""
        source = shlex.quote(str(self.first.source))
        if len(self.others) > 1:
            names = [str(path) for path in (self.first.source, *self.others)]
            second, third = (shlex.quote(str(path)) for path in self.others[:2])
            raise ConfigError(
                f"report overlays two sources, and {len(names)} are named ({', '.join(names)}): compare them in "
                f"pairs, with flops-fit report {source} {second} and flops-fit report {source} {third}"
            )
        options = {
            "--filter-a": bool(self.filter_a),
            "--filter-b": bool(self.filter_b),
            "--allow-differences": self.allow_differences,
        }
        is_same = len(self.others) == 1 and _same_file(self.first.source, self.others[0])
        if is_same and self.filter_a == self.filter_b:
            raise ConfigError(
                f"A and B are both {self.first.source}: name another source, or choose rows of one table with "
                "--filter-a COLUMN=TEXT and --filter-b COLUMN=TEXT"
            )
        if not self.others and any(options.values()):
            names = [name for name, is_set in options.items() if is_set]
            raise ConfigError(
                f"{', '.join(names)}: for two sources. Name both: flops-fit report {source} SECOND; to filter the "
                "rows of one table, use --filter"
            )
        return bool(self.others)


def _same_file(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def write_sources_overlay(overlay: OverlayRequest, registry: Registry, out: Path | None) -> list[Path]:
    """Write the page of two sources. Returns the files, the page first. Raises ConfigError, FitError.

    Options that apply to tables only, and ``--eval-set``, are ignored for a source of the other kind if the other
    source takes them. By default the page goes to ``report/against-NAME/`` of A's study, or to ``A-and-B-report``.
    """
    first, second = overlay.first, replace(overlay.first, source=overlay.others[0])
    filters = (overlay.filter_a, overlay.filter_b)
    requests = _divide_options((first, second), filters, registry)
    names = _choose_names(requests, filters)
    a, b = (_read_side(request, registry, name) for request, name in zip(requests, names, strict=True))
    return write_overlay_page(
        out or _default_folder(requests[0], a, b, registry),
        a,
        b,
        registry,
        command=_compare_command(overlay, requests, registry),
        allow_differences=overlay.allow_differences,
    )


def _divide_options(
    requests: tuple[LawRequest, LawRequest], filters: tuple[Sequence[str], Sequence[str]], registry: Registry
) -> tuple[LawRequest, LawRequest]:
    """Each request with its filters, without options that only the other kind of source takes."""
    kinds = [_kind(request, registry) for request in requests]
    divided = []
    for request, kind, own in zip(requests, kinds, filters, strict=True):
        if kind != "table" and "table" in kinds:
            request = replace(
                request,
                columns=(),
                filters=(),
                units=(),
                decimal=None,
                best_of=None,
            )
        if kind != "study" and "study" in kinds:
            request = replace(request, eval_set=None)
        divided.append(replace(request, filters=(*request.filters, *own)))
    return divided[0], divided[1]


def _kind(request: LawRequest, registry: Registry) -> str:
    if request.source.is_file() and is_fit(request.source):
        return "fit"
    return "table" if request.is_table(registry) else "study"


def _choose_names(
    requests: tuple[LawRequest, LawRequest], filters: tuple[Sequence[str], Sequence[str]]
) -> tuple[str, str]:
    """File names, or paths if the names are equal; with the texts by which rows of one table differ."""
    paths = [request.source for request in requests]
    names = [path.resolve().name for path in paths]
    if _same_file(*paths) and any(filters):
        texts = [", ".join(text.partition("=")[2] for text in own) for own in filters]
        return tuple(text or name for text, name in zip(texts, names, strict=True))  # type: ignore[return-value]
    if names[0] == names[1]:
        names = [str(path) for path in paths]
    suffixes = [f" {' '.join(own)}" if own else "" for own in filters]
    return names[0] + suffixes[0], names[1] + suffixes[1]


def _read_side(request: LawRequest, registry: Registry, name: str) -> Side:
    """A source with its law, or the reason why it has none. Raises ConfigError and FitError."""
    kind = _kind(request, registry)
    if kind == "fit":
        fitted = load_or_fit(request, registry)
        return replace(fit_side(fitted.law, registry, name), source=_show_source(request))
    if kind == "table":
        return _read_table_side(request, registry, name)
    refuse_other_law(request)
    side = open_request_study(request, registry).side()
    shown = f" --eval-set {shlex.quote(request.eval_set)}" if request.eval_set else ""
    return replace(side, name=name, source=side.source + shown)


def _read_table_side(request: LawRequest, registry: Registry, name: str) -> Side:
    from flops_fit_core.fitting import fit_table
    from flops_fit_core.report.overlay import Side
    from flops_fit_core.report.overlay.side import read_labels

    fitter = build_request_fitter(request, registry, DEFAULTS["fitter"])
    table = read_request_table(request, registry)
    side = Side(
        name=name,
        source=_show_source(request),
        observations=table.observations,
        columns=table.columns,
        labels=read_labels(table.cells.values()),
        diagnostics=table.diagnostics,
    )
    try:
        law = fit_table(fitter, table)
    except FitError as error:
        return replace(side, missing=str(error))
    with_law = fit_side(law, registry, name)
    return replace(side, fit=law, optimum=with_law.optimum)


def _show_source(request: LawRequest) -> str:
    """The source with the options that choose its rows, as typed after ``flops-fit report``."""
    options = [("--column", text) for text in request.columns] + [("--filter", text) for text in request.filters]
    options += [("--law", request.law)] if request.law else []
    options += [("--fitter", request.fitter)] if request.fitter else []
    return shlex.join([str(request.source), *(part for option in options for part in option)])


def _default_folder(request: LawRequest, first: Side, second: Side, registry: Registry) -> Path:
    if _kind(request, registry) == "study":
        return open_request_study(request, registry).folder.report / f"against-{file_name(second.name)}"
    return Path(f"{file_name(first.name)}-and-{file_name(second.name)}-report")


def _compare_command(overlay: OverlayRequest, requests: tuple[LawRequest, LawRequest], registry: Registry) -> str:
    """``flops-fit compare A B`` with the options that choose the same rows; empty for sources that it refuses."""
    kinds = {_kind(request, registry) for request in requests}
    if "fit" in kinds or (kinds == {"study", "table"} and overlay.first.table_options()):
        return ""
    options = [("--column", text) for text in overlay.first.columns]
    options += [("--filter", text) for text in overlay.first.filters]
    options += [("--filter-a", text) for text in overlay.filter_a]
    options += [("--filter-b", text) for text in overlay.filter_b]
    words = [*map(str, (request.source for request in requests)), *(part for option in options for part in option)]
    return "flops-fit compare " + shlex.join(
        [*words, *(["--allow-differences"] if overlay.allow_differences else [])]
    )
