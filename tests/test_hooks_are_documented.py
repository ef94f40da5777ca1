"""Hooks match their documentation and examples: every documented example runs as a plugin."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flops_fit_core import ParameterCounts, SweepPlan, run
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.plugins import (
    CounterInput,
    ParameterGroup,
    RecipeInput,
    RegisteredSpec,
    Registry,
    RunInfo,
    hookspecs,
    protocols,
)
from flops_fit_core.plugins.registry import SPEC_TYPES
from flops_fit_core.plugins.specs import Spec
from flops_fit_core.testing import (
    DatasetConformance,
    DeviceConformance,
    ExecutorConformance,
    FitterConformance,
    FlopCounterConformance,
    LawConformance,
    LoggerConformance,
    ModelConformance,
    OptimizerConformance,
    ReaderConformance,
    RecipeConformance,
    ScheduleConformance,
    StoreConformance,
    TrainerConformance,
    example_result,
    example_run,
)
from flops_fit_core.testing.kit import Kit

OBSERVERS = ["flops_fit_run_finished", "flops_fit_sweep_finished"]
HOOKS = {name: getattr(hookspecs, name) for name in [*SPEC_TYPES, *OBSERVERS]}
DOCUMENT = (Path(__file__).parents[1] / "docs" / "reference" / "hooks.md").read_text(encoding="utf-8")
MEETS: Mapping[str, list[str]] = {
    "flops_fit_models": ["ParameterGroup", "TransformerShape"],
    "flops_fit_datasets": ["Dataset", "MultiEvalDataset", "ModelEvaluation", "Task", "BatchCount", "SampleSize"],
    "flops_fit_optimizers": ["RunInfo"],
    "flops_fit_schedules": [],
    "flops_fit_recipes": ["RecipeInput"],
    "flops_fit_flop_counters": ["CounterInput", "FlopCount"],
    "flops_fit_stores": ["ResultStore"],
    "flops_fit_devices": ["Device"],
    "flops_fit_trainers": ["Trainer", "TrainContext"],
    "flops_fit_executors": ["Executor", "ExecutorContext"],
    "flops_fit_loggers": ["Logger"],
    "flops_fit_fitters": ["Fitter"],
    "flops_fit_readers": ["RunReader", "LoggedRun"],
    "flops_fit_laws": ["LossLaw", "Parameter"],
}
"""Hook -> base classes and engine types; the hook's section must name all of their members."""


def signature(hook: str) -> str:
    """A hook's signature, copied from its source."""
    tree = ast.parse(Path(inspect.getfile(HOOKS[hook])).read_text())
    (node,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == hook)
    assert node.returns is not None
    return f"{hook}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"


def example(hook: str) -> str:
    """The code in a hook's docstring."""
    doc = inspect.getdoc(HOOKS[hook]) or ""
    _, separator, code = doc.partition("\n::\n")
    assert separator, f"{hook} has no example in its docstring"
    return textwrap.dedent(code).strip() + "\n"


@cache
def plugin(hook: str) -> ModuleType:
    """Run the example of a hook as a plugin module. Once, as pydantic looks for its source in every module."""
    module = ModuleType(f"example_of_{hook}")
    exec(compile(example(hook), f"<example of {hook}>", "exec"), vars(module))
    return module


def offer(hook: str) -> RegisteredSpec[Any]:
    """The spec that the example registers."""
    registry = Registry({"example": plugin(hook)}, entry_points=False)
    assert registry.problems == []
    (registered_spec,) = registry.offers()
    return registered_spec


def build(hook: str, *arguments: Any) -> Any:
    """Build the example's object with default options."""
    spec = offer(hook).spec
    return spec.build(spec.options(), *arguments)


