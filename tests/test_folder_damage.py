"""Damage of the JSON files of a study's folder is detected, and one command replaces the damaged file."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import formula_table
from test_study_folders import PAIRS, Net

from flops_fit_core import ConfigError, FlopsFitError, SweepPlan, run
from flops_fit_core.api import find_optimal, plan
from flops_fit_core.fitting import load_fit
from flops_fit_core.planning import family_flops
from flops_fit_core.plugins.checked_json import read_record, write_checked
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.study import Study, model_check
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.folder_check import check_folder

POINTS = ((1e3, 6.5e3), (2.5e4, 1.6e5), (1e6, 6.3e6))
OUTPUTS = (0.25, -1.5, 3.0625, 7e-5)
FILES = ["experiment.json", "plan.json", "plugins.json", "fit.json", "model_check.json", "flops_per_token.json"]
FAST, FULL = 150, 2_500
"""Damaged copies of each file."""


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with all files."""
    folder = tmp_path_factory.mktemp("complete")
    (folder / "formula.json").write_text(json.dumps(formula_table()))
    study = run(formula_table(), out=folder / "study")
    study.folder.save_fit(study.fit)
    outputs = model_check.ModelCheck(identity="0" * 16, size=8, outputs=OUTPUTS, versions={"torch": "2.0"})
    write_checked(folder / "study" / "model_check.json", outputs)
    points = family_flops.FamilyFlops(identity=family_flops._identity(study.plan), points=POINTS)
    write_checked(folder / "study" / "flops_per_token.json", points)
    return folder


