"""The output of the bundled loggers, and their behaviour without a server."""

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
    """The address of a real MLflow server with a new database."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    wait_for(lambda: answers(port), 90)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)  # SIGTERM takes long, and the database is not needed any more
    process.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(is_true, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def build(name, folder, **options):
    spec = installed().find("logger", name).spec
    return spec.build(spec.options(**options), folder)


def plan_of(*runs, name="a study"):
    plan = make_plan(make_experiment(Bench().table(), Bench().registry()))
    return plan.model_copy(
        update={"runs": runs, "name": name, "params_name": "all of them", "flops_name": "6 N D"}
    )


def log_run(logger, result, progress=(1, 200, 400)):
    """Log a run from its start to its result."""
    logger.started(plan_of(result.run))
    for step in progress:
        logger.progress(progress_at(result.run, step, attempt=result.attempt))
    logger.finished(result)
    logger.close()


def progress_at(run, step, **fields):
    return Progress(run=run.id, step=step, steps=run.steps, tokens=step * run.tokens_per_step, loss=4.0, **fields)


# ---------------------------------------------------------------------------- a sweep


@MLFLOW_WARNS
def test_all_loggers_show_the_same_values_of_a_sweep(tmp_path):
    loggers = ["terminal", "tensorboard", {"name": "wandb", "mode": "offline"}, "mlflow"]
    table = {**text_table(write_text(tmp_path / "text")), "loggers": loggers}
    study = run(table, out=tmp_path / "study")
    folder = study.folder.path
    tables = [
        reading.tensorboard_rows(folder),
        reading.wandb_rows(folder),
        reading.mlflow_rows(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}"),
    ]
    assert len(study.results) == 2
    for rows in tables:
        by_id = {row["run"]: row for row in rows}
        assert len(by_id) == len(rows) == 2
        for result in study.results:
            row = by_id[result.id]
            assert (row["status"], row["params"], row["tokens"]) == ("completed", result.run.params, result.tokens)
            assert row["loss"] == pytest.approx(result.loss, rel=1e-6)
            assert row["flops"] == pytest.approx(result.run.flops, rel=1e-6)
            assert [tokens for tokens, _ in row["eval"]] == [point.tokens for point in result.curve]


def test_on_the_command_line_loggers_are_a_list_of_names_or_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp.toml").write_text(
        'sweep = {budgets = [1e12, 2e12], sizes = 2}\nmodel = "surface"\ndataset = "surface"\nexecutor = "local"\n'
    )
    arguments = ["run", "exp.toml", "--set", 'loggers=["terminal", {name = "tensorboard", points = 5}]']
    invoked = CliRunner().invoke(app, [*arguments, "--set", "loggers.0.time=false"])
    assert invoked.exception is None or isinstance(invoked.exception, SystemExit), invoked.output
    assert re.search(r"^run \w{8} \(budget .*\) completed: N .*, D .*, C .*, loss \d", invoked.stderr, re.M)
    assert len(list(Path("runs/exp/tensorboard").iterdir())) == len(Study.open("runs/exp").results) > 0
    refused = CliRunner().invoke(app, ["plan", "exp.toml", "--set", 'loggers=[{name = "terminal", evry = 5}]'])
    assert "loggers.0.evry: unknown; did you mean 'every'?" in str(refused.exception)


def test_discovery_imports_no_tracker():
    code = (
        "import sys; from flops_fit_core.plugins.registry import Registry; "
        "assert [registered.spec.name for registered in Registry().offers('logger')]; "
        "print({'tensorboard', 'wandb', 'mlflow', 'torch'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_progress_has_the_number_of_the_attempt(tmp_path):
    class TwoEvents(Trainer):
        def train(self, job, context):
            yield Progress(run=job.runs[0].id, step=1, steps=2, tokens=3)
            yield context.result(job.runs[0], "diverged")

    class Plugins(Bench):
        @hookimpl
        def flops_fit_trainers(self):
            yield TrainerSpec(name="two-events", build=lambda options: TwoEvents())

    bench = Plugins()
    plan = make_plan(make_experiment(bench.table(20, trainer="two-events"), bench.registry()))
    (job,) = plan.jobs({run.id for run in plan.runs}, {plan.runs[0].id: 3})
    setup = bench.registry().setup.model_dump_json()
    events = list(work(job.model_dump_json(), setup, objects=bench.registry().objects, folder=tmp_path))
    assert [(type(event), event.attempt) for event in events] == [(Progress, 3), (RunResult, 3)]


def test_a_logger_is_started_before_it_receives_results_from_the_outbox(tmp_path):
    from test_sweep import RecordingLogger, Setting

    setting, logger = Setting(tmp_path), RecordingLogger()
    Outbox(setting.folder).put(example_result(run=setting.plan.runs[0]))
    setting.driver(setting.store(), loggers=[logger], folder=setting.folder).run()
    assert logger.calls[:2] == ["started", "completed"]


# ---------------------------------------------------------------------------- the terminal


def test_the_terminal_prints_start_progress_and_end_of_a_run(tmp_path, capsys):
    log_run(build("terminal", tmp_path, time=False, every=0), example_result(seconds=12.34))
    label = f"run {RUN.id[:8]} (budget 1.2e+11, size 32, seed 0)"
    sizes = "N 36.9K, D 410K tokens, C 1.2e+11"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1:] == [
        f"{label} trains: {sizes}, step 1 of 400, training loss 4.0000",
        f"{label}: step 200 of 400, training loss 4.0000",
        f"{label}: step 400 of 400, training loss 4.0000",
        f"{label} completed: {sizes}, loss 2.3457, 12.3 s",
    ]


def test_the_terminal_prints_no_progress_before_the_interval_has_passed(tmp_path, capsys):
    log_run(build("terminal", tmp_path, every=3600), example_result())
    assert [line.count("training loss") for line in capsys.readouterr().err.splitlines()] == [0, 1, 0]


def test_the_terminal_prints_the_error_of_a_failed_run_in_one_line(tmp_path, capsys):
    failed = example_result(status="failed", attempt=2, tokens=1024)
    log_run(build("terminal", tmp_path, time=False), failed, progress=())
    line = capsys.readouterr().err.splitlines()[-1]
    assert "seed 0, attempt 2) failed: " in line
    assert line.endswith(", 1.02K tokens seen, 4.8 s: ValueError: an example")


# ---------------------------------------------------------------------------- tensorboard


def test_tensorboard_has_n_d_c_and_options_of_the_recipe_as_hyperparameters(tmp_path):
    log_run(build("tensorboard", tmp_path), example_result())
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == f"C1.2e+11-size32-seed0-{RUN.id[:8]}"
    hyperparameters = reading.hyperparameters(folder)
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
    }.items() <= hyperparameters.items()


@pytest.mark.parametrize("status, code", [("completed", 1), ("diverged", 1), ("failed", 2)])
def test_tensorboards_session_ends_with_the_runs_status(tmp_path, status, code):
    from tensorboard.plugins.hparams import metadata

    log_run(build("tensorboard", tmp_path), example_result(status=status))
    (folder,) = (tmp_path / "tensorboard").iterdir()
    content = reading.accumulated(folder).SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == code


def test_a_training_curve_has_at_most_the_configured_number_of_points(tmp_path):
    log_run(build("tensorboard", tmp_path, points=10), example_result(), progress=range(1, 401))
    (row,) = reading.tensorboard_rows(tmp_path)
    assert [tokens // RUN.tokens_per_step for tokens, _ in row["training"]] == list(range(1, 401, 40))


# ---------------------------------------------------------------------------- wandb


def wandb_runs(folder):
    return [reading.wandb_run(file) for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))]


def test_wandb_runs_are_grouped_by_study_and_the_process_has_no_global_run(tmp_path):
    import wandb

    log_run(build("wandb", tmp_path, mode="offline", project="laws", tags=["a", "b"]), example_result(), (1, 400))
    (logged,) = wandb_runs(tmp_path)
    assert (logged["group"], logged["project"], sorted(logged["tags"])) == ("a study", "laws", ["a", "b"])
    assert logged["name"] == f"C1.2e+11-size32-seed0-{RUN.id[:8]}"
    assert (logged["config"]["params"], logged["config"]["tokens"], logged["config"]["optimizer/lr"]) == (
        36_864,
        409_600,
        0.01,
    )
    assert [point["tokens"] for point in logged["history"]] == [1024, 409_600, 204_800, 409_600]
    assert (logged["summary"]["status"], logged["summary"]["metrics/accuracy"]) == ("completed", 0.1 + 0.2)
    assert logged["ended"] == 0
    assert wandb.run is None


def test_each_attempt_of_a_study_has_another_wandb_id(tmp_path):
    def ids(study, *attempts):
        for attempt in attempts:
            log_run(build("wandb", study, mode="offline"), example_result(attempt=attempt))
        return [logged["id"] for logged in wandb_runs(study)]

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert len(set(ids(first, 1, 2))) == 2
    resumed = ids(first, 1)  # as after an interruption
    assert len(resumed) == 3
    assert len(set(resumed)) == 2
    assert not set(ids(second, 1)) & set(resumed), "another study of the same name has other ids"


def test_wandb_online_without_a_login_is_an_error_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"not logged in to https://\S+: type 'wandb login', or set"):
        build("wandb", tmp_path)
    assert "WANDB_SERVICE" not in os.environ, "the library's process has ended"
    monkeypatch.setenv("WANDB_MODE", "offline")
    build("wandb", tmp_path).close()


def test_a_wandb_run_that_could_not_start_can_be_retried(tmp_path, monkeypatch):
    from flops_fit_loggers import wandb_runs

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(wandb_runs, "INIT_SECONDS", 1.0)
    options = {"project": None, "entity": None, "mode": None, "tags": (), "flush_timeout": 1.0}
    runs = wandb_runs.WandbRuns(tmp_path, **options)
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
def test_an_interrupted_run_is_killed_in_mlflow_until_it_resumes(tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")

    def states():
        experiment = client.get_experiment_by_name("laws")
        return [run.info.status for run in client.search_runs([experiment.experiment_id])]

    logger = build("mlflow", tmp_path, experiment="laws")
    logger.started(plan_of(RUN))
    logger.progress(progress_at(RUN, 100))
    logger.close()
    assert states() == ["KILLED"]
    log_run(build("mlflow", tmp_path, experiment="laws"), example_result(status="failed"))
    assert states() == ["FAILED"]


@MLFLOW_WARNS
def test_mlflow_finds_runs_by_n_and_budget_and_shows_their_duration(tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    log_run(build("mlflow", tmp_path), example_result(seconds=12.5), progress=())
    experiment = client.get_experiment_by_name("a study").experiment_id
    (match,) = client.search_runs([experiment], "metrics.params > 36000 and metrics.budget = 1.2e11")
    assert match.info.end_time - match.info.start_time == 12_500
    assert client.search_runs([experiment], "metrics.params > 37000") == []


@MLFLOW_WARNS
def test_an_mlflow_run_that_was_created_without_its_configuration_gets_it_later(tmp_path):
    from flops_fit_loggers.mlflow_runs import MlflowRuns

    runs = MlflowRuns(tmp_path, tracking_uri=None, experiment=None)
    runs.open(plan_of(RUN))
    runs._create_run(RUN, 1, time.time())
    runs.finished(example_result())
    (row,) = reading.mlflow_rows(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    assert (row["run"], row["params"]) == (RUN.id, 36_864)


@MLFLOW_WARNS
def test_two_drivers_that_create_an_mlflow_experiment_at_the_same_time_share_it(tmp_path):
    from flops_fit_loggers.mlflow_runs import MlflowRuns

    runs = MlflowRuns(tmp_path, tracking_uri=None, experiment="laws")
    runs.open(plan_of(RUN))
    experiment = runs._create_experiment("laws")  # as a driver does that has not found it before
    assert experiment.experiment_id == runs._experiment


@MLFLOW_WARNS
def test_the_mlflow_database_appears_only_when_it_is_complete(tmp_path):
    from flops_fit_loggers.mlflow_runs import MlflowRuns

    runs = MlflowRuns(tmp_path, tracking_uri=None, experiment=None)
    file = tmp_path / "mlflow" / "mlflow.db"
    creation = threading.Thread(target=runs._create_database)
    creation.start()
    wait_for(file.exists, 60)
    with contextlib.closing(sqlite3.connect(file)) as database:  # as a second driver does
        assert database.execute("SELECT count(*) FROM experiments").fetchone() == (1,)
    creation.join()
    assert list(file.parent.iterdir()) == [file]


@MLFLOW_WARNS
def test_a_server_that_does_not_answer_neither_stops_a_sweep_nor_loses_its_results(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    no_server = {"name": "mlflow", "tracking_uri": f"http://127.0.0.1:{free_port()}", "flush_timeout": 0.5}
    table = {**text_table(write_text(tmp_path / "text")), "name": tmp_path.name, "loggers": [no_server]}
    study = run(table, out=tmp_path / "study")
    assert [result.status for result in study.results] == ["completed", "completed"]
    texts = [record.getMessage() for record in caplog.records if record.name == "flops_fit"]
    messages = [text for text in texts if not text.startswith("too few sizes")]
    assert len(messages) == 2
    assert messages[0].startswith(
        "logger mlflow: the server does not answer, will retry; the sweep continues: MlflowException: "
    )
    (unsent,) = (tmp_path / "study" / "loggers").glob("mlflow.unsent.*.jsonl")
    assert messages[1] == f"logger mlflow: 2 results not sent, kept in {unsent} for the next run"
    database = f"sqlite:///{tmp_path / 'later.db'}"
    table["loggers"] = [{"name": "mlflow", "tracking_uri": database}]
    run(table, out=tmp_path / "study")
    rows = reading.mlflow_rows(database)
    assert {row["run"]: row["loss"] for row in rows} == {result.id: result.loss for result in study.results}
    assert not unsent.exists()
