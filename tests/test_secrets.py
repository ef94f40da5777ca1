"""Secrets are refused before they are stored, and given by reference."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from own_programs import say, script
from own_programs import table as program_table

from flops_fit_core import ConfigError, plan, run
from flops_fit_core.cli.main import run as command
from flops_fit_core.config import Experiment, make_experiment
from flops_fit_core.config.secrets import is_secret_name, mask_secrets, refuse_secrets
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.registry import installed
from flops_fit_core.study import Study

VALUE = "s3cr3t-value-123"
DOCS = Path(__file__).parents[1] / "docs"


def experiment(**tables):
    """An experiment as plain data. It is searched only, never planned."""
    return {
        "name": "x",
        "sweep": {"budgets": [1e18], "sizes": 2},
        "model": "surface",
        "dataset": "surface",
        **tables,
    }


def refused(**tables):
    with pytest.raises(ConfigError) as error:
        refuse_secrets(experiment(**tables), "x.toml")
    message = str(error.value)
    assert 'write {from_env = "NAME"}' in message
    assert VALUE not in message
    return message


NAMES = """
    API_TOKEN TOKEN HF_TOKEN HUGGING_FACE_HUB_TOKEN WANDB_API_KEY OPENAI_API_KEY DB_PASSWORD PGPASSWORD MY_PASSWD
    CLIENT_SECRET AWS_SECRET_ACCESS_KEY SECRET_KEY GITHUB_TOKEN APIKEY AZURE_CREDENTIAL accessToken apiKey
    auth_token db-password PRIVATE_KEY PASSPHRASE
