"""What is installed: our entry points, and whether requirements are met. Imports no plugin."""

from __future__ import annotations

import re
from email.message import Message
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions, version
from typing import cast

ENTRY_POINTS = "flops_fit"


def entry_points() -> tuple[list[tuple[EntryPoint, str, str]], list[tuple[str, Exception]]]:
    """Our entry points, each with its distribution's normalized name and ``name version``, in an order that
    never varies; and the distributions whose entry points cannot be read, with the reason.

    Of a distribution that lies on the path twice, the first counts, as for imports.
    """
    found: dict[tuple[str, str, str], tuple[EntryPoint, str, str]] = {}
    broken: list[tuple[str, Exception]] = []
    first: dict[str, Distribution] = {}
    for dist in distributions():
        try:
            points = dist.entry_points.select(group=ENTRY_POINTS)
        except Exception as error:
            if _may_be_about_us(dist):
                broken.append((f"{_name_of(dist)} {dist.version}", error))
            continue
        # A folder that looks like a dist-info but has no name is somebody's half-removed package.
        name = _name_of(dist) if points else None
        if name is None:
            continue
        normalized = re.sub(r"[-_.]+", "-", name).lower()
        if first.setdefault(normalized, dist) is not dist or _is_shadowed(dist, name):
            continue
        for point in points:
            found.setdefault((normalized, point.name, point.value), (point, normalized, f"{name} {dist.version}"))
    return [found[key] for key in sorted(found)], broken


def _name_of(dist: Distribution) -> str | None:
    try:
        metadata: Message | None = cast("Message | None", dist.metadata)
    except Exception:
        return None
    return (metadata["Name"] or None) if metadata is not None else None


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
    except PackageNotFoundError:
        return False
    return found is not None and requirement.specifier.contains(found, prereleases=True)
