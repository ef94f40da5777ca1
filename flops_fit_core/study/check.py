"""Check every file of a study, and repair its stores. Needs no plugin modules of the study and no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flops_fit_core.config import PluginConfig, build_store, choose_from_table
from flops_fit_core.errors import ConfigError, FlopsFitError, StoreError
from flops_fit_core.plugins.protocols.store_checks import FileFinding, StoreRepair
from flops_fit_core.plugins.registry import PluginSetup, Registry
from flops_fit_core.plugins.specs import StoreSpec
from flops_fit_core.records import LawFit, Record, RunResult, SweepPlan
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.heartbeat import drivers

_DEPTH_ERRORS = (ValueError, OSError, RecursionError)
"""Errors of reading a file of undecodable, malformed or deeply nested content."""


@dataclass(frozen=True)
class RepairedStore:
    """The outcome of the repair of one store."""

    store: str
    """Qualified name."""
    repair: StoreRepair
    to_train: tuple[str, ...]
    """Ids of planned runs without a finished result. The next ``flops-fit run`` trains them."""


def check_study(study: StudyFolder, registry: Registry) -> list[FileFinding]:
    """The state of every file of a study: stores first, then the files of the folder.

    Args:
        study: The study.
        registry: Where stores are looked up.

    Raises ConfigError if the folder has no file of a study.
    """
    findings = [finding for chosen in _stores(study, registry) for finding in _check_store(study, chosen)]
    findings += _check_chosen_store(study, registry)
    findings += _check_files(study)
    if not findings:
        raise ConfigError(f"{study.path} has no file of a study")
    return findings


def repair_stores(study: StudyFolder, registry: Registry) -> list[RepairedStore]:
    """Repair every damaged store of a study. Empty if no store is damaged.

    Raises StoreError if a driver trains the study, or if a damaged store cannot repair.
    """
    damaged = [chosen for chosen in _stores(study, registry) if _is_damaged(_check_store(study, chosen))]
    for driver in drivers(study.path) if damaged else ():
        raise StoreError(
            f"{study.shown} is being trained by process {driver.pid} on {driver.host}: stop it with Ctrl-C or "
            f"SIGTERM (no result is lost), then repair"
        )
    return [_repair_store(study, chosen) for chosen in damaged]


def _is_damaged(findings: list[FileFinding]) -> bool:
    return any(finding.state == "damaged" for finding in findings)


# ---------------------------------------------------------------------------- stores


def _stores(study: StudyFolder, registry: Registry) -> Iterator[PluginConfig[StoreSpec]]:
    """Every store that may have files in the folder. The study's store has the study's options."""
    chosen = _chosen_store(study, registry)
    for offer in registry.offers("store"):
        if chosen is not None and offer.name == chosen.name:
            yield chosen
        elif offer.spec.file is not None and not offer.missing():
            yield PluginConfig(offer, offer.spec.options())


def _chosen_store(study: StudyFolder, registry: Registry) -> PluginConfig[StoreSpec] | None:
    """The store of the experiment; None if it is not available or experiment.json cannot be read."""
    try:
        return study.choice("store", registry)
    except (FlopsFitError, *_DEPTH_ERRORS):
        return None


def _check_store(study: StudyFolder, chosen: PluginConfig[StoreSpec]) -> list[FileFinding]:
    spec = chosen.spec
    if spec.check is not None:
        return chosen.call_all(spec.check, chosen.options, study.path)
    if spec.file is not None and (study.path / spec.file).exists():
        return [FileFinding(file=spec.file, state="unchecked", text=f"the store {chosen.name} has no check")]
    return []


def _check_chosen_store(study: StudyFolder, registry: Registry) -> list[FileFinding]:
    """A finding if the results of the study are not in a file that this process can check."""
    if not study.experiment_file.exists():
        return []
    try:
        table = study.table().get("store")
    except (ConfigError, *_DEPTH_ERRORS):
        return []  # experiment.json has a separate finding
    try:
        chosen = choose_from_table("store", table, registry, "store") if table is not None else None
    except FlopsFitError as error:
        return [FileFinding(file="results", state="unchecked", text=str(error))]
    if chosen is None or chosen.spec.file is not None or chosen.spec.check is not None:
        return []
    text = f"the results are in the store {chosen.name}, not in this folder"
    return [FileFinding(file="results", state="unchecked", text=text)]


def _repair_store(study: StudyFolder, chosen: PluginConfig[StoreSpec]) -> RepairedStore:
    if chosen.spec.repair is None:
        raise StoreError(
            f"the store {chosen.name} cannot repair {chosen.spec.file}: put a copy back, or move it away to train "
            f"its runs again"
        )
    outcome = chosen.call(chosen.spec.repair, chosen.options, study.path)
    try:
        planned = [run.id for run in study.plan().runs]
    except (ConfigError, *_DEPTH_ERRORS):
        planned = []
    with closing(build_store(chosen, study.path)) as store:
        finished = {result.id for result in store.results() if result.is_finished}
    return RepairedStore(chosen.name, outcome, tuple(run for run in planned if run not in finished))


# ---------------------------------------------------------------------------- other files


def _check_files(study: StudyFolder) -> Iterator[FileFinding]:
    """The files of the folder that are no store's, in the order of :mod:`flops_fit_core.study.directory`."""
    plan_again = f"flops-fit run EXPERIMENT --out {study.shown} plans again; results are kept"
    delete = "delete it"
    files: list[tuple[str, type[Record] | None, str]] = [
        ("experiment.json", None, plan_again),
        ("plan.json", SweepPlan, plan_again),
        ("plugins.json", PluginSetup, plan_again),
        ("fit.json", LawFit, f"flops-fit run {study.shown} writes it again"),
        ("model_check.json", None, f"{delete}: the next run writes it again"),
        ("flops_per_token.json", None, f"{delete}: the next run writes it again"),
        ("outbox/*.json", RunResult, f"{delete} to train its run again"),
        ("drivers/*.json", None, f"{delete} if no driver trains the study"),
        ("jobs/*.json", None, f"{delete} if no job of the study is queued"),
    ]
    for pattern, kind, advice in files:
        for path in sorted(study.path.glob(pattern)):
            if not path.name.startswith("."):
                yield _check_file(study, path, kind, advice)


def _check_file(study: StudyFolder, path: Path, kind: type[Record] | None, advice: str) -> FileFinding:
    name = path.relative_to(study.path).as_posix()
    try:
        text = path.read_bytes().decode()
        read: Callable[[str], Any] = json.loads if kind is None else kind.model_validate_json
        read(text)
    except _DEPTH_ERRORS as error:
        reason = str(error).splitlines()[0]
        return FileFinding(file=name, state="damaged", text=reason, advice=advice)
    return FileFinding(file=name, state="intact")