@pytest.fixture
def workdir(complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the study and its experiment file, in the working directory."""
    shutil.copytree(complete, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def readers(study: Path) -> dict[str, Callable[[], Any]]:
    """The function that reads each file in earnest."""
    folder = StudyFolder(study)
    original = folder.plan()
    return {
        "experiment.json": folder.table,
        "plan.json": folder.plan,
        "plugins.json": folder.setup,
        "fit.json": lambda: load_fit(study / "fit.json"),
        "model_check.json": lambda: read_record(model_check.ModelCheck, study / "model_check.json"),
        "flops_per_token.json": lambda: family_flops.load_family(original, study),
    }


def damaged_copies(data: bytes, count: int) -> list[bytes]:
    """Copies with a flipped bit, a replaced byte, a missing end, a missing or doubled part."""
    chance = random.Random(0)
    copies = []
    for number in range(count):
        place, kind = chance.randrange(len(data)), number % 10
        if kind < 6:
            changed = bytes([data[place] ^ (1 << chance.randrange(8))])
            copies.append(data[:place] + changed + data[place + 1 :])
        elif kind == 6:
            copies.append(data[:place] + chance.choice([b"\xff", b"\x00", b"9", b"e"]) + data[place + 1 :])
        elif kind == 7:
            copies.append(data[:place])
        elif kind == 8:
            copies.append(data[:place] + data[place + chance.randrange(1, 40) :])
        else:
            copies.append(data[:place] + data[max(0, place - chance.randrange(1, 40)) :])
    return copies


def check_damage(study: Path, name: str, count: int) -> None:
    """Each damaged copy is refused, or its content is the same (a number in another notation)."""
    file, read = study / name, readers(study)[name]
    original, data = read(), file.read_bytes()
    silent = []
    for copy in damaged_copies(data, count):
        file.write_bytes(copy)
        try:
            if read() != original:
                silent.append(copy)
        except (ConfigError, FlopsFitError) as error:
            assert name in str(error) or "study folder format" in str(error)
    file.write_bytes(data)
    assert silent == []


@pytest.mark.parametrize("name", FILES)
def test_damage_of_a_file_is_never_used_silently(workdir: Path, name: str) -> None:
    check_damage(workdir / "study", name, FAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_2500_damaged_copies_of_a_file_are_never_used_silently(workdir: Path, name: str) -> None:
    check_damage(workdir / "study", name, FULL)


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_a_checksum_is_read_as_before(workdir: Path, name: str) -> None:
    study = workdir / "study"
    original = readers(study)[name]()
    content = json.loads((study / name).read_text())
    del content["sha256"]
    content.pop("ids", None)
    write_atomically(study / name, json.dumps(content))
    assert readers(study)[name]() == original
    findings = check_folder(study)
    assert {finding.file: finding.state for finding in findings} == dict.fromkeys(FILES, "intact")
    assert [finding.file for finding in findings if "without a checksum" in finding.text] == [name]


@pytest.mark.parametrize("name", FILES)
def test_another_layout_of_a_file_is_no_damage(workdir: Path, name: str) -> None:
    study = workdir / "study"
    original = readers(study)[name]()
    write_atomically(study / name, json.dumps(json.loads((study / name).read_text()), indent=8) + "\r\n")
    assert readers(study)[name]() == original


HOSTILE = {
    "bytes that are not UTF-8": b'{"name": "\xff"}',
    "nothing": b"",
    "zeros": b"\x00" * 5000,
    "deep nesting": b"[" * 200_000,
    "deep objects": b'{"name":' * 200_000,
    "a list": b"[]",
    "a number of 5000 digits": b'{"name": ' + b"9" * 5000 + b"}",
    "half a surrogate": b'{"name": "\\ud800"}',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", FILES)
def test_any_bytes_in_a_file_are_reported_with_its_name(workdir: Path, name: str, content: bytes) -> None:
    study = workdir / "study"
    read = readers(study)[name]
    (study / name).write_bytes(content)
    with pytest.raises(FlopsFitError, match=name.replace(".", r"\.")):
        read()
    (finding,) = [finding for finding in check_folder(study) if finding.file == name]
    assert finding.state == "damaged"


@pytest.mark.parametrize(("name", "content"), [("experiment.json", b"{}"), ("plan.json", b"\xff")])
def test_every_command_names_a_damaged_file_and_one_command_replaces_it(
    workdir: Path, call, name: str, content: bytes
) -> None:
    results = Study.open(workdir / "study").results
    (workdir / "study" / name).write_bytes(content)
    for command in (
        *(["status"], ["runs"], ["fit"], ["report"], ["predict", "--flops", "1e21"], ["backtest"]),
        *(["show", results[0].id], ["export", "--parquet", "all.parquet"], ["prune-checkpoints"], ["retry"]),
    ):
        status, _, error = call(command[0], "study", *command[1:])
        assert (status, error.count("\n")) == (2, 1), error
        assert f"study/{name}" in error
        assert "flops-fit run EXPERIMENT --out study" in error
        assert "results in the store are not affected" in error
    status, _, error = call("run", "formula.json", "--out", "study")
    assert status == 0
    assert "9 runs, 0 to train" in error
    assert f"study/{name} is damaged" in error.replace("\n", " ")
    assert Study.open(workdir / "study").results == results
    assert call("status", "study")[0] == 0


def test_training_the_folder_replaces_the_files_that_its_experiment_determines(workdir: Path, call) -> None:
    names = ["plan.json", "model_check.json", "flops_per_token.json", "fit.json"]
    for name in names:
        data = (workdir / "study" / name).read_bytes()
        (workdir / "study" / name).write_bytes(data[:-20])
    status, _, error = call("run", "study")
    assert status == 0
    assert all(f"{name} is damaged" in error.replace("\n", " ") for name in names)
    assert "damaged" not in {finding.state for finding in check_folder(workdir / "study")}
    assert call("run", "study")[2].count("damaged") == 0


def test_a_plan_with_other_ids_than_its_runs_is_refused(workdir: Path) -> None:
    folder = StudyFolder(workdir / "study")
    saved = folder.plan()
    write_checked(folder.plan_file, saved, {"ids": ["0" * 16, *(item.id for item in saved.runs[1:])]})
    with pytest.raises(ConfigError, match=r"plan\.json: this flops-fit computes other ids.*plan again"):
        folder.plan()


def test_the_ids_in_a_plan_are_those_of_its_runs(workdir: Path) -> None:
    values = json.loads((workdir / "study" / "plan.json").read_text())
    runs = SweepPlan.model_validate({key: values[key] for key in SweepPlan.model_fields if key in values}).runs
    assert values["ids"] == [item.id for item in runs]
    assert len(runs) == 9


def test_a_file_edited_by_hand_is_refused_with_the_way_to_change_a_study(workdir: Path, call) -> None:
    file = workdir / "study" / "experiment.json"
    file.write_text(file.read_text().replace("0.005", "0.006"))
    status, _, error = call("status", "study")
    assert status == 2
    assert "its content differs from its checksum" in error
    assert "edit the experiment file instead of experiment.json" in error


# ---------------------------------------------------------------------------- another experiment in the folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.json")}


@pytest.mark.parametrize("command", ["plan", "run", "status", "fit", "runs"])
def test_an_experiment_of_another_name_is_refused_in_the_folder(workdir: Path, call, command: str) -> None:
    (workdir / "other.json").write_text(json.dumps(formula_table(name="other")))
    before = files_of(workdir / "study")
    out = [] if command == "fit" else ["--out", "study"]
    status, _, error = call(command, "other.json", *out)
    assert status == 2
    assert files_of(workdir / "study") == before
    if command != "fit":
        assert "'formula'" in error and "'other'" in error and "--out FOLDER" in error


def test_the_refusal_names_the_fields_that_differ(workdir: Path) -> None:
    other = formula_table(
        name="other",
        sweep={"budgets": [1e18, 1e19, 1e20], "sizes": 4, "batch_size": 8},
        dataset={"name": "surface", "noise": 0.01},
        recipe="constant",
    )
    with pytest.raises(ConfigError, match=r"differ in: sweep\.sizes, dataset\.noise, recipe\. Choose another"):
        plan(other, out=workdir / "study")
    with pytest.raises(ConfigError, match=r"differ in: the name only.*write name = \"formula\""):
        plan(formula_table(name="other"), out=workdir / "study")


def test_a_file_without_a_name_is_named_by_its_file(workdir: Path, call) -> None:
    table = formula_table()
    del table["name"]
    for name in ("formula", "second one"):
        (workdir / f"{name}.json").write_text(json.dumps(table))
    assert call("plan", "formula.json", "--out", "study", "--no-estimate")[0] == 0
    status, _, error = call("plan", "second one.json", "--out", "study")
    assert status == 2
    assert "'second-one'" in error
    assert call("run", "second one.json")[0] == 0
    assert call("status", "second one.json")[0] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"sweep": {"budgets": [1e18, 1e19, 1e20, 1e21], "sizes": 3, "batch_size": 8}},
        {"sweep": {"budgets": [1e18, 1e19, 1e20], "sizes": 4, "batch_size": 8, "seeds": [0, 1]}},
        {"dataset": {"name": "surface", "noise": 0.02}},
        {"store": "json", "fitter": "isoflop"},
        {"executor": "processes", "device": "cpu", "loggers": ["terminal"]},
    ],
    ids=["budget", "sizes and seeds", "data", "store and fitter", "executor and loggers"],
)
def test_an_experiment_of_the_same_name_continues_with_other_options(workdir: Path, call, changes) -> None:
    (workdir / "formula.json").write_text(json.dumps(formula_table(**changes)))
    status, _, error = call("run", "formula.json", "--out", "study")
    assert status == 0, error
    assert call("status", "formula.json", "--out", "study")[0] == 0


def test_an_experiment_of_another_name_is_refused_if_only_the_plan_can_be_read(workdir: Path) -> None:
    (workdir / "study" / "experiment.json").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="'formula', and 'other' would replace"):
        plan(formula_table(name="other"), out=workdir / "study")


def test_find_optimal_refuses_a_folder_of_another_experiment(workdir: Path) -> None:
    arguments = {"dataset": PAIRS, "compute_budgets": [2e5], "sizes": [3, 4], "batch_size": 8, "train": False}
    with pytest.raises(ConfigError, match="'formula', and 'find-optimal' would replace its plan"):
        find_optimal(Net, "width", output_dir=workdir / "study", **arguments)
