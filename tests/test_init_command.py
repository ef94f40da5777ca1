"""``init`` writes an experiment file that runs, and ``schema`` describes every experiment file."""

from __future__ import annotations

import io
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from flops_fit_core.cli.main import run as flops_fit
from flops_fit_core.config import load_experiment
from flops_fit_core.plugins.registry import installed

EXAMPLES = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.toml"))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    """Checks experiment files by the schema that ``flops-fit schema`` prints."""
    from flops_fit_core.config.schema import experiment_schema

    schema = json.loads(json.dumps(experiment_schema(installed())))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_a_new_experiment_trains_its_smallest_budget(call) -> None:
    text = Path("text")
    text.mkdir()
    for n in range(40):
        (text / f"{n}.txt").write_text(f"line {n} of a small text\n" * 400)
    options = ["--budgets", "2e8", "--set", "dataset.path=text", "--set", "trainer.eval_tokens=1024"]
    small = ["--set", "sweep.min_steps=5", "--set", "sweep.sizes=3", "--set", "model.depth=1"]
    assert call("init", "my.toml", *options, *small)[0] == 0
    status, output, _ = call("plan", "my.toml", "--json", "--no-estimate")
    assert status == 0
    plan = json.loads(output)
    assert plan["name"] == "my"
    assert plan["runs"]
    assert call("run", "my.toml", "--executor", "local")[0] == 0
    rows = json.loads(call("runs", "runs/my", "--json")[1])
    assert {row["status"] for row in rows} == {"completed"}


def test_the_file_of_init_explains_every_option_and_names_its_schema(call, validator) -> None:
    status, output, _ = call("init", "my.toml")
    assert status == 0
    assert "flops-fit plan my.toml" in output
    text = Path("my.toml").read_text()
    assert text.startswith("#:schema ./flops-fit.schema.json\n")
    assert max(map(len, text.splitlines())) <= 110
    table = tomllib.loads(text)
    experiment = load_experiment(Path("my.toml"), installed())
    for kind in ("model", "dataset", "optimizer"):
        for option in type(getattr(experiment, kind).options).model_fields:
            assert f"\n# {option}" in text or option in table[kind], option
    schema = json.loads(Path("flops-fit.schema.json").read_text())
    assert schema == validator.schema
    validator.validate(table)


@pytest.mark.parametrize(("model", "dataset"), [("mlp", "text"), ("vit", "images"), ("surface", "surface")])
def test_init_writes_a_valid_file_for_other_plugins(model: str, dataset: str, call) -> None:
    status, _, error = call("init", "--model", model, "--dataset", dataset, "--budgets", "1e18,1e17,1e19")
    assert status == 0, error
    experiment = load_experiment(Path("experiment.toml"), installed())
    assert experiment.sweep.budgets == (1e17, 1e18, 1e19)
    assert experiment.model.spec.name == model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my.json"], "ends in .toml"),
        (["missing/my.toml"], "the folder missing does not exist"),
        (["--budgets", "many"], "write positive numbers of FLOPs"),
        (["--budgets", "1e9,-3"], "write positive numbers of FLOPs"),
        (["--model", "gtp"], "Did you mean 'gpt'"),
    ],
)
def test_a_mistake_writes_no_file(arguments: list[str], message: str, call) -> None:
    status, _, error = call("init", *arguments)
    assert status == 2
    assert message in error
    assert list(Path().iterdir()) == []


def test_init_overwrites_nothing(call) -> None:
    Path("my.toml").write_text("mine")
    status, _, error = call("init", "my.toml")
    assert (status, Path("my.toml").read_text()) == (2, "mine")
    assert "exists and is not overwritten" in error


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs ``init my.toml`` on a terminal with these answers. Returns the exit status and the screen."""

    def run_init(*answers: str) -> tuple[int, str]:
        screen = Terminal()
        monkeypatch.setattr("sys.stdin", Terminal("".join(f"{line}\n" for line in answers)))
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setattr("sys.stdout", screen)
        monkeypatch.setenv("COLUMNS", "80")
        return flops_fit(["init", "my.toml"]), screen.getvalue()

    return run_init


def test_a_wrong_answer_is_asked_again(answer) -> None:
    status, screen = answer("gtp", "gpt", "", "", "cpu", "many", "1e9,2e9", "n")
    assert status == 0
    assert "no model is named 'gtp'. Did you mean 'gpt'?" in screen
    assert "write positive numbers of FLOPs with commas" in screen
    experiment = load_experiment(Path("my.toml"), installed())
    assert (experiment.device.spec.name, experiment.sweep.budgets) == ("cpu", (1e9, 2e9))


