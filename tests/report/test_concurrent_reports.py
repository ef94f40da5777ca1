"""Several processes write the report of one study; a report that fails never hides that training is complete."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import formula_table

from flops_fit_core import FitError, PluginError, run
from flops_fit_core.cli import study_commands
from flops_fit_core.report import writing
from flops_fit_core.study import Study, outputs
from flops_fit_core.study.directory import StudyFolder

WRITER = """
import sys, time
from pathlib import Path
from flops_fit_core.study import Study
import flops_fit_core.report.writing

study = Study.open(sys.argv[1])
study.fit
Path(sys.argv[2]).touch()
while not Path("go").exists():
    time.sleep(0.001)
for _ in range(2):
    study.folder.save_fit(study.fit)
    study.report()
"""


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A finished study in the working directory, without a report."""
    monkeypatch.chdir(tmp_path)
    table = formula_table()
    Path("formula.json").write_text(json.dumps(table))
    return run(table, out="study")


@pytest.mark.slow
def test_three_processes_write_the_same_report_at_once(finished: Study) -> None:
    expected = {file.name: file.read_bytes() for file in finished.report(Path("expected"))}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, "study", f"ready{n}"], stderr=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    until = time.monotonic() + 60
    while not all(Path(f"ready{n}").exists() for n in range(3)):
        assert time.monotonic() < until and all(writer.poll() is None for writer in writers)
        time.sleep(0.01)
    Path("go").touch()
    errors = [writer.communicate(timeout=300)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], errors
    assert {file.name: file.read_bytes() for file in Path("study/report").iterdir()} == expected


ERRORS = {
    "a bug": (KeyError("m68f548e88a"), "KeyError: 'm68f548e88a'"),
    "memory": (MemoryError("no memory"), "MemoryError: no memory"),
    "a full disk": (OSError(28, "No space left on device", "study/x"), "study/x: No space left on device"),
    "a read-only folder": (PermissionError(13, "Permission denied", "study/x"), "study/x: Permission denied"),
    "a plugin": (PluginError("plugin x returned 3"), "plugin x returned 3"),
}
STEPS = {
    "the fit": (Study, "fit"),
    "fit.json": (StudyFolder, "save_fit"),
    "printing the answer": (study_commands, "print_summary"),
    "the report": (outputs, "write_page"),
}


@pytest.mark.parametrize("step", ["printing the answer", "the report"])
def test_a_law_without_a_prediction_is_no_study_without_a_law(
    finished: Study, monkeypatch: pytest.MonkeyPatch, call, step: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise FitError("the law has no optimum")

    monkeypatch.setattr(*STEPS[step], fail)
    status, _, message = call("run", "formula.json", "--out", "study", "--report")
    assert status == 1
    assert f"error: {step} failed: the law has no optimum" in message
    assert "no law yet" not in message


@pytest.mark.parametrize(("error", "text"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("step", STEPS)
def test_an_error_after_a_sweep_is_a_message_with_the_command_to_type(
    finished: Study, monkeypatch: pytest.MonkeyPatch, call, step: str, error: Exception, text: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    owner, name = STEPS[step]
    monkeypatch.setattr(owner, name, property(fail) if step == "the fit" else fail)
    monkeypatch.setattr(writing, "draw_all", lambda data: {})  # figures take most of the time
    status, output, message = call("run", "formula.json", "--out", "study", "--report")
    assert status == 1
    assert f"error: {step} failed: {text}" in message
    assert "training is complete: 9 of 9 runs are finished and stored" in message
    assert "flops-fit report study" in message
    assert ("N_opt ~ C^" in output) == (step not in ("the fit", "printing the answer"))


def test_a_report_folder_that_cannot_be_written_is_named(finished: Study, call) -> None:
    Path("study/report").write_text("a file where the folder should be")
    status, output, message = call("run", "formula.json", "--out", "study", "--report")
    assert status == 1
    assert "error: the report failed: study/report: File exists" in message.replace(str(Path.cwd()) + "/", "")
    assert "training is complete" in message
    assert "N_opt ~ C^" in output
    assert call("report", "study")[0] == 2
    Path("study/report").unlink()
    assert call("report", "study")[0] == 0


def test_a_study_without_a_law_is_no_failure(finished: Study, monkeypatch: pytest.MonkeyPatch, call) -> None:
    def fail(study: Study) -> None:
        raise FitError("too few runs")

    monkeypatch.setattr(Study, "fit", property(fail))
    status, _, message = call("run", "formula.json", "--out", "study", "--report")
    assert status == 0
    assert "no law yet: too few runs" in message