"""


@pytest.mark.parametrize("name", NAMES.split())
def test_a_variable_with_the_name_of_a_secret_is_refused(name):
    trainer = {"name": "command", "command": "true", "environment": {name: VALUE}}
    assert f"trainer.environment.{name}: its name is that of a secret" in refused(trainer=trainer)
    executor = {"name": "ray", "runtime_env": {"env_vars": {name: VALUE}}}
    assert f"executor.runtime_env.env_vars.{name}" in refused(executor=executor)


KEYS = [
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "sk-proj-aB3dEfGh1jKlMnOpQrStUv",
    "ghp_0123456789abcdefghij0123456789abcdef",
    "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
    "AKIAIOSFODNN7EXAMPLE",
    "xoxb-123456789012-abcdefghijkl",
    "glpat-abcdefghij0123456789",
    "https://anna:hunter2pw@example.org/x",
    "postgresql+psycopg2://anna:hunter2pw@example.org/x",
    "https://example.org/x?api_key=hunter2pw",
]


@pytest.mark.parametrize("value", KEYS)
def test_a_value_in_the_form_of_a_key_is_refused_wherever_it_is(value):
    for tables in (
        {"trainer": {"name": "command", "command": f"python train.py {value}"}},
        {"trainer": {"name": "command", "command": ["python", "train.py", value]}},
        {"trainer": {"name": "command", "command": "true", "environment": {"X": value}}},
        {"executor": {"name": "ray", "runtime_env": {"pip": ["x", value]}}},
        {"executor": {"name": "slurm", "setup": [f"export X={value}"]}},
        {"loggers": [{"name": "mlflow", "tracking_uri": value}]},
        {"loggers": ["terminal", {"name": "wandb", "tags": [value]}]},
        {"model": {"name": "callable", "import_path": "a:b", "arguments": {"deep": [{"x": value}]}}},
    ):
        assert value not in refused(**tables)


@pytest.mark.parametrize(
    "text",
    [
        f"python train.py --api-key {VALUE}",
        f"python train.py --token={VALUE}",
        f"env DB_PASSWORD={VALUE} python train.py",
        ["python", "train.py", "--api-key", VALUE],
    ],
)
def test_a_secret_among_the_arguments_of_a_program_is_refused(text):
    assert "has a secret after" in refused(trainer={"name": "command", "command": text})


def test_a_key_in_place_of_the_name_of_a_variable_is_refused():
    environment = {"API_TOKEN": {"from_env": "ghp_0123456789abcdefghij0123456789abcdef"}}
    message = refused(trainer={"name": "command", "command": "true", "environment": environment})
    assert "trainer.environment.API_TOKEN.from_env: has the form of a key" in message
    assert "ghp_0" not in message


def test_a_secret_in_a_size_of_the_sweep_or_under_an_unknown_key_is_refused():
    sizes = [{"arguments": {"api_token": VALUE}}]
    assert "sweep.sizes.0.arguments.api_token" in refused(sweep={"budgets": [1e18], "sizes": sizes})
    assert "api_token: its name" in refused(api_token=VALUE)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"python train.py --api-key {VALUE} --lr 1", "python train.py --api-key *** --lr 1"),
        (f"python train.py --api-key '{VALUE} x' --lr 1", "python train.py --api-key *** --lr 1"),
        (f"postgresql://anna:{VALUE}@db.example.org/x", "postgresql://anna:***@db.example.org/x"),
        (f"x?api_key={VALUE}&token={VALUE}", "x?api_key=***&token=***"),
        (["train.py", "--token", VALUE], ["train.py", "--token", "***"]),
        ({"API_TOKEN": VALUE, "MODE": "fast"}, {"API_TOKEN": "***", "MODE": "fast"}),
        ({"API_TOKEN": {"literal": VALUE}}, {"API_TOKEN": {"literal": VALUE}}),
        (f"-----BEGIN PRIVATE KEY-----\n{VALUE}\n", "***"),
    ],
)
def test_messages_show_a_text_without_its_secrets(text, shown):
    assert mask_secrets(text) == shown


def test_a_copy_of_a_study_to_a_store_with_a_password_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plain = {"name": "surface/surface"}
    run(experiment(model=plain, dataset=plain, executor="local", name="x"), out="study")
    store = f"store.url=postgresql://anna:{VALUE}@127.0.0.1:1/x"
    assert command(["store", "copy", "study", "copy", "--store", "postgres", "--set", store]) == 2
    output = "".join(capsys.readouterr())
    assert "store.url: has a password in a URL" in output
    assert VALUE not in output
    assert not Path("copy").exists()


def test_an_experiment_made_in_python_is_searched_for_secrets(tmp_path):
    trainer = {"name": "command", "command": "true", "environment": {"API_TOKEN": VALUE}}
    made = Experiment.model_validate(
        experiment(
            trainer=trainer,
            model="declared",
            dataset={"name": "external", "label": "x", "vocab_size": 8, "context": 8},
        )
    )
    with pytest.raises(ConfigError, match=r"trainer\.environment\.API_TOKEN"):
        plan(made, out=tmp_path / "study")


def test_a_logger_shows_no_password_of_its_server():
    from flops_fit_loggers.background import one_line

    shown = one_line(OSError(f"request to http://anna:{VALUE}@db.example.org:5000/api failed"))
    assert shown == "OSError: request to http://***@db.example.org:5000/api failed"


INNOCENT_NAMES = """
    tokenizer tokens max_tokens num_tokens token_file tokens_per_param eval_tokens eval_batch_tokens
    reference_tokens warmup_tokens pad_token eos_token bos_token unk_token mask_token cls_token sep_token
    pad_token_id eos_token_id additional_special_tokens special_tokens_map token_type_ids image_token
    image_token_index tokens_per_step num_experts_per_token token_dim token_embedding tokenization tokenize
    key keys key_dim num_key_value_heads num_kv_heads kv_key query_key_value head_key primary_key sort_key
    lr_key rope_key PATH HOME PWD OLDPWD CUDA_VISIBLE_DEVICES OMP_NUM_THREADS TOKENIZERS_PARALLELISM
    NCCL_DEBUG WANDB_MODE WANDB_PROJECT HF_HOME HF_DATASETS_CACHE MAX_TOKENS PAD_TOKEN EOS_TOKEN
    TOKEN_BUDGET VOCAB_SIZE KEYBOARD SECRETARY PASSWORDLESS_LOGIN passes author authority secretion
    account_key_count monkey turkey access_mode api_version auth_mode password_file token_path secret_name
    api_key_file api_key_variable url_variable credentials_file private
