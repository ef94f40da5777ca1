"""``flops-fit report`` writes the same page for a study, a table of runs and a saved fit."""

import csv
import json
import re
from pathlib import Path

import pytest
from small import formula_table

from flops_fit_core import run


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A finished study in the working directory, its runs as a table, and its fit."""
    monkeypatch.chdir(tmp_path)
    study = run(formula_table(), out="study")
    columns = ["params", "tokens", "flops", "loss"]
    with Path("runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(result.model_dump() | {"params": result.run.params} for result in study.results)
    return study


def read_page(folder):
    text = Path(folder, "index.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text)[1])
    return text, data


def test_a_table_and_a_fit_have_the_law_of_the_study(finished, call):
    assert call("fit", "study", "--out", "fit.json")[0] == 0
    for source in ("study", "runs.csv", "fit.json"):
        status, output, _ = call("report", source)
        assert status == 0
        assert output.splitlines()[0].endswith("index.html")
    _, study = read_page("study/report")
    _, table = read_page("runs-report")
    _, fit = read_page("fit-report")
    for source, data in {"study": study, "runs.csv": table, "fit.json": fit}.items():
        flops, params = data["grid"]["flops"][20], data["grid"]["params"][0][20]
        predicted = json.loads(call("predict", source, "--flops", repr(flops), "--json")[1])
        assert params == pytest.approx(predicted["params"]["value"], rel=1e-5)
    assert fit["grid"] == study["grid"]
    assert fit["figures"]["curve"] == study["figures"]["curve"]
    assert len(table["runs"]) == len(study["runs"]) == 9
    assert fit["runs"] == []
    files = {path.name for path in Path("study/report").iterdir()}
    assert files - {path.name for path in Path("runs-report").iterdir()} == {"runs.csv"}


def test_the_report_of_a_table_takes_the_options_of_a_fit(finished, call):
    assert call("report", "runs.csv", "--law", "chinchilla", "--out", "elsewhere")[0] == 0
    text, _ = read_page("elsewhere")
    assert "fitted by fitters/law" in text


def test_a_table_without_a_law_has_a_page_that_names_the_reason(finished, call):
    lines = Path("runs.csv").read_text().splitlines()
    Path("few.csv").write_text("\n".join(lines[:4]) + "\n")
    assert call("report", "few.csv")[0] == 0
    text, data = read_page("few-report")
    assert "No law yet." in text
    assert "3 runs cannot fit a law" in text
    assert len(data["runs"]) == 3


def test_another_law_of_a_study_needs_a_saved_fit(finished, call):
    status, _, message = call("report", "study", "--law", "chinchilla")
    assert status == 2
    assert "flops-fit fit study --out fit.json" in message


def test_a_study_without_a_result_has_a_page(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    from flops_fit_core import plan
    from flops_fit_core.study.trust import save_study

    study = plan(formula_table(), out="study")
    save_study(study.folder, study.experiment, study.plan, study.registry)
    assert call("report", "study")[0] == 0
    text, data = read_page("study/report")
    assert "0 of 9 runs completed; 9 to train." in text
    assert {row["status"] for row in data["runs"]} == {"planned"}
