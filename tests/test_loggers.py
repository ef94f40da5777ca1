"""What the bundled loggers show, where they show it, and what they do when a server is away."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import reading_loggers as reading
from optional_packages import needs
from small import Bench, text_table, write_text
from typer.testing import CliRunner

from flops_fit_core import ConfigError, Progress, RunResult, Study, run
from flops_fit_core.cli import app
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import Outbox, Trainer, TrainerSpec, hookimpl
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing import LoggerConformance, example_result, example_run
from flops_fit_core.training import work

RUN = example_run()
MLFLOW_WARNS = needs("mlflow", pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"))


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch):
    for name in {name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))} - {"WANDB_SERVICE"}:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a real MLflow server, with a database of its own."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'there.db'}", "--artifacts-destination", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    wait_for(lambda: answers(port), 90)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)  # a friendly end takes it long; its database is thrown away
    process.wait()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(what, seconds=20.0):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it has not come"
        time.sleep(0.02)


def build(name, folder, **options):
    spec = installed().find("logger", name).spec
    return spec.build(spec.options(**options), folder)


def plan_of(*runs, name="a study"):
    plan = make_plan(make_experiment(Bench().table(), Bench().registry()))
    return plan.model_copy(
        update={"runs": runs, "name": name, "params_name": "all of them", "flops_name": "6 N D"}
    )


def told(logger, result, progress=(1, 200, 400)):
    """One run from its start to its result."""
    logger.started(plan_of(result.run))
    for step in progress:
        logger.progress(heard(result.run, step, attempt=result.attempt))
    logger.finished(result)
    logger.close()


def heard(one, step, **more):
    return Progress(run=one.id, step=step, steps=one.steps, tokens=step * one.tokens_per_step, loss=4.0, **more)


# ---------------------------------------------------------------------------- a sweep


@MLFLOW_WARNS
def test_a_sweep_with_all_of_them_shows_the_same_everywhere(tmp_path):
    loggers = ["terminal", "tensorboard", {"name": "wandb", "mode": "offline"}, "mlflow"]
    table = {**text_table(write_text(tmp_path / "text")), "loggers": loggers}
    study = run(table, out=tmp_path / "study")
    folder = study.folder.path
    everywhere = [
        reading.tensorboard_rows(folder),
        reading.wandb_rows(folder),
        reading.mlflow_rows(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}"),
    ]
    assert len(study.results) == 2
    for rows in everywhere:
        by_id = {row["run"]: row for row in rows}
        assert len(by_id) == len(rows) == 2
        for result in study.results:
            row = by_id[result.id]
            assert (row["status"], row["params"], row["tokens"]) == ("completed", result.run.params, result.tokens)
            assert row["loss"] == pytest.approx(result.loss, rel=1e-6)
            assert row["flops"] == pytest.approx(result.run.flops, rel=1e-6)
            assert [tokens for tokens, _ in row["eval"]] == [one.tokens for one in result.curve]


def test_on_the_command_line_loggers_are_a_list_of_names_or_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp.toml").write_text(
        'sweep = {budgets = [1e12, 2e12], sizes = 2}\nmodel = "surface"\ndataset = "surface"\nexecutor = "local"\n'
    )
    arguments = ["run", "exp.toml", "--set", 'loggers=["terminal", {name = "tensorboard", points = 5}]']
    done = CliRunner().invoke(app, [*arguments, "--set", "loggers.0.time=false"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    assert re.search(r"^run \w{8} \(budget .*\) completed: N .*, D .*, C .*, loss \d", done.stderr, re.M)
    assert len(list(Path("runs/exp/tensorboard").iterdir())) == len(Study.open("runs/exp").results) > 0
    refused = CliRunner().invoke(app, ["plan", "exp.toml", "--set", 'loggers=[{name = "terminal", evry = 5}]'])
    assert "loggers.0.evry: unknown; did you mean 'every'?" in str(refused.exception)


def test_discovery_imports_no_tracker():
    code = (
        "import sys; from flops_fit_core.plugins.registry import Registry; "
        "assert [one.spec.name for one in Registry().offers('logger')]; "
        "print({'tensorboard', 'wandb', 'mlflow', 'torch'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_progress_says_which_attempt_it_is(tmp_path):
    class Talker(Trainer):
        def train(self, job, context):
            yield Progress(run=job.runs[0].id, step=1, steps=2, tokens=3)
            yield context.result(job.runs[0], "diverged")

    class Talking(Bench):
        @hookimpl
        def flops_fit_trainers(self):
            yield TrainerSpec(name="talker", build=lambda options: Talker())

    bench = Talking()
    plan = make_plan(make_experiment(bench.table(20, trainer="talker"), bench.registry()))
    (job,) = plan.jobs({one.id for one in plan.runs}, {plan.runs[0].id: 3})
    setup = bench.registry().setup.model_dump_json()
    events = list(work(job.model_dump_json(), setup, objects=bench.registry().objects, folder=tmp_path))
    assert [(type(event), event.attempt) for event in events] == [(Progress, 3), (RunResult, 3)]


def test_a_logger_hears_of_the_start_before_results_that_were_left_in_the_outbox(tmp_path):
    from test_sweep import Notes, Setting

    setting, notes = Setting(tmp_path), Notes()
    Outbox(setting.folder).put(example_result(run=setting.plan.runs[0]))
    setting.driver(setting.store(), loggers=[notes], folder=setting.folder).run()
    assert notes.told[:2] == ["started", "completed"]


# ---------------------------------------------------------------------------- the terminal


def test_the_terminal_says_when_a_run_starts_goes_on_and_ends(tmp_path, capsys):
    told(build("terminal", tmp_path, time=False, every=0), example_result(seconds=12.34))
    who = f"run {RUN.id[:8]} (budget 1.2e+11, size 32, seed 0)"
    what = "N 36.9K, D 410K tokens, C 1.2e+11"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1:] == [
        f"{who} trains: {what}, step 1 of 400, training loss 4.0000",
        f"{who}: step 200 of 400, training loss 4.0000",
        f"{who}: step 400 of 400, training loss 4.0000",
        f"{who} completed: {what}, loss 2.3457, 12.3 s",
    ]


def test_the_terminal_says_nothing_more_of_progress_before_its_time(tmp_path, capsys):
    told(build("terminal", tmp_path, every=3600), example_result())
    assert [line.count("training loss") for line in capsys.readouterr().err.splitlines()] == [0, 1, 0]


def test_the_terminal_says_in_one_line_why_a_run_failed(tmp_path, capsys):
    failed = example_result(status="failed", attempt=2, tokens=1024)
    told(build("terminal", tmp_path, time=False), failed, progress=())
    line = capsys.readouterr().err.splitlines()[-1]
    assert "seed 0, attempt 2) failed: " in line
    assert line.endswith(", 1.02K tokens seen, 4.8 s: ValueError: an example")


# ---------------------------------------------------------------------------- tensorboard


def test_tensorboard_has_hyperparameters_with_n_d_c_and_what_the_recipe_set(tmp_path):
    told(build("tensorboard", tmp_path), example_result())
    (place,) = (tmp_path / "tensorboard").iterdir()
    assert place.name == f"C1.2e+11-size32-seed0-{RUN.id[:8]}"
    found = reading.hyperparameters(place)
    assert {
        "params": 36_864.0,
        "params_name": "all of them",
        "tokens": 409_600.0,
        "flops": RUN.flops,
        "flops_name": "6 N D",
        "budget": 1.2e11,
        "size": 32.0,
        "seed": 0.0,
        "batch_size": 16.0,
        "model": "gpt/gpt",
        "model/width": 32.0,
        "optimizer/lr": 0.01,
        "optimizer/betas": "[0.9, 0.95]",
    }.items() <= found.items()


@pytest.mark.parametrize("status, theirs", [("completed", 1), ("diverged", 1), ("failed", 2)])
def test_tensorboards_session_ends_with_the_runs_status(tmp_path, status, theirs):
    from tensorboard.plugins.hparams import metadata

    told(build("tensorboard", tmp_path), example_result(status=status))
    (place,) = (tmp_path / "tensorboard").iterdir()
    content = reading.accumulated(place).SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == theirs


def test_a_training_curve_has_no_more_points_than_asked_for(tmp_path):
    told(build("tensorboard", tmp_path, points=10), example_result(), progress=range(1, 401))
    (row,) = reading.tensorboard_rows(tmp_path)
    assert [tokens // RUN.tokens_per_step for tokens, _ in row["training"]] == list(range(1, 401, 40))


# ---------------------------------------------------------------------------- wandb


def wandb_runs(folder):
    return [reading.wandb_run(file) for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))]


def test_wandb_runs_are_grouped_by_study_and_none_is_the_process_s_own(tmp_path):
    import wandb

    told(build("wandb", tmp_path, mode="offline", project="laws", tags=["a", "b"]), example_result(), (1, 400))
    (found,) = wandb_runs(tmp_path)
    assert (found["group"], found["project"], sorted(found["tags"])) == ("a study", "laws", ["a", "b"])
    assert found["name"] == f"C1.2e+11-size32-seed0-{RUN.id[:8]}"
    assert (found["config"]["params"], found["config"]["tokens"], found["config"]["optimizer/lr"]) == (
        36_864,
        409_600,
        0.01,
    )
    assert [point["tokens"] for point in found["history"]] == [1024, 409_600, 204_800, 409_600]
    assert (found["summary"]["status"], found["summary"]["metrics/accuracy"]) == ("completed", 0.1 + 0.2)
    assert found["ended"] == 0
    assert wandb.run is None


def test_a_wandb_run_has_one_id_for_each_attempt_of_a_study(tmp_path):
    def ids(study, *attempts):
        for attempt in attempts:
            told(build("wandb", study, mode="offline"), example_result(attempt=attempt))
        return [one["id"] for one in wandb_runs(study)]

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert len(set(ids(first, 1, 2))) == 2
    again = ids(first, 1)  # as after an interruption
    assert len(again) == 3
    assert len(set(again)) == 2
    assert not set(ids(second, 1)) & set(again), "another study of the same name is another"


def test_wandb_online_needs_a_login_and_says_so_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"nobody has logged in to https://\S+: run 'wandb login', or set"):
        build("wandb", tmp_path)
    assert "WANDB_SERVICE" not in os.environ, "its library's process has been ended"
    monkeypatch.setenv("WANDB_MODE", "offline")
    build("wandb", tmp_path).close()


def test_a_wandb_run_that_could_not_begin_is_tried_again(tmp_path, monkeypatch):
    from flops_fit_loggers import wandb_runs

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(wandb_runs, "INIT_SECONDS", 1.0)
    about = {"project": None, "entity": None, "mode": None, "tags": (), "flush_timeout": 1.0}
    runs = wandb_runs.WandbRuns(tmp_path, **about)
    runs.open(plan_of(RUN))
    for _ in range(2):
        with pytest.raises(Exception, match=r"connection refused|deadline|imed out"):
            runs.finished(example_result())
    runs.close()


# ---------------------------------------------------------------------------- mlflow


@MLFLOW_WARNS
@pytest.mark.slow
class TestMlflowOnAServer(LoggerConformance):
    name = "mlflow"
    keeps = ("attempt", "status", "loss", "params", "tokens", "flops", "eval", "error")
    keeps_training = True

    @pytest.fixture
    def given_options(self, server):
        self.server = server
        return {"tracking_uri": server}

    def shown(self, folder):
        token = (folder / "loggers" / "study").read_text()
        return reading.mlflow_rows(self.server, f"tags.`flops_fit.study` = '{token}'")


@MLFLOW_WARNS
def test_mlflow_calls_an_interrupted_run_killed_until_it_goes_on(tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")

    def states():
        known = client.get_experiment_by_name("laws")
        return [one.info.status for one in client.search_runs([known.experiment_id])]

    logger = build("mlflow", tmp_path, experiment="laws")
    logger.started(plan_of(RUN))
    logger.progress(heard(RUN, 100))
    logger.close()
    assert states() == ["KILLED"]
    told(build("mlflow", tmp_path, experiment="laws"), example_result(status="failed"))
    assert states() == ["FAILED"]


@MLFLOW_WARNS
def test_runs_are_found_in_mlflow_by_n_and_budget_and_last_as_long_as_they_did(tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    told(build("mlflow", tmp_path), example_result(seconds=12.5), progress=())
    known = client.get_experiment_by_name("a study")
    (found,) = client.search_runs([known.experiment_id], "metrics.params > 36000 and metrics.budget = 1.2e11")
    assert found.info.end_time - found.info.start_time == 12_500
    none = client.search_runs([known.experiment_id], "metrics.params > 37000")
    assert none == []


@MLFLOW_WARNS
def test_a_run_that_was_cut_off_when_it_was_made_in_mlflow_gets_its_configuration(tmp_path):
    from flops_fit_loggers.mlflow_runs import MlflowRuns

    runs = MlflowRuns(tmp_path, tracking_uri=None, experiment=None)
    runs.open(plan_of(RUN))
    runs._made(RUN, 1, time.time())
    runs.finished(example_result())
    (row,) = reading.mlflow_rows(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    assert (row["run"], row["params"]) == (RUN.id, 36_864)


@MLFLOW_WARNS
def test_two_drivers_that_make_one_mlflow_experiment_at_a_time_share_it(tmp_path):
    from flops_fit_loggers.mlflow_runs import MlflowRuns

    runs = MlflowRuns(tmp_path, tracking_uri=None, experiment="laws")
    runs.open(plan_of(RUN))
    theirs = runs._new_experiment("laws")  # as of one that has just looked and found none
    assert theirs.experiment_id == runs._experiment


@MLFLOW_WARNS
def test_mlflow_s_database_is_there_whole_or_not_at_all(tmp_path):
    from flops_fit_loggers.mlflow_runs import MlflowRuns

    runs = MlflowRuns(tmp_path, tracking_uri=None, experiment=None)
    file = tmp_path / "mlflow" / "mlflow.db"
    making = threading.Thread(target=runs._own_database)
    making.start()
    wait_for(file.exists, 60)
    with contextlib.closing(sqlite3.connect(file)) as database:  # as a second driver, or the next one
        assert database.execute("SELECT count(*) FROM experiments").fetchone() == (1,)
    making.join()
    assert list(file.parent.iterdir()) == [file]


@MLFLOW_WARNS
def test_a_server_that_is_away_neither_stops_a_sweep_nor_loses_its_results(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nowhere = {"name": "mlflow", "tracking_uri": f"http://127.0.0.1:{free_port()}", "flush_timeout": 0.5}
    table = {**text_table(write_text(tmp_path / "text")), "name": tmp_path.name, "loggers": [nowhere]}
    study = run(table, out=tmp_path / "study")
    assert [result.status for result in study.results] == ["completed", "completed"]
    said = [record.getMessage() for record in caplog.records if record.name == "flops_fit"]
    assert len(said) == 2
    assert said[0].startswith("logger mlflow waits and tries again; the sweep goes on: MlflowException: ")
    (unsent,) = (tmp_path / "study" / "loggers").glob("mlflow.unsent.*.jsonl")
    assert said[1] == f"logger mlflow: 2 results not sent, kept in {unsent} for the next run"
    there = f"sqlite:///{tmp_path / 'there.db'}"
    table["loggers"] = [{"name": "mlflow", "tracking_uri": there}]
    run(table, out=tmp_path / "study")
    rows = reading.mlflow_rows(there)
    assert {row["run"]: row["loss"] for row in rows} == {one.id: one.loss for one in study.results}
    assert not unsent.exists()
