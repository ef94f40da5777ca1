"""Names and messages of other people never control the terminal, and CSV stays exact."""

import csv
import io
import json
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import formula_table

from flops_fit_core import Progress, RunError, RunResult, RunSpec, SweepPlan, run
from flops_fit_core.cli.main import run as command
from flops_fit_core.cli.printing import print_message
from flops_fit_core.plugins import escape_controls
from flops_fit_core.plugins.checked_json import read_checked, write_checked
from flops_fit_core.report.datatable import DataTable, column
from flops_fit_core.study import Study

ESCAPE = "\x1b[2J\x1b]0;title\x07"
EVIL = f"evil{ESCAPE}\u202egnp\x9b31m\x7f\r\u2066"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
FLOPS_FIT = [sys.executable, "-c", "from flops_fit_core.cli.main import main; main()"]


@given(st.text(st.characters(exclude_categories=())))
def test_escaped_text_has_no_control_characters_and_can_be_written(text: str) -> None:
    escaped = escape_controls(text)
    assert not CONTROLS.search(escaped)
    assert escaped.encode().decode() == escaped
    assert escape_controls(escaped) == escaped


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from("\t\näΔ中🙂é\u00a0")))
def test_ordinary_text_is_not_changed(text: str) -> None:
    assert escape_controls(text) == text


@pytest.fixture
def evil(evil_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the study in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(evil_study, tmp_path / "study"))


