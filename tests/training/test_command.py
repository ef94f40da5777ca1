"""The trainer ``command``: any program, started once a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from own_programs import flops_fit, say, script, table
from small import events, train

from flops_fit_core import ConfigError, Progress
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import OptimizerSpec, hookimpl
from flops_fit_core.plugins.registry import installed

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own-program"
BIGRAM = '''
"""A factored bigram model of a user's own, in numpy: logits = E[previous] @ H. Four hundred tokens of data."""
import argparse, json, os
import numpy as np

parser = argparse.ArgumentParser()
for name, kind in [("width", int), ("lr", float), ("steps", int), ("batch", int), ("seed", int), ("out", str)]:
    parser.add_argument(f"--{name}", type=kind)
args = parser.parse_args()
rng = np.random.default_rng(args.seed)
V = 16
walk = np.cumsum(np.random.default_rng(0).choice([1, 2, 5], size=20_000, p=[0.7, 0.2, 0.1])) % V
E, H = rng.normal(size=(V, args.width)), rng.normal(size=(args.width, V)) / args.width

def gradients(previous, following):
    logits = E[previous] @ H
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(previous))
    loss = -np.log(p[rows, following]).mean()
    p[rows, following] -= 1
    dE = np.zeros_like(E)
    np.add.at(dE, previous, p @ H.T / len(rows))
    return loss, dE, E[previous].T @ p / len(rows)

for step in range(args.steps):
    at = rng.integers(0, 18_000, size=args.batch * 8)
    loss, dE, dH = gradients(walk[at], walk[at + 1])
    E -= 30 * args.lr * dE
    H -= args.lr * dH
    if step % 50 == 0:
        with open(os.environ["FLOPS_FIT_PROGRESS"], "a") as file:
            file.write(json.dumps({"step": step, "loss": float(loss)}) + "\\n")
final, _, _ = gradients(walk[18_000:-1], walk[18_001:])
with open(args.out, "w") as file:
    json.dump({"loss": float(final), "metrics": {"width": args.width}}, file)
