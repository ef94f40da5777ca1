"""Muon, Lion, Adafactor and Schedule-Free: their formulas and their parameters."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from flops_fit_core import ConfigError, Hyperparameters, PluginError
from flops_fit_core.config import make_experiment
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import OptimizerSpec, ParameterGroup, RecipeSpec, RunInfo, hookimpl
from flops_fit_core.plugins.registry import installed

TASK = LanguageTask(vocab_size=20, context=8)


def spec(kind, name):
    return installed().find(kind, name).spec


def family(name, task=TASK, **options):
    torch.manual_seed(0)
    family = spec("model", name)
    return family.build(family.options.model_validate(options), task), family.parameter_groups


def optimizer(name, model, groups=None, base_width=None, **options):
    plugin = spec("optimizer", name)
    parameter_groups = groups or (lambda module: [ParameterGroup(list(module.parameters()))])
    view = RunInfo(
        steps=100,
        tokens=6400,
        tokens_per_step=64,
        base_width=base_width,
        groups=lambda m: list(parameter_groups(m)),
        width_scaling=plugin.width_scaling,
    )
    return plugin.build(plugin.options.model_validate(options), model, view)


def steps(model, *optimizers, count=3):
    """Three steps on the same batches for all."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = torch.randint(20, (4, 9), generator=generator)
        for part in optimizers:
            part.zero_grad()
        nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        for part in optimizers:
            part.step()
    return dict(model.named_parameters())


def trained_by_muon(model, muon):
    """Names of the parameters that Muon's groups have."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [group for group in muon.param_groups if "ns_steps" in group]
    return {names[id(parameter)] for group in groups for parameter in group["params"]}


# ---------------------------------------------------------------------------- muon


def test_a_gpt_is_trained_as_by_the_two_optimizers_of_torch_one_after_the_other():
    model, groups = family("gpt", width=16, depth=2)
    other = copy.deepcopy(model)
    ours = steps(model, optimizer("muon", model, groups, base_width=64, lr=0.01, weight_decay=0.1))
    hidden = [p for p in other.blocks.parameters() if p.ndim == 2]
    gains = [p for p in other.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(
        hidden, lr=0.01 * (64 / 16) ** 0.5, weight_decay=0.1 / 2, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [other.head.weight], "lr": 0.04, "weight_decay": 0.1 / 4},
            {"params": [other.embedding.weight, *gains], "lr": 0.01, "weight_decay": 0.0},
        ],
        fused=True,
    )
    theirs = steps(other, muon, adamw)
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_the_rest_may_have_another_learning_rate_and_keeps_its_decay():
    model, groups = family("gpt", width=16, depth=1)
    made = optimizer("muon", model, groups, lr=0.02, adam_ratio=0.1, weight_decay=0.1, adjust_lr_fn="original")
    hidden, head, rest = made.param_groups
    assert [group["lr"] for group in (hidden, head, rest)] == pytest.approx([0.02, 0.002, 0.002])
    decays = [group["lr"] * group["weight_decay"] for group in (hidden, head, rest)]
    assert decays == pytest.approx([0.002, 0.002, 0])


@pytest.mark.parametrize(
    ("name", "task", "options", "hidden"),
    [
        (
            "gpt",
            TASK,
            {"width": 16, "depth": 1},
            {f"blocks.0.{param}.weight" for param in ("qkv", "mix", "up", "down")},
        ),
        (
            "gpt",
            TASK,
            {"width": 16, "depth": 1, "tied": True, "positions": "learned"},
            {f"blocks.0.{param}.weight" for param in ("qkv", "mix", "up", "down")},
        ),
        ("mlp", TASK, {"width": 16, "depth": 2}, {"1.weight", "3.weight"}),
        ("mlp", SupervisedTask(inputs=(6,), outputs_size=3), {"width": 16, "depth": 2}, {"3.weight"}),
        (
            "vit",
            SupervisedTask(inputs=(8, 8), outputs_size=10),
            {"width": 16, "depth": 1},
            {f"blocks.0.{param}.weight" for param in ("qkv", "mix", "up", "down")},
        ),
    ],
)
def test_bundled_families_say_which_matrices_are_hidden(name, task, options, hidden):
    model, groups = family(name, task, **options)
    assert trained_by_muon(model, optimizer("muon", model, groups)) == hidden


class Custom(nn.Module):
    """A family without parameter groups."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.auxiliary = nn.Linear(8, 20)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.kernel = nn.Conv1d(8, 8, 3)
        self.head = nn.Linear(8, 5)


