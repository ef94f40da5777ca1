"""Installed plugins: entry points of the group ``flops_fit``, and whether requirements are met.

Imports no plugin.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flops_fit_core import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ENTRY_POINTS = "flops_fit"
BUNDLED = "flops-fit"
"""The distribution of the core and of the bundled plugins."""


@dataclass(frozen=True)
class Installed:
    """An entry point of a plugin, and its distribution."""

    point: EntryPoint
    dist: Distribution
    name: str
    """Normalized name of the distribution."""
    source: str
    """Name and version of the distribution, for messages."""

    @property
    def bundled(self) -> bool:
        return self.name == BUNDLED

    def version_conflict(self) -> str | None:
        """The reason why the distribution's metadata excludes this version of flops-fit; None if it does not."""
        for text in [] if self.bundled else self.dist.requires or []:
            requirement = _unconditional(text)
            if requirement is None or normalized(requirement.name) != BUNDLED:
                continue
            if not requirement.specifier.contains(__version__, prereleases=True):
                return (
                    f"it needs {BUNDLED}{requirement.specifier}, and this is {BUNDLED} {__version__}: "
                    f"pip install '{BUNDLED}{requirement.specifier}', or another version of "
                    f"{self.source.split(' ')[0]}"
                )
        return None

    def missing(self) -> list[str]:
        """Requirements of the distribution that are not installed."""
        texts = [text for text in self.dist.requires or [] if _unconditional(text) is not None]
        return [] if self.bundled else [text for text in texts if not is_installed(text)]


def _unconditional(text: str) -> Requirement | None:
    """The requirement, if its marker applies to this environment without any extra."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    return requirement if applies else None


_BACKPORT = (FileNotFoundError, KeyError)
"""Exceptions of ``importlib.metadata`` for a half-removed package, if any code has imported the package
``importlib_metadata``, which replaces Python's finders by different ones."""


def entry_points(excluded: Sequence[str] = ()) -> tuple[list[Installed], list[tuple[str, Exception]]]:
    """The entry points of plugins, sorted, and the distributions that cannot be read, with the exception.

    If a distribution is on the path twice, the first counts, as for imports. Folders in ``excluded`` are not
    searched.
    """
    points_by_key: dict[tuple[str, str, str], Installed] = {}
    broken: list[tuple[str, Exception]] = []
    first: dict[str, Distribution] = {}
    for dist in distributions(path=[entry for entry in sys.path if entry not in excluded]):
        try:
            points = dist.entry_points.select(group=ENTRY_POINTS)
        except Exception as error:
            if _may_have_plugins(dist):
                broken.append((_label(dist), error))
            continue
        try:
            name = _name_of(dist) if points else None
        except UnicodeDecodeError as error:
            broken.append((_label(dist), error))
            continue
        if name is None:  # a folder that looks like a dist-info but has no name is a half-removed package
            continue
        key = normalized(name)
        if first.setdefault(key, dist) is not dist or _is_shadowed(dist, name):
            continue
        for point in points:
            installed = Installed(point, dist, key, _source(dist, name))
            points_by_key.setdefault((key, point.name, point.value), installed)
    return [points_by_key[key] for key in sorted(points_by_key)], broken


def normalized(name: str) -> str:
    """A distribution's name, normalized for comparison as the packaging standards require."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _name_of(dist: Distribution) -> str | None:
    """The name in the metadata, or None. Raises UnicodeDecodeError for metadata in another encoding than UTF-8."""
    try:
        metadata: Message | None = cast("Message | None", dist.metadata)
        return (metadata["Name"] or None) if metadata is not None else None
    except UnicodeDecodeError:
        raise
    except Exception:
        return None


def _source(dist: Distribution, name: str) -> str:
    """Name and version of a distribution; "unknown-version" if its metadata has none."""
    try:
        version_text: str | None = dist.version
    except _BACKPORT:
        version_text = None
    return f"{name} {version_text or 'unknown-version'}"


def _label(dist: Distribution) -> str:
    """Name of a distribution that cannot be read, for messages; its folder if it has none."""
    with contextlib.suppress(UnicodeDecodeError):
        if name := _name_of(dist):
            return _source(dist, name)
    return Path(getattr(dist, "_path", "a distribution")).name


def _may_have_plugins(dist: Distribution) -> bool:
    try:
        return f"[{ENTRY_POINTS}]" in (dist.read_text("entry_points.txt") or "")
    except Exception:
        return True


def _is_shadowed(dist: Distribution, name: str) -> bool:
    """Whether another version of the same distribution comes earlier on the path.

    Called only for distributions with plugins, because reading the metadata of every distribution is slow.
    """
    try:
        return distribution(name).locate_file("") != dist.locate_file("")
    except (PackageNotFoundError, *_BACKPORT):  # its metadata has another name than its folder
        return False


def is_installed(text: str) -> bool:
    """Whether a requirement in PEP 508 form is met in this environment, without importing the package."""
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        installed: str | None = version(requirement.name)  # None for a half-removed package
    except (PackageNotFoundError, *_BACKPORT):
        return False
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)