"""


@pytest.mark.parametrize("name", INNOCENT_NAMES.split())
def test_an_innocent_name_is_not_refused(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "tables",
    [
        {
            "trainer": {
                "name": "command",
                "command": "python train.py --max-tokens 5 --pad-token '<p>' --token {run}",
            }
        },
        {"trainer": {"name": "command", "command": "torchrun --master-port 29500 train.py --lr {lr} --key {run}"}},
        {"trainer": {"name": "command", "command": "x", "environment": {"API_TOKEN": {"from_env": "API_TOKEN"}}}},
        {"trainer": {"name": "command", "command": "x", "environment": {"API_TOKEN": {"literal": VALUE}}}},
        {"trainer": {"name": "command", "command": "x", "environment": {"X_TOKEN": "", "Y_TOKEN": "50256"}}},
        {"trainer": {"name": "command", "command": "x", "environment": {"CREDENTIALS": "/etc/krb5.keytab"}}},
        {"dataset": {"name": "hf-dataset", "source": "hf_datasets/sk-learn", "tokenizer": "hf_tokenizer_v2"}},
        {"dataset": {"name": "text", "path": "data/AKIAROAD/ghp_notes/*.txt"}},
        {"loggers": [{"name": "mlflow", "tracking_uri": "http://anna@example.org:5000/x"}, "terminal"]},
        {
            "store": {
                "name": "postgres",
                "url": "postgresql://anna@db.example.org:5432/scaling",
                "url_variable": "DB",
            }
        },
        {"model": {"name": "hf", "architecture": "llama", "config": {"eos_token": "</s>", "my_token": "[PAD]"}}},
        {"model": {"name": "x", "checksum": "3f786850e387550fdab836ed7e6dc881de23001b"}},
        {"executor": {"name": "slurm", "setup": ["module load cuda", "export PATH=/opt/bin:$PATH"]}},
    ],
)
def test_innocent_values_are_not_refused(tables):
    refuse_secrets(experiment(**tables), "x.toml")


def test_no_option_of_a_bundled_plugin_has_the_name_of_a_secret():
    def names(options: type[Options]):
        return list(options.model_fields)

    options = [name for offer in installed().offers() for name in names(offer.spec.options)]
    assert len(options) > 100
    assert [name for name in options if is_secret_name(name)] == []


def test_no_example_of_the_documentation_is_refused():
    import tomllib

    texts = [file.read_text() for file in DOCS.rglob("*.md") if file.name != "security.md"]
    blocks = [block for text in texts for block in re.findall(r"```toml\n(.*?)```", text, re.S)]
    blocks += [file.read_text() for file in DOCS.rglob("*.toml")]
    tables = []
    for block in blocks:
        try:
            tables.append(tomllib.loads(block))
        except tomllib.TOMLDecodeError:
            continue
    assert len(tables) > 20
    for table in tables:
        refuse_secrets(table, "docs")


# ---------------------------------------------------------------------------- from the experiment to the program

PROGRAM = "pathlib.Path(os.environ['FLOPS_FIT_RESULT']).with_name('seen').write_text(os.environ['API_TOKEN'])\n"


def secret_table(folder, environment):
    program = script(folder, PROGRAM + say(loss=2.0))
    return program_table(program, folder, executor="local", trainer={"environment": environment})


def stored_text(folder):
    """The bytes of every file of a study but the program's own."""
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "seen")


def test_a_program_gets_a_secret_by_reference_and_no_file_of_the_study_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", VALUE)
    table = secret_table(tmp_path, {"API_TOKEN": {"from_env": "MY_SECRET"}})
    study = run(table, out=tmp_path / "study")
    (seen,) = (tmp_path / "study").rglob("seen")
    assert seen.read_text() == VALUE
    assert VALUE.encode() not in stored_text(tmp_path / "study")
    monkeypatch.setenv("MY_SECRET", "another value")
    assert [item.id for item in plan(table, out=tmp_path / "other").plan.runs] == [
        item.id for item in study.plan.runs
    ]
    other = secret_table(tmp_path, {"API_TOKEN": {"from_env": "OTHER"}})
    assert plan(other, out=tmp_path / "other").plan.runs[0].id != study.plan.runs[0].id


