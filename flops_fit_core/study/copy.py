"""Copy a study, or move its results to another store. Every copied attempt is read back and compared."""

from __future__ import annotations

import filecmp
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flops_fit_core.config import PluginConfig, choose_from_table
from flops_fit_core.config.secrets import refuse_secrets
from flops_fit_core.errors import ConfigError, StoreError
from flops_fit_core.plugins.checkpoint_claim import CheckpointClaim
from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.plugins.protocols.stores import group_by_run
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.utilities import replacing
from flops_fit_core.records import RunResult
from flops_fit_core.study.directory import StudyFolder, is_temporary
from flops_fit_core.study.heartbeat import live_drivers
from flops_fit_core.study.named_code import StudyContent
from flops_fit_core.study.trust import consent_to_copy, record_consent, recorded_store

FILES = ("plan.json", "plugins.json", "fit.json", "model_check.json", "flops_per_token.json")
FOLDERS = ("checkpoints", "outbox", "report")
"""The files of a study in addition to its experiment file and its results."""
PROBE_SECONDS = 5.0
"""Duration of a claim that only tests whether another process holds the run."""


Results = dict[str, list[RunResult]]
"""Run id -> every attempt, first to last. Runs are in the order in which they were first added."""


@dataclass(frozen=True)
class Copied:
    """The outcome of :func:`copy_study`."""

    runs: int
    attempts: int
    new: int
    """Number of attempts that the copy lacked before."""
    old_store: str
    new_store: str
    """Qualified names of the stores."""
    in_place: bool
    """Whether source and target are the same folder, so that the study now uses the new store."""
    left_behind: tuple[str, ...] = ()
    """Files of the old store, if the study now uses the new store."""


def copy_study(source: StudyFolder, target: StudyFolder, registry: Registry, store: Any) -> Copied:
    """Copy a study with all attempts at its runs, its plan, checkpoints, outbox, fit and report.

    The experiment file of ``target`` is written last, so that an interrupted copy is not a study. An interruption
    leaves the source unchanged, and the same call completes the copy. If both are the same folder, the study uses
    the new store afterwards, and the files of the old store stay. Claims and ``tune/`` are not copied.

    Args:
        source: The study. No driver may train it during the copy. This user needs no right to write to it, unless
            it is also the target.
        target: A new folder, an earlier copy, or the source.
        registry: Where both stores are looked up.
        store: The copy's ``[store]``: a name, or a table.

    Raises ConfigError if the target is another study, if the source uses this store already, or if the new store
    would keep both studies in the same place. Raises StoreError if a driver trains the study, or if an attempt in
    the target differs from the source's.
    """
    content, in_place = StudyContent.read(source), source.path.resolve() == target.path.resolve()
    refuse_secrets({"store": store}, "the copy's store")
    new = choose_from_table("store", store, registry, "the copy's store")
    if in_place:
        _refuse_same_store(source, new, registry)
    else:
        _refuse_another_study(source, target, new, registry)
    old_files = {file.name for file in source.path.glob("results*")}
    chosen, consent = recorded_store(source, registry), consent_to_copy(source, content, registry)
    can_claim = chosen.spec.file is None or os.access(source.path, os.W_OK)
    with closing(source.open_store(chosen)) as old:
        results = group_by_run(old.all_attempts())
        with closing(target.open_store(new)) as copy:
            if not in_place and can_claim:
                _refuse_shared_results(source, target, old, copy)
            _refuse_drivers(source)
            _refuse_drivers(target)
            if can_claim:
                _refuse_claimed_runs(source, old)
            added = _copy_results(results, copy, target)
            _compare(group_by_run(old.all_attempts()), copy, source, target)
            attempts, copied = sum(map(len, results.values())), len(list(copy.all_attempts()))
    if not in_place:
        # A copy with further attempts has a fit and a report of them.
        _copy_files(source.path, target.path, replace=copied == attempts)
    _refuse_drivers(source)  # a driver that started during the copy adds results to the old store
    table = {**content.table, "store": _as_table(new)}
    target.save_table(table)
    if consent is not None:
        record_consent(target, replace(content, table=table), registry, consent)
    left_behind = tuple(sorted(old_files)) if in_place else ()
    return Copied(len(results), attempts, added, chosen.name, new.name, in_place, left_behind)


def _as_table(chosen: PluginConfig[Any]) -> dict[str, Any]:
    return {"name": chosen.name, **chosen.options.model_dump(mode="json", exclude_unset=True)}


# ---------------------------------------------------------------------------- conditions


def _refuse_same_store(study: StudyFolder, new: PluginConfig[Any], registry: Registry) -> None:
    if new == study.choice("store", registry):
        raise ConfigError(
            f"{study.shown} uses the store {new.name} already: name another store with --store NAME, or another "
            f"folder"
        )


