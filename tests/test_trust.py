"""What a study's folder names runs only with consent: plugin modules, functions, programs."""

from __future__ import annotations

import json
import os
import pty
import py_compile
import shutil
import socket
import subprocess
import sys
from pathlib import Path

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
from own_programs import say, script
from own_programs import table as program_table

from flops_fit_core import ConfigError, plan
from flops_fit_core.cli.main import run as command
from flops_fit_core.study import Study, trust
from flops_fit_core.study.directory import StudyFolder

FLOPS_FIT = str(Path(sys.executable).with_name("flops-fit"))
FITTER = """
from flops_fit_core.plugins import FitterSpec, hookimpl
from flops_fit_fitters import IsoflopOptions, isoflop

@hookimpl
def flops_fit_fitters():
    yield FitterSpec(name="own", options=IsoflopOptions, build=isoflop)
"""
STORE = """
from flops_fit_core.plugins import StoreSpec, hookimpl
from flops_fit_stores.json_file import JsonStore

@hookimpl
def flops_fit_stores():
    def build(options, folder):
        return JsonStore(folder / "own.json", 10.0)

    yield StoreSpec(name="own", build=build, file="own.json")
"""
READING = [
    ["runs", "."],
    ["show", ".", "ID"],
    ["status", "."],
    ["export", ".", "--parquet", "../all.parquet"],
    ["fit", "."],
    ["predict", ".", "--flops", "1e20"],
    ["backtest", "."],
    ["report", "."],
    ["prune-checkpoints", "."],
    ["store", "copy", ".", "../copy"],
]
TRAINING = [
    ["plan", "."],
    ["run", "."],
    ["retry", "."],
    ["tune", "."],
    ["doctor", "."],
    ["count-flops", "."],
]


@pytest.fixture(autouse=True)
def _fresh_imports():
    """Each test imports its own modules: none of another test's is left."""
    modules, hooks = set(sys.modules), list(sys.path_hooks)
    yield
    sys.path_hooks[:] = hooks
    for name in set(sys.modules) - modules:
        if name.startswith(("helper_", "own_", "flops_fit_file_")):
            del sys.modules[name]


@pytest.fixture
def call(capsys):
    def in_process(*arguments):
        status = command([str(argument) for argument in arguments])
        output, error = capsys.readouterr()
        return status, output, " ".join(error.split())

    return in_process


# ---------------------------------------------------------------------------- hostile folders


def names_a_module(study, trace, outside):
    (study / "helper_x.py").write_text(RECIPE.format(trace=str(trace), name="module"))
    setup = {"modules": {"helper_x": "helper_x"}, "disabled": [], "entry_points": True, "paths": ["."]}
    (study / "plugins.json").write_text(json.dumps(setup))


def names_a_package_by_a_submodule(study, trace, outside):
    (study / "helper_pkg").mkdir()
    (study / "helper_pkg" / "__init__.py").write_text(traced(trace, "package"))
    (study / "helper_pkg" / "sub.py").write_text(RECIPE.format(trace=str(trace), name="submodule"))
    setup = {"modules": {"sub": "helper_pkg.sub"}, "paths": [str(study)]}
    (study / "plugins.json").write_text(json.dumps(setup))


def names_a_linked_module(study, trace, outside):
    names_a_module(study, trace, outside)
    (study / "helper_x.py").rename(outside / "helper_real.py")
    (study / "helper_x.py").symlink_to(outside / "helper_real.py")


def names_a_function(study, trace, outside):
    (study / "net.py").write_text(traced(trace, "function") + "def make(width): ...")
    model = {"name": "callable/callable", "import_path": str(study / "net.py:make")}
    edit_json(study / "experiment.json", lambda table: table.update(model=model))


def names_a_function_by_its_module(study, trace, outside):
    (study / "helper_pkg").mkdir()
    (study / "helper_pkg" / "__init__.py").write_text(traced(trace, "package"))
    model = {"name": "callable/callable", "import_path": "helper_pkg.net:make"}
    edit_json(study / "experiment.json", lambda table: table.update(model=model))


def names_a_lightning_module(study, trace, outside):
    (study / "lit.py").write_text(traced(trace, "lightning") + "def make(model): ...")
    trainer = {"name": "trainers/lightning", "module": str(study / "lit.py:make")}
    edit_json(study / "experiment.json", lambda table: table.update(trainer=trainer))


