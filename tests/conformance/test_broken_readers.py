"""The conformance kit for readers detects readers that break their contract."""

from __future__ import annotations

from conftest import Failures

READER = """
import json
import os
import pickle

from flops_fit_core import FitError
from flops_fit_core.plugins import LoggedRun, ReaderSpec, RunReader, find_run_files, hookimpl
from flops_fit_core.testing import ReaderConformance

class Broken(RunReader):
    calls = 0

    def read(self, path):
        Broken.calls += 1
        BEFORE
        files = FILES
        for number, file in enumerate(files):
            try:
                lines = [json.loads(line) for line in file.read_text().splitlines()]
            except (ERRORS) as error:
                raise FitError(f"{file} is damaged: {error}") from None
            lines = [line for line in lines if isinstance(line, dict)]
            points = [{key: CELL for key, value in line.items()} for line in lines]
            yield LoggedRun(id=ID, history=HISTORY, config={"n_params": PARAMS})

class Plugin:
    @hookimpl
    def flops_fit_readers(self):
        yield ReaderSpec(name="broken", build=lambda options: Broken(), recognises=lambda path: RECOGNISES)

class TestBroken(ReaderConformance):
    name = "broken"
    plugins = {"mine": Plugin()}

    def write(self, folder):
        for name in ("first", "second"):
            (folder / name).mkdir()
            lines = [
                {"step": step, "tokens": step * 1e6, "train/loss": 2.0, "eval/loss": 5 - step / 100}
                for step in (50, 100)
            ]
            (folder / name / "log.lines").write_text("\\n".join(map(json.dumps, lines)))
        return {"first": (1e8, 1e8, 4.0), "second": (2e8, 1e8, 4.0)}
"""


def test_each_broken_reader_is_caught_for_its_fault(failures: Failures) -> None:
    sound = {
        "BEFORE": "pass",
        "FILES": "list(find_run_files(path, 'log.lines'))",
        "ERRORS": "ValueError, RecursionError",
        "CELL": "value",
        "ID": "file.parent.name",
        "HISTORY": "points",
        "PARAMS": "1e8 * (number + 1)",
        "RECOGNISES": "any(find_run_files(path, 'log.lines'))",
    }
    numbers, again = "test_a_fit_reads_the_right_numbers", "test_reading_again_returns_the_same"
    failed = failures(
        READER,
        sound,
        {
            "sound": {},
            "returns the training loss as a held-out loss": {
                "HISTORY": "[{**point, 'eval/loss': point.get('train/loss')} for point in points]"
            },
            "drops the last evaluation": {"HISTORY": "points[:-1]"},
            "counts N in millions": {"PARAMS": "1e2 * (number + 1)"},
            "gives all runs one id": {"ID": "'run'"},
            "recognises every folder": {"RECOGNISES": "path.is_dir()"},
            "recognises nothing": {"RECOGNISES": "False"},
            "depends on earlier calls": {"ID": "f'{file.parent.name} {Broken.calls}'"},
            "fails on damage": {"ERRORS": "KeyError"},
            "writes a cache": {"BEFORE": "(path / 'cache').write_text('x')"},
            "loads pickles": {
                "BEFORE": "[pickle.loads(file.read_bytes()) for file in path.rglob('training_args.bin')]"
            },
            "follows links": {
                "FILES": "[type(path)(folder, 'log.lines') for folder, _, files "
                "in os.walk(path, followlinks=True) if 'log.lines' in files and folder.count('loop') < 2]"
            },
        },
    )
    assert failed.pop("gives all runs one id") == {numbers, again}
    assert failed.pop("depends on earlier calls") >= {numbers, again}
    assert failed == {
        "sound": set(),
        "returns the training loss as a held-out loss": {numbers},
        "drops the last evaluation": {numbers},
        "counts N in millions": {numbers},
        "recognises every folder": {"test_it_recognises_nothing_else"},
        "recognises nothing": {"test_it_recognises_its_logs"},
        "fails on damage": {"test_damage_is_a_message"},
        "writes a cache": {"test_it_writes_nothing"},
        "loads pickles": {"test_it_unpickles_nothing"},
        "follows links": {"test_links_to_folders_are_not_followed"},
    }