def _refuse_another_study(
    source: StudyFolder, target: StudyFolder, new: PluginConfig[Any], registry: Registry
) -> None:
    if target.path.exists() and not target.path.is_dir():
        raise ConfigError(f"{target.path} is a file; a study needs a folder")
    if not target.experiment_file.exists():
        return
    same = _without_store(source.table()) == _without_store(target.table())
    if not same or {run.id for run in source.plan().runs} != {run.id for run in target.plan().runs}:
        raise ConfigError(
            f"{target.shown} is a different study from {source.shown}: choose a new folder, or an earlier copy"
        )
    if (earlier := target.choice("store", registry)) != new:
        raise ConfigError(
            f"{target.shown} is an earlier copy with its results in {_as_table(earlier)}, not "
            f"in {_as_table(new)}: choose the same store with --store and --set, or another folder"
        )


def _without_store(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != "store"}


def _refuse_shared_results(source: StudyFolder, target: StudyFolder, old: ResultStore, copy: ResultStore) -> None:
    """A server may store both studies under the same name. Then a claim in the source is visible in the copy.

    A store with ``shares_claims`` false shows its claims in one object only. Such a store has no server.
    """
    probe = f"copy:{uuid.uuid4().hex}"
    old.claim(probe, "source", PROBE_SECONDS)
    try:
        separate = copy.claim(probe, "copy", PROBE_SECONDS)
    finally:
        old.release(probe, "source")
    if not separate:
        raise ConfigError(
            f"{source.shown} and {target.shown} would share their results: their store has both under the same "
            f"name. Give the copy another name (postgres: --set store.study=NAME) or another store (--store)"
        )
    copy.release(probe, "copy")


def _refuse_claimed_runs(source: StudyFolder, old: ResultStore) -> None:
    """A driver with another folder shows in the claims of the store only. A claim of each run finds it."""
    owner = f"copy:{uuid.uuid4().hex}"
    finished = {result.id for result in old.results() if result.is_finished}
    for run in source.plan().runs:
        if run.id in finished:
            continue
        if not old.claim(run.id, owner, PROBE_SECONDS):
            raise StoreError(
                f"run {run.id} of {source.shown} is being trained, or was until a minute ago: wait for its "
                f"driver, or stop it and try again in a minute"
            )
        old.release(run.id, owner)


def _refuse_drivers(study: StudyFolder) -> None:
    for driver in live_drivers(study.path):
        raise StoreError(
            f"{study.shown} is being trained by process {driver.pid} on {driver.host}: wait until it ends, or "
            f"stop it with Ctrl-C or SIGTERM (no result is lost). 'flops-fit status {study.shown}' shows progress"
        )


# ---------------------------------------------------------------------------- results


def _copy_results(results: Results, copy: ResultStore, target: StudyFolder) -> int:
    """Add the attempts that the copy lacks. Returns their number."""
    copied = {(attempt.id, attempt.attempt): attempt for attempt in copy.all_attempts()}
    added = 0
    for attempts in results.values():
        for attempt in attempts:
            key = attempt.id, attempt.attempt
            if key not in copied:
                copy.add(attempt)
                added += 1
            elif copied[key] != attempt:
                raise StoreError(
                    f"{target.shown}: its store has a different result of run {attempt.id}, attempt "
                    f"{attempt.attempt}, which is unchanged. Copy to a folder or a store without results of this "
                    f"study"
                )
    return added


def _compare(results: Results, copy: ResultStore, source: StudyFolder, target: StudyFolder) -> None:
    """Raises StoreError if an attempt is missing in the copy or differs, or if the order differs."""
    copied = group_by_run(copy.all_attempts())
    same_order = [run for run in copied if run in results] == list(results)
    if same_order and all(_has_all(copied[run], attempts) for run, attempts in results.items()):
        return
    raise StoreError(
        f"the results in {target.shown} differ from those of {source.shown}, which may have changed during the "
        f"copy: copy again while no driver trains it. {source.shown} is unchanged"
    )


def _has_all(copied: list[RunResult], expected: list[RunResult]) -> bool:
    numbers = {attempt.attempt for attempt in expected}
    return [attempt for attempt in copied if attempt.attempt in numbers] == expected


# ---------------------------------------------------------------------------- files


def _copy_files(source: Path, target: Path, *, replace: bool) -> None:
    """Copy the files that the target lacks and, with ``replace``, those that differ. A newer checkpoint stays."""
    for file in _files(source):
        copied = target / file.relative_to(source)
        if copied.exists() and not (replace and _is_outdated(copied, file, source)):
            continue
        copied.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as reader, replacing(copied) as writer:
            shutil.copyfileobj(reader, writer)
        status = file.stat()
        os.utime(copied, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_outdated(copied: Path, file: Path, source: Path) -> bool:
    if file.is_relative_to(source / "checkpoints"):
        # The copy may have been trained further. After a jump of the clock, an older checkpoint costs time only.
        return copied.stat().st_mtime < file.stat().st_mtime
    return not filecmp.cmp(copied, file, shallow=False)


def _files(study: Path) -> Iterator[Path]:
    """Hidden files are included: programs of the trainer ``command`` may have some in their checkpoints."""
    yield from (study / name for name in FILES if (study / name).is_file())
    claims = {file for folder in study.glob("checkpoints/*") for file in CheckpointClaim(folder).files}
    for folder in FOLDERS:
        for file in sorted((study / folder).rglob("*")):
            if file.is_file() and file not in claims and not is_temporary(file):
                yield file
