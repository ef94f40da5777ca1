"""Experiment files: typed choices of plugins, overrides, and errors with the key and the valid values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from flops_fit_core import ConfigError, Experiment, PluginChoice, PluginError, PluginNotFound
from flops_fit_core.config import (
    choose,
    load_experiment,
    make_experiment,
    override_value,
    read_table,
    replace_choice,
)
from flops_fit_core.plugins import (
    DatasetSpec,
    DeviceSpec,
    ExecutorSpec,
    FitterSpec,
    FlopCounterSpec,
    LoggerSpec,
    ModelSpec,
    OptimizerSpec,
    Options,
    RecipeSpec,
    Registry,
    Runtime,
    ScheduleSpec,
    StoreSpec,
    TrainerSpec,
    hookimpl,
)
from flops_fit_core.plugins.options import identity_options, runtime_options
from flops_fit_core.plugins.specs import Spec


class ToyOptions(Options):
    width: PositiveInt = 16
    depth: PositiveInt = 3
    kind: Literal["learned", "rotary"] = "rotary"


class SGDOptions(Options):
    lr: PositiveFloat = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    betas: tuple[float, float] = (0.9, 0.95)


class Clip(Options):
    norm: PositiveFloat = 1.0
    value: float | None = None


class TrainerOptions(Options):
    eval_tokens: PositiveInt = 131_072
    micro_batch: Annotated[PositiveInt | None, Runtime()] = None
    threads: Annotated[int, Field(ge=1), Runtime()] = 1
    grad_clip: Clip = Clip()


class WaitOptions(Options):
    lock_timeout: PositiveFloat = 60.0


class WorkerOptions(Options):
    workers: Annotated[int, Field(ge=0)] | None = None


class FileOptions(Options):
    path: Path = Path("log.txt")
    every: PositiveInt = 1


def nothing(*values: Any) -> Any:
    """Never called: these tests choose plugins, they do not build anything."""
    raise AssertionError(values)


def plugin(hook: str, *specs: Spec) -> object:
    return SimpleNamespace(**{hook: hookimpl(lambda: specs)})


def make_registry(**more: object) -> Registry:
    plugins: dict[str, object] = {
        "toy": plugin("flops_fit_models", ModelSpec(name="toy", options=ToyOptions, build=nothing, size="width")),
        "data": plugin(
            "flops_fit_datasets",
            DatasetSpec(name="plain", build=nothing),
            DatasetSpec(name="formula", build=nothing, trainer="surface/formula"),
        ),
        "optim": plugin(
            "flops_fit_optimizers",
            OptimizerSpec(name="sgd", options=SGDOptions, build=nothing, width_scaling="none"),
            OptimizerSpec(name="adamw", options=SGDOptions, build=nothing, width_scaling="none", revision=3),
        ),
        "schedules": plugin(
            "flops_fit_schedules",
            ScheduleSpec(name="cosine", build=nothing),
            ScheduleSpec(name="constant", build=nothing),
        ),
        "recipes": plugin("flops_fit_recipes", RecipeSpec(name="width-scaled", build=nothing)),
        "counters": plugin(
            "flops_fit_flop_counters",
            FlopCounterSpec(name="chinchilla", build=nothing),
            FlopCounterSpec(name="model", build=nothing),
        ),
        "trainers": plugin("flops_fit_trainers", TrainerSpec(name="torch", options=TrainerOptions, build=nothing)),
        "surface": plugin("flops_fit_trainers", TrainerSpec(name="formula", build=nothing)),
        "devices": plugin("flops_fit_devices", DeviceSpec(name="auto", build=nothing, slots=nothing)),
        "stores": plugin("flops_fit_stores", StoreSpec(name="sqlite", options=WaitOptions, build=nothing)),
        "executors": plugin(
            "flops_fit_executors", ExecutorSpec(name="processes", options=WorkerOptions, build=nothing)
        ),
        "files": plugin("flops_fit_loggers", LoggerSpec(name="lines", options=FileOptions, build=nothing)),
        "fitters": plugin("flops_fit_fitters", FitterSpec(name="average", build=nothing)),
    }
    registry = Registry({**plugins, **more}, entry_points=False)
    assert registry.problems == []
    return registry


REGISTRY = make_registry()
SMALL: dict[str, Any] = {"sweep": {"budgets": [1e12, 2e12]}, "model": "toy", "dataset": "plain"}


def make(registry: Registry = REGISTRY, **tables: Any) -> Experiment:
    return make_experiment({**SMALL, **tables}, registry)


def mistakes(**tables: Any) -> list[str]:
    """The lines of the error that an experiment gives, without the first, which says where."""
    with pytest.raises(ConfigError) as caught:
        make(**tables)
    first, *lines = str(caught.value).split("\n")
    assert first == "experiment:"
    return [line.strip() for line in lines]


# ---------------------------------------------------------------------------- choices


def test_a_missing_table_takes_its_default() -> None:
    experiment = make()
    expected = {
        "optimizer": "optim/sgd",
        "schedule": "schedules/cosine",
        "recipe": "recipes/width-scaled",
        "counter": "counters/chinchilla",
        "trainer": "trainers/torch",
        "device": "devices/auto",
        "store": "stores/sqlite",
        "executor": "executors/processes",
        "fitter": "fitters/average",
    }
    assert {kind: getattr(experiment, kind).name for kind in expected} == expected
    assert experiment.loggers == ()
    assert (experiment.name, experiment.sweep.sizes, experiment.sweep.seeds) == ("experiment", 6, (0,))


def test_defaults_are_not_made_ambiguous_by_another_plugin() -> None:
    other = plugin("flops_fit_optimizers", OptimizerSpec(name="sgd", build=nothing, width_scaling="none"))
    registry = make_registry(other=other)
    assert make(registry).optimizer.name == "optim/sgd"
    with pytest.raises(ConfigError, match="optimizer: 2 plugins offer optimizer 'sgd'; write"):
        make(registry, optimizer="sgd")
    assert make(registry, optimizer="other/sgd").optimizer.name == "other/sgd"


def test_a_bare_name_is_a_table_without_options() -> None:
    assert make(optimizer="adamw").optimizer == make(optimizer={"name": "adamw"}).optimizer
    assert make(optimizer="adamw").optimizer != make(optimizer={"name": "adamw", "lr": 0.1}).optimizer


def test_options_become_the_plugins_own_types() -> None:
    options = make(optimizer={"name": "sgd", "lr": 1, "betas": [0.5, 1]}).optimizer.options
    assert isinstance(options, SGDOptions)
    assert (options.lr, options.betas, options.momentum) == (1.0, (0.5, 1.0), 0.0)


def test_a_table_without_a_name_sets_options_of_the_default() -> None:
    experiment = make(executor={"workers": 0}, trainer={"threads": 2}, optimizer={})
    assert experiment.executor.name == "executors/processes"
    assert experiment.executor.options == WorkerOptions(workers=0)
    assert experiment.trainer.options == TrainerOptions(threads=2)
    assert experiment.optimizer == make().optimizer


def test_a_dataset_can_bring_its_trainer() -> None:
    assert make(dataset="formula").trainer.name == "surface/formula"
    assert make(dataset="formula", trainer="torch").trainer.name == "trainers/torch"
    assert make(dataset="plain").trainer.name == "trainers/torch"
    assert mistakes(dataset="formula", trainer={"threads": 2}) == [
        "trainer.threads: unknown; valid keys: none (given: 2)"
    ]


def test_loggers_are_a_list_of_choices() -> None:
    loggers = make(loggers=["lines", {"name": "files/lines", "every": 5}]).loggers
    assert [logger.options for logger in loggers] == [FileOptions(), FileOptions(every=5)]
    assert mistakes(loggers=["lines", "wandb"]) == ["loggers.1: no logger named 'wandb'; available: lines"]
    assert mistakes(loggers=[{"every": 5}]) == [
        "loggers.0: write a name, or a table: {name = \"...\", option = ...} (given: {'every': 5})"
    ]


def test_a_choice_can_be_changed_and_is_validated_again() -> None:
    chosen = make(optimizer={"name": "sgd", "lr": 0.5}).optimizer
    changed = chosen.with_options(momentum=0.9)
    assert changed.options == SGDOptions(lr=0.5, momentum=0.9)
    assert chosen.options == SGDOptions(lr=0.5)
    assert [changed.unset(name) for name in ("lr", "momentum", "betas", "width")] == [False, False, True, False]
    with pytest.raises(ValidationError, match="less than 1"):
        chosen.with_options(momentum=2)
    with pytest.raises(ValidationError, match="did you mean 'momentum'"):
        chosen.with_options(momentun=0.5)
    with pytest.raises(ValidationError, match="unknown; valid keys: lr"):
        chosen.with_options(self=1)


def test_an_option_may_have_a_name_that_python_cannot_write() -> None:
    class Elastic(Options):
        lambda_: Annotated[float, Field(alias="lambda")] = 0.5

    spec = OptimizerSpec(name="elastic", options=Elastic, build=nothing, width_scaling="none")
    registry = make_registry(mine=plugin("flops_fit_optimizers", spec))
    experiment = make(registry, optimizer={"name": "elastic", "lambda": 0.25})
    assert experiment.optimizer.with_options().options == experiment.optimizer.options
    restored = Experiment.model_validate_json(experiment.model_dump_json(), context={"registry": registry})
    assert restored.optimizer.options == Elastic(lambda_=0.25)


# ---------------------------------------------------------------------------- identity


def test_a_choice_in_a_record_has_only_options_that_change_the_result() -> None:
    trainer = make(trainer={"threads": 4, "micro_batch": 2, "eval_tokens": 4096}).trainer
    assert trainer.choice == PluginChoice(name="trainers/torch", options={"eval_tokens": 4096})
    assert trainer.runtime == {"threads": 4, "micro_batch": 2}
    assert make(optimizer="adamw").optimizer.choice == PluginChoice(name="optim/adamw", revision=3)


def test_options_equal_to_their_default_identify_nothing() -> None:
    class Odd(Options):
        betas: tuple[float, float] = [0.9, 0.95]  # type: ignore[assignment]
        path: Path = "here"  # type: ignore[assignment]
        grad_clip: Clip = Clip()
        scale: float = 1

    assert identity_options(Odd()) == {}
    assert identity_options(Odd(betas=(0.9, 0.95), path=Path("here"), grad_clip=Clip(norm=1), scale=1.0)) == {}
    assert identity_options(Odd(grad_clip=Clip(norm=2.0))) == {"grad_clip": {"norm": 2.0}}
    assert identity_options(Odd(betas=(0.9, 0.99), path=Path("there"))) == {"betas": [0.9, 0.99], "path": "there"}


def test_runtime_may_be_marked_by_the_class_as_well() -> None:
    class Marked(Options):
        threads: Annotated[int, Runtime] = 1
        compile: Annotated[bool, Runtime()] = False

    assert identity_options(Marked(threads=2, compile=True)) == {}
    assert runtime_options(Marked(threads=2, compile=True)) == {"threads": 2, "compile": True}


def test_a_choice_can_be_restored_from_a_record() -> None:
    trainer = make(trainer={"threads": 4, "eval_tokens": 4096, "grad_clip": {"norm": 2}}).trainer
    assert choose("trainer", trainer.choice, REGISTRY, trainer.runtime) == trainer
    with pytest.raises(PluginError, match=r"planned at revision 1, but .* has revision 3: plan again"):
        choose("optimizer", PluginChoice(name="optim/adamw"), REGISTRY)
    with pytest.raises(PluginNotFound):
        choose("optimizer", PluginChoice(name="optim/gone"), REGISTRY)


# ---------------------------------------------------------------------------- mistakes

PARSE = ", unable to parse string"
TABLES = (
    "name, sweep, model, dataset, optimizer, schedule, recipe, counter, trainer, device, store, executor, "
    "loggers, fitter"
)
SWEEP = (
    "budgets, sizes, size_ratio, tokens_per_param, init_from_fit, multiple_of, seeds, batch_size, "
    "share_stable_phase, reference_tokens, min_steps, allow_repeat"
)


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"optimizer": "adamv"},
         ["optimizer: no optimizer named 'adamv'; available: adamw, sgd. Did you mean 'adamw'?"]),
        ({"optimizer": {"name": "sgd", "lr": -1}}, ["optimizer.lr: Input should be greater than 0 (given: -1)"]),
        ({"optimizer": {"name": "sgd", "lr": "fast"}},
         ["optimizer.lr: Input should be a valid number" + PARSE + " as a number (given: 'fast')"]),
        ({"optimizer": {"name": "sgd", "lr": math.inf}},
         ["optimizer.lr: Input should be a finite number (given: inf)"]),
        ({"optimizer": {"name": "sgd", "momentun": 0.9}},
         ["optimizer.momentun: unknown; did you mean 'momentum'? valid keys: lr, momentum, betas (given: 0.9)"]),
        ({"optimizer": {"lr": -1, "momentum": 2}},
         ["optimizer.lr: Input should be greater than 0 (given: -1)",
          "optimizer.momentum: Input should be less than 1 (given: 2)"]),
        ({"optimizer": 3}, ['optimizer: write a name, or a table: {name = "...", option = ...} (given: 3)']),
        ({"optimizer": {"name": ["sgd"]}},
         ['optimizer: write a name, or a table: {name = "...", option = ...} (given: {\'name\': [\'sgd\']})']),
        ({"model": {"width": 3}},
         ['model: write a name, or a table: {name = "...", option = ...} (given: {\'width\': 3})']),
        ({"model": {"name": "toy", "kind": "sinus"}},
         ["model.kind: Input should be 'learned' or 'rotary' (given: 'sinus')"]),
        ({"trainer": {"grad_clip": {"nrom": 1}}},
         ["trainer.grad_clip.nrom: unknown; did you mean 'norm'? valid keys: norm, value (given: 1)"]),
        ({"optimiser": "sgd"},
         [f"optimiser: unknown; did you mean 'optimizer'? valid keys: {TABLES} (given: 'sgd')"]),
        ({"sweep": {"budgets": [1e12], "budget": 3}},
         [f"sweep.budget: unknown; did you mean 'budgets'? valid keys: {SWEEP} (given: 3)"]),
        ({"sweep": {}}, ["sweep.budgets: Field required"]),
        ({"sweep": {"budgets": 1e12}}, ["sweep.budgets: Input should be a list (given: 1000000000000.0)"]),
        ({"sweep": {"budgets": []}},
         ["sweep.budgets: Tuple should have at least 1 item after validation, not 0 (given: [])"]),
        ({"sweep": {"budgets": [1e12, -1]}}, ["sweep.budgets.1: Input should be greater than 0 (given: -1)"]),
        ({"sweep": {"budgets": [1e12, math.nan]}},
         ["sweep.budgets.1: Input should be a finite number (given: nan)"]),
        ({"sweep": {"budgets": [1e12], "seeds": [1, 1]}},
         ["sweep.seeds: a seed is repeated: its runs would be the same (given: [1, 1])"]),
        ({"name": "../elsewhere"}, ["name: String should match pattern '^\\w[\\w.-]*$' (given: '../elsewhere')"]),
        ({"name": ".."}, ["name: String should match pattern '^\\w[\\w.-]*$' (given: '..')"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_key_and_the_valid_names(tables: dict[str, Any], expected: list[str]) -> None:
    assert mistakes(**tables) == expected


def test_all_mistakes_are_named_at_once() -> None:
    assert [line.split(":")[0] for line in mistakes(model="toys", optimizer={"lr": -1}, stoer="x")] == [
        "model",
        "optimizer.lr",
        "stoer",
    ]


def test_a_missing_model_and_dataset_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        make_experiment({"sweep": {"budgets": [1e12]}}, REGISTRY, "exp.toml")
    assert str(caught.value) == "exp.toml:\n  model: Field required\n  dataset: Field required"


def test_a_long_value_is_shortened() -> None:
    (line,) = mistakes(sweep={"budgets": [1e12], "seeds": ["x" * 1000]})
    assert len(line) < 160


# ---------------------------------------------------------------------------- sizes


def sizes(*values: Any) -> dict[str, Any]:
    return {"budgets": [1e12], "sizes": list(values)}


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (sizes({"width": 16}, {"width": 32, "depth": "deep"}),
         ["sweep.sizes.1.depth: Input should be a valid integer" + PARSE + " as an integer (given: 'deep')"]),
        (sizes({"width": 16}, {"widht": 32}),
         ["sweep.sizes.1.widht: unknown; did you mean 'width'? valid keys: width, depth, kind (given: 32)"]),
        (sizes({"width": 0}), ["sweep.sizes.0.width: Input should be greater than 0 (given: 0)"]),
        (sizes({"name": "gpt"}), ["sweep.sizes.0.name: unknown; valid keys: width, depth, kind (given: 'gpt')"]),
        (sizes({"self": 1}), ["sweep.sizes.0.self: unknown; valid keys: width, depth, kind (given: 1)"]),
        (sizes(16), ["sweep.sizes.0: a size is a table of model options, such as { width = 16 } (given: 16)"]),
        (sizes(), ["sweep.sizes: Tuple should have at least 1 item after validation, not 0 (given: [])"]),
        ({"budgets": [1e12], "sizes": 0}, ["sweep.sizes: Input should be greater than 0 (given: 0)"]),
        ({"budgets": [1e12], "sizes": {"width": 8}},
         ["sweep.sizes: Input should be a valid integer (given: {'width': 8})"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_size_is_named_with_its_place(sweep: dict[str, Any], expected: list[str]) -> None:
    assert mistakes(sweep=sweep) == expected


def test_sizes_are_merged_over_the_model() -> None:
    experiment = make(sweep=sizes({"width": 16}, {"width": 32, "depth": 6}), model={"name": "toy", "depth": 2})
    assert isinstance(experiment.sweep.sizes, tuple)
    merged = [experiment.model.with_options(**size).options for size in experiment.sweep.sizes]
    assert merged == [ToyOptions(width=16, depth=2), ToyOptions(width=32, depth=6)]


def test_budgets_are_put_in_order() -> None:
    assert make(sweep={"budgets": [2e12, 1e12, 2e12]}).sweep.budgets == (1e12, 2e12)


# ---------------------------------------------------------------------------- there and back


def full_experiment(registry: Registry = REGISTRY) -> Experiment:
    return make(
        registry,
        name="full",
        sweep={"budgets": [1e12], "sizes": [{"width": 8}, {"width": 16, "depth": 1}], "seeds": [0, 1]},
        model={"name": "toy", "depth": 2},
        optimizer={"name": "adamw", "lr": 0.1 + 0.2, "betas": [0.9, 0.99]},
        trainer={"threads": 2, "grad_clip": {"value": None}},
        loggers=["lines", {"name": "lines", "path": "x/y.txt"}],
        store={"lock_timeout": 5},
    )


def test_an_experiment_goes_to_json_and_back_equal() -> None:
    experiment = full_experiment()
    restored = Experiment.model_validate_json(experiment.model_dump_json(), context={"registry": REGISTRY})
    assert restored == experiment
    assert restored.model_dump_json() == experiment.model_dump_json()
    assert restored.optimizer.options == SGDOptions(lr=0.1 + 0.2, betas=(0.9, 0.99))
    assert restored.optimizer.unset("momentum")


def test_json_holds_qualified_names_and_what_the_user_set() -> None:
    data = json.loads(full_experiment().model_dump_json())
    assert data["optimizer"] == {"name": "optim/adamw", "lr": 0.1 + 0.2, "betas": [0.9, 0.99]}
    assert data["schedule"] == {"name": "schedules/cosine"}
    assert data["loggers"][1] == {"name": "files/lines", "path": "x/y.txt"}


def test_experiments_of_two_registries_are_equal_by_names_and_options() -> None:
    other = make_registry()
    assert full_experiment() == full_experiment(other)
    assert hash(full_experiment().optimizer) == hash(full_experiment(other).optimizer)
    assert make() != make(other, optimizer={"lr": 0.5})
    assert make(optimizer="adamw") != make(other, optimizer="sgd")
    assert make().optimizer != "optim/sgd"


def test_leaving_an_option_out_equals_writing_its_default() -> None:
    assert make() == make(optimizer={"name": "sgd", "lr": 0.01}, sweep={**SMALL["sweep"], "sizes": 6})


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_an_experiment_has_a_json_schema(mode: Literal["validation", "serialization"]) -> None:
    schema = Experiment.model_json_schema(mode=mode)
    assert set(schema["properties"]) == set(Experiment.model_fields)
    assert {"sweep", "model", "dataset"} <= set(schema["required"])
    assert schema["properties"]["name"]["description"].startswith("The experiment's name. The study's folder")
    json.dumps(schema)


# ---------------------------------------------------------------------------- files

TOML = """
[sweep]
budgets = [2.5e10, 5e10]
sizes = [{width = 16}, {width = 32, depth = 6}]

