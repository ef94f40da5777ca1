"""A study's results in another store: every attempt copied and looked at again, and used from then on."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flops_fit_core.config import PluginConfig, choose_from_table
from flops_fit_core.errors import ConfigError, StoreError
from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.plugins.protocols.stores import group_by_run
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.utilities import replacing
from flops_fit_core.records import RunResult
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.heartbeat import drivers

FILES = ("plan.json", "plugins.json", "fit.json", "model_check.json")
FOLDERS = ("checkpoints", "outbox", "report")
"""What belongs to a study beside its experiment file and its results."""
GLANCE_SECONDS = 5.0
"""For how long a run is claimed to see whether somebody else holds it."""


@dataclass(frozen=True)
class Copied:
    """What :func:`copy_study` has done."""

    runs: int
    attempts: int
    new: int
    """Attempts that the copy did not have before."""
    old_store: str
    new_store: str
    """Qualified names."""
    in_place: bool
    """Whether the study itself uses the new store now."""
    left_behind: tuple[str, ...] = ()
    """Where it does: the files of the old one."""


def copy_study(source: StudyFolder, target: StudyFolder, registry: Registry, store: Any) -> Copied:
    """Copy a study with all attempts at its runs, its plan, checkpoints, uncollected results, fit and report.

    ``target`` becomes a study when all is there: its experiment file is written last. Whatever interrupts this
    leaves the source as it was, and the same call goes on. Where both are one folder, the study uses the new store
    from then on, and the old one's files stay. Claims and ``tune/`` are not copied.

    Args:
        source: The study, which nobody trains meanwhile. Its store may be one that flops-fit no longer has.
        target: A folder that is new, holds an earlier copy, or is the source.
        registry: Where both stores are found.
        store: The copy's ``[store]``: a name, or a table.

    Raises ConfigError for a target that is another study, already what it shall be, or in another folder with its
    results in the very place where the source has them; StoreError where somebody
    trains the study, or an attempt in the target is not equal to the source's.
    """
    table, in_place = source.table(), source.path.resolve() == target.path.resolve()
    new = choose_from_table("store", store, registry, "the copy's store")
    if in_place:
        _refuse_same_store(source, new, registry)
    else:
        _refuse_another_study(source, target, new, registry)
    there = {file.name for file in source.path.glob("results*")}
    with _open_source(source, registry) as old:
        results = old.read()
        with closing(target.open_store(new)) as copy:
            if not in_place:
                _refuse_one_place(source, target, old, copy)
            _refuse_while_trained(source, target, old)
            added = _copy_results(results, copy, target)
            _compare(old.read(), copy, source, target)
    if not in_place:
        _copy_files(source.path, target.path)
    _refuse_drivers(source)  # one that began meanwhile adds to the old store
    target.save_table({**table, "store": _as_table(new)})
    left = tuple(sorted(there)) if in_place else ()
    attempts = sum(map(len, results.values()))
    return Copied(len(results), attempts, added, old.name, new.name, in_place, left)


def _as_table(chosen: PluginConfig[Any]) -> dict[str, Any]:
    return {"name": chosen.name, **chosen.options.model_dump(mode="json", exclude_unset=True)}


# ---------------------------------------------------------------------------- the source

Results = dict[str, list[RunResult]]
"""Run id -> every attempt, first to last; runs in the order in which they were first added."""


@dataclass(frozen=True)
class _Source:
    """The results that are copied."""

    name: str
    """Of their store, qualified."""
    read: Callable[[], Results]
    store: ResultStore


@contextmanager
def _open_source(study: StudyFolder, registry: Registry) -> Iterator[_Source]:
    chosen = study.choice("store", registry)
    with closing(study.open_store(chosen)) as store:
        yield _Source(chosen.name, lambda: group_by_run(store.all_attempts()), store)


# ---------------------------------------------------------------------------- what has to be so before


def _refuse_same_store(study: StudyFolder, new: PluginConfig[Any], registry: Registry) -> None:
    if new == study.choice("store", registry):
        raise ConfigError(
            f"{study.shown} has its results in the store {new.name} already: name another one with --store NAME, "
            f"or another folder"
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
            f"{target.shown} is another study than {source.shown}: choose a new folder, or that of an earlier copy"
        )
    if (there := target.choice("store", registry)) != new:
        raise ConfigError(
            f"{target.shown} is an earlier copy with its results in {_as_table(there)}, not in {_as_table(new)}: "
            f"choose the same store with --store and --set, or another folder"
        )


def _without_store(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != "store"}


def _refuse_one_place(source: StudyFolder, target: StudyFolder, old: _Source, copy: ResultStore) -> None:
    """A server may keep both under one name: nothing would be copied. A claim that is seen in both shows it.

    Claims that stay in one object show nothing; such a store has one driver and is not behind a server.
    """
    if (kept := old.store) is None:
        return
    probe = f"copy:{uuid.uuid4().hex}"
    kept.claim(probe, "source", GLANCE_SECONDS)
    try:
        apart = copy.claim(probe, "copy", GLANCE_SECONDS)
    finally:
        kept.release(probe, "source")
    if not apart:
        raise ConfigError(
            f"{source.shown} and {target.shown} would have the same results, not a copy: their store keeps both "
            f"under one name. Give the copy another (postgres: --set store.study=NAME), or another store (--store)"
        )
    copy.release(probe, "copy")


def _refuse_while_trained(source: StudyFolder, target: StudyFolder, old: _Source) -> None:
    """Drivers on this machine leave a note in the folder; one that is elsewhere may only be seen by its claims."""
    _refuse_drivers(source)
    _refuse_drivers(target)
    kept = old.store
    me = f"copy:{uuid.uuid4().hex}"
    finished = {result.id for result in kept.results() if result.is_finished}
    for run in source.plan().runs:
        if run.id in finished:
            continue
        if not kept.claim(run.id, me, GLANCE_SECONDS):
            raise StoreError(
                f"run {run.id} of {source.shown} is being trained, or was until a minute ago: wait for its "
                f"driver, or stop it and try again in a minute"
            )
        kept.release(run.id, me)


def _refuse_drivers(study: StudyFolder) -> None:
    for driver in drivers(study.path):
        raise StoreError(
            f"{study.shown} is being trained by process {driver.pid} on {driver.host}: wait for its end, or stop "
            f"it (Ctrl-C, SIGTERM); nothing is lost by that. 'flops-fit status {study.shown}' says how far it is"
        )


# ---------------------------------------------------------------------------- results


def _copy_results(results: Results, copy: ResultStore, target: StudyFolder) -> int:
    """Add what the copy lacks. Returns how many attempts that were."""
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
                    f"{target.shown}: its store has another result of run {attempt.id}, attempt "
                    f"{attempt.attempt}, which was left alone. Copy to a folder, or into a store, without results "
                    f"of this study"
                )
    return added


def _compare(results: Results, copy: ResultStore, source: StudyFolder, target: StudyFolder) -> None:
    """Raises StoreError where an attempt is missing in the copy or not equal, or the order is another one."""
    copied = group_by_run(copy.all_attempts())
    same_order = [run for run in copied if run in results] == list(results)
    if same_order and all(_has_all(copied[run], attempts) for run, attempts in results.items()):
        return
    raise StoreError(
        f"the results in {target.shown} are not those of {source.shown}, which may have changed meanwhile: copy "
        f"again while nobody trains it. {source.shown} is as it was"
    )


def _has_all(found: list[RunResult], wanted: list[RunResult]) -> bool:
    numbers = {attempt.attempt for attempt in wanted}
    return [attempt for attempt in found if attempt.attempt in numbers] == wanted


# ---------------------------------------------------------------------------- files


def _copy_files(source: Path, target: Path) -> None:
    """What the target has already, or has of a later date, is left alone."""
    for file in _files(source):
        there = target / file.relative_to(source)
        if there.exists() and there.stat().st_mtime >= file.stat().st_mtime:
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as given, replacing(there) as taken:
            shutil.copyfileobj(given, taken)
        status = file.stat()
        os.utime(there, ns=(status.st_atime_ns, status.st_mtime_ns))


def _files(study: Path) -> Iterator[Path]:
    yield from (study / name for name in FILES if (study / name).is_file())
    for folder in FOLDERS:
        found = (study / folder).rglob("*")
        yield from (file for file in sorted(found) if file.is_file() and not file.name.startswith("."))
