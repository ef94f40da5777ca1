"""Ways around consent: code that a folder names in unusual places, and changes that a check could miss."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from hostile_studies import (
    RECIPE,
    edit_json,
    executed,
    formula,
    make_finished,  # noqa: F401
    make_study,  # noqa: F401
    make_trace,  # noqa: F401
    traced,
)
from own_programs import table as program_table

from flops_fit_core import ConfigError
from flops_fit_core.cli import arguments
from flops_fit_core.config import choose_from_table
from flops_fit_core.plugins import ImportPath, Options, Registry, RunsCode
from flops_fit_core.plugins.code_files import LARGEST_FILE, file_digest, value_code
from flops_fit_core.plugins.options import Table, code_options
from flops_fit_core.study import Study
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.other_stores import check_no_other_driver

FLOPS_FIT = str(Path(sys.executable).with_name("flops-fit"))
REFUSED = "names code that would run with your rights"


def change_table(study, **tables):
    edit_json(study / "experiment.json", lambda table: table.update(tables))


def flops_fit(folder, *arguments, **variables):
    command, env = [FLOPS_FIT, *arguments], {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------------------- places of code


def test_a_program_of_a_trainer_without_a_name_needs_consent(study, trace, call):
    """The dataset ``external`` chooses the trainer ``command`` by default."""
    table = program_table(f"touch {trace}", study, executor="local")
    del table["trainer"]["name"]
    (study / "experiment.json").write_text(json.dumps({**table, "format": 2}))
    status, _, error = call("run", ".")
    assert status == 2
    assert REFUSED in error
    assert f"touch {trace}" in error
    assert not trace.exists()


def test_the_server_of_the_users_experiment_needs_no_consent_and_another_server_does(study):
    url = {"name": "postgres", "url": "postgresql://localhost/results"}
    change_table(study, store=url)
    folder, registry = StudyFolder(study), Registry()
    users, other = (choose_from_table("store", {**url, **change}, registry, "") for change in ({}, {"study": "b"}))
    check_no_other_driver(folder, users, registry)
    with pytest.raises(ConfigError, match="its results on a server that you have not allowed"):
        check_no_other_driver(folder, other, registry)


def test_a_function_in_a_size_of_the_sweep_needs_consent(study, trace, call):
    for name in ("first", "second"):
        (study / f"{name}.py").write_text(traced(trace, name) + "def make(width): ...")
    sizes = [{"size": 8, "import_path": str(study / "first.py:make")}]
    change_table(
        study, model={"name": "callable", "import_path": "json:loads"}, sweep={"budgets": [1e9], "sizes": sizes}
    )
    assert "first.py:make" in call("run", ".")[2]
    call("trust", ".")
    sizes[0]["import_path"] = str(study / "second.py:make")
    change_table(study, sweep={"budgets": [1e9], "sizes": sizes})
    status, _, error = call("run", ".")
    assert status == 2
    assert "second.py:make" in error
    assert not trace.exists()


class Inner(Table):
    make: ImportPath


class Nested(Options):
    plain: str = ""
    optional: ImportPath | None = None
    several: list[ImportPath] = []
    by_name: dict[str, ImportPath] = {}
    table: Inner | None = None
    program: Annotated[str, RunsCode] = ""


def test_the_mark_of_code_counts_inside_other_types():
    assert code_options(Nested) == ["optional", "several", "by_name", "table", "program"]


def test_a_program_without_a_directory_has_its_script_in_the_working_directory(study, trace, call):
    table = program_table("{python} train.py", study, executor="local")
    del table["trainer"]["directory"]
    (study / "experiment.json").write_text(json.dumps({**table, "format": 2}))
    (study / "train.py").write_text("")
    call("trust", ".")
    (study / "train.py").write_text(traced(trace, "changed"))
    status, _, error = call("run", ".")
    assert status == 2
    assert "train.py" in error
    assert not trace.exists()


@pytest.mark.parametrize(
    "command", ["sh -c 'python train.py'", "python run.py --script=train.py", ["sh", "-c", "python train.py"]]
)
def test_scripts_inside_an_argument_count(tmp_path, command):
    (tmp_path / "train.py").write_text("")
    assert tmp_path / "train.py" in value_code(command, tmp_path)


# ---------------------------------------------------------------------------- changes after consent


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"literal": "/a/good.so --token=abcdefgh1"}, {"literal": "/a/evil.so --token=abcdefgh1"}),
        ("/a/good.so --token=abcdefgh1", "/a/evil.so --token=abcdefgh1"),
        ("x hf_abcdefghijklmnop1", "x hf_abcdefghijklmnop2"),
    ],
)
def test_a_text_that_looks_like_a_secret_hides_no_change_of_a_program(study, call, first, second):
    trainer = {"name": "trainers/command", "command": "true", "environment": {"LD_PRELOAD": first}}
    change_table(study, trainer=trainer)
    _, output, _ = call("trust", ".")
    assert "LD_PRELOAD" in output
    assert "hf_a" not in output
    assert "names code" not in call("plan", ".", "--no-estimate")[2]
    trainer["environment"]["LD_PRELOAD"] = second
    change_table(study, trainer=trainer)
    assert "names code that has changed since you allowed it" in call("plan", ".", "--no-estimate")[2]


def test_a_large_file_with_its_old_time_of_change_is_another_file(tmp_path):
    file = tmp_path / "large.so"
    file.write_bytes(b"a" * (LARGEST_FILE + 1))
    before, times = file_digest(file), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(b"b" * (LARGEST_FILE + 1))
    os.utime(file, ns=times)
    assert file_digest(file) != before


def test_a_folder_named_site_packages_is_not_an_installation(finished, tmp_path, trace, monkeypatch, call):
    """Neither an edit nor a compiled file of it is trusted without a question."""
    study = shutil.copytree(finished, tmp_path / "site-packages" / "study")
    monkeypatch.chdir(study)
    source = study / "helper_site.py"
    innocent, evil = (RECIPE.format(trace=str(trace), name=name) for name in ("source", "binary"))
    source.write_text(evil)
    os.utime(source, (1e9, 1e9))
    py_compile.compile(str(source))
    source.write_text(innocent)
    os.utime(source, (1e9, 1e9))
    (study / "plugins.json").write_text(json.dumps({"modules": {"helper_site": "helper_site"}}))
    assert "helper_site.py" in call("trust", ".")[1]
    assert flops_fit(study, "plan", ".", "--no-estimate").returncode == 0
    assert executed(trace) == ["source"]
    source.write_text(evil)
    assert call("plan", ".")[0] == 2


def test_consent_by_an_answer_covers_only_the_code_that_was_shown(study, trace, call, monkeypatch):
    trainer = {"name": "trainers/command", "command": "true"}
    change_table(study, trainer=trainer)

    def change_and_confirm(*_, **__):
        change_table(study, trainer={**trainer, "command": f"touch {trace}"})
        return True

    monkeypatch.setattr(arguments.typer, "confirm", change_and_confirm)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    status, _, error = call("plan", ".")
    assert status == 2
    assert f"touch {trace}" in " ".join(error.split())  # a terminal wraps the line


@pytest.mark.parametrize("reads", range(8))
def test_an_experiment_that_changes_between_two_reads_runs_nothing(study, trace, monkeypatch, call, reads):
    """A user with the right to write may exchange the file at any moment."""
    read, count = StudyFolder.table, 0

    def read_and_change(self):
        nonlocal count
        count += 1
        if count == reads + 1:
            table = {**program_table(f"touch {trace}", study, executor="local"), "name": "formula", "format": 2}
            (study / "experiment.json").write_text(json.dumps(table))
        return read(self)

    monkeypatch.setattr(StudyFolder, "table", read_and_change)
    call("run", ".")
    assert count >= reads
    assert not trace.exists()


def test_a_plan_that_was_read_before_it_was_replaced_needs_consent(study, trace):
    innocent = (study / "plan.json").read_text()
    command = {"name": "trainers/command", "options": {"command": f"touch {trace}"}}
    edit_json(study / "plan.json", lambda content: [item.update(trainer=command) for item in content["runs"]])
    opened = Study.open(study)
    (study / "plan.json").write_text(innocent)
    with pytest.raises(ConfigError, match=REFUSED):
        opened.train()
    assert not trace.exists()


def test_training_records_no_consent_for_a_change_that_another_user_makes_meanwhile(
    study, trace, call, monkeypatch
):
    save = StudyFolder.save

    def save_and_change(self, *arguments):
        save(self, *arguments)
        change_table(self.path, trainer={"name": "trainers/command", "command": f"touch {trace}"})

    change_table(study, trainer={"name": "trainers/command", "command": "true"})
    call("trust", ".")
    monkeypatch.setattr(StudyFolder, "save", save_and_change)
    Study.open(study).train(check=False)
    monkeypatch.undo()
    monkeypatch.chdir(study)
    status, _, error = call("run", ".")
    assert status == 2
    assert f"touch {trace}" in error
    assert not trace.exists()


# ---------------------------------------------------------------------------- other programs that read the folder


def test_metadata_in_the_folder_of_a_named_plugin_is_no_installed_plugin(study, trace, call):
    (study / "own_named.py").write_text(RECIPE.format(trace=str(trace), name="named"))
    (study / "helper_evil.py").write_text(RECIPE.format(trace=str(trace), name="evil"))
    info = study / "evil-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flops_fit]\nevil = helper_evil\n")
    done = flops_fit(study, "runs", ".", "-p", "./own_named.py")
    assert done.returncode == 0, done.stderr
    assert executed(trace) == ["named"]


def test_matplotlib_settings_in_the_working_directory_start_no_latex(study, trace, tmp_path):
    (tmp_path / "bin").mkdir()
    latex = tmp_path / "bin" / "latex"
    latex.write_text(f"#!/bin/sh\ntouch {trace}\nexit 1\n")
    latex.chmod(0o755)
    (study / "matplotlibrc").write_text("text.usetex: True\n")
    done = flops_fit(study, "report", ".", PATH=f"{latex.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert not trace.exists()


def test_wandb_settings_in_the_study_do_not_get_the_api_key(study):
    pytest.importorskip("wandb")
    (study / "wandb").mkdir()
    change_table(study, loggers=[{"name": "wandb"}])
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        (study / "wandb" / "settings").write_text(f"[default]\nbase_url = {url}\n")
        done = flops_fit(study, "run", ".", WANDB_API_KEY="a" * 40)
        assert done.returncode == 2
        assert "may send your API key to another server" in done.stderr
        with pytest.raises(TimeoutError):
            server.accept()


def test_no_file_is_written_through_a_link_in_place_of_a_temporary_file(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text(json.dumps(formula(store="json")))
    precious = tmp_path / "precious"
    precious.write_text("mine")
    Path("study").mkdir()
    for name in ("results.json", "results.json.count", "results.claims.jsonl"):
        Path("study", f".{name}.new").symlink_to(precious)
    assert call("run", "own.json", "--out", "study")[0] == 0
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["results.json.count", "results.claims.jsonl"])
def test_no_file_of_another_study_is_changed_through_a_link(tmp_path, monkeypatch, call, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text(json.dumps(formula(store="json")))
    for folder in ("study", "other"):
        assert call("run", "own.json", "--out", folder)[0] == 0
    before = Path("other", name).read_bytes()
    Path("study", name).unlink()
    Path("study", name).symlink_to(tmp_path / "other" / name)
    call("run", "study", "--set", "sweep.seeds=[0,1]")
    assert Path("other", name).read_bytes() == before


@pytest.mark.parametrize("name", ["experiment.json", "plan.json", "plugins.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_file_that_never_ends_is_refused(study, call, name, make):
    (study / name).unlink()
    make(study / name)
    status, _, error = call("runs", ".")
    assert status == 2
    assert f"{name} is damaged: it is not a regular file" in " ".join(error.split())