[model]
name = "toy"

[dataset]
name = "plain"

[optimizer]
lr = 1e-3
"""
YAML = """
sweep:
  budgets: [2.5e+10, 50000000000]
  sizes: [{width: 16}, {width: 32, depth: 6}]
model: {name: toy}
dataset: plain
optimizer: {lr: 1e-3}   # YAML 1.1 reads this as a string
"""
JSON = """{"sweep": {"budgets": [2.5e10, 5e10], "sizes": [{"width": 16}, {"width": 32, "depth": 6}]},
"model": {"name": "toy"}, "dataset": {"name": "plain"}, "optimizer": {"lr": 1e-3}}"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_toml_json_and_yaml_give_the_same_experiment(write: Callable[[str, str], Path]) -> None:
    toml, yaml, yml, json_ = (
        load_experiment(write(f"exp.{kind}", text), REGISTRY)
        for kind, text in (("toml", TOML), ("yaml", YAML), ("yml", YAML), ("json", JSON))
    )
    assert toml == yaml == yml == json_
    assert toml.sweep.budgets == (2.5e10, 5e10)
    assert toml.optimizer.options == SGDOptions(lr=0.001)


@pytest.mark.parametrize(
    ("file", "name"), [("text-gpt.toml", "text-gpt"), ("my first.toml", "my-first"), (".hidden.toml", "hidden")]
)
def test_a_file_names_its_experiment(write: Callable[[str, str], Path], file: str, name: str) -> None:
    assert load_experiment(write(file, TOML), REGISTRY).name == name
    assert load_experiment(write(file, 'name = "other"\n' + TOML), REGISTRY).name == "other"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("exp.toml", "[sweep\n", r"exp\.toml: .*line 1"),
        ("exp.toml", "a = 1\na = 2\n", r"exp\.toml: .*line 2"),
        ("exp.json", '{"a": 1,}', r"exp\.json: .*line 1"),
        ("exp.json", '{"a": {"b": 1, "b": 2}}', r"exp\.json: a table has the key 'b' twice"),
        ("exp.json", "[1]", r"exp\.json: expected tables such as \[sweep\] and \[model\], not list"),
        ("exp.yaml", "a: [1", r"exp\.yaml: (.|\n)*line 1"),
        ("exp.yaml", "a: 1\nb: 2\na: 3\n", r"exp\.yaml: the key 'a' is in line 1 and again in line 3"),
        ("exp.yaml", "a: &x {b: 1}\nc: {<<: *x, b: 2}\n", r"exp\.yaml:\n  sweep: Field required"),
        ("exp.yaml", "a: \x06", r"exp\.yaml: unacceptable character"),
        ("exp.yaml", "", r"exp\.yaml: expected tables .* not NoneType"),
        ("exp.txt", TOML, r"exp\.txt: the name of an experiment file must end in \.toml, \.json, \.yaml, \.yml"),
        ("exp", TOML, r"exp: the name of an experiment file must end in \.toml"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    write: Callable[[str, str], Path], file: str, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(write(file, text), REGISTRY)


def test_a_missing_file_names_the_other_files_of_its_folder(write: Callable[[str, str], Path]) -> None:
    existing = write("text-gpt.toml", TOML)
    write("notes.txt", "")
    with pytest.raises(ConfigError) as caught:
        read_table(existing.with_name("text_gpt.toml"))
    assert str(caught.value).endswith(f"text_gpt.toml does not exist; the folder has {existing}")
    with pytest.raises(ConfigError, match=r"exp\.toml does not exist$"):
        read_table(existing.parent / "nowhere" / "exp.toml")
    with pytest.raises(ConfigError, match="neither an experiment file nor a study's folder: it does not exist"):
        read_table(existing.parent / "no-study")


def test_a_file_may_begin_with_a_byte_order_mark(write: Callable[[str, str], Path]) -> None:
    assert load_experiment(write("exp.toml", "\ufeff" + TOML), REGISTRY).model.name == "toy/toy"


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "exp.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"exp\.toml: .*utf-8"):
        read_table(tmp_path / "exp.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        (tmp_path / "folder.toml").mkdir()
        read_table(tmp_path / "folder.toml")


# ---------------------------------------------------------------------------- --set and --optimizer


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=0.003", {"optimizer": {"name": "sgd", "lr": 0.003}}),
        (" optimizer.lr = 3 ", {"optimizer": {"name": "sgd", "lr": 3}}),
        ("optimizer=adamw", {"optimizer": "adamw"}),
        ("optimizer.name=adamw", {"optimizer": {"name": "adamw"}}),
        ("store.lock_timeout=5", {"store": {"lock_timeout": 5}}),
        ("a.b.c=true", {"a": {"b": {"c": True}}}),
        (
            "sweep.budgets=[1e15, 1e16]",
            {"sweep": {"budgets": [1e15, 1e16], "sizes": [{"width": 1}, {"width": 2}]}},
        ),
        (
            "sweep.sizes.1.depth=3",
            {"sweep": {"budgets": [1.0], "sizes": [{"width": 1}, {"width": 2, "depth": 3}]}},
        ),
        ("sweep.sizes.0={width=9}", {"sweep": {"budgets": [1.0], "sizes": [{"width": 9}, {"width": 2}]}}),
        ("loggers.0.every=2", {"loggers": [{"name": "lines", "every": 2}]}),
        ("dataset.path=/data/my corpus", {"dataset": {"path": "/data/my corpus"}}),
        ("dataset.path='1e3'", {"dataset": {"path": "1e3"}}),
        ("dataset.when=a=b", {"dataset": {"when": "a=b"}}),
        ("dataset.path=", {"dataset": {"path": ""}}),
        ("dataset.path=1\nother=2", {"dataset": {"path": "1\nother=2"}}),
        ("name=other", {"name": "other"}),
    ],
)
def test_an_override_is_a_toml_value_or_a_string(override: str, expected: dict[str, Any]) -> None:
    data: dict[str, Any] = {
        "optimizer": "sgd",
        "sweep": {"budgets": [1.0], "sizes": [{"width": 1}, {"width": 2}]},
        "loggers": ["lines"],
    }
    before = json.loads(json.dumps(data))
    override_value(data, override)
    assert data == {**before, **expected}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer", "--set optimizer: write --set table.option=value"),
        ("=3", "write --set table.option=value"),
        ("a..b=3", "write --set table.option=value"),
        ("a.=3", "write --set table.option=value"),
        ("sweep.sizes.2.width=3", "has no '2'"),
        ("sweep.sizes.x=3", "has no 'x'"),
        ("sweep.seed.x=3", "0 has no 'x'"),
    ],
)
def test_an_override_of_a_missing_key_is_an_error(override: str, message: str) -> None:
    data: dict[str, Any] = {"optimizer": "sgd", "sweep": {"seed": 0, "sizes": [{"width": 1}, {"width": 2}]}}
    with pytest.raises(ConfigError) as caught:
        override_value(data, override)
    assert message in str(caught.value)