'''
COMMAND = (
    "{python} train.py --width {size} --lr {lr} --steps {steps} --batch {batch_size} --seed {seed} --out {result}"
)


# ---------------------------------------------------------------------------- what the program gets


def test_values_come_as_arguments_and_in_the_environment(tmp_path):
    command = script(
        tmp_path, "pathlib.Path('seen').write_text(json.dumps([sys.argv, dict(os.environ)]))\n" + say(loss=1.5)
    )
    more = " {lr:.3f} {steps} {model.arguments.depth} {{braces}} {optimizer.weight_decay} 'two words'"
    trainer = {"environment": {"OWN": "d={model.arguments.depth}"}}
    (result,) = train(table(command + more, tmp_path, trainer=trainer), folder=tmp_path / "study")
    arguments, environment = json.loads((tmp_path / "seen").read_text())
    assert arguments[1:] == ["0.250", "100", "3", "{braces}", "0.0", "two words"]
    run = result.run
    expected = {"PARAMS": 100, "TOKENS": 3200, "STEPS": 100, "BATCH_SIZE": 4, "CONTEXT": 8, "SEED": 0, "LR": 0.25,
                "RUN_ID": run.id, "FLOPS": run.flops, "SIZE": 100}  # fmt: skip
    assert {name: environment[f"FLOPS_FIT_{name}"] for name in expected} == {
        k: str(v) for k, v in expected.items()
    }
    assert environment["OWN"] == "d=3"
    description = json.loads(Path(environment["FLOPS_FIT_RUN"]).read_text())
    assert (description["id"], description["steps"], description["options"]["optimizer"]["lr"]) == (
        run.id,
        100,
        0.25,
    )


def test_a_run_on_several_devices_starts_its_program_once_and_says_how_many(tmp_path):
    its = table(script(tmp_path, "print('once')\n" + say(loss=1.5)) + " {devices}", tmp_path)
    its["device"] = {"name": "cpu", "devices_per_run": 2}
    (result,) = train(its, folder=tmp_path / "study")
    assert (result.loss, result.run.devices) == (1.5, 2)
    log, run = (tmp_path / "study" / "programs" / result.id / name for name in ("log.txt", "run.json"))
    assert log.read_text() == "once\n"
    assert json.loads(run.read_text())["devices"] == 2
    assert result.id == train({**its, "device": "cpu"})[0].id


def test_another_python_is_not_given_our_import_path(tmp_path, monkeypatch):
    site = Path(json.__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(tmp_path)]))
    command = script(tmp_path, "pathlib.Path('seen').write_text(os.environ['PYTHONPATH'])\n" + say(loss=1.5))
    train(table(command, tmp_path))
    assert (tmp_path / "seen").read_text() == str(tmp_path)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --lr {learning_rate}", "there is no placeholder {learning_rate}"),
        ("train {resutl}", "did you mean {result}?"),
        ("train {}", "there is no placeholder {}"),
        ("train '{\"a\": 1}'", "write {{ for a literal brace"),
        ("train {lr", "write {{ for a literal brace"),
        ("train 'open", "No closing quotation"),
        ("", "is empty"),
    ],
)
def test_a_wrong_command_is_an_error_before_anything_is_planned(tmp_path, command, message):
    with pytest.raises(ConfigError) as error:
        make_experiment(table(command, tmp_path), installed())
    assert message in str(error.value)
    assert "trainer.command" in str(error.value)


@pytest.mark.parametrize(
    ("command", "optimizer", "message"),
    [
        ("train {model.depth}", "adamw", "its model has no 'depth'; available: params, lookup_table_params"),
        ("train {size:s}", "adamw", "{size:s} of"),
        ("train {lr}", "bare/bare", "the optimizer has no such option"),
    ],
)
def test_a_placeholder_without_a_value_is_an_error_of_the_plan(tmp_path, command, optimizer, message):
    class Bare:
        @hookimpl
        def flops_fit_optimizers(self):
            yield OptimizerSpec(name="bare", build=lambda options, model, run: None, width_scaling="none")

    registry = installed().with_plugins({"bare": Bare()})
    experiment = make_experiment({**table(command, tmp_path), "optimizer": optimizer}, registry)
    with pytest.raises(ConfigError) as error:
        make_plan(experiment)
    assert message in str(error.value)


# ---------------------------------------------------------------------------- what it says


def test_everything_that_it_writes_is_in_the_result(tmp_path):
    output = {
        "loss": 1.5,
        "metrics": {"accuracy": 0.5},
        "losses": {"code": 1.25},
        "seconds": 9.0,
        "device": "a TPU",
        "curve": [{"step": 50, "loss": 2.0}],
    }
    (result,) = train(table(script(tmp_path, say(**output)), tmp_path))
    assert (result.status, result.loss, result.tokens, result.flops) == ("completed", 1.5, 3200, result.run.flops)
    assert (result.metrics, result.losses, result.device) == ({"accuracy": 0.5}, {"code": 1.25}, "a TPU")
    assert [(at.step, at.tokens, at.loss) for at in result.curve] == [(50, 1600, 2.0)]
    assert result.bits_per_byte == pytest.approx(1.5 / 0.6931471805599453 / 2.0)
    assert result.seconds == 9.0


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (say(status="diverged"), "diverged"),
        ("pathlib.Path(os.environ['FLOPS_FIT_RESULT']).write_text('{\"loss\": NaN}')", "diverged"),
        (say(status="failed", error="out of flour"), "failed"),
    ],
)
def test_a_run_that_did_not_complete_has_no_loss(tmp_path, text, status):
    (result,) = train(table(script(tmp_path, text), tmp_path))
    assert (result.status, result.loss) == (status, None)
    assert status == "diverged" or "out of flour" in result.error.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ended without writing its result"),
        (say(), "a completed run needs a loss"),
        (say(los=1.0), "los: unknown; did you mean 'loss'?"),
        (say(loss="low"), "loss: Input should be a valid number"),
        (say(loss=1.0, tokens=100), "trained on 100 tokens, but the plan has 3,200"),
        ("pathlib.Path(os.environ['FLOPS_FIT_RESULT']).write_text('loss 3')", "that cannot be read"),
        (say(loss=1.0) + "sys.exit(3)", "ended with status 3"),
        (say(loss=1.0) + "os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
    ],
)
def test_a_result_that_is_none_says_what_is_wrong(tmp_path, text, message):
    (result,) = train(table(script(tmp_path, text), tmp_path))
    assert result.status == "failed"
    assert message in result.error.message


def test_a_failure_has_the_last_lines_of_the_log_and_says_where_it_is(tmp_path):
    text = "print('first line')\n[print('line', n) for n in range(200)]\nraise ValueError('the flour is out')\n"
    (result,) = train(table(script(tmp_path, text), tmp_path), folder=tmp_path / "study")
    log = tmp_path / "study" / "programs" / result.id / "log.txt"
    assert "ended with status 1: ValueError: the flour is out" in result.error.message
    assert str(log) in result.error.message
    assert "first line" in log.read_text()
    assert "line 199" in result.error.traceback
    assert "first line" not in result.error.traceback
    assert len(result.error.traceback.splitlines()) == 50


def test_a_number_beside_the_loss_that_is_not_finite_costs_no_run(tmp_path):
    curve = [{"step": 10, "loss": float("nan")}, {"step": 50, "loss": 2.0}]
    output = {"loss": 1.5, "metrics": {"norm": float("inf"), "accuracy": 0.5}, "losses": {"code": float("nan")}}
    (result,) = train(
        table(script(tmp_path, f"nan, inf = float('nan'), float('inf')\n{say(**output, curve=curve)}"), tmp_path)
    )
    assert (result.status, result.loss, result.metrics, result.losses) == ("completed", 1.5, {"accuracy": 0.5}, {})
    assert [at.loss for at in result.curve] == [None, 2.0]


TORCHRUN = """
[rank1]: Traceback (most recent call last):
[rank1]:   File "train.py", line 5, in <module>
[rank1]: ValueError: the flour is out
Traceback (most recent call last):
  File "torch/distributed/run.py", line 1032, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
Root Cause (first observed failure):
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
"""


@pytest.mark.parametrize(
    ("printed", "gist"),
    [
        (TORCHRUN, "ended with status 1: ValueError: the flour is out (log:"),
        ("\x1b[31mno flour\x1b[0m\n=====\n", "ended with status 1: no flour (log:"),
        ("flour" * 10_000, "flourfl... (log:"),
    ],
    ids=["torchrun", "colours", "one long line"],
)
def test_the_message_of_a_failure_is_what_a_program_said_of_it(tmp_path, printed, gist):
    (result,) = train(table(script(tmp_path, f"print({printed!r})\nsys.exit(1)"), tmp_path))
    assert gist in result.error.message
    assert len(result.error.message) < 700


def test_a_program_that_is_not_there_is_named(tmp_path):
    (result,) = train(table("no-such-program --lr {lr}", tmp_path))
    assert (
        "no-such-program --lr 0.25 cannot be started: cannot start no-such-program: No such file"
        in result.error.message
    )
    (result,) = train(table("true", tmp_path / "nowhere"))
    assert "there is no folder" in result.error.message


def test_progress_is_read_from_its_file(tmp_path, caplog):
    text = """
with open(os.environ['FLOPS_FIT_PROGRESS'], 'a') as file:
    for line in ['{"step": 10, "loss": 3.0}', 'nonsense', '{"step": 20, "loss": NaN}', '{"step": 900}']:
        print(line, file=file, flush=True)
        time.sleep(0.5)
""" + say(loss=1.5)
    progress = [event for event in events(table(script(tmp_path, text), tmp_path)) if isinstance(event, Progress)]
    assert [(event.step, event.tokens, event.loss) for event in progress] == [
        (10, 320, 3.0),
        (20, 640, None),
        (100, 3200, None),
    ]
    assert "nonsense" in caplog.text


# ---------------------------------------------------------------------------- a sweep


def bigram_table(folder: Path) -> dict:
    (folder / "train.py").write_text(BIGRAM)
    sizes = [{"params": 32 * width, "arguments": {"width": width}} for width in (2, 4, 8)]
    its = table(
        COMMAND.replace("{size}", "{model.arguments.width}"), folder, executor={"name": "processes", "workers": 2}
    )
    its["sweep"] = {"budgets": [1e7, 2e7], "sizes": sizes, "batch_size": 8}
    its["model"] = {"name": "declared"}
    return its


def test_a_sweep_of_a_script_is_trained_fitted_and_reproduced(tmp_path):
    its = bigram_table(tmp_path)
    (tmp_path / "own.json").write_text(json.dumps(its))
    done = flops_fit(tmp_path, "run", "own.json", "--out", "study")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[6/6]" in done.stdout + done.stderr
    assert "N_opt ~ C^" in done.stdout
    runs = json.loads(flops_fit(tmp_path, "runs", "study", "--json").stdout)
    losses = {run["id"]: run["loss"] for run in runs}
    its["sweep"]["budgets"] = [1e7]
    again = {result.id: result.loss for result in train(its, folder=tmp_path / "other")}
    assert again == {run: losses[run] for run in again}
    assert len(again) == 3
    assert max(losses.values()) < 2.77 * 1.5  # a uniform guess has ln 16 = 2.77
    assert min(losses.values()) < 1.5


def test_another_fingerprint_makes_other_runs_and_another_directory_does_not(tmp_path):
    def run_of(**trainer):
        return make_plan(make_experiment(table("train {lr}", tmp_path, trainer=trainer), installed())).runs[0].id

    assert run_of() == run_of(directory=str(tmp_path / "other"), timeout_minutes=3)
    assert run_of() != run_of(fingerprint="2")


@pytest.mark.slow
def test_the_documented_example_runs(tmp_path):
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    done = flops_fit(tmp_path, "run", "experiment.toml")
    assert "[8/8]" in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