def test_a_family_that_does_not_say_is_asked_and_its_linear_layers_can_be_named_instead():
    model = Custom()
    with pytest.raises(
        ConfigError, match=r'this model\'s family does not declare them: write\s+optimizer.hidden = "linear"'
    ):
        optimizer("muon", model)
    made = optimizer("muon", model, hidden="linear")
    assert trained_by_muon(model, made) == {"first.weight", "second.weight"}
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(model.parameters()))


def test_kernels_of_convolutions_in_a_hidden_group_are_adamws():
    model = Custom()
    groups = lambda module: [ParameterGroup(list(module.parameters()), hidden=True)]  # noqa: E731
    assert "kernel.weight" not in trained_by_muon(model, optimizer("muon", model, groups))


def test_a_model_without_hidden_matrices_is_refused():
    model, groups = family("mlp", SupervisedTask(inputs=(6,), outputs_size=3), width=16, depth=1)
    with pytest.raises(ConfigError, match='this model has none: choose a deeper model, or optimizer "adamw"'):
        optimizer("muon", model, groups)


def test_an_orthogonalized_step_has_the_same_spectral_norm_at_every_width():
    norms = []
    for width in (16, 64):
        model, groups = family("gpt", width=width, depth=1)
        before = model.blocks[0].mix.weight.detach().clone()
        steps(model, optimizer("muon", model, groups, base_width=64, lr=0.01), count=1)
        norms.append(float(torch.linalg.matrix_norm(model.blocks[0].mix.weight.detach() - before, 2)))
    # Newton-Schulz leaves singular values between about 0.7 and 1.2.
    assert norms == pytest.approx([0.01 * 0.2 * 64**0.5] * 2, rel=0.3)


# ---------------------------------------------------------------------------- lion, adafactor


def test_every_entry_of_a_step_of_lion_has_the_size_of_its_learning_rate():
    model, groups = family("gpt", width=16, depth=1)
    before = copy.deepcopy(model)
    steps(model, optimizer("lion", model, groups, base_width=64, lr=0.001), count=1)
    moved = (model.blocks[0].up.weight - before.blocks[0].up.weight).detach().abs()
    assert [float(moved.min()), float(moved.max())] == pytest.approx([0.004, 0.004], rel=1e-3)


def test_adafactor_keeps_rows_and_columns_and_steps_by_its_formula():
    weight = nn.Parameter(torch.zeros(3, 4))
    module = nn.Module()
    module.weight = weight
    made = optimizer("adafactor", module, lr=0.5, clip_threshold=10.0)
    gradient = torch.arange(1.0, 13.0).reshape(3, 4)
    weight.grad = gradient.clone()
    made.step()
    square = gradient.double() ** 2
    rows, columns = square.mean(1), square.mean(0)
    step = gradient / (rows[:, None] * columns / rows.mean()).sqrt()
    assert torch.allclose(weight.detach().double(), -0.5 * step, rtol=1e-4)
    assert (
        sum(param.numel() for param in made.state[weight].values() if isinstance(param, torch.Tensor)) <= 3 + 4 + 1
    )


def test_lion_goes_the_way_of_the_papers_algorithm():
    ours = several_steps("lion", lr=0.01, weight_decay=0.1)
    weight, momentum = torch.linspace(-1, 1, 12).reshape(3, 4), torch.zeros(3, 4)
    for gradient in gradients():
        weight = weight - 0.01 * (torch.sign(0.9 * momentum + 0.1 * gradient) + 0.1 * weight)
        momentum = 0.99 * momentum + 0.01 * gradient
    assert torch.allclose(ours, weight, atol=1e-6)


def test_adafactor_goes_the_way_of_that_of_transformers():
    theirs = pytest.importorskip("transformers.optimization").Adafactor
    weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    other = theirs([weight], lr=0.01, weight_decay=0.1, scale_parameter=False, relative_step=False)
    for gradient in gradients():
        weight.grad = gradient
        other.step()
    assert torch.allclose(several_steps("adafactor", lr=0.01, weight_decay=0.1), weight, atol=1e-6)


def gradients():
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(3, 4, generator=generator) for _ in range(8)]