def test_a_missing_variable_fails_the_run_with_its_name(tmp_path, monkeypatch):
    monkeypatch.delenv("MY_SECRET", raising=False)
    study = plan(secret_table(tmp_path, {"API_TOKEN": {"from_env": "MY_SECRET"}}), out=tmp_path / "study")
    study.train(check=False)
    (result,) = study.results
    assert result.status == "failed"
    assert "trainer.environment.API_TOKEN: the environment variable MY_SECRET is not set" in result.error.message


def test_a_literal_overrides_the_check_and_its_braces_are_no_placeholders(tmp_path):
    study = run(secret_table(tmp_path, {"API_TOKEN": {"literal": "{lr} is public"}}), out=tmp_path / "study")
    (seen,) = (tmp_path / "study").rglob("seen")
    assert seen.read_text() == "{lr} is public"
    assert len(Study.open(tmp_path / "study").train()) == len(study.results)


def test_plain_values_keep_their_ids(tmp_path):
    plain = plan(secret_table(tmp_path, {"MODE": "fast"}), out=tmp_path / "study").plan.runs[0]
    assert plain.trainer.options["environment"] == {"MODE": "fast"}


def test_the_command_line_refuses_a_secret_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text(json.dumps(secret_table(tmp_path, {"API_TOKEN": VALUE})))
    for arguments in (["run", "own.json"], ["plan", "own.json"]):
        assert command(arguments) == 2
        output = "".join(capsys.readouterr())
        assert "trainer.environment.API_TOKEN" in output
        assert VALUE not in output
    assert not (tmp_path / "runs").exists()


def test_an_old_study_with_a_secret_can_be_read_and_not_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(secret_table(tmp_path, {"API_TOKEN": {"literal": "public"}}), out="study")
    for name in ("experiment.json", "plan.json"):
        file = tmp_path / "study" / name
        content = json.loads(file.read_text())
        for key in ("sha256", "ids"):
            content.pop(key, None)
        text = json.dumps(content).replace(json.dumps({"literal": "public"}), json.dumps(VALUE))
        file.write_text(text)
    run_id = Study.open("study").plan.runs[0].id
    for arguments in (["runs", "study"], ["status", "study"], ["show", "study", run_id]):
        assert command(arguments) == 0
    with pytest.raises(ConfigError, match=r"environment\.API_TOKEN: its name is that of a secret"):
        Study.open("study", trust=True).train()
    assert command(["run", "study"]) == 2
    assert command(["trust", "study"]) == 0
    assert command(["run", "study"]) == 2
    output = "".join(capsys.readouterr())
    assert 'write {from_env = "NAME"}' in output
    assert VALUE not in output


def test_a_reference_among_the_variables_of_ray_is_resolved_in_the_driver(monkeypatch):
    pytest.importorskip("ray")
    from flops_fit_executors.ray_cluster import resolve_variables

    monkeypatch.setenv("MY_SECRET", VALUE)
    table = {"name": "ray", "runtime_env": {"env_vars": {"API_TOKEN": {"from_env": "MY_SECRET"}, "MODE": "fast"}}}
    options = make_experiment(experiment(executor=table), installed()).executor.options
    assert VALUE not in options.model_dump_json()
    assert resolve_variables(options.runtime_env["env_vars"]) == {"API_TOKEN": VALUE, "MODE": "fast"}
    monkeypatch.delenv("MY_SECRET")
    with pytest.raises(ConfigError, match=r"executor\.runtime_env\.env_vars\.API_TOKEN.*MY_SECRET is not set"):
        resolve_variables(options.runtime_env["env_vars"])


def test_doctor_prints_no_value_of_the_environment(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from flops_fit_core.cli import main; main()", "doctor", "--json"],
        env={**os.environ, "API_TOKEN": VALUE, "WANDB_API_KEY": VALUE},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)
    assert VALUE not in done.stdout + done.stderr