def section(hook: str) -> str:
    """A hook's part of docs/reference/hooks.md."""
    match = re.search(rf"^## `{hook}`[^\n]*\n(.*?)(?=^## |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert match, f"docs/reference/hooks.md has no section '## `{hook}`'"
    return match[1]


# ---------------------------------------------------------------------------- docs/reference/hooks.md


def test_every_hook_is_under_test() -> None:
    assert set(HOOKS) == {name for name in vars(hookspecs) if name.startswith("flops_fit_")}


def test_the_document_has_a_section_for_every_hook_in_order() -> None:
    assert re.findall(r"^## `(flops_fit_\w+)`", DOCUMENT, re.MULTILINE) == list(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_document_has_each_hooks_exact_signature(hook: str) -> None:
    assert f"\n    {signature(hook)}\n" in section(hook)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_document_shows_the_example_that_is_tested(hook: str) -> None:
    assert re.findall(r"```python\n(.*?)```", section(hook), re.DOTALL) == [example(hook)]


@pytest.mark.parametrize("hook", SPEC_TYPES)
def test_the_document_names_every_field_of_a_spec(hook: str) -> None:
    spec = SPEC_TYPES[hook]
    common = {field.name for field in dataclasses.fields(Spec)}
    assert f"`{spec.__name__}`" in section(hook)
    assert {field.name for field in dataclasses.fields(spec)} - common - words_in_code(section(hook)) == set()


def test_the_document_names_every_field_that_all_specs_have() -> None:
    introduction = DOCUMENT.partition("\n## `")[0]
    assert {field.name for field in dataclasses.fields(Spec)} <= words_in_code(introduction)


@pytest.mark.parametrize("hook", SPEC_TYPES)
def test_the_document_names_every_member_that_a_plugin_implements_or_receives(hook: str) -> None:
    members = {
        name
        for contract in MEETS[hook]
        for name in {**vars(getattr(protocols, contract)), **getattr(protocols, contract).__annotations__}
        if not name.startswith("_")
    }
    assert members - words_in_code(section(hook)) == set()


def words_in_code(text: str) -> set[str]:
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", code)}


def test_links_in_the_document_have_targets() -> None:
    docs = Path(__file__).parents[1] / "docs" / "reference"
    for target in re.findall(r"\]\(([^)#]+)", DOCUMENT):
        assert (docs / target).exists(), target


# ---------------------------------------------------------------------------- the examples


@pytest.mark.parametrize("hook", SPEC_TYPES)
def test_an_example_is_a_plugin_that_can_be_chosen(hook: str) -> None:
    spec = offer(hook).spec
    assert isinstance(spec, SPEC_TYPES[hook])
    assert callable(getattr(spec, "build", None))
    registry = Registry({"example": plugin(hook)}, entry_points=False)
    assert registry.find(spec.kind, spec.name).name == f"example/{spec.name}"


@pytest.mark.parametrize("hook", HOOKS)
def test_an_example_imports_only_public_names(hook: str) -> None:
    for node in ast.walk(ast.parse(example(hook))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flops_fit"):
            assert {alias.name for alias in node.names} <= set(importlib.import_module(str(node.module)).__all__)


def test_observers_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry({hook: plugin(hook) for hook in OBSERVERS}, entry_points=False)
    assert registry.problems == []
    run, result = example_run(), example_result()
    registry.run_finished(run, result)
    plan = SweepPlan(name="sweep", runs=(run,), params_name="N", flops_name="C", device=run.model)
    registry.sweep_finished(plan, [result, example_result(status="failed")])
    assert capsys.readouterr().out == f"{run.id} completed {result.loss}\nsweep 1\n"


def test_the_example_model_computes_logits() -> None:
    import torch

    task = LanguageTask(vocab_size=11, context=5)
    with torch.device("meta"):
        counted = build("flops_fit_models", task)
    assert sum(parameter.numel() for parameter in counted.parameters()) == 11 * 16 + 16 * 11 + 11
    model = build("flops_fit_models", task)
    batch = task.example(3)
    loss, count = task.loss(task.outputs(model, batch), batch)
    assert count == 15
    assert loss.item() > 0


def test_the_example_dataset_does_not_depend_on_the_batch_size() -> None:
    import torch

    data = build("flops_fit_datasets", 7)
    large, small = data.batches(6), data.batches(2, start=2)
    inputs, targets = next(large)
    parts = [next(small), next(small)]
    assert torch.equal(inputs[2:], torch.cat([part[0] for part in parts]))
    differing = [sum(bit != next_bit for bit, next_bit in pairwise(row)) for row in inputs.tolist()]
    assert targets.tolist() == [int(number > 15) for number in differing]
    batches = list(data.eval_batches(10, 4))
    assert [len(batch[1]) for batch in batches] == [4, 4, 2]
    assert torch.equal(batches[0][0], next(iter(build("flops_fit_datasets", 8).eval_batches(4, 4)))[0])


def run_info(module: Any) -> RunInfo:
    groups: Callable[[Any], list[ParameterGroup]] = lambda model: [  # noqa: E731
        ParameterGroup([model.weight], width=32),
        ParameterGroup([model.bias]),
    ]
    return RunInfo(steps=4, tokens=64, tokens_per_step=16, base_width=64, groups=groups, width_scaling="adam")


def test_the_example_optimizer_scales_its_groups() -> None:
    from torch import nn

    module = nn.Linear(2, 3)
    optimizer = build("flops_fit_optimizers", module, run_info(module))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.002, 0.001])


def test_the_example_schedule_goes_to_zero() -> None:
    schedule = build("flops_fit_schedules", run_info(None))
    assert [schedule(step) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_the_example_recipe_gives_a_batch() -> None:
    task = LanguageTask(vocab_size=11, context=50)
    counts = ParameterCounts(total=1000, active=1000)
    recipe_input = RecipeInput(1000, 1_000_000, None, task, "adam", flops=6e9, parameters=counts)
    assert build("flops_fit_recipes", recipe_input).batch_size == 20


def test_the_example_counter_counts() -> None:
    counts = ParameterCounts(total=1200, lookup_table=200, active=1200)
    task = SupervisedTask(inputs=(8,), outputs_size=2)
    counter_input = CounterInput(module=None, task=task, parameters=counts, own_flops_per_token=None, family="x/y")  # type: ignore[arg-type]
    count = build("flops_fit_flop_counters", counter_input)
    assert (count.flops_per_token, count.params) == (8000.0, 1000)


class Example:
    """Runs a conformance kit on the example of a hook."""

    hook: str

    @pytest.fixture
    def registry(self) -> Registry:
        return Registry({"example": plugin(self.hook)}, entry_points=False)


class TestTheExampleModel(Example, ModelConformance):
    name, hook = "bigram", "flops_fit_models"


class TestTheExampleDataset(Example, DatasetConformance):
    name, hook = "neighbours", "flops_fit_datasets"


class TestTheExampleOptimizer(Example, OptimizerConformance):
    name, hook = "rmsprop", "flops_fit_optimizers"


class TestTheExampleSchedule(Example, ScheduleConformance):
    name, hook = "linear-to-zero", "flops_fit_schedules"


class TestTheExampleRecipe(Example, RecipeConformance):
    name, hook = "big-batches", "flops_fit_recipes"


class TestTheExampleCounter(Example, FlopCounterConformance):
    name, hook = "recomputing", "flops_fit_flop_counters"


class TestTheExampleStore(Example, StoreConformance):
    name, hook = "lines", "flops_fit_stores"
    shared = False

    @pytest.fixture
    def registry(self, monkeypatch: pytest.MonkeyPatch) -> Registry:
        module = plugin(self.hook)
        monkeypatch.setitem(sys.modules, module.__name__, module)  # another process imports the module by name
        return Registry({"example": module})


class TestTheExampleDevice(Example, DeviceConformance):
    name, hook = "amx", "flops_fit_devices"


class TestTheExampleTrainer(Example, TrainerConformance):
    name, hook = "plain", "flops_fit_trainers"

    @pytest.fixture
    def registry(self, monkeypatch: pytest.MonkeyPatch) -> Registry:
        module = plugin(self.hook)
        monkeypatch.setitem(sys.modules, module.__name__, module)  # a worker imports the module by name
        return Registry({"example": module})


class TestTheExampleExecutor(Example, ExecutorConformance):
    name, hook = "one-after-another", "flops_fit_executors"
    plugins = {"example": plugin(hook)}
    isolated = False


class TestTheExampleFitter(Example, FitterConformance):
    name, hook = "best-of-each", "flops_fit_fitters"


class TestTheExampleReader(Example, ReaderConformance):
    name, hook = "progress", "flops_fit_readers"

    def write(self, folder):
        for name, params in (("small", 10_000_000), ("large", 40_000_000)):
            (folder / name).mkdir()
            lines = [f"step={step} tokens={step * 1e6} eval_loss={5 - step / 100}" for step in (50, 100)]
            (folder / name / "progress.txt").write_text("started\n" + "\n".join(lines) + "\n")
            (folder / name / "config.json").write_text(f'{{"n_params": {params}}}')
        return {"small": (1e7, 1e8, 4.0), "large": (4e7, 1e8, 4.0)}


class TestTheExampleLaw(Example, LawConformance):
    name, hook = "overfitting", "flops_fit_laws"


class TestTheExampleLogger(Example, LoggerConformance):
    name, hook = "lines", "flops_fit_loggers"
    keeps_attempts = False

    def shown(self, folder: Path) -> list[dict[str, Any]]:
        """Status and loss from the last line of each run. Such a line starts with the run's id."""
        lines = (folder / "log.txt").read_text().splitlines()
        rows = (line.split() for line in lines if not line.endswith(" runs"))
        results = {run: (status, None if loss == "None" else float(loss)) for run, status, loss in rows}
        return [{"run": run, "status": status, "loss": loss} for run, (status, loss) in results.items()]


def test_a_conformance_kit_runs_on_the_example_of_every_registration_hook() -> None:
    kinds = {
        value.hook: value.kind
        for value in globals().values()
        if isinstance(value, type)
        and issubclass(value, Example)
        and value is not Example
        and issubclass(value, Kit)
    }
    assert kinds == {hook: spec.kind for hook, spec in SPEC_TYPES.items()}
    assert HOOKS.keys() - kinds.keys() == set(OBSERVERS), "observers have a separate test"


def test_a_sweep_with_plugins_from_the_examples_fits_a_law(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, optimizer, schedule, recipe, counter, trainer, executor, logger and fitter of the docstrings."""
    hooks = [
        hook
        for hook in SPEC_TYPES
        if hook not in ("flops_fit_models", "flops_fit_devices", "flops_fit_stores", "flops_fit_readers")
    ]
    modules = {hook: plugin(hook) for hook in hooks}
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    registry = Registry(modules)
    assert registry.problems == []
    study = run(
        {
            "sweep": {"budgets": [2e7, 8e7], "sizes": 3},
            "model": {"name": "mlp", "depth": 1},
            "dataset": "neighbours",
            "optimizer": "rmsprop",
            "schedule": "linear-to-zero",
            "recipe": "big-batches",
            "counter": "recomputing",
            "trainer": "plain",
            "executor": "one-after-another",
            "device": "cpu",
            "loggers": ["lines"],
            "fitter": "best-of-each",
        },
        registry=registry,
        out=tmp_path / "study",
    )
    assert [result.status for result in study.results] == ["completed"] * len(study.plan.runs)
    assert study.fit.law.name == "best of each"
    assert (tmp_path / "study" / "log.txt").read_text().count("completed") == len(study.plan.runs)