def test_overrides_come_before_validation(write: Callable[[str, str], Path]) -> None:
    path = write("exp.toml", TOML.replace('"toy"', '"nonsense"'))

    def make(*overrides: str) -> Experiment:
        data = read_table(path)
        for override in overrides:
            override_value(data, override)
        return make_experiment(data, REGISTRY, str(path))

    experiment = make("model.name=toy", "executor.workers=0", "optimizer.momentum=0.5")
    assert experiment.executor.options == WorkerOptions(workers=0)
    assert experiment.optimizer.options == SGDOptions(lr=0.001, momentum=0.5)
    with pytest.raises(ConfigError, match=r"exp\.toml:\n  optimizer\.lr: Input should be greater than 0"):
        make("model=toy", "optimizer.lr=-1")


def test_another_plugin_replaces_the_table_and_returns_the_dropped_options() -> None:
    data: dict[str, Any] = {"optimizer": {"name": "sgd", "momentum": 0.5, "lr": 1.0}, "store": "sqlite"}
    assert replace_choice(data, "optimizer", "adamw") == ["lr", "momentum"]
    assert replace_choice(data, "store", "json") == []
    assert replace_choice(data, "fitter", "isoflop") == []
    assert data == {"optimizer": {"name": "adamw"}, "store": {"name": "json"}, "fitter": {"name": "isoflop"}}


def test_true_and_false_are_no_numbers():
    table = {
        "sweep": {
            "budgets": [1e9, True],
            "sizes": True,
            "allow_repeat": True,
            "seeds": [False],
            "min_steps": False,
        },
        "model": {"name": "gpt", "depth": True, "tied": True},
        "dataset": {"name": "text", "context": True},
        "optimizer": {"name": "adamw", "lr": True},
    }
    with pytest.raises(ConfigError) as caught:
        make_experiment(table, Registry())
    message = str(caught.value)
    for place in ("sweep.budgets", "sweep.sizes", "sweep.seeds", "sweep.min_steps"):
        assert f"{place}: give a number, not true or false" in message
    for place in ("model.depth", "dataset.context", "optimizer.lr"):
        assert f"{place}: give a number, not true or false" in message
    for place in ("allow_repeat", "tied"):
        assert place not in message
