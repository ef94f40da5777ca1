"""The conformance kit for stores detects a ``check`` or a ``repair`` that breaks its contract."""

from __future__ import annotations

import pytest
from conftest import Failures

STORE = '''
import hashlib

from flops_fit_core import RunResult, StoreError
from flops_fit_core.plugins import FileFinding, ResultStore, StoreRepair, StoreSpec, hookimpl
from flops_fit_core.testing import StoreConformance


class Damage(Exception):
    pass


def digest(lines):
    return hashlib.sha256("\\n".join(lines).encode()).hexdigest()


def read(path):
    """The lines of a file, whose first line has the SHA-256 of the others."""
    first, *lines = path.read_text().split("\\n") if path.exists() else [digest([])]
    if first != digest(lines):
        raise Damage("its content differs from its first line")
    return lines


def write(path, lines):
    path.write_text("\\n".join([digest(lines), *lines]))


class Store(ResultStore):
    """Writes every result again with each result. For one process."""

    def __init__(self, folder):
        self.path = folder / "results.lines"
        try:
            lines = read(self.path)
        except Damage as damage:
            UNREADABLE
        results = [RunResult.model_validate_json(line) for line in lines]
        self.records = {(result.id, result.attempt): result for result in results}

    def add(self, result):
        RunResult.model_validate(result.model_dump())
        self.records[result.id, result.attempt] = result
        write(self.path, [record.model_dump_json() for record in self.records.values()])

    def all_attempts(self):
        return list(self.records.values())


def check(options, folder):
    path = folder / "results.lines"
    if not path.exists():
        return MISSING
    try:
        read(path)
    except Damage as damage:
        DAMAGED
    return INTACT


def repair(options, folder):
    path = folder / "results.lines"
    try:
        lines = read(path)
    except Damage:
        lines = [line for line in path.read_text().split("\\n")[1:] if line.endswith("}")]
        lines = [line for line in lines if is_valid(line)]
        ASIDE
        WRITE
        return StoreRepair(kept=KEPT, moved=("results.lines.damaged",))
    WHOLE
    return StoreRepair(kept=len(lines))


def is_valid(line):
    try:
        return bool(RunResult.model_validate_json(line))
    except ValueError:
        return False


class Plugin:
    @hookimpl
    def flops_fit_stores(self):
        spec = dict(file="results.lines", check=check, repair=repair)
        yield StoreSpec(name="broken", build=lambda options, folder: Store(folder), **spec)


class TestBroken(StoreConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
    shared = False
    moment = 0.02
'''
SOUND = {
    "UNREADABLE": "raise StoreError(f'{self.path}: {damage}') from None",
    "MISSING": "[]",
    "DAMAGED": "return [FileFinding(file=path.name, state='damaged', text=str(damage))]",
    "INTACT": "[FileFinding(file=path.name, state='intact')]",
    "ASIDE": "path.rename(folder / 'results.lines.damaged')",
    "WRITE": "write(path, lines)",
    "KEPT": "len(lines)",
    "WHOLE": "pass",
}
INTACT = "test_an_intact_store_passes_its_check"
ABSENT = "test_a_folder_without_a_store_has_no_findings"
UNCHANGED = "test_a_repair_of_an_intact_store_changes_nothing"
TRUNCATED = "test_a_truncated_file_is_reported_and_never_read_silently"
REPAIRED = "test_a_repair_keeps_intact_results_and_the_damaged_file"
BROKEN = {
    "reads a damaged file as an empty store": ({"UNREADABLE": "lines = []"}, {TRUNCATED}),
    "raises another exception": ({"UNREADABLE": "raise"}, {TRUNCATED}),
    "reports no damage": ({"DAMAGED": "pass"}, {TRUNCATED}),
    "raises an exception for damage": ({"DAMAGED": "raise"}, {TRUNCATED}),
    "deletes a damaged file when it is checked": (
        {"DAMAGED": "path.unlink(); return [FileFinding(file=path.name, state='damaged')]"},
        {TRUNCATED},
    ),
    "reports damage of an intact file": (
        {"INTACT": "[FileFinding(file=path.name, state='damaged')]"},
        {INTACT, REPAIRED},
    ),
    "reports an unchecked file": ({"INTACT": "[FileFinding(file=path.name, state='unchecked')]"}, {INTACT}),
    "has no finding for an intact file": ({"INTACT": "[]"}, {INTACT, REPAIRED}),
    "writes a note when it is checked": (
        {"INTACT": "(folder / 'checked').write_text('yes') and [FileFinding(file=path.name, state='intact')]"},
        {INTACT},
    ),
    "reports a file that does not exist": (
        {"MISSING": "[FileFinding(file=path.name, state='damaged', text='missing')]"},
        {ABSENT},
    ),
    "moves an intact file": ({"WHOLE": "path.rename(folder / 'results.lines.damaged')"}, {UNCHANGED}),
    "writes an intact file again": ({"WHOLE": "write(path, lines[:-1])"}, {UNCHANGED}),
    "deletes the damaged file": ({"ASIDE": "path.unlink()"}, {REPAIRED}),
    "leaves the damaged file": ({"ASIDE": "pass", "WRITE": "pass"}, {REPAIRED}),
    "loses a result": ({"WRITE": "write(path, lines[1:])"}, {REPAIRED}),
    "states another number": ({"KEPT": "len(lines) + 1"}, {REPAIRED}),
}
"""Name -> (changes of SOUND, checks that must fail)."""


@pytest.mark.slow
def test_stores_with_a_broken_check_fail_the_kit_and_a_sound_store_passes(failures: Failures) -> None:
    failed = failures(STORE, SOUND, {"sound": {}, **{name: changes for name, (changes, _) in BROKEN.items()}})
    assert failed["sound"] == set()
    assert {name: checks - failed[name] for name, (_, checks) in BROKEN.items()} == {
        name: set() for name in BROKEN
    }
