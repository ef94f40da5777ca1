"""The command line, mostly called in this process."""

import json
import os
import re
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
from driver_process import COMMAND
from small import text_table, write_text

from flops_fit_core import RunResult
from flops_fit_core.cli.main import run
from flops_fit_core.cli.printing import print_message, print_text
from flops_fit_core.cli.run_details import describe_run
from flops_fit_core.plugins.registry import installed
from flops_fit_core.study import Study


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A working directory with text and an experiment on it, ``small.json``."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text")
    write_experiment(tmp_path)
    return tmp_path


def write_experiment(folder, **changes):
    table = text_table(folder / "text", **{"sweep": {"budgets": [1e8]}, **changes})
    (folder / "small.json").write_text(json.dumps(table))


def surface(folder, **changes):
    """An experiment on a formula: its sweep takes no time and has a law."""
    table = {
        "name": "formula",
        "sweep": {"budgets": [1e18, 1e19, 1e20, 1e21], "sizes": 7},
        "model": "surface/surface",
        "dataset": "surface/surface",
        "executor": "local",
        "fitter": {"name": "parametric", "draws": 20},  # 20 times as fast as the default
        **changes,
    }
    (folder / "formula.json").write_text(json.dumps(table))
    return "formula.json"


# ---------------------------------------------------------------------------- the user's mistakes


def broken(kind, name, value):
    def change(table):
        target = table if kind is None else table[kind]
        target[name] = value

    return change