def several_steps(name, **options):
    """A matrix after these gradients."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    made = optimizer(name, module, **options)
    for gradient in gradients():
        module.weight.grad = gradient
        made.step()
    return module.weight.detach()


# ---------------------------------------------------------------------------- what they declare


class Declared:
    """A plugin: an RMSprop that declares how it scales with the width, and a recipe with a base width for it."""

    def __init__(self, width_scaling, groups):
        self.width_scaling, self.groups = width_scaling, groups

    @hookimpl
    def flops_fit_optimizers(self):
        build = lambda options, model, run: torch.optim.RMSprop(self.groups(model, run), lr=0.01)  # noqa: E731
        yield OptimizerSpec(name="declared", build=build, width_scaling=self.width_scaling)

    @hookimpl
    def flops_fit_recipes(self):
        build = lambda options, run: Hyperparameters(batch_size=4, base_width=16)  # noqa: E731
        yield RecipeSpec(name="declared", build=build)


def planned(width_scaling, groups):
    table = {
        "sweep": {"budgets": [1e9], "sizes": [{"width": 16}], "min_steps": 1, "allow_repeat": True},
        "model": {"name": "gpt", "depth": 1},
        "dataset": {"name": "text", "context": 16},
        "optimizer": "declared",
        "recipe": "declared",
    }
    return make_plan(make_experiment(table, installed().with_plugins({"mine": Declared(width_scaling, groups)})))


def every_parameter(model, run):
    return model.parameters()


def groups_for_torch(model, run):
    return run.param_groups(model, 0.01)


def groups_scaled_by_hand(model, run):
    return [group.torch_group(0.01, lr_scale=run.lr_scale(group)) for group in run.groups(model)]


@pytest.mark.parametrize(
    ("width_scaling", "groups"),
    [
        ("adam", groups_for_torch),
        ("adam", groups_scaled_by_hand),
        ("none", groups_for_torch),
        ("none", every_parameter),
        ("custom", every_parameter),
        ("custom", groups_scaled_by_hand),
    ],
)
def test_an_optimizer_that_scales_as_it_declares_is_planned(width_scaling, groups):
    (run,) = planned(width_scaling, groups).runs
    assert run.base_width == 16


@pytest.mark.parametrize(
    ("width_scaling", "groups", "problem"),
    [("adam", every_parameter, "does not scale"), ("none", groups_scaled_by_hand, "scales")],
)
def test_an_optimizer_that_does_not_scale_as_it_declares_is_refused_in_planning(width_scaling, groups, problem):
    message = (
        rf"'mine/declared' declares width_scaling='{width_scaling}', but .* of \S*weight {problem} with the width"
    )
    with pytest.raises(
        PluginError, match=rf"{message}: in build, .* run\.param_groups\(model, lr, weight_decay\)"
    ):
        planned(width_scaling, groups)


# ---------------------------------------------------------------------------- what recipes give them


@pytest.mark.parametrize(
    ("recipe", "name", "lr", "decay"),
    [
        ("width-scaled", "adamw", 0.008, None),
        ("width-scaled", "muon", 0.008, None),
        ("width-scaled", "adafactor", 0.008, None),
        ("width-scaled", "schedule-free", 0.016, None),
        ("width-scaled", "lion", 0.0024, None),
        ({"name": "width-scaled", "lr": 0.002}, "lion", 0.002, None),
        ({"name": "deepseek", "weight_decay": 0.03}, "lion", None, 0.1),
    ],
)
def test_recipes_give_the_learning_rate_that_corresponds_to_adamws(recipe, name, lr, decay):
    table = {
        "sweep": {"budgets": [1e9], "sizes": [{"width": 8}], "min_steps": 1, "allow_repeat": True},
        "model": {"name": "gpt", "depth": 1},
        "dataset": {"name": "text", "context": 16},
        "recipe": recipe,
    }
    runs = [
        make_plan(make_experiment({**table, "optimizer": optimizer}, installed())).runs[0]
        for optimizer in (name, "adamw")
    ]
    options = runs[0].optimizer.options
    assert lr is None or options["lr"] == pytest.approx(lr)
    assert options.get("weight_decay") == (None if decay is None else pytest.approx(decay))
    if recipe != "width-scaled" and name == "lion" and lr is None:
        assert options["lr"] == pytest.approx(0.3 * runs[1].optimizer.options["lr"])


# ---------------------------------------------------------------------------- their packages


def test_the_packages_are_imported_by_runs_only_and_without_a_warning():
    code = (
        "import sys\n"
        "from flops_fit_core.plugins.registry import installed\n"
        "installed().find('optimizer', 'lion'), installed().find('optimizer', 'schedule-free')\n"
        "assert not {'torch', 'pytorch_optimizer', 'schedulefree'} & set(sys.modules)\n"
        "import pytorch_optimizer, schedulefree\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
