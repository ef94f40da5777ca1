"""Consent to run the code that a study's folder names, recorded per user as direnv does.

A record lies in the user's data folder (``$XDG_DATA_HOME/flops-fit/trust`` on Linux), not in the study. It has
the SHA-256 of every file and the text of every option that names code. After any change, training from the folder
needs consent again. Commands that only read a study need no consent, because they run none of this code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flops_fit_core.config import Experiment, PluginConfig
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.code_files import has_module
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.utilities import replacing
from flops_fit_core.records import Record, RunSpec, SweepPlan
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.named_code import (
    NamedCode,
    StudyContent,
    code_of_experiment,
    code_of_runs,
    code_of_store,
    named_code,
    readable_plan,
)
from flops_fit_core.study.same_experiment import experiment_table

SHOWN = 12
"""Lines of named code in an error message."""

logger = logging.getLogger("flops_fit")


class TrustRecord(Record):
    """The code of one folder that the user allows to run."""

    folder: str
    key: str
    """SHA-256 of the folder's path, and of the modules, options and files below."""
    modules: dict[str, str]
    options: tuple[str, ...]
    files: dict[str, str]
    paths: tuple[str, ...]
    """Folders from which the modules are imported."""


class UntrustedCode(ConfigError):
    """Training from a folder needs the user's consent.

    Args:
        folder: The study.
        code: The code that it names, without the modules that the user named.
        earlier: The user's earlier consent for this folder.
    """

    def __init__(self, folder: StudyFolder, code: NamedCode, earlier: TrustRecord | None) -> None:
        self.code = code
        lines = _changes(code, earlier) if earlier is not None else code.lines()
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        listed = "\n".join(f"  {line}" for line in [*lines[:SHOWN], *more])
        modules = "".join(f" -p {module}" for module in code.modules.values())
        plugins = f"\nOr name its plugins: {modules.strip()}" if modules and not code.options else ""
        reason = "would run with your rights" if earlier is None else "has changed since you allowed it to run"
        condition = "you trust this code" if earlier is None else "the change is yours"
        super().__init__(
            f"{folder.shown} names code that {reason}:\n{listed}\n"
            f"If {condition}, type: flops-fit trust {folder.shown}{plugins}\n"
            f"Your own experiment file needs no permission: flops-fit run EXPERIMENT --out {folder.shown}{modules}"
        )


def _changes(code: NamedCode, earlier: TrustRecord) -> list[str]:
    lines = [line for line in code.options if line not in earlier.options]
    modules = [
        f"plugin module {item!r}" for name, item in code.modules.items() if earlier.modules.get(name) != item
    ]
    files = [f"file {file!r}" for file, digest in code.files.items() if earlier.files.get(file) != digest]
    removed = [line for line in earlier.options if line not in code.options]
    removed += [f"file {file!r}" for file in earlier.files if file not in code.files]
    return [*modules, *lines, *files, *(f"no longer: {line}" for line in removed)] or code.lines()


# ---------------------------------------------------------------------------- checks


def check_consent(folder: StudyFolder, registry: Registry, content: StudyContent) -> None:
    """Raises UntrustedCode if training from the folder would run code without the user's consent.

    Consent is a plugin that the user has loaded into ``registry``, or a record of this code. Raises ConfigError
    for a plugin of the study that is not loaded, although its code is allowed to run.

    ``content`` is the content that is trained. Another user may change the folder after it was read.
    """
    code = missing_consent(folder, content, registry)
    if not code:
        return
    if trusted(folder, content, registry) is None:
        raise UntrustedCode(folder, code, read_record(folder))
    for name, module in code.modules.items():
        raise ConfigError(folder.needs_plugin(name, module))


def missing_consent(folder: StudyFolder, content: StudyContent, registry: Registry) -> NamedCode:
    """The code that the folder names, without the plugins that the user has loaded."""
    paths = module_places(folder, registry.setup.paths)
    return named_code(folder, content, registry, loaded=registry.plugins, paths=paths)


def recorded_store(folder: StudyFolder, registry: Registry) -> PluginConfig[Any]:
    """The store of the folder's experiment.

    Raises ConfigError if it is on a server that only the folder names: to connect would send your password there.
    """
    chosen = folder.choice("store", registry)
    code = code_of_store(chosen.name, chosen.options.model_dump(mode="json", exclude_unset=True), registry)
    record = read_record(folder)
    missing = [line for line in code.options if record is None or line not in record.options]
    if missing:
        raise ConfigError(
            f"{folder.shown} has its results on a server that you have not allowed: {'; '.join(missing)}. If you "
            f"trust it, type: flops-fit trust {folder.shown}"
        )
    return chosen