BAD = {
    "a misspelt plugin": (broken("optimizer", "name", "adamv"), ["adamv", "adamw"]),
    "a misspelt option": (broken("optimizer", "lrr", 0.1), ["optimizer.lrr", "did you mean 'lr'"]),
    "a misspelt table": (broken(None, "optimiser", {"name": "sgd"}), ["optimiser", "did you mean 'optimizer'"]),
    "an option of the wrong type": (broken("optimizer", "lr", "fast"), ["optimizer.lr", "'fast'"]),
    "a size that cannot be built": (
        broken("sweep", "sizes", [{"width": 8}, {"width": 9}]),
        ["sweep.sizes.1.width", "even"],
    ),
    "more data than there is": (broken("sweep", "allow_repeat", False), ["epochs", "sweep.allow_repeat = true"]),
    "a budget too small for any size": (broken("sweep", "budgets", [1e3]), ["budget 1e3", "none of its sizes"]),
    "text that is not there": (broken("dataset", "path", "nowhere/*.txt"), ["no file matches", "nowhere"]),
    "a held-out part that is empty": (broken("dataset", "eval_share", 1e-9), ["hold out", "eval_path"]),
    "a device that is not there": (broken("device", "name", "tpu"), ["tpu", "cuda"]),
    "a negative budget": (broken("sweep", "budgets", [-1e9]), ["sweep.budgets.0"]),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_ends_in_one_message_and_status_2(workdir, call, mistake):
    change, expected = BAD[mistake]
    table = json.loads((workdir / "small.json").read_text())
    if mistake == "more data than there is":
        table["sweep"]["budgets"] = [1e10]
    change(table)
    (workdir / "small.json").write_text(json.dumps(table))
    status, output, error = call("run", "small.json")
    assert status == 2, error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    for part in expected:
        assert part in error
    assert output == ""
    assert not (workdir / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "missing.toml"], ["missing.toml does not exist", "small.json"]),
        (["run", "text"], ["text is not a study", "flops-fit run"]),
        (["runs", "small.json"], ["is not a study"]),
        (["fit", "missing.csv"], ["missing.csv"]),
        (["predict", "small.json", "--flops", "1e20"], ["is not a study"]),
        (["plan", "small.json", "--set", "optimizer"], ["--set optimizer"]),
        (["plan", "small.json", "--set", "optimizer.rate=3"], ["optimizer.rate"]),
        (["plan", "small.json", "--optimizer", "adamv"], ["adamv"]),
        (["plan", "small.json", "-p", "no_such_module"], ["no_such_module"]),
        (["fit", "small.json", "--fitter", "magic"], ["magic", "is not a study"]),
        (["plan", "a" * 300], ["File name too long"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(workdir, call, arguments, expected):
    status, _, error = call(*arguments)
    assert status == 2
    assert "Traceback" not in error
    assert any(part in error for part in expected)


@pytest.mark.parametrize("arguments", [["plan"], ["plna", "small.json"], ["plan", "small.json", "--jsn"]])
def test_a_misspelt_command_shows_its_usage(workdir, call, arguments):
    status, _, error = call(*arguments)
    assert status == 2
    assert "Traceback" not in error
    assert error


STORE_FILES = {"results.sqlite", "results.json"}


@pytest.mark.parametrize("store", ["sqlite", "json"])
@pytest.mark.parametrize("damage", ["cut in half", "not ours"])
def test_a_damaged_store_is_named_and_not_changed(workdir, call, store, damage):
    assert call("run", "small.json", "--store", store, "--out", "study")[0] == 0
    (file,) = [path for path in (workdir / "study").glob("results.*") if path.name in STORE_FILES]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "cut in half" else b'{"a": "diary of mine"}' * 300)
    content = file.read_bytes()
    for arguments in (["run", "small.json", "--store", store], ["runs", "small.json"]):
        status, _, error = call(*arguments, "--out", "study")
        assert status == 2, error
        assert "Traceback" not in error
        assert file.name in error
        assert file.read_bytes() == content


@pytest.fixture
def full_disk(tmp_path):
    """A folder that holds 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_message_that_names_the_file(full_disk, call, tmp_path):
    surface(tmp_path, store="json")
    command = ("run", tmp_path / "formula.json", "--out", full_disk / "study")
    assert call(*command)[0] == 0
    with pytest.raises(OSError, match="No space left"), (full_disk / "other").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    status, _, error = call(*command, "--set", "sweep.seeds=[0,1]")
    assert status == 2
    assert "No space left on device" in error
    assert str(full_disk / "study") in error
    (full_disk / "other").unlink()
    assert call(*command)[0] == 0


def test_a_plugin_that_raises_is_named_with_status_1_and_finished_results_stay(workdir, call, monkeypatch):
    assert call("run", "small.json", "--out", "study")[0] == 0
    before = call("runs", "study", "--json")[1]
    module = """
        from flops_fit_core.plugins import RecipeSpec, hookimpl

        def build(options, about):
            raise ZeroDivisionError("an author's mistake")

        @hookimpl
        def flops_fit_recipes():
            yield RecipeSpec(name="broken", build=build)
    """
    (workdir / "broken_recipe.py").write_text(textwrap.dedent(module))
    status, _, error = call("run", "small.json", "--out", "study", "-p", "broken_recipe", "--recipe", "broken")
    assert status == 1
    assert "broken_recipe/broken" in error
    assert "ZeroDivisionError: an author's mistake" in error
    assert "Traceback" not in error
    assert call("runs", "study", "--json")[1] == before


# ---------------------------------------------------------------------------- plan


def test_plan_gives_every_run_and_the_flops_to_a_program(workdir, call):
    status, output, _ = call("plan", "small.json", "--json")
    plan = json.loads(output)
    assert status == 0
    assert plan["name"] == "small"
    assert len(plan["runs"]) == 2
    assert {row["state"] for row in plan["runs"]} == {"waiting"}
    assert plan["flops"] == pytest.approx(sum(row["flops"] for row in plan["runs"]))
    assert plan["flops"] == pytest.approx(2e8, rel=0.01)
    assert plan["seconds_left"] > 0
    assert not (workdir / "runs").exists()


def test_set_changes_an_option_and_the_plan_names_it_as_yours(workdir, call):
    _, output, _ = call("plan", "small.json", "--json", "--no-estimate", "--set", "optimizer.lr=0.25")
    assert any("optimizer.lr = 0.25 is set by you" in note for note in json.loads(output)["notes"])


def test_swapping_a_plugin_names_the_dropped_options(workdir, call):
    arguments = ["plan", "small.json", "--no-estimate", "--set"]
    write_experiment(workdir, optimizer={"name": "adamw", "betas": [0.8, 0.9]})
    status, _, error = call(*arguments, "sweep.seeds=[0]", "--optimizer", "sgd")
    assert status == 0
    assert "--optimizer sgd: dropped betas. To keep them: --set optimizer.name=sgd" in " ".join(error.split())


def test_plan_shows_finished_runs(workdir, call):
    call("run", "small.json")
    _, output, _ = call("plan", "small.json", "--json")
    plan = json.loads(output)
    assert {row["state"] for row in plan["runs"]} == {"completed"}
    assert plan["seconds_left"] == 0


# ---------------------------------------------------------------------------- run, runs, status


def test_a_sweep_is_run_listed_and_not_run_again(workdir, call):
    status, _, error = call("run", "small.json")
    assert status == 0
    assert "[2/2]" in error
    assert "no law yet" in error
    _, output, _ = call("runs", "runs/small", "--json")
    rows = json.loads(output)
    assert len(rows) == 2
    for row in rows:
        assert {"id", "status", "params", "tokens", "flops", "loss", "seed"} <= row.keys()
        assert row["status"] == "completed"
    _, second_output, _ = call("runs", "small.json", "--json")
    assert second_output == output
    assert "0 to train" in call("run", "runs/small")[2]
    assert json.loads(call("runs", "runs/small", "--json")[1]) == rows


def test_runs_as_csv_can_be_read_and_fitted_again(formula, call, tmp_path):
    from flops_fit_core.fitting import read_table

    status, output, _ = call("runs", formula, "--csv")
    assert status == 0
    (tmp_path / "table.csv").write_text(output)
    observations = read_table(tmp_path / "table.csv").observations
    rows = json.loads(call("runs", formula, "--json")[1])
    assert len(observations) == len(rows) == 28
    assert sorted(run.loss for run in observations) == sorted(row["loss"] for row in rows)
    status, output, _ = call("fit", tmp_path / "table.csv", "--json")
    assert status == 0
    assert json.loads(output)["n_runs"] == 28


def test_status_counts_runs_and_flops(workdir, call):
    call("run", "small.json")
    status, output, _ = call("status", "runs/small", "--json")
    answer = json.loads(output)
    assert status == 0
    assert answer["runs"] == {"running": 0, "waiting": 0, "completed": 2, "diverged": 0, "failed": 0}
    assert answer["flops_spent"] == pytest.approx(2e8, rel=0.01)
    assert abs(answer["flops_left"]) < 1


def test_a_failed_run_gives_status_1_and_is_listed(workdir, call):
    (workdir / "raising.py").write_text(
        textwrap.dedent("""
        from flops_fit_core.plugins import ModelSpec, Options, hookimpl

        class RaisingOptions(Options):
            width: int = 8

        def build(options, task):
            import torch
            from torch import nn

            class Raising(nn.Sequential):
                def forward(self, ids):
                    if torch.is_grad_enabled() and options.width == 12:
                        raise RuntimeError("not this one")
                    return super().forward(ids)

            return Raising(nn.Embedding(256, options.width), nn.Linear(options.width, 256))

        @hookimpl
        def flops_fit_models():
            yield ModelSpec(name="raising", options=RaisingOptions, build=build, size="width")
        """)
    )
    write_experiment(workdir, model={"name": "raising"}, counter="chinchilla")
    status, _, error = call("run", "small.json", "-p", "raising")
    assert status == 1
    assert "1 run failed: RuntimeError: not this one" in error
    # The study has its module: no option has to name it again.
    rows = json.loads(call("runs", "runs/small", "--json")[1])
    assert sorted(row["status"] for row in rows) == ["completed", "failed"]
    assert "1 to train" in call("run", "runs/small")[2]
    assert "0 to train" in call("run", "runs/small", "--no-retry")[2]

    (failed,) = [row["id"] for row in rows if row["status"] == "failed"]
    assert f"'flops-fit show runs/small {failed[:6]}' prints the error in full" in error
    shown = call("show", "runs/small", failed[:6])[1].splitlines()
    assert shown[0] == f"run {failed}: failed"
    assert "  model      raising/raising width = 12" in shown
    assert [line.split(",")[0] for line in shown if line.startswith("attempt")] == [
        "attempt 1: failed",
        "attempt 2: failed",
    ]
    assert shown[-1] == "  | RuntimeError: not this one"
    (stored,) = json.loads(call("show", "runs/small", failed, "--json")[1])
    assert [attempt["error"]["type"] for attempt in stored["attempts"]] == ["RuntimeError", "RuntimeError"]
    assert stored["run"]["size"] == 12


def test_text_is_printed_without_markup(capsys):
    for tell in (print_message, print_text):
        tell("inputs[:b:2] raised [bold]KeyError[/bold]: ':smile:'")
    printed = capsys.readouterr()
    assert printed.out == printed.err == "inputs[:b:2] raised [bold]KeyError[/bold]: ':smile:'\n"


def test_a_run_without_a_result_is_shown_as_planned(formula):
    study = Study.open(formula, installed())
    text = "\n".join(describe_run(study.plan.runs[0], [], study.plan))
    assert text.startswith(f"run {study.plan.runs[0].id}: planned\n  C 1e18 FLOPs")
    assert "attempt" not in text


def test_a_superseded_attempt_is_shown_as_superseded_and_does_not_decide_the_status(formula):
    study = Study.open(formula, installed())
    run = study.plan.runs[0]
    attempts = [RunResult(run=run, status="completed", loss=2.5), RunResult(run=run, status="diverged", attempt=2)]
    attempts[1] = attempts[1].model_copy(update={"superseded": True})
    text = "\n".join(describe_run(run, attempts, study.plan))
    assert text.startswith(f"run {run.id}: completed\n")
    assert "attempt 2: diverged, superseded by an attempt of another driver, 0" in text


def test_an_unknown_run_id_names_the_command_that_lists_ids(formula, call):
    status, _, error = call("show", formula)
    assert (status, error) == (2, f"error: name at least one run: 'flops-fit runs {formula}' lists their ids\n")
    status, _, error = call("show", formula, "xyz")
    assert (status, error) == (2, f"error: formula has no run 'xyz'; 'flops-fit runs {formula}' lists their ids\n")


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        (["audit", "small.json"], "'audit' was renamed: flops-fit count-flops"),
        (["clean", "runs/small"], "'clean' was renamed: flops-fit prune-checkpoints"),
        (["runs", "runs/small", "--run", "f2f4"], "runs --run was renamed: flops-fit show SOURCE ID"),
        (["fit", "runs.csv", "--map", "loss=val"], "--map was renamed: --column"),
        (["fit", "runs.csv", "--where=group=c4"], "--where was renamed: --filter"),
        (["plan", "small.json", "--without", "gpt"], "--without was renamed: --disable-plugin"),
    ],
)
def test_an_old_name_on_the_command_line_is_an_error_with_the_new_one(arguments, new, call):
    status, output, error = call(*arguments)
    assert (status, output) == (2, "")
    assert new in error


def test_a_changed_option_is_other_runs_in_the_same_study(workdir, call):
    call("run", "small.json")
    _, _, error = call("run", "small.json", "--set", "optimizer.lr=0.02")
    assert "2 to train" in error
    assert "0 to train" in call("run", "small.json")[2]


# ---------------------------------------------------------------------------- fit, predict, report


@pytest.fixture(scope="module")
def formula(tmp_path_factory):
    """A finished study."""
    folder = tmp_path_factory.mktemp("formula")
    surface(folder)
    assert run(["run", str(folder / "formula.json"), "--out", str(folder / "study"), "--report"]) == 0
    return folder / "study"


def test_a_sweep_writes_a_report_and_its_fit(formula):
    assert (formula / "report").is_dir()
    names = {path.suffix for path in (formula / "report").rglob("*") if path.is_file()}
    assert {".png", ".svg", ".html"} <= names
    assert json.loads((formula / "fit.json").read_text())["exponents"]["a"]["value"] > 0


def test_fit_and_predict_give_json(formula, call):
    status, output, _ = call("fit", formula, "--json")
    law = json.loads(output)
    assert status == 0
    assert 0.3 < law["exponents"]["a"]["value"] < 0.7
    assert law["exponents"]["a"]["low"] <= law["exponents"]["a"]["high"]
    status, output, _ = call("predict", formula, "--flops", "1e22", "--json")
    prediction = json.loads(output)
    assert status == 0
    assert prediction["flops"] == 1e22
    assert prediction["params"]["low"] <= prediction["params"]["value"] <= prediction["params"]["high"]
    predictions = json.loads(call("predict", formula, "--flops", "1e22", "--flops", "1e23", "--json")[1])
    assert [item["flops"] for item in predictions] == [1e22, 1e23]
    assert predictions[0] == prediction


def test_a_loss_far_beyond_the_runs_comes_after_a_warning_with_one_digit(formula, call):
    # The formula has no noise: rounded to one digit, the ends of an interval may be equal, and are left out.
    one_digit = r"(\d\.\d–\d\.\d \(about \d\.\d\)|about \d\.\d)"
    first, second = call("predict", formula, "--params", "1e12", "--tokens", "1e14")[1].splitlines()
    assert re.match(r"! [\d,]+x beyond your data: orders of magnitude only$", first)
    assert re.match(rf"N = 1.00T, D = 100T: loss {one_digit} by", second)
    other_size = call("predict", formula, "--flops", "1e27", "--params", "1e12")[1]
    sentence = rf"  N = 1.00T would train on D = [1-9]0*[BT] to a loss of {one_digit}:"
    assert re.search(sentence, other_size)
    inside = call("predict", formula, "--params", "1e9", "--tokens", "1e10")[1]
    assert "!" not in inside


def test_a_saved_fit_predicts_the_same_as_its_study(formula, call, tmp_path):
    call("fit", formula, "--out", tmp_path / "law.json")
    stored = json.loads(call("predict", tmp_path / "law.json", "--flops", "1e22", "--json")[1])
    assert stored == json.loads(call("predict", formula, "--flops", "1e22", "--json")[1])


def test_a_study_without_a_law_names_the_missing_runs(workdir, call):
    call("run", "small.json")
    for command in (["fit", "runs/small"], ["predict", "runs/small", "--flops", "1e9"]):
        status, _, error = call(*command)
        assert status == 2
        assert error.startswith("error: ")
    assert call("report", "runs/small")[0] == 0
    assert "cannot fit a law" in (workdir / "runs/small/report/index.html").read_text()


# ---------------------------------------------------------------------------- plugins


def test_plugins_are_listed_with_where_they_come_from(call):
    status, output, _ = call("plugins", "--json")
    answer = json.loads(output)
    assert status == 0
    assert answer["problems"] == []
    sources = {offer["name"]: offer["source"] for offer in answer["offers"]}
    assert sources["gpt/gpt"] == "flops-fit 0.1.0"
    assert "optim/adamw" in sources


def test_a_broken_plugin_gives_status_1_and_the_rest_is_listed(site, call):
    site.install("their-dist", "halfway", "raise OSError('no such disk')")
    status, output, error = call("plugins")
    assert status == 1
    assert "their-dist" in error
    assert "no such disk" in error
    assert "optim/adamw" in output


def test_a_disabled_plugin_is_not_offered(call):
    _, output, _ = call("plugins", "--json", "--disable-plugin", "gpt")
    answer = json.loads(output)
    assert answer["disabled"] == ["gpt"]
    assert not any(offer["name"].startswith("gpt/") for offer in answer["offers"])


# ---------------------------------------------------------------------------- processes


def test_ctrl_c_ends_within_seconds_with_130_and_the_sweep_continues_later(workdir, call):
    write_experiment(
        workdir,
        sweep={"budgets": [4e8], "sizes": [{"width": 8}, {"width": 12}, {"width": 16}], "allow_repeat": True},
        executor={"name": "processes", "workers": 1},
    )
    command = [*COMMAND, "run", "small.json"]
    with Path("output.txt").open("w") as output:
        driver = subprocess.Popen(command, stdout=output, stderr=output)
    until = time.monotonic() + 120
    while "[1/3]" not in Path("output.txt").read_text():
        assert driver.poll() is None, Path("output.txt").read_text()
        assert time.monotonic() < until
        time.sleep(0.02)
    stopped = time.monotonic()
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130
    assert time.monotonic() - stopped < 20
    text = Path("output.txt").read_text()
    assert "Traceback" not in text
    assert "Finished results are kept" in text
    status, output, error = call("run", "small.json", "--executor", "local")
    assert status == 0
    assert "3 runs, 3 to train" not in output + error
    assert "[3/3]" in output + error


def test_a_closed_output_pipe_is_not_an_error(workdir):
    command = f"{COMMAND[0]} -c '{COMMAND[2]}' plugins | head -1; exit ${{PIPESTATUS[0]}}"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ)
    assert process.returncode == 0
    assert "Traceback" not in process.stderr
    assert "BrokenPipe" not in process.stderr


@pytest.mark.parametrize(
    "option",
    [
        ["--fitter", "isoflop"],
        ["--set", "draws=10"],
        ["--column", "loss=val"],
        ["--filter", "group=c4"],
        ["--eval-set", "poems"],
    ],
)
def test_a_saved_fit_refuses_options_of_a_new_fit(formula, call, tmp_path, option):
    law = tmp_path / "law.json"
    assert call("fit", formula, "--out", law)[0] == 0
    status, output, error = call("predict", law, "--flops", "1e22", *option)
    assert (status, output) == (2, "")
    assert " ".join(option) in error
    assert "name the study or the table of runs" in error


@pytest.mark.parametrize("command", [["fit"], ["backtest"]])
def test_a_saved_fit_is_not_fitted_again(formula, call, tmp_path, command):
    law = tmp_path / "law.json"
    assert call("fit", formula, "--out", law)[0] == 0
    status, _, error = call(*command, law)
    assert status == 2
    assert f"flops-fit predict {law} --flops C" in error
