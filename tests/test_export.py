"""``flops-fit export --parquet``: a study's attempts as a table for other programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from flops_fit_core import RunResult, plan
from flops_fit_core.cli.main import run as flops_fit
from flops_fit_core.study import Study
from flops_fit_core.testing import example_result, example_run

TABLE = {
    "name": "law",
    "sweep": {"budgets": [1e17, 1e18, 1e19], "sizes": 5},
    "model": "surface",
    "dataset": {"name": "surface", "noise": 0.005},
    "executor": "local",
}
COLUMNS = [
    *("id", "attempt", "latest", "superseded", "planned", "status", "model", "params", "tokens", "flops"),
    *("loss", "seed", "budget", "seconds", "finished", "record"),
]


@pytest.fixture(scope="module", params=["sqlite", "json"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 runs, one of which failed and was trained again, and one of another experiment."""
    study = plan({**TABLE, "store": request.param}, out=tmp_path_factory.mktemp("trained") / "law")
    with study.store() as store:
        store.add(RunResult(run=study.plan.runs[3], status="failed"))
        store.add(example_result(run=example_run(seed=2**64 - 1, params=1234, budget=5e10), loss=2.5))
    study.train()
    return study.folder.path


@pytest.fixture
def law(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "law"))


def test_the_file_has_a_row_for_every_attempt(law: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "runs.parquet"
    assert flops_fit(["export", str(law), "--parquet", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(file), "attempts": 17, "runs": 16}
    frame = pd.read_parquet(file)
    assert list(frame.columns) == COLUMNS
    study = Study.open(law)
    with study.store() as store:
        stored = [attempt for result in store.results() for attempt in store.attempts(result.id)]
    assert [RunResult.model_validate_json(text) for text in frame.record] == stored
    assert list(frame.id) == [result.id for result in stored]
    assert list(frame.loss.dropna()) == [result.loss for result in stored if result.loss is not None]
    attempts_of_run = frame[frame.id == study.plan.runs[3].id]
    assert list(zip(attempts_of_run.attempt, attempts_of_run.status, attempts_of_run.latest, strict=True)) == [
        (1, "failed", False),
        (2, "completed", True),
    ]
    assert frame.finished.dt.tz is not None
    assert frame.finished[0] == pd.Timestamp(stored[0].finished)


def test_a_superseded_attempt_is_not_the_latest(law: Path, tmp_path: Path) -> None:
    study = Study.open(law)
    with study.store() as store:
        late = store.add(study.results[0].model_copy(update={"loss": 9.5}), "a token of an earlier claim")
    assert late is not None
    assert flops_fit(["export", str(law), "--parquet", str(tmp_path / "runs.parquet")]) == 0
    frame = pd.read_parquet(tmp_path / "runs.parquet")
    rows = frame[frame.id == late.id]
    assert list(zip(rows.attempt, rows.latest, rows.superseded, strict=True)) == [
        (1, True, False),
        (2, False, True),
    ]
    assert Study.open(law).results == study.results
    assert frame.latest.sum() == 16


def test_runs_of_another_experiment_are_marked(law: Path, tmp_path: Path) -> None:
    assert flops_fit(["export", str(law), "--parquet", str(tmp_path / "runs.parquet")]) == 0
    frame = pd.read_parquet(tmp_path / "runs.parquet")
    (other,) = frame[~frame.planned].itertuples()
    assert (other.model, other.params, other.budget, other.loss) == ("gpt/gpt", 1234, 5e10, 2.5)
    assert pd.isna(other.seed)  # more than 64 bits
    assert json.loads(other.record)["run"]["seed"] == 2**64 - 1


def test_a_fit_of_the_latest_planned_rows_is_the_law_of_the_study(law: Path, tmp_path: Path, capsys) -> None:
    file = str(tmp_path / "runs.parquet")
    assert flops_fit(["export", str(law), "--parquet", file]) == 0
    capsys.readouterr()
    assert flops_fit(["fit", file, "--filter", "latest=True", "--filter", "planned=True", "--json"]) == 0
    from_file = json.loads(capsys.readouterr().out)
    assert flops_fit(["fit", str(law), "--json"]) == 0
    from_study = json.loads(capsys.readouterr().out)
    assert from_file["law"]["parameters"] == pytest.approx(from_study["law"]["parameters"], rel=1e-6)


def test_results_in_another_store_of_the_folder_are_exported(law: Path, tmp_path: Path) -> None:
    study = Study.open(law)
    used = study.folder.table()["store"]["name"].rpartition("/")[2]
    other = {"sqlite": "json", "json": "sqlite"}[used]
    assert flops_fit(["store", "copy", str(law), str(law), "--store", other]) == 0
    for old_file in law.glob(f"results.{other}*"):
        old_file.unlink()
    assert flops_fit(["export", str(law), "--parquet", str(tmp_path / "runs.parquet")]) == 0
    assert len(pd.read_parquet(tmp_path / "runs.parquet")) == 17


def test_a_study_that_is_being_trained_can_be_exported(law: Path, tmp_path: Path) -> None:
    with Study.open(law).store() as store:  # as a driver has it
        first = Study.open(law).results[0]
        assert store.claim(first.id, "a driver", 600)
        store.add(first.model_copy(update={"attempt": 2, "loss": 1.5}))
        code = "from flops_fit_core.cli import main; main()"
        command = [sys.executable, "-c", code, "export", law, "--parquet", tmp_path / "runs.parquet"]
        subprocess.run(command, check=True, capture_output=True)
        assert not store.claim(first.id, "another driver", 600)
    assert 1.5 in set(pd.read_parquet(tmp_path / "runs.parquet").loss)


def test_an_earlier_export_is_replaced(law: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.parquet"
    assert flops_fit(["export", str(law), "--parquet", str(file)]) == 0
    with Study.open(law).store() as store:
        store.add(Study.open(law).results[0].model_copy(update={"attempt": 2}))
    assert flops_fit(["export", str(law), "--parquet", str(file)]) == 0
    assert pq.read_metadata(file).num_rows == 18
    assert [path.name for path in tmp_path.iterdir() if "runs" in path.name] == ["runs.parquet"]


def text(file: Path) -> None:
    file.write_text("my shopping list")


def another_program(file: Path) -> None:
    pd.DataFrame({"photo": [1, 2]}).to_parquet(file)


def a_folder(file: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize("make", [text, another_program, a_folder])
def test_a_file_that_is_not_an_export_is_not_overwritten(make, law: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "mine"
    make(file)
    before = file.read_bytes() if file.is_file() else None
    assert flops_fit(["export", str(law), "--parquet", str(file)]) == 2
    assert "was not written by 'flops-fit export', so it is not overwritten" in capsys.readouterr().err
    assert (file.read_bytes() if file.is_file() else None) == before


def test_a_full_disk_keeps_the_earlier_export(law: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    file = tmp_path / "runs.parquet"
    assert flops_fit(["export", str(law), "--parquet", str(file)]) == 0
    before = file.read_bytes()

    def full(table, open_file, **options):
        open_file.write(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    assert flops_fit(["export", str(law), "--parquet", str(file)]) == 2
    assert "runs.parquet: cannot write: No space left on device" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "runs" in path.name] == ["runs.parquet"]


def test_a_folder_that_does_not_exist_is_named(law: Path, tmp_path: Path, capsys) -> None:
    assert flops_fit(["export", str(law), "--parquet", str(tmp_path / "nowhere" / "runs.parquet")]) == 2
    assert f"the folder {tmp_path / 'nowhere'} does not exist" in capsys.readouterr().err


def test_without_pyarrow_the_error_names_the_extra(law: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from flops_fit_core.cli.main import run\n"
        "sys.exit(run(['export', sys.argv[1], '--parquet', sys.argv[2]]))"
    )
    file = tmp_path / "runs.parquet"
    done = subprocess.run([sys.executable, "-c", code, law, file], capture_output=True, text=True)
    assert done.returncode == 2
    assert "writing Parquet needs pyarrow" in done.stderr
    assert "pip install 'flops-fit[parquet]'" in done.stderr
    assert not file.exists()


@pytest.mark.parametrize("kind", ["csv", "markdown", "latex", "bibtex"])
def test_a_dash_prints_the_text_that_a_file_would_have(
    trained: Path, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flops_fit(["export", str(trained), f"--{kind}", str(tmp_path / "file")]) == 0
    capsys.readouterr()
    assert flops_fit(["export", str(trained), f"--{kind}", "-"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == (tmp_path / "file").read_text().rstrip("\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parquet", "-"], "a Parquet file is not a text"),
        (["--csv", "-", "--latex", "-"], "both print to standard output"),
        (["--csv", "-", "--json"], "both print to standard output"),
    ],
)
def test_a_dash_for_two_outputs_is_an_error(
    trained: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flops_fit(["export", str(trained), *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_a_printed_text_is_not_mixed_with_the_names_of_files(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latex, parquet = tmp_path / "t.tex", tmp_path / "p.parquet"
    command = ["export", str(trained), "--csv", "-", "--latex", str(latex), "--parquet", str(parquet)]
    assert flops_fit(command) == 0
    printed = capsys.readouterr()
    assert printed.out == Study.open(trained).runs.csv()
    assert str(latex) in printed.err
    assert str(parquet) in printed.err