def names_images(study, trace, outside):
    (study / "pics.py").write_text(traced(trace, "images") + "train = []")
    dataset = {"name": "images/images", "source": str(study / "pics.py:train")}
    edit_json(study / "experiment.json", lambda table: table.update(dataset=dataset))


def names_a_program(study, trace, outside):
    trainer = {"name": "trainers/command", "command": f"touch {trace}", "directory": str(study)}
    edit_json(study / "experiment.json", lambda table: table.update(trainer=trainer))


def names_a_library_to_preload(study, trace, outside):
    trainer = {"name": "trainers/command", "command": "true", "environment": {"LD_PRELOAD": str(study / "x.so")}}
    edit_json(study / "experiment.json", lambda table: table.update(trainer=trainer))


def names_a_program_in_the_plan_only(study, trace, outside):
    def change(content):
        for run_spec in content["runs"]:
            run_spec["trainer"] = {"name": "trainers/command", "options": {"command": f"touch {trace}"}}

    edit_json(study / "plan.json", change)


def names_a_program_for_a_replaced_run(study, trace, outside):
    def change(content):
        run_spec = Study.open(study).plan.runs[0]
        replaced = {**content["runs"][0], "seed": 7}
        replaced["trainer"] = {"name": "trainers/command", "options": {"command": f"touch {trace}"}}
        content["replaced"] = {run_spec.id: replaced}

    edit_json(study / "plan.json", change)


def names_shell_lines_for_slurm(study, trace, outside):
    executor = {"name": "executors/slurm", "setup": [f"touch {trace}"]}
    edit_json(study / "experiment.json", lambda table: table.update(executor=executor))


def names_a_ray_cluster(study, trace, outside):
    executor = {"name": "executors/ray", "address": "203.0.113.1:6379"}
    edit_json(study / "experiment.json", lambda table: table.update(executor=executor))


HOSTILE = [
    names_a_module,
    names_a_package_by_a_submodule,
    names_a_linked_module,
    names_a_function,
    names_a_function_by_its_module,
    names_a_lightning_module,
    names_images,
    names_a_program,
    names_a_library_to_preload,
    names_a_program_in_the_plan_only,
    names_a_program_for_a_replaced_run,
    names_shell_lines_for_slurm,
    names_a_ray_cluster,
]


@pytest.mark.parametrize("make_hostile", HOSTILE)
def test_reading_a_hostile_folder_runs_nothing(study, trace, tmp_path, call, make_hostile):
    run_id = Study.open(study).plan.runs[0].id
    make_hostile(study, trace, tmp_path)
    run_id = Study.open(study).plan.runs[0].id
    unreadable = "plan" in make_hostile.__name__  # its results belong to other runs
    for arguments in READING:
        status, _, error = call(*(run_id if word == "ID" else word for word in arguments))
        assert unreadable or status == 0, (arguments, error)
        assert executed(trace) == [], arguments
        assert not trace.exists(), arguments


@pytest.mark.parametrize("make_hostile", HOSTILE)
def test_training_from_a_hostile_folder_is_refused_and_runs_nothing(study, trace, tmp_path, call, make_hostile):
    make_hostile(study, trace, tmp_path)
    for arguments in TRAINING:
        status, _, error = call(*arguments)
        assert status == 2, (arguments, error)
        assert "names code that would run with your rights" in error, arguments
        assert "flops-fit trust ." in error
        assert not trace.exists(), arguments
    with pytest.raises(ConfigError, match="names code that would run"):
        Study.open(study).train()
    assert not trace.exists()


@pytest.mark.parametrize("make_hostile", [names_a_module, names_a_function, names_a_program])
def test_trust_shows_the_code_and_runs_none_of_it(study, trace, tmp_path, call, make_hostile):
    make_hostile(study, trace, tmp_path)
    status, output, _ = call("trust", ".")
    assert status == 0
    assert any(text in output for text in ("plugin module 'helper_x'", "net.py:make", f"touch {trace}"))
    assert not trace.exists()
    call("plan", ".", "--no-estimate")
    assert call("trust", "--revoke", ".")[0] == 0
    assert call("plan", ".")[0] == 2


def test_names_of_a_hostile_folder_reach_the_terminal_escaped(study, call):
    trainer = {"name": "trainers/command", "command": "true \x1b[2J \u202e evil", "environment": {"\x1b[3J": "x"}}
    edit_json(study / "experiment.json", lambda table: table.update(trainer=trainer))
    for output in (call("run", ".")[2], call("trust", ".")[1]):
        assert "evil" in output
        assert "\x1b" not in output
        assert "\u202e" not in output