def test_init_asks_for_the_options_that_a_plugin_needs(answer) -> None:
    Path("models.py").write_text("def make(dim): ...\n")
    status, screen = answer(
        *("callable", "models.py", "", "models.py:make", "dim"),
        *("tokens", "train.bin", "many", "train.bin", "50257", "", "1e9", "n"),
    )
    assert status == 0, screen
    assert "write package.module:name, or file.py:name" in screen
    assert "vocab_size: Input should be a valid integer" in screen
    table = tomllib.loads(Path("my.toml").read_text())
    assert table["model"] == {"name": "callable", "import_path": "models.py:make", "size_argument": "dim"}
    assert table["dataset"] == {"name": "tokens", "path": "train.bin", "vocab_size": 50257}


def test_a_model_brings_the_other_plugins_that_it_needs(answer) -> None:
    command = "python train.py --lr {lr}"
    assert answer("declared", "", "web 2024", "256", "64", "", command, "1e12", "n")[0] == 0
    table = tomllib.loads(Path("my.toml").read_text())
    assert table["dataset"] == {"name": "external", "label": "web 2024", "vocab_size": 256, "context": 64}
    assert table["trainer"] == {"name": "command", "command": command}


@pytest.mark.parametrize("model", ["gpt", "vit", "hf"])
def test_the_runs_of_the_default_answers_can_be_planned(model: str, answer) -> None:
    pytest.importorskip("transformers" if model == "hf" else "sklearn" if model == "vit" else "torch")
    status, screen = answer(model, *[""] * 6)
    assert status == 0, screen
    assert int(re.search(r"^(\d+) runs, N ", screen, re.MULTILINE)[1]) >= 15


def test_a_file_with_runs_that_cannot_be_planned_is_reported(answer) -> None:
    status, screen = answer("vit", "text", "", "", "", "y")
    assert status == 2
    assert "choose a dataset of images" in screen
    assert "Edit my.toml, then type: flops-fit plan my.toml" in screen


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_questions_have_no_style_on_a_plain_terminal(name: str, value: str, answer, monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[1mmodel" in answer()[1]
    monkeypatch.setenv(name, value)
    assert "\x1b" not in answer()[1]


def test_the_end_of_the_answers_writes_no_file(answer) -> None:
    status, screen = answer("gpt")
    assert status == 130
    assert screen.endswith("\nerror: stopped: no file was written\n")
    assert list(Path().iterdir()) == []


def test_the_file_and_its_schema_have_no_marks_of_code(call) -> None:
    assert call("init", "my.toml")[0] == 0
    assert "``" not in Path("my.toml").read_text()
    assert "``" not in Path("flops-fit.schema.json").read_text()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_schema_accepts_every_example(path: Path, validator) -> None:
    validator.validate(tomllib.loads(path.read_text()))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("optimizer", {"name": "adamw", "lrr": 0.1}),
        ("optimizer", {"name": "adamv"}),
        ("model", {"name": "gpt/gpt", "depth": "three"}),
        ("sweep", {"budgets": []}),
        ("sweeps", {"budgets": [1e9]}),
    ],
)
def test_the_schema_rejects_a_mistake(kind: str, changes: dict[str, object], validator) -> None:
    table = {"sweep": {"budgets": [1e9]}, "model": "gpt", "dataset": {"name": "text"}}
    assert validator.is_valid(table)
    assert not validator.is_valid({**table, kind: changes})


def test_schema_prints_json_with_the_options_of_a_plugin_of_yours(capsys) -> None:
    Path("rms.py").write_text(
        "from flops_fit_core.plugins import OptimizerSpec, Options, hookimpl\n\n\n"
        "class RmsOptions(Options):\n    my_rate: float = 0.1\n\n\n"
        "@hookimpl\ndef flops_fit_optimizers():\n"
        "    yield OptimizerSpec(name='rms', options=RmsOptions, width_scaling='none', "
        "build=lambda options, model, run: None)\n"
    )
    assert flops_fit(["schema", "-p", "./rms.py"]) == 0
    validator = jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out))
    table = {"sweep": {"budgets": [1e9]}, "model": "gpt", "dataset": "text"}
    assert validator.is_valid({**table, "optimizer": {"name": "rms", "my_rate": 0.2}})
    assert not validator.is_valid({**table, "optimizer": {"name": "rms", "your_rate": 0.2}})
