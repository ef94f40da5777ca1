"""``flops-fit report`` writes the same page for a study, a table of runs and a saved fit."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from small import formula_table

from flops_fit_core import Study, fit, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished study, and its runs as a table."""
    folder = tmp_path_factory.mktemp("trained")
    study = run(formula_table(), out=folder / "study")
    columns = ["params", "tokens", "flops", "loss"]
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(result.model_dump() | {"params": result.run.params} for result in study.results)
    return folder


@pytest.fixture
def finished(trained, tmp_path, monkeypatch):
    """A copy of the study and of the table in the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


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


# ---------------------------------------------------------------------------- two sources


def test_two_studies_are_overlaid_with_their_gain(finished, call):
    run(formula_table(optimizer={"name": "lion", "lr": 0.001}), out="lion")
    status, output, _ = call("report", "study", "lion")
    assert status == 0
    folder = Path("study/report/against-lion")
    assert output.splitlines()[0] == str(folder / "index.html")
    text, data = read_page(folder)
    assert [side["name"] for side in data["sides"]] == ["study", "lion"]
    gain = json.loads(call("compare", "study", "lion", "--json")[1])
    assert data["gain"]["points"][0][1:] == pytest.approx(list(gain["gains"][0]["gain"].values()), rel=1e-5)
    assert "flops-fit compare study lion" in text
    for side, source in zip(data["sides"], ("study", "lion"), strict=True):
        point = side["curve"][20]
        predicted = json.loads(call("predict", source, "--flops", repr(point["flops"]), "--json")[1])
        assert point["params"][0] == pytest.approx(predicted["params"]["value"], rel=1e-4)


def test_a_study_in_python_has_the_page_of_the_command(finished, call):
    """``against`` takes a study or a fit."""
    assert call("report", "study", "runs.csv", "--out", "command")[0] == 0
    study = Study.open("study")
    files = study.report("python", against=fit("runs.csv", fitter=study.fitter))
    assert str(files[0]) == "python/index.html"
    by_python, by_command = (read_page(folder)[1]["sides"] for folder in ("python", "command"))
    assert by_python[0] == by_command[0]
    assert by_python[1]["runs"] == by_command[1]["runs"]
    copy = Path(shutil.copytree("study", "copy"))
    (page, *_) = study.report(against=Study.open(copy))
    assert page == study.folder.path / "report" / "against-copy" / "index.html"


def test_studies_with_other_data_have_no_difference_of_losses_and_no_gain(finished, call):
    run(formula_table(dataset={"name": "surface", "noise": 0.005, "B": 1500}), out="data")
    assert call("report", "study", "data", "--out", "refused")[0] == 0
    text, data = read_page("refused")
    assert "No gain is computed: the datasets differ" in text
    assert data["gain"] is None
    assert call("report", "study", "data", "--allow-differences", "--out", "allowed")[0] == 0
    text, data = read_page("allowed")
    assert data["gain"] is not None
    assert "compared in spite of: the data" in text


def test_losses_in_bits_are_not_compared_with_losses_in_nats(finished, call):
    """Their ratio at equal N and D is 1 / ln 2."""
    with Path("runs.csv").open(newline="") as file:
        rows = [row | {"loss": float(row["loss"]) / math.log(2)} for row in csv.DictReader(file)]
    with Path("bits.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert call("report", "bits.csv", "runs.csv", "--out", "bits")[0] == 0
    text, data = read_page("bits")
    assert "the losses of A are 1.44 times those of B, as bits are to nats" in text
    assert set(data["refused"]) == {"loss"}
    assert data["gain"] is None


@pytest.mark.parametrize("pair", [("study", "runs.csv"), ("fit.json", "study"), ("runs.csv", "fit.json")])
def test_studies_tables_and_fits_can_be_mixed(finished, call, pair):
    assert call("fit", "study", "--out", "fit.json")[0] == 0
    assert call("report", *pair, "--out", "mixed")[0] == 0
    text, data = read_page("mixed")
    assert [side["name"] for side in data["sides"]] == list(pair)
    assert all(side["curve"] for side in data["sides"])
    assert ("it needs the runs of both" in text) == ("fit.json" in pair)


def test_rows_of_one_table_are_overlaid(finished, call):
    lines = Path("runs.csv").read_text().splitlines()
    rows = [f"{line},{name}" for name in ("left", "right") for line in lines[1:]]
    Path("both.csv").write_text("\n".join([f"{lines[0]},group", *rows]))
    filters = ("--filter-a", "group=left", "--filter-b", "group=right")
    status, output, _ = call("report", "both.csv", "both.csv", *filters)
    assert status == 0
    assert output.startswith("left-and-right-report/index.html")
    text, data = read_page("left-and-right-report")
    assert [len(side["runs"]) for side in data["sides"]] == [9, 9]
    assert "flops-fit compare both.csv both.csv --filter-a group=left --filter-b group=right" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("study", "runs.csv", "fit.json"), "report overlays two sources, and 3 are named"),
        (("study", "study"), "A and B are both study"),
        (("study", "--filter-a", "group=left"), "--filter-a: for two sources"),
        (("study", "--allow-differences"), "--allow-differences: for two sources"),
        (("study", "runs.csv", "--law", "chinchilla"), "flops-fit fit study --out fit.json"),
        (("study", "runs.csv", "--task", "acc"), "--task acc: for one source"),
        (("study", "nowhere"), "nowhere is neither"),
    ],
)
def test_sources_that_cannot_be_overlaid_are_refused(finished, call, arguments, message):
    status, _, error = call("report", *arguments)
    assert status == 2
    assert message in error


# ---------------------------------------------------------------------------- tasks


def write_scores(path):
    """Runs with an accuracy that is a sigmoid of their loss."""
    lines = ["params,tokens,flops,loss,arc_acc"]
    for budget in (1e18, 1e19, 1e20):
        for params in (0.5 * budget**0.45, budget**0.45, 2 * budget**0.45):
            tokens = budget / (6 * params)
            loss = 1.7 + 400 / params**0.34 + 410 / tokens**0.28
            lines.append(f"{params},{tokens},{budget},{loss},{0.25 + 0.75 / (1 + math.exp(2 * (loss - 3)))}")
    Path(path).write_text("\n".join(lines))


def test_the_report_of_a_table_and_of_a_fit_shows_the_accuracy_of_a_task(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    write_scores("scores.csv")
    task = ("--task", "arc_acc", "--chance", "0.25")
    assert call("report", "scores.csv", *task, "--out", "table")[0] == 0
    assert call("fit", "scores.csv", *task, "--out", "arc.json")[0] == 0
    assert call("report", "arc.json", "--out", "fit")[0] == 0
    forecast = json.loads(call("predict", "arc.json", "--flops", "1e21", "--json")[1])
    for folder in ("table", "fit"):
        text, data = read_page(folder)
        assert "Accuracy of tasks" in text
        (drawn,) = data["tasks"]
        rows = list(csv.DictReader(Path(folder, "accuracy-1.csv").read_text().splitlines()))
        assert float(rows[1]["accuracy"]) == pytest.approx(forecast["accuracy"]["value"])
        assert [point[1] for point in drawn["curve"] if point[0] == 1e21] == pytest.approx(
            [forecast["accuracy"]["value"]], rel=1e-5
        )
        assert Path(folder, "accuracy-1.svg").stat().st_size > 1000
    assert len(read_page("table")[1]["tasks"][0]["runs"]) == 9
    assert "No law of the loss." in read_page("fit")[0]
    assert not Path("fit/isoflop.png").exists()