def replaced_runs(folder: StudyFolder, experiment: Experiment, registry: Registry) -> dict[str, RunSpec]:
    """The runs of the folder's plan that replace runs of the user's own experiment (``retry``), by the old id.

    Raises UntrustedCode if they name other code than the experiment, without the user's consent.
    """
    plan = readable_plan(folder)
    if plan is None or not plan.replaced:
        return {}
    allowed = code_of_experiment(experiment, registry).options
    code = code_of_runs(plan.replaced.values(), registry)
    if set(code.options) <= set(allowed):
        return plan.replaced
    if trusted(folder, StudyContent.read(folder, plan), registry) is not None:
        return plan.replaced
    raise UntrustedCode(folder, code, None)


# ---------------------------------------------------------------------------- records


def trusted(folder: StudyFolder, content: StudyContent, registry: Registry) -> TrustRecord | None:
    """The user's record, if it allows exactly the code that the folder names now."""
    record = read_record(folder)
    if record is None:
        return None
    code = named_code(folder, content, registry, paths=record.paths)
    return record if record.key == _key(folder, code) else None


def trust(folder: StudyFolder, code: NamedCode, paths: Sequence[str]) -> TrustRecord:
    """Record that the user allows this code, which the user has seen. Raises OSError.

    Args:
        folder: The study.
        code: All code that it names, independent of the plugins that this command has loaded.
        paths: Folders from which the study's modules are imported.
    """
    record = TrustRecord(
        folder=str(folder.path.resolve()),
        key=_key(folder, code),
        modules=dict(code.modules),
        options=code.options,
        files=dict(code.files),
        paths=tuple(paths),
    )
    file = _record_file(folder)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(file) as writer:
        if os.name != "nt":
            os.fchmod(writer.fileno(), 0o600)
        writer.write(record.model_dump_json(indent=1).encode())
    return record


def consent_to_copy(folder: StudyFolder, content: StudyContent, registry: Registry) -> tuple[str, ...] | None:
    """The import paths of the user's consent for all code of the folder, which covers a copy of it; None without.

    A folder that names no code needs no consent, but its copy may have a new store.
    """
    if (record := trusted(folder, content, registry)) is not None:
        return record.paths
    return None if named_code(folder, content, registry) else ()


def module_places(folder: StudyFolder, paths: Sequence[str]) -> tuple[str, ...]:
    """The folders, of ``paths``, an earlier record and the working directory, that have a module of the study."""
    record = read_record(folder)
    places = dict.fromkeys([*paths, *(record.paths if record is not None else ()), str(Path.cwd())])
    tops = {module.partition(".")[0] for module in folder.setup().modules.values()}
    return tuple(place for place in places if any(has_module(Path(place), top) for top in tops))


def revoke(folder: StudyFolder) -> bool:
    """Delete the user's record. Returns whether there was a record."""
    file = _record_file(folder)
    existed = file.exists()
    file.unlink(missing_ok=True)
    return existed


def read_record(folder: StudyFolder) -> TrustRecord | None:
    """The user's record; None if there is none, or if another user has written it."""
    file = _record_file(folder)
    try:
        if hasattr(os, "getuid") and file.stat().st_uid != os.getuid():
            return None
        return TrustRecord.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def save_study(folder: StudyFolder, experiment: Experiment, plan: SweepPlan, registry: Registry) -> None:
    """Write the study's experiment, plan and plugins, and record consent for the code that they name.

    The caller has checked that the user gave the code, or consented to it.
    """
    folder.save(experiment, plan, registry.setup)
    # Not read from the folder again: another user may have changed it since.
    content = StudyContent(experiment_table(experiment), registry.setup.modules, plan)
    record_consent(folder, content, registry, registry.setup.paths)


def record_consent(folder: StudyFolder, content: StudyContent, registry: Registry, paths: Sequence[str]) -> None:
    """Record consent for the code that the user gave. If it cannot be stored, a warning is logged."""
    try:
        if code := named_code(folder, content, registry, paths=paths):
            trust(folder, code, paths)
        else:
            revoke(folder)
    except (OSError, ValueError) as error:  # ValueError: a path that is not UTF-8
        logger.warning("flops-fit run %s will ask again before it runs your code: %s", folder.shown, error)


def _key(folder: StudyFolder, code: NamedCode) -> str:
    content: list[str | Mapping[str, str] | Sequence[str]] = [
        str(folder.path.resolve()),
        dict(code.modules),
        list(code.options),
        dict(code.files),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _record_file(folder: StudyFolder) -> Path:
    from platformdirs import user_data_path

    name = hashlib.sha256(str(folder.path.resolve()).encode(errors="surrogateescape")).hexdigest()
    return user_data_path("flops-fit", appauthor=False) / "trust" / f"{name}.json"
