"""Results of a study in stores that it no longer uses.

A study may change its store without training runs again. This module finds the results in the recorded store and
in every store file of the folder; the next training copies them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from flops_fit_core.config import PluginConfig
from flops_fit_core.errors import ConfigError, DamagedFile, StoreError, UserError
from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.plugins.protocols.stores import group_by_run, latest_attempts
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import RunResult
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.heartbeat import live_drivers
from flops_fit_core.study.trust import recorded_store


@dataclass(frozen=True)
class OtherStore:
    """Results in another store of the study that are missing in its present store."""

    name: str
    """The store's file in the folder, or its qualified name."""
    attempts: tuple[RunResult, ...]
    """The attempts to add to the present store, in order."""

    @property
    def latest(self) -> dict[str, RunResult]:
        """The attempt at each run that counts, by run id."""
        return {result.id: result for result in latest_attempts(self.attempts)}


def find_other_stores(
    folder: StudyFolder, chosen: PluginConfig[Any], registry: Registry, stored: dict[str, RunResult]
) -> list[OtherStore]:
    """The study's other stores with results that the present store lacks.

    Args:
        folder: The study's folder.
        chosen: The present store.
        registry: Where other stores are looked up.
        stored: The present store's latest results, by run id.

    Raises ConfigError or StoreError for a store that cannot be read, because its runs would be trained again.
    """
    stored, stores = dict(stored), []
    for name, other in _candidates(folder, chosen, registry):
        try:
            with closing(folder.open_store(other)) as store:
                missing = OtherStore(name, tuple(_missing(store, stored)))
        except UserError as error:
            raise StoreError(
                f"{folder.shown} may have results in {name}, which cannot be read. With the store {chosen.name}, "
                f"their runs would be trained again: {error}"
            ) from None
        if missing.attempts:
            stored |= missing.latest
            stores.append(missing)
    return stores


def check_no_other_driver(folder: StudyFolder, chosen: PluginConfig[Any], registry: Registry) -> None:
    """Raises StoreError if a driver trains the study with another store: both would train the same runs."""
    if not any(name for name, _ in _recorded(folder, chosen, registry)):
        return
    for driver in live_drivers(folder.path):
        raise StoreError(
            f"{folder.shown} is being trained by process {driver.pid} on {driver.host} with another store than "
            f"{chosen.name}: wait until it ends, or stop it (no result is lost)"
        )


def check_claims(store: ResultStore) -> None:
    """Raises StoreError for a store that is shared between machines but has no claims that other drivers see."""
    if store.shared_between_machines and not store.shares_claims:
        raise StoreError(
            f"the store {type(store).__name__} sets shared_between_machines, but no other driver sees its claims: "
            f"implement claim, renew and release, or set shared_between_machines = False"
        )


def check_single_driver(folder: StudyFolder, store: ResultStore) -> None:
    """Raises StoreError if other processes cannot see the store's claims and a driver trains the study."""
    if store.shares_claims:
        return
    for driver in live_drivers(folder.path):
        raise StoreError(
            f"{folder.shown} is being trained by process {driver.pid} on {driver.host}, and its store "
            f"({type(store).__name__}) serves one driver at a time: wait until it ends, or stop it (no result is "
            f"lost). A store for several drivers implements claim, renew and release"
        )


def _candidates(
    folder: StudyFolder, chosen: PluginConfig[Any], registry: Registry
) -> Iterator[tuple[str, PluginConfig[Any]]]:
    """The recorded store, and the stores with a file in the folder, each with its name."""
    names = {chosen.name}
    for name, other in _recorded(folder, chosen, registry):
        names.add(other.name)
        if other.spec.file is None or (folder.path / other.spec.file).exists():
            yield name, other
    for offer in registry.offers("store"):
        if offer.spec.file is None or offer.name in names or not (folder.path / offer.spec.file).exists():
            continue
        if missing := offer.missing():
            raise ConfigError(
                f"{folder.path / offer.spec.file} may have results: {offer.install_message(missing)}"
            )
        yield offer.spec.file, PluginConfig(offer, offer.spec.options())


def _recorded(
    folder: StudyFolder, chosen: PluginConfig[Any], registry: Registry
) -> Iterator[tuple[str, PluginConfig[Any]]]:
    """The store of the folder's experiment, if it differs from the chosen store."""
    if not folder.experiment_file.exists():
        return
    try:
        object_name = folder.python_objects.get("store")
    except DamagedFile:  # replaced by the next training; stores with a file in the folder are found without it
        return
    if object_name is not None and chosen.name != object_name:
        raise ConfigError(
            f"{folder.shown} has its results in a store that was passed to find_optimal as a Python object: pass "
            f"it as store= again, or choose another folder"
        )
    if object_name is not None:
        return
    recorded = folder.choice("store", registry)
    # The user has given the chosen store. Any other one needs consent, if it is on a server.
    if recorded != chosen and not (recorded.name == chosen.name and chosen.spec.file is not None):
        yield recorded.spec.file or f"the store {recorded.name}", recorded_store(folder, registry)


def _missing(store: ResultStore, stored: dict[str, RunResult]) -> Iterator[RunResult]:
    """All attempts at runs that are not stored; for a run that is stored as failed, a finished result."""
    for attempts in group_by_run(store.all_attempts()).values():
        present = stored.get(attempts[0].id)
        result = next(iter(latest_attempts(attempts)), None)
        if present is None:
            yield from attempts
        elif result is not None and result.is_finished and not present.is_finished:
            yield result.model_copy(update={"attempt": max(result.attempt, present.attempt + 1)})
