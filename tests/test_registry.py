"""Discovery of plugins, isolation of broken ones, names, observers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import pickle
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from installing import Site

from flops_fit_core import ConfigError, PluginNotFound, RunResult, RunSpec, SweepPlan
from flops_fit_core.plugins import OptimizerSpec, Options, Registry, StoreSpec, TrainerSpec, hookimpl
from flops_fit_core.plugins.hookspecs import PROJECT
from flops_fit_core.plugins.registry import KINDS, SPEC_TYPES, PluginSetup, law_offers, loading, registry_from
from flops_fit_core.plugins.registry.bundled import BUNDLED_KINDS
from flops_fit_core.plugins.specs import ModelSpec
from flops_fit_core.testing import example_result, example_run

OFFER = """
from flops_fit_core.plugins import OptimizerSpec, hookimpl

@hookimpl
def flops_fit_optimizers():
    yield OptimizerSpec(name="{name}", build=lambda options, model, run: None, width_scaling="none")
"""
OPTIONS = (
    "from flops_fit_core.plugins import *\nclass Bad(Options):\n  x: {type} = None\n@hookimpl\n"
    "def flops_fit_optimizers(): yield OptimizerSpec(name='b', build=print, options=Bad)"
)
HOOK = "from flops_fit_core.plugins import OptimizerSpec, hookimpl\n@hookimpl\ndef flops_fit_optimizers{body}"


def offered(registry: Registry, plugin: str) -> list[str]:
    return [offer.spec.name for offer in registry.offers() if offer.plugin == plugin]


def optimizer(name: str, **more: Any) -> OptimizerSpec:
    build = lambda options, model, run: None  # noqa: E731
    return OptimizerSpec(name=name, build=build, width_scaling="none", **more)  # type: ignore[arg-type,return-value]


class Offering:
    """A plugin that is an object."""

    def __init__(self, *specs: OptimizerSpec) -> None:
        self.specs = specs

    @hookimpl
    def flops_fit_optimizers(self) -> tuple[OptimizerSpec, ...]:
        return self.specs


# ---------------------------------------------------------------------------- broken plugins

BAD = "bad (flops-fit-bad 1.0): "


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import not_a_module", "import: ModuleNotFoundError: No module named 'not_a_module'"),
        ("1/0", "import: ZeroDivisionError"),
        ("raise SystemExit('bye')", "import: SystemExit: bye"),
        ("class Panic(BaseException): pass\nraise Panic('in Rust')", "import: Panic: in Rust"),
        ("class Mute(TypeError):\n  def __str__(self): 1/0\nraise Mute",
         "import: Mute: (its message cannot be shown: ZeroDivisionError)"),
        ("this is no Python", "import: SyntaxError"),
        ("", "register: TypeError: it has no hook: no function marked with @hookimpl of flops_fit_core"),
        (HOOK.format(body="(): ...").replace("@hookimpl", ""),
         "register: TypeError: flops_fit_optimizers: not marked with @hookimpl of flops_fit_core"),
        ("from pluggy import HookimplMarker\n@HookimplMarker('other')\ndef flops_fit_optimizers(): ...",
         "register: TypeError: flops_fit_optimizers: not marked with @hookimpl of flops_fit_core"),
        (HOOK.format(body="(nope): ..."), "register: PluginValidationError"),
        ("from flops_fit_core.plugins import hookimpl\n@hookimpl\ndef flops_fit_optimizer(): ...",
         "flops_fit_optimizer: NameError: there is no such hook; did you mean flops_fit_optimizers?"),
        (HOOK.format(body="(): return [1/0]"), "flops_fit_optimizers: ZeroDivisionError"),
        (HOOK.format(body="():\n  yield 1\n  1/0"), "flops_fit_optimizers: ZeroDivisionError"),
        (HOOK.format(body="(): raise SystemExit(3)"), "flops_fit_optimizers: SystemExit: 3"),
        (HOOK.format(body="(): raise GeneratorExit(4)"), "flops_fit_optimizers: GeneratorExit: 4"),
        (HOOK.format(body="(): return ['sgd']"),
         "flops_fit_optimizers: TypeError: expected OptimizerSpec, got 'sgd'"),
        (HOOK.format(body="(): return OptimizerSpec(name='one', build=print, width_scaling='none')"),
         "flops_fit_optimizers: TypeError: expected an iterable of OptimizerSpec, got OptimizerSpec("),
        (HOOK.format(body="(): yield OptimizerSpec(name='A/b', build=print)"),
         "flops_fit_optimizers: ValueError: optimizer name 'A/b' must be lower case"),
        (HOOK.format(body="(): yield OptimizerSpec(name='b', build='print')"),
         "flops_fit_optimizers: TypeError: optimizer 'b': build must be callable"),
        (HOOK.format(body="(): yield OptimizerSpec(name='b', build=print, options=dict)"),
         "flops_fit_optimizers: TypeError: optimizer 'b': options must be a subclass of Options"),
        (OPTIONS.format(type="'NoSuchType'"), "flops_fit_optimizers: PydanticUndefinedAnnotation"),
        (OPTIONS.format(type="type(print)"), "flops_fit_optimizers: PydanticSchemaGenerationError"),
        (HOOK.format(body="(): yield OptimizerSpec(name='b', build=print, revision=0)"),
         "flops_fit_optimizers: ValueError: optimizer 'b': revision must be an integer of at least 1"),
        (HOOK.format(body="(): yield OptimizerSpec(name='b', build=print, requires=['ray >> 2'])"),
         "flops_fit_optimizers: ValueError: optimizer 'b' requires 'ray >> 2'"),
        (HOOK.format(body="(): yield OptimizerSpec(name='b', build=print, requires='ray>=2')"),
         "flops_fit_optimizers: TypeError: optimizer 'b': requires must be a list, ['ray>=2']"),
        (HOOK.format(body="(): yield OptimizerSpec(name=None, build=print)"),
         "flops_fit_optimizers: ValueError: optimizer name None must be lower case"),
        (HOOK.format(body="(): return [OptimizerSpec(name=n, build=print, width_scaling='none') for n in 'aba']"),
         "flops_fit_optimizers: ValueError: offers 'a' twice"),
        (HOOK.format(body="(): return (yield)").replace("@hookimpl", "@hookimpl(wrapper=True)"),
         "flops_fit_optimizers: TypeError: hook wrappers are not supported"),
        (HOOK.format(body="(): yield").replace("@hookimpl", "@hookimpl(hookwrapper=True)"),
         "flops_fit_optimizers: TypeError: hook wrappers are not supported"),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_reported_and_the_others_still_work(site: Site, source: str, expected: str) -> None:
    site.install("flops-fit-bad", "bad", source)
    site.install("flops-fit-good", "good", OFFER.format(name="tiger"))
    registry = Registry()
    (problem,) = registry.problems
    assert str(problem)[: len(BAD + expected)] == BAD + expected
    assert registry.find("optimizer", "tiger").source == "flops-fit-good 1.0"
    assert registry.find("store", "sqlite").plugin == "stores"
    assert "bad" not in registry.plugins
    with pytest.raises(LookupError, match="not usable: bad"):
        registry.find("optimizer", "missing")


def test_an_entry_point_without_a_module_is_reported(site: Site) -> None:
    site.distribution("flops-fit-gone", "[flops_fit]\ngone = there_is_no_such_module\n")
    (problem,) = Registry().problems
    assert str(problem).startswith("gone (flops-fit-gone 1.0): import: ModuleNotFoundError")


def test_an_entry_point_that_names_no_module_is_reported(site: Site) -> None:
    site.distribution("flops-fit-gone", "[flops_fit]\ngone = not a module\n")
    (problem,) = Registry().problems
    expected = "gone (flops-fit-gone 1.0): import: ValueError: its entry point gone = not a module names no module"
    assert str(problem) == expected


def test_interrupting_discovery_is_not_a_broken_plugin(site: Site) -> None:
    site.install("flops-fit-slow", "slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Registry()


@pytest.mark.parametrize(
    "fault",
    [
        "@hookimpl\ndef flops_fit_stores(nope): ...",
        "def flops_fit_stores(): return []",
        "@hookimpl\ndef flops_fit_stores(): return [1]",
        "@hookimpl\ndef flops_fit_stores(): 1/0",
        "@hookimpl\ndef flops_fit_storages(): ...",
        "@hookimpl(wrapper=True)\ndef flops_fit_run_finished(run, result): yield",
    ],
)
def test_half_of_a_plugin_is_never_used(site: Site, fault: str) -> None:
    observer = "@hookimpl\ndef flops_fit_sweep_finished(plan, results): raise RuntimeError('heard')\n"
    site.install("flops-fit-half", "half", OFFER.format(name="half") + observer + fault)
    registry = Registry()
    assert offered(registry, "half") == []
    assert "half" not in registry.plugins
    assert len(registry.problems) == 1
    assert registry._loader.implementations("flops_fit_sweep_finished") == []


def test_a_distribution_that_is_half_removed_stops_nobody(site: Site) -> None:
    (site.path / "half_removed-1.0.dist-info").mkdir()
    nameless = site.path / "nameless-1.0.dist-info"
    nameless.mkdir()
    (nameless / "METADATA").write_text("Metadata-Version: 2.1\n")
    (nameless / "entry_points.txt").write_text("[flops_fit]\nlost = lost\n")
    site.install("flops-fit-good", "good", OFFER.format(name="tiger"))
    registry = Registry()
    assert registry.problems == []
    assert offered(registry, "good") == ["tiger"]


def test_a_distribution_with_another_name_than_its_folder_offers_its_plugins(site: Site) -> None:
    site.install("flops-fit-good", "good", OFFER.format(name="tiger"))
    info = site.path / "flops_fit_good-1.0.dist-info"
    info.rename(site.path / "renamed-1.0.dist-info")
    registry = Registry()
    assert registry.problems == []
    assert offered(registry, "good") == ["tiger"]


def in_another_python(site: Site, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(site.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_distribution_without_a_version_offers_its_plugins(site: Site) -> None:
    site.install("flops-fit-good", "good", OFFER.format(name="tiger"))
    (site.path / "flops_fit_good-1.0.dist-info" / "METADATA").write_text("Name: flops-fit-good\n")
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "from flops_fit_core.plugins.registry import installed\n"
        "sources = [offer.source for offer in installed().offers('optimizer') if offer.plugin == 'good']\n"
        "print(installed().problems, sources)\n"
    )
    backport = ["importlib_metadata"] if importlib.util.find_spec("importlib_metadata") else []
    for imported_before in ([], backport):
        done = in_another_python(site, code, *imported_before)
        assert (done.stdout, done.stderr) == ("[] ['flops-fit-good unknown-version']\n", "")


@pytest.mark.parametrize("text", [b"[flops_fit]\nno equals sign\n", b"\xff\xfe[flops_fit]\nx = y\n"])
def test_entry_points_that_cannot_be_read_stop_nobody_else(site: Site, text: bytes) -> None:
    site.distribution("flops-fit-torn")
    (site.path / "flops_fit_torn-1.0.dist-info" / "entry_points.txt").write_bytes(text)
    site.install("flops-fit-good", "good", OFFER.format(name="tiger"))
    registry = Registry()
    assert offered(registry, "good") == ["tiger"]
    assert [str(problem).split(":")[0] for problem in registry.problems] == ["flops-fit-torn 1.0"]


@pytest.mark.parametrize("entry_points", [b"[flops_fit]\ntorn = torn\n", b"[flops_fit]\nno equals sign\n"])
def test_metadata_in_another_encoding_is_a_problem_and_stops_nobody_else(site: Site, entry_points: bytes) -> None:
    site.distribution("flops-fit-torn")
    info = site.path / "flops_fit_torn-1.0.dist-info"
    (info / "METADATA").write_bytes("Name: flops-fit-torn\nVersion: 1.0\nAuthor: Jörg\n".encode("latin-1"))
    (info / "entry_points.txt").write_bytes(entry_points)
    site.install("flops-fit-good", "good", OFFER.format(name="tiger"))
    registry = Registry()
    assert offered(registry, "good") == ["tiger"]
    assert [problem.plugin for problem in registry.problems] == ["flops_fit_torn-1.0.dist-info"]


def test_a_broken_distribution_without_plugins_is_ignored(site: Site) -> None:
    site.distribution("another-package", "[console_scripts]\nno equals sign\n")
    assert Registry().problems == []


def test_what_a_plugin_prints_at_discovery_goes_to_standard_error(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install("flops-fit-loud", "loud", "print('imported')\n" + HOOK.format(body="(): print('asked')"))
    site.module("loud_module", "print('imported by name')")
    Registry()
    registry_from(PluginSetup(modules={"mine": "loud_module"}, entry_points=False))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.split("\n") == ["imported", "asked", "imported by name", ""]


# ---------------------------------------------------------------------------- names


def test_a_name_two_plugins_offer_must_be_qualified(site: Site) -> None:
    source = OFFER.format(name="sqlite").replace(', width_scaling="none"', "")
    site.install("flops-fit-other", "other", source.replace("Optimizer", "Store").replace("optimizers", "stores"))
    registry = Registry()
    with pytest.raises(PluginNotFound, match="2 plugins offer store 'sqlite'; write 'other/sqlite' or"):
        registry.find("store", "sqlite")
    assert registry.find("store", "other/sqlite").source == "flops-fit-other 1.0"
    assert registry.find("store", "stores/sqlite").source.startswith("flops-fit ")


def test_two_distributions_that_claim_one_name_both_lose_it(site: Site) -> None:
    site.install("flops-fit-a", "twin", OFFER.format(name="a"))
    site.install("flops-fit-b", "twin", OFFER.format(name="b"))
    registry = Registry()
    assert offered(registry, "twin") == []
    assert [str(problem) for problem in registry.problems] == [
        "twin (flops-fit-a 1.0): register: ValueError: the plugin name 'twin' is also claimed by flops-fit-b 1.0",
        "twin (flops-fit-b 1.0): register: ValueError: the plugin name 'twin' is also claimed by flops-fit-a 1.0",
    ]


def test_what_is_bundled_keeps_its_name(site: Site) -> None:
    site.install("aaa-first-in-the-alphabet", "stores", "raise SystemExit('never imported')")
    registry = Registry()
    assert registry.find("store", "sqlite").source.startswith("flops-fit ")
    (problem,) = registry.problems
    assert str(problem).startswith("stores (aaa-first-in-the-alphabet 1.0): register: ValueError: the plugin name")


def test_one_distribution_cannot_claim_a_name_twice(site: Site) -> None:
    site.module("one", OFFER.format(name="one"))
    site.module("two", OFFER.format(name="two"))
    site.distribution("flops-fit-twice", "[flops_fit]\nsame = one\nsame = two\n")
    registry = Registry()
    assert offered(registry, "same") == []
    assert "the plugin name 'same' is also claimed by flops-fit-twice 1.0" in str(registry.problems[0])


def test_of_a_distribution_that_is_installed_twice_the_first_on_the_path_counts(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("flops-fit-mine", "mine", OFFER.format(name="old"), version="1.0")
    (tmp_path / "newer").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "newer")
    Site(tmp_path / "newer").install("flops-fit-mine", "mine", OFFER.format(name="new"), version="2.0")
    registry = Registry()
    assert registry.problems == []
    assert registry.plugins["mine"] == "flops-fit-mine 2.0"


def test_one_module_under_two_names_is_used_once(site: Site) -> None:
    site.module("shared_module", OFFER.format(name="tiger"))
    site.distribution("flops-fit-shared", "[flops_fit]\na = shared_module\nb = shared_module\n")
    registry = Registry()
    assert offered(registry, "a") == ["tiger"]
    (problem,) = registry.problems
    assert str(problem) == (
        "b (flops-fit-shared 1.0): register: ValueError: "
        "this plugin is already registered as a (flops-fit-shared 1.0); use one name"
    )
    assert registry.find("optimizer", "tiger").name == "a/tiger"


@pytest.mark.parametrize("installed_as", ["short", "my_module"])
def test_a_module_in_use_keeps_its_name_when_it_is_installed(site: Site, installed_as: str) -> None:
    site.module("my_module", OFFER.format(name="tiger"))
    setup = PluginSetup(modules={"my_module": "my_module"})
    before = registry_from(setup).find("optimizer", "tiger")
    assert before.name == "my_module/tiger"
    site.distribution("my-dist", f"[flops_fit]\n{installed_as} = my_module\n")
    after = registry_from(setup)
    assert after.problems == []
    offer = after.find("optimizer", "tiger")
    assert (offer.name, offer.source) == (before.name, before.source)
    assert Registry().find("optimizer", "tiger").name == f"{installed_as}/tiger"


def test_a_bundled_plugin_that_is_given_keeps_its_name() -> None:
    import flops_fit_optim

    registry = Registry({"mine": flops_fit_optim})
    assert registry.find("optimizer", "optim/sgd").source.startswith("flops-fit ")
    (problem,) = registry.problems
    assert (
        "mine (module flops_fit_optim): register: ValueError: this plugin is already registered as optim ("
        in str(problem)
    )


def test_a_passed_plugin_does_not_replace_an_installed_one() -> None:
    registry = Registry({"stores": Offering(optimizer("mine"))})
    assert registry.find("store", "sqlite").plugin == "stores"
    assert "the name is already taken by flops-fit " in str(registry.problems[0])


def test_the_order_of_installation_changes_nothing(site: Site) -> None:
    for dist in ("zebra", "aardvark", "mole"):
        site.install(dist, dist, OFFER.format(name=f"of-{dist}"))
    here = [offer.plugin for offer in Registry().offers() if offer.plugin in ("zebra", "aardvark", "mole")]
    assert here == ["aardvark", "mole", "zebra"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("adamv", "no optimizer named 'adamv'; available: adamw, lion. Did you mean 'adamw'?"),
        ("ADAMW", "Did you mean 'adamw'?"),
        ("mine/lyon", "available: adamw, lion, mine/adamw, mine/lion. Did you mean 'mine/lion'?"),
        ("other/lion", "Did you mean 'mine/lion'?"),
        ("quagga", "available: adamw, lion"),
        ("", "no optimizer named ''; available: adamw, lion"),
    ],
)  # fmt: skip
def test_a_misspelt_name_lists_what_there_is(asked: str, expected: str) -> None:
    registry = Registry({"mine": Offering(optimizer("adamw"), optimizer("lion"))}, entry_points=False)
    with pytest.raises(PluginNotFound) as caught:
        registry.find("optimizer", asked)
    assert expected in str(caught.value)


def test_nothing_of_a_kind_is_said_so() -> None:
    with pytest.raises(PluginNotFound, match="no logger named 'x'; available: none"):
        Registry(entry_points=False).find("logger", "x")


# ---------------------------------------------------------------------------- disabling


def test_a_disabled_plugin_is_not_even_imported(site: Site) -> None:
    site.install("flops-fit-bad", "bad", "raise SystemExit('imported')")
    registry = Registry(disabled=["bad"])
    assert registry.problems == []
    with pytest.raises(LookupError, match="disabled: bad"):
        registry.find("optimizer", "nope")


def test_the_environment_can_disable_plugins(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("flops-fit-bad", "bad", "raise SystemExit('imported')")
    site.install("flops-fit-worse", "worse", "raise SystemExit('imported')")
    monkeypatch.setenv("FLOPS_FIT_DISABLE", " bad, worse,")
    registry = Registry(disabled=["stores"])
    assert registry.problems == []
    assert registry.disabled == {"bad", "worse", "stores"}
    assert registry.offers("store") == []


def test_a_module_that_is_disabled_is_not_imported_again(site: Site) -> None:
    site.module("explosive", "raise SystemExit('imported')")
    setup = PluginSetup(modules={"mine": "explosive"}, disabled=("mine",), entry_points=False)
    assert registry_from(setup).problems == []


# ---------------------------------------------------------------------------- requirements


def test_a_missing_requirement_is_named_with_the_extra_that_installs_it() -> None:
    missing = optimizer("big", requires=["not-installed>=2.9", "pydantic>=2"], extra="big")
    registry = Registry({"mine": Offering(missing)}, entry_points=False)
    assert registry.problems == []
    (offer,) = registry.offers("optimizer")
    assert offer.missing() == ["not-installed>=2.9"]
    with pytest.raises(ConfigError, match=r"optimizer 'big' needs not-installed>=2\.9: pip install"):
        registry.find("optimizer", "big")


def test_the_message_names_the_distribution_and_its_extra(site: Site) -> None:
    source = OFFER.format(name="big").replace("build=", "requires=['nope>=2.9'], extra='big', build=")
    site.install("flops-fit-mine", "mine", source)
    with pytest.raises(ConfigError) as caught:
        Registry().find("optimizer", "big")
    assert str(caught.value) == "optimizer 'big' needs nope>=2.9: pip install 'flops-fit-mine[big]'"


def test_without_an_extra_the_message_names_what_is_missing() -> None:
    registry = Registry({"mine": Offering(optimizer("big", requires=["nope>=2", "nada"]))}, entry_points=False)
    with pytest.raises(ConfigError) as caught:
        registry.find("optimizer", "big")
    assert str(caught.value) == "optimizer 'big' needs nope>=2 and nada: pip install 'nope>=2' 'nada'"


@pytest.mark.parametrize(
    ("requirement", "installed"),
    [
        ("pydantic", True),
        ("Pydantic>=2", True),
        ("pydantic<1", False),
        ("pydantic>999; python_version<'3'", True),
        ("half-removed", False),
    ],
)
def test_requirements_are_looked_up_without_importing(site: Site, requirement: str, installed: bool) -> None:
    (site.path / "half_removed-1.0.dist-info").mkdir()
    importlib.invalidate_caches()
    registry = Registry({"mine": Offering(optimizer("x", requires=[requirement]))}, entry_points=False)
    assert (registry.offers()[0].missing() == []) is installed


# ---------------------------------------------------------------------------- without installing


def test_a_plugin_can_be_passed_in_without_installing_anything() -> None:
    registry = Registry({"mine": Offering(optimizer("mine"))}, entry_points=False)
    assert offered(registry, "mine") == ["mine"]
    assert registry.plugins == {"mine": f"passed in ({__name__}.Offering)"}
    assert list(registry.objects) == ["mine"]


def test_the_same_registry_can_be_made_again_elsewhere(site: Site) -> None:
    site.module("my_models", OFFER.format(name="mine"))
    sys.path.remove(str(site.path))
    first = registry_from(
        PluginSetup(
            modules={"mine": "my_models"}, disabled=("stores",), entry_points=False, paths=(str(site.path),)
        )
    )
    again = registry_from(PluginSetup.model_validate_json(first.setup.model_dump_json()))
    assert again.setup == first.setup
    assert again.plugins == first.plugins == {"mine": "module my_models"}
    assert offered(again, "mine") == ["mine"]
    code = (
        "import sys; from flops_fit_core.plugins.registry import *\n"
        "print(registry_from(PluginSetup.model_validate_json(sys.argv[1])).plugins)"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code, first.setup.model_dump_json()], capture_output=True, text=True
    )
    assert elsewhere.stdout == "{'mine': 'module my_models'}\n"


def test_objects_are_passed_along_beside_the_setup() -> None:
    plugin = Offering(optimizer("mine"))
    first = Registry({"mine": plugin}, entry_points=False)
    again = registry_from(first.setup, first.objects)
    assert offered(again, "mine") == ["mine"]
    assert first.setup.modules == {}


@pytest.mark.parametrize("source", ["1/0", "raise SystemExit(1)", None])
def test_a_module_that_cannot_be_imported_is_the_users_mistake(site: Site, source: str | None) -> None:
    if source is not None:
        site.module("my_broken_models", source)
    with pytest.raises(ConfigError, match="cannot use the plugin module my_broken_models: import: "):
        registry_from(PluginSetup(modules={"mine": "my_broken_models"}, entry_points=False))


# ---------------------------------------------------------------------------- observers


class Observing:
    def __init__(self, error: BaseException | None = None) -> None:
        self.heard: list[object] = []
        self.error = error

    @hookimpl
    def flops_fit_run_finished(self, result: RunResult) -> None:
        self.heard.append(result)
        if self.error:
            raise self.error

    @hookimpl
    def flops_fit_sweep_finished(self, plan: SweepPlan, results: list[RunResult]) -> None:
        self.heard += [plan, *results]
        if self.error:
            raise self.error


def plan_of(run: RunSpec) -> SweepPlan:
    device = run.model
    return SweepPlan(name="sweep", runs=(run,), params_name="N", flops_name="C", device=device)


@pytest.mark.parametrize("error", [ValueError("oh dear"), SystemExit(3)])
def test_what_an_observer_raises_is_logged_and_the_others_are_told(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = Observing(), Observing()
    registry = Registry({"a": before, "bad": Observing(error), "z": after}, entry_points=False)
    run, result, plan = example_run(), example_result(), plan_of(example_run())
    with caplog.at_level(logging.ERROR, "flops_fit"):
        registry.run_finished(run, result)
        registry.sweep_finished(plan, [result])
    assert before.heard == after.heard == [result, plan, result]
    assert [record.message for record in caplog.records] == [
        f"plugin bad (passed in ({__name__}.Observing)): flops_fit_run_finished",
        f"plugin bad (passed in ({__name__}.Observing)): flops_fit_sweep_finished",
    ]
    assert type(error).__name__ in caplog.text


def test_an_observer_cannot_stop_a_user_from_interrupting() -> None:
    registry = Registry({"bad": Observing(KeyboardInterrupt())}, entry_points=False)
    with pytest.raises(KeyboardInterrupt):
        registry.run_finished(example_run(), example_result())


# ---------------------------------------------------------------------------- specs


def test_there_is_one_type_of_spec_a_hook_and_one_hook_a_kind() -> None:
    hooks = Registry(entry_points=False)._loader._pm.hook
    ours = {name for name in vars(hooks) if name.startswith(f"{PROJECT}_")}
    assert set(SPEC_TYPES) == ours - {"flops_fit_run_finished", "flops_fit_sweep_finished"}
    assert len({spec.kind for spec in SPEC_TYPES.values()}) == len(SPEC_TYPES)


def test_a_spec_says_what_is_wrong_with_it() -> None:
    class Named(Options):
        name: str = "x"

    class Sized(Options):
        width: int

    with pytest.raises(ValueError, match="Named may not have an option called 'name'"):
        optimizer("x", options=Named)
    with pytest.raises(ValueError, match="must be the name of an option that has a default"):
        ModelSpec(name="x", options=Sized, size="width", build=lambda options, task: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="must be the name of an option that has a default"):
        ModelSpec(name="x", size="depth", build=lambda options, task: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="unknown values in can: fly"):
        TrainerSpec(name="x", build=lambda options: None, can=frozenset({"branch", "fly"}))  # type: ignore[arg-type,return-value]


def test_specs_of_the_wrong_kind_are_refused(site: Site) -> None:
    plugin = types.SimpleNamespace(flops_fit_optimizers=hookimpl(lambda: [StoreSpec(name="x", build=print)]))  # type: ignore[arg-type]
    (problem,) = Registry({"mine": plugin}, entry_points=False).problems
    assert "expected OptimizerSpec, got StoreSpec(" in str(problem)


# ---------------------------------------------------------------------------- imports


def test_importing_the_engine_and_discovering_plugins_imports_nothing_heavy() -> None:
    code = (
        "import sys, flops_fit_core.plugins as plugins; registry = plugins.Registry(); registry.offers()\n"
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'pandas', 'sqlite_utils', 'cloudpickle', 'pytest',\n"
        "  'transformers', 'lightning', 'mlflow', 'wandb', 'tensorboard',  'psycopg', 'pyarrow', 'ray',\n"
        "  'submitit', 'datasets', 'tokenizers', 'sklearn', 'schedulefree', 'pytorch_optimizer'}\n"
        "print(registry.problems, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[] []\n", "")


def test_a_query_for_a_kind_loads_the_bundled_plugins_of_this_kind_only() -> None:
    code = (
        "import sys; from flops_fit_core.plugins import Registry; registry = Registry()\n"
        "plugins = lambda: sorted(name for name in sys.modules if name[:10] == 'flops_fit_' and '.' not in name)\n"
        "print(plugins()); registry.find('store', 'sqlite'); print(plugins())\n"
        "registry.offers(); print(len(plugins()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, everything = done.stdout.splitlines()
    assert before == "['flops_fit_core', 'flops_fit_laws']"
    assert after == "['flops_fit_core', 'flops_fit_laws', 'flops_fit_stores']"
    assert int(everything) == 2 + len(BUNDLED_KINDS)


def test_the_table_of_kinds_is_that_of_the_bundled_plugins() -> None:
    registry = Registry()
    kinds: dict[str, set[str]] = {}
    for offer in registry.offers():
        if offer.source.startswith("flops-fit ") and offer.plugin != "laws":
            kinds.setdefault(offer.plugin, set()).add(offer.spec.kind)
    assert kinds == {name: set(kinds) for name, kinds in BUNDLED_KINDS.items()}
    for hook in ("flops_fit_run_finished", "flops_fit_sweep_finished"):
        assert not {impl.plugin_name for impl in registry._loader.implementations(hook)} & BUNDLED_KINDS.keys()


def test_threads_that_ask_at_the_same_time_get_complete_answers() -> None:
    kinds = [*KINDS, None, *KINDS] * 3
    for _ in range(5):
        registry = Registry()
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(registry.offers, kinds))
        assert answers == [registry.offers(kind) for kind in kinds]


def test_an_interrupted_load_loses_no_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [offer.name for offer in Registry().offers()]
    for point in ("fitters", "gpt", "vit"):
        registry = Registry()
        load = loading.PluginLoader._load

        def interrupt(self: Any, name: str, *arguments: Any, point: str = point, load: Any = load) -> None:
            if name == point:
                raise KeyboardInterrupt
            load(self, name, *arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(loading.PluginLoader, "_load", interrupt)
            registry.problems  # noqa: B018
        assert registry.find("device", "cpu").name == "devices/cpu"
        assert [offer.name for offer in registry.offers()] == expected
        assert registry.problems == []


def test_a_query_during_the_import_of_a_plugin_loses_no_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [offer.name for offer in Registry().offers()]
    registry = Registry()
    load = loading.PluginLoader._load

    def nested(self: Any, name: str, *arguments: Any) -> None:
        if name == "callable":
            assert registry.find("store", "sqlite").name == "stores/sqlite"
            assert len(registry.offers()) >= 60
        load(self, name, *arguments)

    monkeypatch.setattr(loading.PluginLoader, "_load", nested)
    assert registry.problems == []
    assert [offer.name for offer in registry.offers()] == expected


def test_a_fit_s_law_is_found_without_importing_a_disabled_plugin(site: Site) -> None:
    site.install("flops-fit-explosive", "explosive", "raise SystemExit('never imported')")
    registry = Registry(disabled=["explosive"])
    assert registry.problems == []
    assert {"chinchilla", "tied", "skaling"} <= law_offers.OFFERS.keys()


def test_a_registry_can_be_sent_to_another_process() -> None:
    registry = Registry()
    copy = cloudpickle.loads(cloudpickle.dumps(registry))
    assert [offer.name for offer in copy.offers()] == [offer.name for offer in Registry().offers()]
    assert copy.find("store", "sqlite").spec.name == "sqlite"


def test_a_child_that_was_forked_during_a_load_can_query() -> None:
    code = (
        "import os, signal, threading; from flops_fit_core.plugins import Registry\n"
        "from flops_fit_core.plugins.registry import loading\n"
        "held, done = threading.Event(), threading.Event()\n"
        "def hold():\n"
        "    with loading._lock: held.set(); done.wait()\n"
        "registry = Registry(); threading.Thread(target=hold).start(); held.wait()\n"
        "if (child := os.fork()) == 0:\n"
        "    signal.alarm(20); os._exit(0 if registry.find('store', 'sqlite') else 1)\n"
        "status = os.waitpid(child, 0)[1]; done.set(); print(status)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_loads_of_two_registries_leave_standard_output_as_it_was() -> None:
    output = sys.stdout
    for _ in range(5):
        registries = [Registry() for _ in range(6)]
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda registry: registry.offers(), registries))
    assert sys.stdout is output


@pytest.mark.parametrize("name", ["aaa", "zzz"])
def test_a_bundled_module_installed_under_another_name_keeps_its_own(site: Site, name: str) -> None:
    site.distribution("other", f"[flops_fit]\n{name} = flops_fit_stores\n")
    registry = Registry()
    assert registry.find("store", "sqlite").name == "stores/sqlite"
    (problem,) = registry.problems
    assert str(problem).startswith(
        f"{name} (other 1.0): register: ValueError: this plugin is already registered as"
    )


def test_everything_bundled_is_usable() -> None:
    registry = Registry()
    assert registry.problems == []
    ours = importlib.metadata.entry_points(group="flops_fit")
    assert set(registry.plugins) >= {point.name for point in ours if point.dist and point.dist.name == "flops-fit"}


def test_a_half_removed_package_stops_nobody_where_the_backport_of_metadata_has_been_imported(site: Site) -> None:
    pytest.importorskip("importlib_metadata")
    (site.path / "half_removed-1.0.dist-info").mkdir()
    nameless = site.path / "nameless-1.0.dist-info"
    nameless.mkdir()
    (nameless / "METADATA").write_text("Metadata-Version: 2.1\n")
    (nameless / "entry_points.txt").write_text("[flops_fit]\nlost = lost\n")
    code = (
        "import importlib_metadata\n"
        "from flops_fit_core.plugins.registry import installed\n"
        "from flops_fit_core.plugins.registry.discovery import is_installed\n"
        "print(installed().problems, is_installed('half-removed'))\n"
    )
    done = in_another_python(site, code)
    assert (done.stdout, done.stderr) == ("[] False\n", "")


def test_the_backport_of_metadata_names_the_folder_of_a_distribution_without_a_name(site: Site) -> None:
    pytest.importorskip("importlib_metadata")
    torn = site.path / "torn-1.0.dist-info"
    torn.mkdir()
    (torn / "entry_points.txt").write_text("[flops_fit]\nno equals sign\n")
    code = (
        "import importlib_metadata\n"
        "from flops_fit_core.plugins.registry.discovery import entry_points\n"
        "print([label for label, _ in entry_points()[1]])\n"
    )
    done = in_another_python(site, code)
    assert (done.stdout, done.stderr) == ("['torn-1.0.dist-info']\n", "")


def test_jobs_in_the_registry_s_own_process_use_it_and_others_make_one() -> None:
    class Mine:
        @hookimpl
        def flops_fit_models(self):
            return ()

    registry = Registry({"mine": Mine()}, entry_points=False)
    assert registry_from(registry.setup, registry.objects) is registry
    copied = pickle.loads(cloudpickle.dumps(registry.objects))
    assert type(copied) is dict
    elsewhere = registry_from(registry.setup, copied)
    assert elsewhere is not registry
    assert elsewhere.plugins == registry.plugins
    other = registry.setup.model_copy(update={"disabled": ("mine",)})
    assert registry_from(other, registry.objects).plugins == {}
