"""Check every file of a study, and repair its stores. Needs no plugin modules of the study and no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flops_fit_core.config import PluginConfig, build_store, choose_from_table
from flops_fit_core.errors import ConfigError, FlopsFitError, StoreError
from flops_fit_core.plugins.checked_json import read_checked
from flops_fit_core.plugins.outbox import Outbox
from flops_fit_core.plugins.protocols.store_checks import FileFinding, StoreRepair
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.specs import StoreSpec
from flops_fit_core.plugins.utilities import list_files
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.folder_check import MISSING, check_folder
from flops_fit_core.study.heartbeat import live_drivers
from flops_fit_core.training.checkpoint_files import verify_checkpoint


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
    findings += [*_check_chosen_store(study, registry), *_check_files(study)]
    if all(finding.text == MISSING for finding in findings):
        raise ConfigError(f"{study.path} has no file of a study")
    return findings


def repair_stores(study: StudyFolder, registry: Registry) -> list[RepairedStore]:
    """Repair every damaged store of a study. Empty if no store is damaged.

    Raises StoreError if a driver trains the study, or if a damaged store cannot repair.
    """
    damaged = [chosen for chosen in _stores(study, registry) if _is_damaged(_check_store(study, chosen))]
    for driver in live_drivers(study.path) if damaged else ():
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
    except FlopsFitError:
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
    except ConfigError:
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
    except ConfigError:
        planned = []
    with closing(build_store(chosen, study.path)) as store:
        finished = {result.id for result in store.results() if result.is_finished}
    return RepairedStore(chosen.name, outcome, tuple(run for run in planned if run not in finished))


# ---------------------------------------------------------------------------- other files


def _check_files(study: StudyFolder) -> Iterator[FileFinding]:
    """The files of the folder that are no store's."""
    yield from check_folder(study.path)
    for path in list_files(study.path, "checkpoints/*/*.pt"):
        advice = "delete it: its runs are trained from an earlier checkpoint, or from the beginning"
        damage = verify_checkpoint(path)
        if damage is None or path.exists():  # otherwise a driver has deleted it meanwhile
            yield _finding(study, path, damage, advice)
    for entry in Outbox(study.path).entries():
        yield _finding(study, entry.file, entry.damage, "delete it: its run is trained again")
    for folder, advice in _OTHER_FOLDERS.items():
        for path in list_files(study.path / folder, "[!.]*.json"):
            yield _finding(study, path, _damage_of_json(path), advice)


_OTHER_FOLDERS = {
    "drivers": "delete it if no driver trains the study",
    "jobs": "delete it if no job of the study is queued or running",
}


def _finding(study: StudyFolder, path: Path, damage: str | None, advice: str) -> FileFinding:
    name = path.relative_to(study.path).as_posix()
    if not damage:
        return FileFinding(file=name, state="intact")
    return FileFinding(file=name, state="damaged", text=damage, advice=advice)


def _damage_of_json(path: Path) -> str:
    """Why a JSON file is damaged; empty if it is not, or if its owner has deleted it meanwhile."""
    try:
        read_checked(path)
    except ConfigError as error:
        return str(error) if path.exists() else ""
    return ""
