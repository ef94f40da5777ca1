"""What is installed: our entry points, and whether requirements are met. Imports no plugin."""

from __future__ import annotations

import re
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
"""The distribution of the core and of the plugins that come with it."""


@dataclass(frozen=True)
class Installed:
    """One of our entry points, and the distribution that has it."""

    point: EntryPoint
    dist: Distribution
    name: str
    """Of the distribution, normalized."""
    source: str
    """Its name and version, for people."""

    @property
    def bundled(self) -> bool:
        return self.name == BUNDLED

    def unfit(self) -> str | None:
        """Why it cannot work with this flops-fit by its own metadata; None where that says nothing against it."""
        for text in [] if self.bundled else self.dist.requires or []:
            requirement = _unconditional(text)
            if requirement is None or normalized(requirement.name) != BUNDLED:
                continue
            if not requirement.specifier.contains(__version__, prereleases=True):
                return (
                    f"it needs {BUNDLED}{requirement.specifier}, and this is {BUNDLED} {__version__}: "
                    f"pip install '{BUNDLED}{requirement.specifier}', or another version of "
                    f"{self.source.rpartition(' ')[0]}"
                )
        return None

    def missing(self) -> list[str]:
        """What it depends on by its metadata and is not installed."""
        texts = [text for text in self.dist.requires or [] if _unconditional(text) is not None]
        return [] if self.bundled else [text for text in texts if not is_installed(text)]


def _unconditional(text: str) -> Requirement | None:
    """The requirement, where it holds here without any extra."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    holds = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    return requirement if holds else None


_BACKPORT = (FileNotFoundError, KeyError)
"""What ``importlib.metadata`` raises for a half-removed package once anything has imported the package
``importlib_metadata``, which puts finders of its own in the place of Python's."""


def entry_points() -> tuple[list[Installed], list[tuple[str, Exception]]]:
    """Our entry points, in an order that never varies; and the distributions that cannot be read, with the
    reason.

    Of a distribution that lies on the path twice, the first counts, as for imports.
    """
    found: dict[tuple[str, str, str], Installed] = {}
    broken: list[tuple[str, Exception]] = []
    first: dict[str, Distribution] = {}
    for dist in distributions():
        try:
            points = dist.entry_points.select(group=ENTRY_POINTS)
        except Exception as error:
            if _may_be_about_us(dist):
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
            one = Installed(point, dist, key, f"{name} {dist.version}")
            found.setdefault((key, point.name, point.value), one)
    return [found[key] for key in sorted(found)], broken


def normalized(name: str) -> str:
    """A distribution's name as the packaging standards compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _name_of(dist: Distribution) -> str | None:
    """None where it has none. Raises UnicodeDecodeError for metadata in another encoding than UTF-8."""
    try:
        metadata: Message | None = cast("Message | None", dist.metadata)
        return (metadata["Name"] or None) if metadata is not None else None
    except UnicodeDecodeError:
        raise
    except Exception:
        return None


def _label(dist: Distribution) -> str:
    """What to call a distribution that cannot be read."""
    try:
        return f"{_name_of(dist)} {dist.version}"
    except UnicodeDecodeError:
        return Path(getattr(dist, "_path", "a distribution")).name


def _may_be_about_us(dist: Distribution) -> bool:
    try:
        return f"[{ENTRY_POINTS}]" in (dist.read_text("entry_points.txt") or "")
    except Exception:
        return True


def _is_shadowed(dist: Distribution, name: str) -> bool:
    """Whether another version of the same distribution comes earlier on the path. Metadata is read of ours
    only: reading that of every installed distribution would take longer than all of the rest."""
    return distribution(name).locate_file("") != dist.locate_file("")


def is_installed(text: str) -> bool:
    """Whether a requirement in PEP 508 form is met here, without importing what it names."""
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        found: str | None = version(requirement.name)  # None of a half-removed package
    except (PackageNotFoundError, *_BACKPORT):
        return False
    return found is not None and requirement.specifier.contains(found, prereleases=True)
