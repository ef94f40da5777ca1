"""This version opens the studies of every version in ``tests/fixtures/studies``, and its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from make_study_fixtures import FIXTURES, READING, STORES, make_study, summarise

FOLDERS = sorted(file.parent for file in FIXTURES.glob("*/*/expected.json"))
NAMES = [
    *(f"this version/{store}" for store in STORES),
    *(str(folder.relative_to(FIXTURES)) for folder in FOLDERS),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_study_opens_with_its_results_and_its_fit(name: str, tmp_path: Path, call) -> None:
    version, _, store = name.partition("/")
    study = tmp_path / "study"
    if version == "this version":
        make_study(study, store)
    else:
        shutil.copytree(FIXTURES / name, study)
    answers = {}
    for command, *words in READING:
        status, output, error = call(command, study, *words)
        assert status == 0, error
        answers[command] = json.loads(output)
    expected, opened = json.loads((study / "expected.json").read_text()), summarise(answers)
    assert opened["runs"] == expected["runs"]
    assert opened["states"] == expected["states"]
    assert opened["exponents"] == pytest.approx(expected["exponents"], rel=1e-6)


@pytest.mark.parametrize("name", NAMES[len(STORES) :] or ["this version/sqlite"])
def test_a_finished_study_has_nothing_to_train(name: str, tmp_path: Path, call) -> None:
    study = tmp_path / "study"
    if name.startswith("this version"):
        make_study(study, "sqlite")
    else:
        shutil.copytree(FIXTURES / name, study)
    status, _, error = call("run", study)
    assert status == 0, error
    assert "9 runs, 0 to train" in error
