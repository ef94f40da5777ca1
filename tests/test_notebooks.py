"""Studies in a notebook: progress in the output of a cell, and answers as HTML. A real kernel runs the cells."""

from __future__ import annotations

import dataclasses
import html.parser
import re
from pathlib import Path
from typing import Any

import pytest
from small import formula_table

from flops_fit_core import ConfigError, Diagnostic, Study, run
from flops_fit_core.report.datatable import DataTable, column
from flops_fit_core.study.live.displays import NotebookDisplay
from flops_fit_core.study.live.state import SweepState

nbformat = pytest.importorskip("nbformat", reason="nbclient and ipykernel are not installed")
pytest.importorskip("ipykernel", reason="nbclient and ipykernel are not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel are not installed")

CELLS = """
import json, logging
import flops_fit_core
study = flops_fit_core.run(json.loads({table!r}), out={folder!r})
---
flops_fit_core.run(study)
---
study.plan
---
study.fit
---
study.table()
---
study.predict(1e20)
---
print(study.table())
---
study.table().to_pandas()
---
flops_fit_core.run(json.loads({table!r}), out={folder!r} + "-silent", progress=False);
"""


def execute(source: str, folder: Path) -> list[list[Any]]:
    """The outputs of each cell."""
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in source.split("---\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return [cell["outputs"] for cell in notebook.cells]


def html_of(outputs: list[Any]) -> str:
    return "".join(item["data"].get("text/html", "") for item in outputs if "data" in item)


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_shows_progress_in_place_and_the_answer_as_html(tmp_path: Path) -> None:
    import json

    source = CELLS.format(table=json.dumps(formula_table()), folder=str(tmp_path / "study"))
    first, again, plan, fit, table, optimum, printed, frame, silent = execute(source, tmp_path)
    total = len(Study.open(tmp_path / "study").plan.runs)
    (bar,) = [item for item in first if item["output_type"] == "display_data"]
    assert f"{total} of {total} runs" in bar["data"]["text/html"]
    assert '<progress max="100" value="100.0"' in bar["data"]["text/html"]
    assert [item for item in first if item.get("name") == "stderr"] == []
    shown = html_of(again)
    assert f"{total} completed of {total} runs" in shown
    assert "What to train for a budget" in shown
    assert f"Plan formula: {total} runs" in html_of(plan)
    assert "N_opt ~ C^a" in html_of(fit)
    assert "N_opt" in html_of(table)
    assert "Optimum for C = 1e20 FLOPs" in html_of(optimum)
    text = "".join(item["text"] for item in printed)
    assert "What to train for a budget" in text
    assert "\x1b" not in text
    assert "tokens_per_param" in html_of(frame)
    assert silent == []


# ---------------------------------------------------------------------------- HTML


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)


EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e"


def test_names_and_messages_are_escaped(tmp_path: Path) -> None:
    study = run(formula_table(), out=tmp_path / "study", progress=False)
    note = Diagnostic(code="x", message=EVIL)
    plan = study.plan.model_copy(update={"name": EVIL, "notes": (EVIL,), "unit": EVIL})
    fit = study.fit.model_copy(update={"diagnostics": (note,), "unit": EVIL, "params_name": EVIL})
    optimum = study.predict(1e20).model_copy(update={"notes": (EVIL,)})
    table = DataTable(EVIL, EVIL, ("text",), ({"text": EVIL},), (column(EVIL, "text"),), diagnostics=(note,))
    evil = Study(plan, study.registry, study.folder, experiment=study.experiment)
    progress = NotebookDisplay()
    progress.take_snapshot = SweepState(plan, EVIL, 0.0).snapshot
    answer = dataclasses.replace(study.answer(), title=EVIL, further=(EVIL,))
    for item in (plan, fit, optimum, table, evil, answer, progress):
        shown = item._html() if item is progress else item._repr_html_()
        tags = Tags()
        tags.feed(shown)
        assert not tags.names & {"script", "img"}, type(item)
        assert "&lt;script&gt;" in shown
        assert not re.search("[\x1b\u202e]", shown)
        assert not re.search(r"color|background", shown), "the notebook chooses colours, light or dark"


def test_a_study_without_a_law_says_why(tmp_path: Path) -> None:
    table = {**formula_table(), "sweep": {"budgets": [1e18], "sizes": 5}}
    study = run(table, out=tmp_path / "study", progress=False)
    shown = study._repr_html_()
    assert "5 completed of 5 runs" in shown
    assert "no law yet: " in shown


# ---------------------------------------------------------------------------- text and pandas


def test_a_printed_table_is_plain_text_without_wrapping(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    study = run(formula_table(), out=tmp_path / "study", progress=False)
    lines = str(study.table()).splitlines()
    assert lines[0] == "What to train for a budget"
    heading = next(line for line in lines if line.lstrip().startswith("C "))
    first = lines[lines.index(heading) + 1]
    assert heading.split()[:2] == ["C", "N_opt"]
    assert heading.index("N_opt") + len("N_opt") == re.search(r"\S+\s+\S+", first).end(), "aligned to the right"
    assert "\x1b" not in "".join(lines)


def test_a_table_becomes_a_data_frame(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    study = run(formula_table(), out=tmp_path / "study", progress=False)
    frame = study.runs.to_pandas()
    assert list(frame["id"]) == [result.id for result in study.results]
    assert frame["loss"].dtype == float


def test_a_table_without_pandas_names_the_command_that_installs_it(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pip install 'flops-fit\[parquet\]'"):
        DataTable("t", "c", ("a",), ({"a": 1},), (column("a", "a"),)).to_pandas()