@pytest.mark.parametrize(
    "setup", [{"modules": {"x": "a\x1b[2Jb"}}, {"modules": {"x\n": "y"}}, {"disabled": ["\x9b"]}]
)
def test_a_name_that_is_none_of_a_plugin_is_refused(study, call, setup):
    (study / "plugins.json").write_text(json.dumps(setup))
    for arguments in (["status", "."], ["run", "."]):
        status, _, error = call(*arguments)
        assert status == 2
        assert "is not the name of a plugin or module" in error
        assert error.isprintable()


def test_files_of_the_working_directory_shadow_no_module_that_a_command_imports(study, trace):
    for name in ("json", "torch", "numpy", "yaml", "pandas", "platformdirs", "sitecustomize", "numba", "conftest"):
        (study / f"{name}.py").write_text(traced(trace, name))
    (study / "evil.pth").write_text(f"import os; os.mknod({str(trace)!r})")
    for arguments in (
        ["status", "."],
        ["fit", "."],
        ["run", "."],
        ["plan", ".", "-p", "flops_fit_core.testing.tiny"],
    ):
        done = subprocess.run([FLOPS_FIT, *arguments], cwd=study, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert not trace.exists()


def test_a_program_for_a_replaced_run_is_refused_with_the_users_own_experiment(study, trace, tmp_path, call):
    names_a_program_for_a_replaced_run(study, trace, tmp_path)
    (tmp_path / "formula.json").write_text(json.dumps(formula()))
    status, _, error = call("run", "../formula.json", "--out", ".")
    assert status == 2
    assert "names code" in error
    with pytest.raises(ConfigError, match="names code"):
        plan(formula(), out=study)
    assert not trace.exists()


def test_the_users_own_experiment_is_no_consent_for_modules_that_the_folder_names(study, trace, tmp_path, call):
    names_a_module(study, trace, tmp_path)
    (tmp_path / "formula.json").write_text(json.dumps(formula()))
    assert call("run", "../formula.json", "--out", ".")[0] == 0
    assert not trace.exists()


def test_training_writes_through_no_link_of_the_folder(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    program = script(tmp_path, "print('written')\n" + say(loss=2.0))
    table = program_table(program, tmp_path, executor={"name": "processes", "workers": 1})
    (tmp_path / "own.json").write_text(json.dumps(table))
    (run_spec,) = plan(table, out="study").plan.runs
    for link in (f"programs/{run_spec.id}/log.txt", f"programs/{run_spec.id}/run.json", "logs/worker-0.log"):
        shutil.rmtree("study", ignore_errors=True)
        path = tmp_path / "study" / link
        path.parent.mkdir(parents=True)
        path.symlink_to(precious)
        call("run", "own.json", "--out", "study")
        assert precious.read_text() == "mine", link


# ---------------------------------------------------------------------------- consent


@pytest.fixture
def own(tmp_path, monkeypatch, trace, call):
    """A study that this user has trained with a module, ``own_recipe.py``, which imports ``own_values.py``."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    source = RECIPE.format(trace=str(trace), name="recipe") + "\nimport own_values\n"
    (home / "own_recipe.py").write_text(source)
    (home / "own_values.py").write_text("A = 1\n")
    (home / "formula.json").write_text(json.dumps(formula(recipe="own_recipe/own")))
    assert call("run", "formula.json", "-p", "own_recipe", "--out", "study")[0] == 0
    return home


def in_process(folder, *arguments):
    return subprocess.run([FLOPS_FIT, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_a_study_of_ones_own_continues_from_any_directory_without_a_question(own, tmp_path, trace):
    trace.unlink()
    done = in_process(tmp_path, "run", "home/study")
    assert done.returncode == 0, done.stderr
    assert executed(trace) == ["recipe"]
    assert "paths" not in json.loads((own / "study" / "plugins.json").read_text())


@pytest.mark.parametrize("file", ["own_recipe.py", "own_values.py"])
def test_an_edit_of_a_module_or_of_one_that_it_imports_asks_again(own, trace, call, file):
    with (own / file).open("a") as source:
        source.write("B = 2\n")
    trace.unlink()
    status, _, error = call("run", "study")
    assert status == 2
    assert f"study names code that has changed since you allowed it to run: file '{own / file}'" in error
    assert "If the change is yours, type: flops-fit trust study" in error
    assert not trace.exists()
    assert call("trust", "study")[0] == 0
    assert call("run", "study")[0] == 0
    assert call("run", "study")[0] == 0


def test_the_module_named_with_p_and_the_users_experiment_file_are_consent(own, call):
    with (own / "own_recipe.py").open("a") as source:
        source.write("B = 2\n")
    assert call("run", "study")[0] == 2
    assert call("run", "study", "-p", "own_recipe")[0] == 0
    assert call("run", "study")[0] == 0
    assert call("run", "formula.json", "-p", "own_recipe", "--out", "study")[0] == 0


def test_a_moved_study_and_the_record_of_another_user_ask_again(own, call):
    record = trust._record_file(StudyFolder(own / "study"))
    assert record.stat().st_mode & 0o077 == 0
    (own / "study").rename(own / "moved")
    assert call("run", "moved")[0] == 2
    (own / "moved").rename(own / "study")
    assert call("run", "study")[0] == 0
    if os.getuid() == 0:
        os.chown(record, 12345, -1)
        assert call("run", "study")[0] == 2


def test_a_change_of_the_options_with_set_is_the_users_own_and_needs_no_new_consent(own, call):
    assert call("run", "study", "--set", "dataset.noise=0.01")[0] == 0
    assert call("run", "study")[0] == 0


@pytest.mark.parametrize("as_list", [False, True])
def test_an_edit_of_the_script_of_a_program_asks_again(tmp_path, monkeypatch, call, as_list):
    monkeypatch.chdir(tmp_path)
    program = script(tmp_path, say(loss=2.0))
    program = program.split() if as_list else program
    (tmp_path / "own.json").write_text(json.dumps(program_table(program, tmp_path, executor="local")))
    assert call("run", "own.json", "--out", "study")[0] == 0
    assert call("run", "study")[0] == 0
    script(tmp_path, say(loss=3.0))
    status, _, error = call("run", "study")
    assert status == 2
    assert f"file '{tmp_path / 'program.py'}'" in error
    assert call("run", "own.json", "--out", "study")[0] == 0
    assert call("run", "study")[0] == 0


def test_a_compiled_file_next_to_allowed_source_is_not_run(study, trace, tmp_path, call):
    names_a_module(study, trace, tmp_path)
    source = study / "helper_x.py"
    innocent = source.read_text().replace("module ", "source ")
    evil = source.read_text().replace("module ", "binary ")
    assert len(innocent) == len(evil)
    source.write_text(evil)
    os.utime(source, (1e9, 1e9))
    py_compile.compile(str(source))
    source.write_text(innocent)
    os.utime(source, (1e9, 1e9))
    assert call("trust", ".")[0] == 0
    assert call("plan", ".", "--no-estimate")[0] == 0
    assert executed(trace) == ["source"]


def test_every_module_of_the_folder_counts_if_one_of_them_is_imported_from_it(study, trace, tmp_path, call):
    """A library may import an optional package that only the folder has."""
    names_a_module(study, trace, tmp_path)
    assert call("trust", ".")[0] == 0
    (study / "helper_optional.py").write_text("")
    status, _, error = call("plan", ".")
    assert status == 2
    assert "helper_optional.py" in error


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_a_terminal_asks_and_only_yes_is_consent(study, trace, tmp_path, answer, status):
    names_a_module(study, trace, tmp_path)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [FLOPS_FIT, "plan", ".", "--no-estimate"], stdin=theirs, stderr=theirs, stdout=subprocess.DEVNULL
    )
    os.close(theirs)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(ours, 1000)
    assert not trace.exists()
    os.write(ours, answer.encode())
    assert process.wait(timeout=60) == status
    os.close(ours)
    assert executed(trace) == ["module"] * (status == 0)


# ---------------------------------------------------------------------------- plugins that are not loaded


def test_a_study_with_a_fitter_of_a_plugin_shows_everything_but_the_fit(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_fitter.py").write_text(FITTER)
    (tmp_path / "formula.json").write_text(json.dumps(formula(fitter="own_fitter/own")))
    assert call("run", "formula.json", "-p", "own_fitter", "--out", "study")[0] == 0
    for name in ("runs", "status"):
        assert call(name, "study")[0] == 0
    for arguments in (["fit", "study"], ["predict", "study", "--flops", "1e20"], ["report", "study"]):
        status, _, error = call(*arguments)
        assert status == 2
        assert "study needs plugin 'own_fitter'" in error
        assert "add -p own_fitter" in error
        assert call(*arguments, "-p", "own_fitter")[0] == 0
    assert call("fit", "study", "--fitter", "isoflop")[0] == 0


def test_a_study_with_a_store_of_a_plugin_is_not_read_without_it(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_store.py").write_text(STORE)
    (tmp_path / "formula.json").write_text(json.dumps(formula(store="own_store/own")))
    assert call("run", "formula.json", "-p", "own_store", "--out", "study")[0] == 0
    status, _, error = call("runs", "study")
    assert status == 2
    assert "study needs plugin 'own_store'" in error
    assert call("runs", "study", "-p", "own_store")[0] == 0


@pytest.mark.parametrize("source", ["experiment.json", "../formula.json"])
def test_no_command_connects_to_a_server_that_only_the_folder_names(study, tmp_path, call, source):
    """libpq would send ``PGPASSWORD`` to it."""
    pytest.importorskip("psycopg")
    (tmp_path / "formula.json").write_text(json.dumps(formula()))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        store = {"name": "stores/postgres", "url": f"host=127.0.0.1 port={server.getsockname()[1]}"}
        edit_json(study / "experiment.json", lambda table: table.update(store=store))
        reading = [words for words in READING if words[0] != "show"]
        commands = [*reading, *TRAINING] if source == "experiment.json" else [["run", source, "--out", "."]]
        for arguments in commands:
            status, _, error = call(*arguments)
            assert status == 2, arguments
            assert "flops-fit trust ." in error, arguments
        with pytest.raises(TimeoutError):
            server.accept()


# ---------------------------------------------------------------------------- -p


def test_p_takes_a_file_of_any_folder_and_the_plugin_has_its_name(tmp_path, monkeypatch, trace, call):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere" / "own_recipe.py").write_text(RECIPE.format(trace=str(trace), name="recipe"))
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "formula.json").write_text(
        json.dumps(formula(recipe="own_recipe/own", executor={"name": "processes", "workers": 1}))
    )
    status, _, error = call("run", "formula.json", "-p", "../elsewhere/own_recipe.py", "--out", "study")
    assert status == 0, error
    by_file = [item.id for item in Study.open("study").plan.runs]
    assert json.loads(Path("study/plugins.json").read_text())["modules"] == {"own_recipe": "own_recipe"}
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("run", "../here/formula.json", "-p", "own_recipe", "--out", "study")[0] == 0
    assert [item.id for item in Study.open("study").plan.runs] == by_file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py", "there is no such file"),
        ("my-plugin.py", "Python cannot import a file of this name"),
        ("json.py", "Python has another module 'json'"),
        ("yaml.py", "Python has another module 'yaml'"),
    ],
)
def test_p_refuses_a_file_that_python_would_not_import(tmp_path, monkeypatch, call, trace, name, message):
    monkeypatch.chdir(tmp_path)
    if name != "missing.py":
        (tmp_path / name).write_text(RECIPE.format(trace=str(trace), name="recipe"))
    status, _, error = call("plugins", "-p", f"./{name}")
    assert status == 2
    assert message in error
    assert not trace.exists()


# ---------------------------------------------------------------------------- Python


def test_python_opens_a_folder_without_its_modules_and_trains_with_those_that_the_user_names(
    own, trace, monkeypatch
):
    trace.unlink()
    del sys.modules["own_recipe"]
    monkeypatch.syspath_prepend(own)
    with (own / "own_values.py").open("a") as source:
        source.write("B = 2\n")
    assert len(Study.open("study").results) == 9
    assert executed(trace) == []
    with pytest.raises(ConfigError, match="names code that has changed"):
        Study.open("study").train()
    assert executed(trace) == []
    assert len(Study.open("study", plugins=["own_recipe"]).train()) == 9
    import own_recipe

    assert len(Study.open("study", plugins=[own_recipe]).train()) == 9


def test_python_runs_the_code_of_a_folder_that_it_trusts(study, trace, tmp_path, monkeypatch):
    names_a_module(study, trace, tmp_path)
    monkeypatch.syspath_prepend(study)
    assert len(Study.open(study, trust=True).train()) == 9
    assert executed(trace) == ["module"]
