"""Old names of options, plugins and flags are errors that name the new ones; older study folders are refused."""

import json

import pytest
from pydantic import BaseModel
from small import text_table, write_text

from flops_fit_core import ConfigError, Study, plan
from flops_fit_core.cli.main import run as flops_fit
from flops_fit_core.config import Sweep, make_experiment
from flops_fit_core.config.experiment import Experiment
from flops_fit_core.plugins.registry import KINDS, installed
from flops_fit_core.plugins.renamed import OPTIONS, PLUGINS, REMOVED_PLUGINS


def tables() -> dict[str, type[BaseModel]]:
    """Every table of an experiment file: the sweep, and each installed plugin's options."""
    offers = [offer for kind in KINDS for offer in installed().offers(kind)]
    return {"sweep": Sweep, "": Experiment} | {offer.name: offer.spec.options for offer in offers}


def test_each_new_name_is_an_option_and_no_old_name_is():
    fields = {name for table in tables().values() for name in table.model_fields}
    assert {name for names in OPTIONS.values() for name in names} <= fields
    assert not fields & OPTIONS.keys()


@pytest.mark.parametrize(
    ("table", "option", "value", "advice"),
    [
        ("sweep", "repeat", True, "sweep.repeat: renamed: write 'allow_repeat'"),
        ("sweep", "previous_fit", "fit.json", "sweep.previous_fit: renamed: write 'init_from_fit'"),
        ("trainer", "clip", 1.0, "trainer.clip: renamed: write 'grad_clip'"),
        ("trainer", "pack", 8, "trainer.pack: renamed: write 'vmap_runs'"),
        ("dataset", "heldout_share", 0.1, "dataset.heldout_share: renamed: write 'eval_share'"),
        ("store", "wait", 3, "store.wait: renamed: write 'lock_timeout'"),
    ],
)
def test_an_old_option_name_is_an_error_with_the_new_one(tmp_path, table, option, value, advice):
    text = text_table(write_text(tmp_path / "text"))
    with pytest.raises(ConfigError, match=advice):
        make_experiment({**text, table: {**text.get(table, {}), option: value}}, installed())


def test_the_store_of_another_kind_gets_its_own_new_name(tmp_path):
    text = text_table(write_text(tmp_path / "text"), store={"name": "postgres", "wait": 3})
    with pytest.raises(ConfigError, match=r"store\.wait: renamed: write 'reconnect_timeout'"):
        make_experiment(text, installed())


def test_an_old_table_is_an_error_with_the_new_one(tmp_path):
    text = text_table(write_text(tmp_path / "text"), flops={"name": "traced"})
    with pytest.raises(ConfigError, match="flops: renamed: write 'counter'"):
        make_experiment(text, installed())


def test_the_removed_planner_revision_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="planner: removed"):
        make_experiment(text_table(write_text(tmp_path / "text"), planner=1), installed())


def test_an_unrelated_table_does_not_get_advice_about_another_table(tmp_path):
    text = text_table(write_text(tmp_path / "text"))
    with pytest.raises(ConfigError, match=r"optimizer\.clip: unknown; valid keys: "):
        make_experiment({**text, "optimizer": {"name": "sgd", "clip": 1.0}}, installed())


@pytest.mark.parametrize(("kind", "name"), [*PLUGINS, *REMOVED_PLUGINS])
def test_an_old_plugin_name_is_an_error_with_the_new_one(kind, name):
    with pytest.raises(ConfigError, match=r"was (renamed: write|removed: (choose|fit with))") as error:
        installed().find(kind, name)
    if (kind, name) in PLUGINS:
        assert installed().find(kind, PLUGINS[kind, name])
        assert PLUGINS[kind, name] in str(error.value)


@pytest.mark.parametrize("name", ["kaplan", "fitters/kaplan", "muennighoff", "fitters/muennighoff"])
def test_a_removed_fitter_names_the_law_to_fit(name):
    law = name.rpartition("/")[2]
    with pytest.raises(ConfigError, match=f"was removed: fit with fitter law, law = '{law}', or --law {law}"):
        installed().find("fitter", name)
    assert installed().find("law", law).spec.build().formula.startswith("L = ")


def test_an_old_flag_is_an_error_with_the_new_one(tmp_path, capsys):
    assert flops_fit(["run", "study.toml", "--flops", "traced"]) != 0
    assert "--flops was renamed: --counter" in capsys.readouterr().err
    assert flops_fit(["fit", "study", "--heldout", "code"]) != 0
    assert "--heldout was renamed: --eval-set" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path):
    table = text_table(write_text(tmp_path / "text"))
    study = plan(table, out=tmp_path / "study")
    study.folder.save(study.experiment, study.plan, installed().setup)
    return study.folder, table


@pytest.mark.parametrize("written", [None, 1, 3, "two"])
def test_a_folder_of_another_format_is_refused_in_one_sentence_and_left_as_it_is(folder, capsys, written):
    study, table = folder
    saved = json.loads(study.experiment_file.read_text())
    assert saved.pop("format") == 2
    text = json.dumps(saved if written is None else {"format": written, **saved})
    study.experiment_file.write_text(text)
    message = f"has study folder format {written or 1}, and this flops-fit reads format 2: open it with"
    with pytest.raises(ConfigError, match=message):
        Study.open(study.path)
    with pytest.raises(ConfigError, match=message):
        plan(table, out=study.path)
    for command in (["status"], ["runs"], ["run"], ["predict", "--flops", "1e9"], ["store", "copy"]):
        target = [str(study.path.with_name("copy")), "--store", "json"] if "copy" in command else []
        assert flops_fit([*command, str(study.path), *target]) != 0
        assert message in " ".join(capsys.readouterr().err.split())
    assert study.experiment_file.read_text() == text


def test_a_folder_whose_experiment_is_no_object_is_refused(folder):
    study, _ = folder
    study.experiment_file.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        Study.open(study.path)


def test_a_folder_of_this_format_opens(folder):
    study, table = folder
    assert Study.open(study.path).plan.runs == plan(table, out=study.path).plan.runs