@pytest.fixture(scope="module")
def evil_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with control characters in all names and messages of its files, some runs failed."""
    folder = tmp_path_factory.mktemp("evil") / "study"
    study = run(formula_table(store="json"), out=folder)
    results = {result.id: _evil_result(result, n) for n, result in enumerate(study.results)}
    plan = study.plan.model_dump(mode="json")
    plan |= {"name": EVIL, "notes": [EVIL], "unit": EVIL, "params_name": EVIL, "flops_name": EVIL}
    runs = [result.run for result in results.values()]
    for file in folder.glob("results*"):
        file.unlink()
    new = SweepPlan.model_validate({**plan, "runs": [spec.model_dump(mode="json") for spec in runs]})
    write_checked(study.folder.plan_file, new)
    recorded, _ = read_checked(study.folder.experiment_file, "format")
    study.folder.save_table({**recorded, "name": EVIL})
    with Study.open(folder).store() as store:
        for result in results.values():
            store.add(result)
    return folder


def _evil_result(result: RunResult, number: int) -> RunResult:
    values = result.model_dump(mode="json")
    values["run"] |= {"size": f"{EVIL}{result.run.size}"}
    values["run"]["model"] |= {"options": {**values["run"]["model"]["options"], "note": EVIL}}
    values["versions"] = {EVIL: EVIL}
    if number == 0:
        error = {"type": EVIL, "message": EVIL, "traceback": EVIL}
        values |= {"status": "failed", "loss": None, "error": error}
    values["id"] = RunSpec.model_validate(values["run"]).id
    return RunResult.model_validate({key: value for key, value in values.items() if key in RunResult.model_fields})


def in_terminal(*arguments: str) -> str:
    """Everything that a command writes to a terminal."""
    main, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
    process = subprocess.Popen(
        [*FLOPS_FIT, *arguments], stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    output = bytearray()

    def read() -> None:
        try:
            while part := os.read(main, 4096):
                output.extend(part)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    process.wait(timeout=120)
    reader.join(timeout=10)
    os.close(main)
    return output.decode().replace("\r\n", "\n")


COMMANDS = [
    *(["status"], ["runs"], ["runs", "--csv"], ["fit"], ["predict", "--flops", "1e21"], ["backtest"], ["show"]),
    *(["plan", "--no-estimate"], ["report"], ["retry"]),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_prints_control_characters_of_a_study(evil: Path, call, arguments: list[str]) -> None:
    more = [result.id for result in Study.open(evil).results[:2]] if arguments == ["show"] else []
    if arguments == ["runs", "--csv"]:
        shown = in_terminal("runs", "study", "--csv")
        assert "evil\\x1b[2J" in shown
    else:
        status, output, error = call(arguments[0], "study", *more, *arguments[1:])
        shown = output + error
        assert status in (0, 1, 2)
    assert shown
    assert CONTROLS.findall(shown) == []


def test_a_terminal_shows_escaped_text(evil: Path) -> None:
    for arguments in (["runs", "study"], ["status", "study"], ["show", "study", Study.open(evil).results[0].id]):
        shown = in_terminal(*arguments)
        assert "evil\\x1b[2J\\x1b]0;title\\x07\\u202egnp\\x9b31m\\x7f\\r\\u2066" in shown.replace("\n", "")
        assert not re.search("\x1b\\[2J|\x1b\\]|\u202e|\x9b|\u2066", shown)


def test_a_terminal_without_cursor_control_has_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 50))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("COLUMNS", raising=False)
    with os.fdopen(inner, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        print_message("a message of more than fifty characters that is wrapped between words")
    lines = os.read(outer, 1000).decode().splitlines()
    os.close(outer)
    assert lines == ["a message of more than fifty characters that is", "    wrapped between words"]


def test_answers_can_be_written_without_unicode(tmp_path: Path) -> None:
    study = run(formula_table(), out=tmp_path / "study", progress=False)
    study.folder.save_fit(study.fit)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [*FLOPS_FIT, "predict", str(tmp_path / "study" / "fit.json"), "--flops", "1e20"]
    ended = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.search(rb"N [\d.]+[MB]-[\d.]+[MB] ", ended.stdout), ended.stdout


@pytest.mark.parametrize("name", [f"{EVIL}.toml", f"{EVIL}.csv", f"{EVIL}.json"])
def test_file_names_and_arguments_are_escaped(tmp_path: Path, call, name: str) -> None:
    file = tmp_path / name.replace("\r", "")
    file.write_text("[")
    for arguments in (["plan", file], ["fit", file], ["status", file], ["plan", "x.toml", "--set", EVIL], [EVIL]):
        status, output, error = call(*arguments)
        assert status == 2
        assert CONTROLS.findall(output + error) == []


WARNING = """
import logging, sys, warnings
from flops_fit_core.cli import main, printing
printing.escape_other_output()
warnings.warn("warned \\x1b[2J")
logging.getLogger("flops_fit").warning("logged %s", "\\x1b[2J")
raise ValueError("raised \\x1b[2J")
"""


def test_warnings_log_messages_and_tracebacks_are_escaped() -> None:
    process = subprocess.run([sys.executable, "-c", WARNING], capture_output=True, text=True, check=False)
    for word in ("warned", "logged", "raised"):
        assert f"{word} \\x1b[2J" in process.stderr
    assert "\x1b" not in process.stderr


def show_progress(study: Study, results: Iterable[RunResult], terminal: bool) -> str:
    """The output of a sweep that yields these results."""
    from rich.console import Console

    from flops_fit_core.study.live.displays import LineDisplay, TerminalDisplay
    from flops_fit_core.study.live.progress import SweepProgress

    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=400)
    progress = SweepProgress("study", display=TerminalDisplay(console) if terminal else LineDisplay(file))
    progress.started(study.plan)
    for result in results:
        progress.progress(Progress(run=result.id, step=1, steps=2, tokens=1, attempt=2))
        progress.finished(result)
    progress.close()
    return file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_progress_of_a_sweep_is_escaped(evil: Path, terminal: bool) -> None:
    study = Study.open(evil)
    shown = show_progress(study, study.results, terminal)
    assert "evil\\x1b[2J" in shown
    assert not re.search("\x1b\\[2J|\x1b\\]|\u202e|\x9b|\u2066", shown)


def test_the_report_page_shows_escaped_text(evil: Path, call) -> None:
    """A browser also lets overrides of the writing direction hide parts of a name."""
    assert call("report", "study")[0] == 0
    texts = {file.name: file.read_text() for file in (evil / "report").glob("*.[hs][tv]*")}
    assert {"index.html", "isoflop.svg", "optimum.svg"} <= {
        name for name, text in texts.items() if "evil\\x1b[2J" in text
    }
    assert {name for name, text in texts.items() if CONTROLS.findall(text)} == set()


def test_the_progress_of_a_sweep_shows_a_line_number_as_it_is(evil: Path) -> None:
    """rich takes ``:100:`` for the name of an emoji."""
    study = Study.open(evil)
    error = RunError(type="ValueError", message="model.py:100: bad", traceback="")
    failed = next(result for result in study.results if result.status == "failed")
    for terminal in (False, True):
        shown = show_progress(study, [failed.model_copy(update={"error": error})], terminal)
        assert "model.py:100: bad" in shown


def test_the_terminal_logger_escapes_lines(evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flops_fit_loggers.terminal import TerminalLogger

    study, logger = Study.open(evil), TerminalLogger(every=0, time=False)
    logger.started(study.plan)
    for result in study.results:
        logger.finished(result)
    error = capsys.readouterr().err
    assert "evil\\x1b[2J" in error
    assert CONTROLS.findall(error) == []


def test_json_is_exact_and_has_no_control_characters(evil: Path, call) -> None:
    _, output, _ = call("runs", "study", "--json")
    assert CONTROLS.findall(output) == []
    assert EVIL in json.loads(output)[0]["size"]


# ---------------------------------------------------------------------------- CSV

FORMULAS = ["=1+1", "+cmd", "-cmd", "@SUM(A1)", "\tx", "\rx", "\uff1dx"]


def table_of(values: list[Any]) -> DataTable:
    rows = tuple({"text": value, "number": -1.5} for value in values)
    return DataTable("t", "c", ("text", "number"), rows, (column("text", "text"),))


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1)))
def test_csv_reads_back_unchanged(values: list[str]) -> None:
    text = table_of(values).csv()
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["text", "number"]
    assert [row[0] for row in rows] == values


def test_a_spreadsheet_gets_an_apostrophe_before_formulas_and_never_before_numbers() -> None:
    numbers = ["-1", "+1.5e3", "-inf", -1, -2.5, 1e-9, True, None]
    values = [*FORMULAS, "plain", "a=b", *numbers]
    exact, marked = (
        [row[0] for row in csv.reader(io.StringIO(table_of(values).csv(spreadsheet=spreadsheet), newline=""))][1:]
        for spreadsheet in (False, True)
    )
    assert exact[: len(FORMULAS)] == FORMULAS
    assert marked[: len(FORMULAS)] == [f"'{formula}" for formula in FORMULAS]
    assert marked[len(FORMULAS) :] == exact[len(FORMULAS) :]
    assert table_of(["x"]).csv(spreadsheet=True).splitlines()[1:] == ["x,-1.5"]


def test_runs_as_csv_are_exact_and_marked_for_a_spreadsheet(evil: Path, call) -> None:
    sizes = [row["size"] for row in json.loads(call("runs", "study", "--json")[1])]
    process = subprocess.run([*FLOPS_FIT, "runs", "study", "--csv"], capture_output=True, check=True)
    text = process.stdout.decode()
    assert [row["size"] for row in csv.DictReader(io.StringIO(text, newline=""))] == sizes
    marked = call("runs", "study", "--csv", "--spreadsheet")[1]
    assert [row["size"] for row in csv.DictReader(io.StringIO(marked, newline=""))] == sizes
    status, _, error = call("runs", "study", "--spreadsheet")
    assert status == 2
    assert "write --csv --spreadsheet" in error


# ---------------------------------------------------------------------------- permissions


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize(
    "umask", [0o022, *(pytest.param(mask, marks=pytest.mark.slow) for mask in (0o002, 0o077))]
)
def test_every_file_of_a_study_has_the_permissions_of_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, call: Callable[..., Any]
) -> None:
    from small import text_table, write_text

    monkeypatch.chdir(tmp_path)
    sweep = {"budgets": [2.4e8, 4.8e8], "sizes": [{"width": 8}, {"width": 12}, {"width": 16}]}
    Path("small.json").write_text(json.dumps(text_table(write_text(tmp_path / "text"), sweep=sweep)))
    before = os.umask(umask)
    try:
        assert command(["run", "small.json", "--out", "study", "--report"]) == 0
        assert command(["fit", "study", "--out", "law.json"]) == 0
        assert command(["store", "copy", "study", "copy", "--store", "json"]) == 0
    finally:
        os.umask(before)
    files = [Path("law.json"), *(file for name in ("study", "copy") for file in Path(name).rglob("*"))]
    names = {file.name for file in files}
    assert {"experiment.json", "plan.json", "plugins.json", "fit.json", "model_check.json", "index.html"} <= names
    wrong = {}
    for file in files:
        created = 0o777 if file.is_dir() else 0o666
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode != created & ~umask and not file.name.endswith(".lock"):  # filelock before 3.21 creates 0644
            wrong[str(file)] = oct(mode)
    assert wrong == {}
