"""The sizes of a plan: one head dimension per ladder, depth and width, sizes determined by trials."""

import itertools
import math

import pytest
import torch
from small import Bench
from test_planning import planned as planned_from
from test_planning import surface
from torch import nn
from torch.utils.data import TensorDataset

from flops_fit_core import ConfigError, PlanError, PluginError, find_optimal
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import Ladder, ModelSpec, hookimpl
from flops_fit_core.report import plan_table

TINY = {"context": 64, "vocab_size": 256}
SMALL_BUDGETS = [2.5e10, 5e10, 1e11, 2e11]


def tiny(**changes):
    """A plan of small byte-level gpts."""
    sweep = {"budgets": SMALL_BUDGETS, "sizes": 6, "tokens_per_param": 30, **changes.pop("sweep", {})}
    model = {"name": "gpt", "depth": 3, **changes.pop("model", {})}
    return planned_from(surface(sweep=sweep, model=model, **changes), **TINY)


def by_size(plan):
    return {run.size: run for run in sorted(plan.runs, key=lambda run: run.params)}


def neighbours(plan, budget):
    params = sorted(run.params for run in plan.runs if run.budget == budget)
    return [larger / smaller for smaller, larger in itertools.pairwise(params)]


# ---------------------------------------------------------------------------- one head dimension


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_automatic_widths_of_gpt_are_whole_heads_of_one_size(head_dim):
    budgets = [1e17, 1e18, 1e19, 1e20, 1e21]
    plan = planned_from(surface(sweep={"budgets": budgets}, model={"depth": 12, "head_dim": head_dim}))
    assert len(plan.runs) == 30
    for run in plan.runs:
        assert run.size % head_dim == 0
        assert (run.heads, run.head_dim) == (run.size // head_dim, head_dim)
    assert not any("channels per attention head" in note for note in plan.notes)


def test_automatic_widths_of_hf_are_whole_heads_of_one_size():
    pytest.importorskip("transformers")
    model = {"name": "hf", "architecture": "llama", "config": {"num_hidden_layers": 4}}
    plan = planned_from(surface(sweep={"budgets": [1e18, 1e20], "sizes": 4}, model=model, counter="chinchilla"))
    assert {run.head_dim for run in plan.runs} == {64}
    assert all(run.size == 64 * run.heads for run in plan.runs)


def test_queries_that_share_keys_come_in_whole_groups():
    pytest.importorskip("transformers")
    from flops_fit_core.data import LanguageTask
    from flops_fit_core.plugins.registry import installed
    from flops_fit_hf_models.configuration import configure

    config = {"num_hidden_layers": 2}
    model = {"name": "hf", "architecture": "llama", "queries_per_kv": 4, "config": config}
    plan = planned_from(surface(sweep={"budgets": [1e18], "sizes": 4}, model=model, counter="chinchilla"))
    spec = installed().find("model", "hf").spec
    for run in plan.runs:
        options = {key: value for key, value in model.items() if key != "name"} | {"width": run.size}
        made = configure(spec.options.model_validate({**options, **run.model.options}), LanguageTask(512, 128))
        assert made.num_attention_heads == 4 * made.num_key_value_heads


def test_automatic_widths_of_vit_are_whole_heads_of_one_size():
    pytest.importorskip("sklearn")
    from flops_fit_core.plugins.registry import installed

    table = surface(model={"name": "vit", "depth": 2, "head_dim": 8, "patch": 4}, dataset="images")
    table["sweep"] = {"budgets": [1e11], "sizes": 5, "allow_repeat": True, "min_steps": 1}
    plan = make_plan(make_experiment(table, installed()))
    assert len(plan.runs) == 5
    assert all((run.heads, run.head_dim) == (run.size / 8, 8) for run in plan.runs)


def test_a_default_head_dimension_that_is_too_coarse_gets_smaller_for_the_whole_ladder():
    plan = tiny()
    assert {run.head_dim for run in plan.runs} == {4}
    assert {run.model.options["head_dim"] for run in plan.runs} == {4}
    (note,) = [note for note in plan.notes if "model.head_dim" in note]
    assert "model.head_dim = 4 at every size: with the default, 16, neighbouring sizes would be up to" in note


def test_a_default_head_dimension_that_is_fine_enough_stays():
    plan = planned_from(surface(sweep={"budgets": [1e19]}, model={"name": "gpt", "depth": 12}))
    assert {run.head_dim for run in plan.runs} == {16}
    assert all("head_dim" not in run.model.options for run in plan.runs)


def test_a_head_dimension_of_the_user_stays_and_a_coarse_ladder_is_noted():
    plan = tiny(model={"head_dim": 16})
    assert {(run.size % 16, run.head_dim) for run in plan.runs} == {(0, 16)}
    gap = max(ratio for budget in SMALL_BUDGETS for ratio in neighbours(plan, budget))
    (note,) = [note for note in plan.notes if "apart in N" in note]
    assert f"neighbouring sizes are up to {gap:.2g}x apart in N, with sweep.size_ratio = 1.6" in note
    assert "width is a multiple of 16" in note


def test_a_single_head_is_allowed():
    plan = tiny(model={"head_dim": 16})
    assert by_size(plan)[16].heads == 1


def test_an_odd_head_dimension_is_refused_for_automatic_widths():
    with pytest.raises(ConfigError, match=r"model.head_dim = 7: heads have pairs of channels.*write 8"):
        tiny(model={"head_dim": 7})


def test_listed_sizes_with_different_heads_have_a_warning():
    def notes(*widths):
        sizes = [{"width": width} for width in widths]
        plan = tiny(sweep={"sizes": sizes, "min_steps": 1}, model={"head_dim": 16})
        return [note for note in plan.notes if "channels per attention head" in note]

    (note,) = notes(72, 92, 96)
    assert (
        "16 to 46 channels per attention head (size: heads x channels: 72: 4 x 18, 92: 2 x 46, 96: 6 x 16)" in note
    )
    assert notes(64, 72, 80) == []  # 16 and 18
    assert notes(48, 64, 96) == []


def test_listed_sizes_of_equal_width_have_distinct_labels():
    sizes = [{"depth": 2}, {"depth": 4}, {"width": 64, "depth": 8}]
    plan = planned_from(surface(sweep={"budgets": [1e18], "sizes": sizes}, model={"width": 64}))
    assert [run.size for run in plan.runs] == ["64 depth=2", "64 depth=4", "64 depth=8"]
    sizes = [{"width": 32}, {"width": 64, "depth": 8}]
    plan = planned_from(surface(sweep={"budgets": [1e18], "sizes": sizes}))
    assert [run.size for run in plan.runs] == [32, 64]


@pytest.mark.parametrize("sweep", [{"sizes": 30}, {"sizes": 4, "size_ratio": 100.0}])
def test_a_wide_ladder_is_planned(sweep):
    plan = planned_from(surface(sweep={"budgets": [1e18], "min_steps": 1, **sweep}, model={"depth": 6}))
    assert len(plan.runs) + len(plan.skipped) == sweep["sizes"]


def test_a_budget_beyond_all_models_is_refused():
    with pytest.raises(PlanError, match=r"has more parameters than torch can count: use smaller sweep\.budgets"):
        planned_from(surface(sweep={"budgets": [1e300]}, model={"depth": 2}))


def test_a_size_ratio_finer_than_the_sizes_is_noted():
    plan = planned_from(surface(sweep={"budgets": [1e18], "sizes": 4, "size_ratio": 1.0001}, model={"depth": 2}))
    assert any("of 4 sizes can be built near its expected optimum in steps of" in note for note in plan.notes)


def test_the_plan_shows_heads_and_their_channels():
    table = plan_table(tiny(model={"head_dim": 8}))
    heads = [column.heading for column in table.columns].index("heads")
    shown = {row["size"]: cells[heads] for row, cells in zip(table.rows, table.cells(), strict=True)}
    assert shown[24] == "3 x 8"
    assert {row["head_dim"] for row in table.rows} == {8}


def test_heads_are_not_part_of_a_run_id():
    run = tiny(model={"head_dim": 8}).runs[0]
    assert run.model_copy(update={"heads": None, "head_dim": None}).id == run.id


def test_multiples_of_the_user_are_kept():
    table = surface(sweep={"budgets": [1e18], "multiple_of": 48}, model={"depth": 12})
    plan = planned_from(table)
    assert all(run.size % 48 == 0 for run in plan.runs)


# ---------------------------------------------------------------------------- depth and width


def test_with_an_aspect_ratio_depth_and_width_grow_together():
    model = {"name": "gpt", "aspect_ratio": 64, "head_dim": 64}
    table = surface(sweep={"budgets": [1e18, 1e20, 1e22], "sizes": 6}, model=model)
    plan = planned_from(table)
    assert len(plan.runs) == 18
    for run in plan.runs:
        width, depth = run.model.options["width"], run.model.options.get("depth", 4)
        assert run.size == f"{width}x{depth}"
        assert width % 64 == 0
        assert 64 / 1.25 <= width / depth <= 64 * 1.25
        assert run.params == 12 * depth * width**2 + (2 * depth + 1) * width + 512 * width
        assert "aspect_ratio" not in run.model.options
    assert all(1.3 < ratio < 2.0 for budget in plan.budgets for ratio in neighbours(plan, budget))


def test_an_aspect_ratio_that_gives_a_million_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"more than 1,000,000 blocks"):
        planned_from(surface(sweep={"budgets": [1e19], "sizes": 3}, model={"name": "gpt", "aspect_ratio": 1e-200}))


def test_a_run_of_an_aspect_ratio_is_the_run_of_its_width_and_depth():
    plan = planned_from(surface(sweep={"budgets": [1e19], "sizes": 3}, model={"name": "gpt", "aspect_ratio": 64}))
    sizes = [
        {"width": run.model.options["width"], "depth": run.model.options.get("depth", 4)} for run in plan.runs
    ]
    by_hand = planned_from(surface(sweep={"budgets": [1e19], "sizes": sizes}, model={"name": "gpt"}))
    assert {run.id for run in plan.runs} == {run.id for run in by_hand.runs}


def test_a_width_by_hand_gets_the_depth_of_the_aspect_ratio():
    sizes = [{"width": width} for width in (16, 40, 44, 64)]
    plan = tiny(sweep={"sizes": sizes, "min_steps": 1}, model={"name": "gpt", "aspect_ratio": 8, "depth": 4})
    assert {run.params for run in plan.runs} == {12 * 4 * w**2 + 9 * w + 256 * w for w in (16, 40, 44, 64)}
    table = surface(sweep={"budgets": [2e11], "sizes": sizes, "min_steps": 1})
    table["model"] = {"name": "gpt", "aspect_ratio": 8}
    plan = planned_from(table, **TINY)
    depths = {16: 2, 40: 5, 44: 6, 64: 8}  # 44 / 8 = 5.5 is rounded up
    expected = {w: 12 * depth * w**2 + (2 * depth + 1) * w + 256 * w for w, depth in depths.items()}
    assert {run.size: run.params for run in plan.runs} == expected


def test_a_depth_with_an_aspect_ratio_is_refused():
    with pytest.raises(ConfigError, match=r"model.depth = 3 and model.aspect_ratio = 8"):
        tiny(model={"aspect_ratio": 8})
    with pytest.raises(PlanError, match=r"sweep.multiple_of = 16.*chooses its own sizes"):
        planned_from(surface(sweep={"multiple_of": 16}, model={"name": "gpt", "aspect_ratio": 8}))


# ---------------------------------------------------------------------------- ladders of a plugin


class WithLadders:
    """A plugin with a family that offers these ladders."""

    def __init__(self, *ladders):
        self.ladders = ladders

    @hookimpl
    def flops_fit_models(self):
        bench = Bench()
        spec = next(iter(bench.flops_fit_models()))
        yield ModelSpec(
            name="net",
            options=spec.options,
            build=bench.build_net,
            size="width",
            ladders=lambda options: self.ladders,
            heads=lambda options: (options.width, 1),
        )


def sizes_of(plugin):
    bench = Bench()
    registry = bench.registry().with_plugins({"own": plugin})
    sweep = {"budgets": [1e7, 2e7], "sizes": 3, "sizes_": None}
    sweep.pop("sizes_")
    table = bench.table(model={"name": "own/net"})
    table["sweep"] = {**sweep, "min_steps": 1, "allow_repeat": True}
    plan = make_plan(make_experiment(table, registry))
    return sorted({run.size for run in plan.runs}), plan


def test_the_first_ladder_that_is_fine_enough_is_taken():
    coarse, fine, finer = Ladder(multiple_of=64), Ladder(multiple_of=5, options={"dropout": 0.5}), Ladder()
    sizes, plan = sizes_of(WithLadders(coarse, fine, finer))
    assert all(size % 5 == 0 for size in sizes)
    assert {run.model.options["dropout"] for run in plan.runs} == {0.5}
    assert any("model.dropout = 0.5 at every size: with the default, 0.0" in note for note in plan.notes)
    sizes, _ = sizes_of(WithLadders(Ladder(multiple_of=3), fine, finer))
    assert all(size % 3 == 0 for size in sizes)


def test_invalid_ladders_are_an_error_of_the_family():
    with pytest.raises(PluginError, match=r"own/net.*ladders returned \[\] instead of Ladder objects"):
        sizes_of(WithLadders())
    with pytest.raises(ValueError, match="multiple_of must be an integer of at least 1, not 0"):
        Ladder(multiple_of=0)


# ---------------------------------------------------------------------------- sizes found by trying


class Attention(nn.Module):
    """The usual factory: heads divide the width; with ``rotary``, channels of a head come in pairs."""

    def __init__(self, d_model, num_heads=12, vocab=20, rotary=False):
        super().__init__()
        assert d_model % num_heads == 0, f"{num_heads} heads do not divide {d_model}"
        self.heads, self.rotary = num_heads, rotary
        self.embedding = nn.Embedding(vocab, d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.head = nn.Linear(d_model, vocab)
        print("parameters:", sum(parameter.numel() for parameter in self.parameters()))

    def forward(self, ids):
        x = self.embedding(ids)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.rotary:
            q, k = (torch.stack(part.chunk(2, -1), -1).flatten(-2) for part in (q, k))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + mixed.transpose(1, 2).flatten(2))


class Sized(nn.Module):
    """Can be built at the sizes that ``fits`` allows."""

    def __init__(self, width, fits=lambda width: True):
        super().__init__()
        if not fits(width):
            raise ValueError(f"{width} does not fit")
        self.embedding, self.head = nn.Embedding(20, width), nn.Linear(width, 20)

    def forward(self, ids):
        return self.head(self.embedding(ids))


IDS = torch.randint(20, (200, 9), generator=torch.Generator().manual_seed(0))


def plan_of(model, size, tmp_path, **arguments):
    given = {
        "dataset": TensorDataset(IDS[:, :-1], IDS[:, 1:]),
        "compute_budgets": [1e9, 1e10],
        "allow_repeat": True,
        "min_steps": 1,
        "counter": "chinchilla",
        "optimizer": "adamw",
        "device": "cpu",
        "train": False,
        "fingerprint": "fixed",
        "output_dir": tmp_path / "study",
    }
    return find_optimal(model, size, **{**given, **arguments}).plan


@pytest.mark.parametrize(("num_heads", "step"), [(12, 12), (5, 5), (1, 1), (46, 46), (47, 47)])
def test_sizes_are_multiples_of_the_heads(num_heads, step, tmp_path):
    plan = plan_of(Attention, "d_model", tmp_path, model_kwargs={"num_heads": num_heads})
    sizes = {run.size for run in plan.runs}
    assert math.gcd(*sizes) == step
    noted = [note for note in plan.notes if "can be built" in note]
    assert len(noted) == (step > 1)
    assert all(f"that can be built are multiples of {step}. At " in note and __file__ in note for note in noted)


def test_sizes_at_which_a_model_cannot_compute_are_avoided(tmp_path):
    plan = plan_of(OddHeads, "d_model", tmp_path)
    assert {run.size % 24 for run in plan.runs} == {0}
    assert {run.size for run in plan.runs} & {24, 72}


class OddHeads(Attention):
    """Is built with any multiple of 12, and cannot compute an odd number of channels a head."""

    def forward(self, ids):
        half = self.embedding.embedding_dim // self.heads // 2
        self.embedding(ids).view(*ids.shape, self.heads, 2, half)
        return super().forward(ids)


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        (lambda width: width % 64 == 0 or width < 64, None),  # small ones all work, 65 does not
        (lambda width: width % max(1, width // 64) == 0, 64),  # timm's heads
        (lambda width: width >= 48 and width % 8 == 0, 8),
        (lambda width: width >= 100, 1),
    ],
)
def test_the_smallest_step_with_working_multiples_is_used(fits, expected, tmp_path):
    budgets = [3e9, 1e12] if expected != 1 else [1e12, 1e13]
    plan = plan_of(Sized, "width", tmp_path, model_kwargs={"fits": fits}, compute_budgets=budgets)
    sizes = {run.size for run in plan.runs}
    assert all(fits(size) for size in sizes)
    assert math.gcd(*sizes) % (expected or 64) == 0


def test_powers_of_two_are_found(tmp_path):
    fits = lambda width: width & (width - 1) == 0  # noqa: E731
    plan = plan_of(Sized, "width", tmp_path, model_kwargs={"fits": fits})
    assert all(fits(run.size) for run in plan.runs)
    assert len({run.size for run in plan.runs}) >= 6
    assert any("values of width that can be built are powers of two. At " in note for note in plan.notes)


def test_a_model_without_a_working_size_is_refused_with_its_error_and_the_tried_sizes(tmp_path):
    with pytest.raises(PlanError) as caught:
        plan_of(Sized, "width", tmp_path, model_kwargs={"fits": lambda width: False})
    message = str(caught.value)
    line = Sized.__init__.__code__.co_firstlineno + 3
    assert "tried width = 1 to 512; it cannot be built at any size" in message
    assert f"width = 512: ValueError: 512 does not fit ({__file__}, line {line}, in __init__)" in message


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        (lambda width: width <= 64, "whole numbers from 1 to 64"),
        (lambda width: 8 <= width <= 100 and width % 4 == 0, "multiples of 4 from 8 to 100"),
    ],
)
def test_a_largest_size_ends_the_ladder(fits, expected, tmp_path):
    plan = plan_of(Sized, "width", tmp_path, model_kwargs={"fits": fits}, compute_budgets=[1e9, 1e14])
    sizes = {run.size for run in plan.runs}
    assert all(map(fits, sizes))
    assert len(sizes) >= 6
    assert any(f"values of width that can be built are {expected}. At " in note for note in plan.notes)


def test_a_model_that_fits_a_few_sizes_is_refused_with_those_sizes(tmp_path):
    with pytest.raises(PlanError, match=r"it can be built only at 64, 192, 512,.*\n.*ValueError: 5"):
        plan_of(Sized, "width", tmp_path, model_kwargs={"fits": lambda width: width in (64, 192, 512)})


class Unsized(Sized):
    """The model that is built has another width than the one that is given."""

    def __init__(self, width, used):
        super().__init__(used(width))


def test_a_size_without_effect_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"N is \d+ at width = 1 and no larger .* width does not set the model's"):
        plan_of(Unsized, "width", tmp_path, model_kwargs={"used": lambda width: 16})


def test_a_size_that_is_capped_ends_the_ladder_with_a_note(tmp_path):
    kwargs = {"used": lambda width: min(width, 90)}
    plan = plan_of(Unsized, "width", tmp_path, model_kwargs=kwargs, compute_budgets=[1e9, 1e14])
    assert max(run.size for run in plan.runs) == 90
    assert len({run.params for run in plan.runs}) == len({run.size for run in plan.runs})
    assert "N does not grow above width = 90: it is at most 1,820" in plan.notes


def test_a_size_that_is_rounded_is_noted(tmp_path):
    plan = plan_of(Unsized, "width", tmp_path, model_kwargs={"used": lambda width: max(8, width // 8 * 8)})
    assert any("so the model rounds or limits width" in note for note in plan.notes)
    kwargs = {"used": lambda width: width}
    assert not any("rounds" in note for note in plan_of(Unsized, "width", tmp_path, model_kwargs=kwargs).notes)


def test_sizes_that_are_rounded_to_an_empty_model_are_skipped(tmp_path):
    plan = plan_of(Unsized, "width", tmp_path, model_kwargs={"used": lambda width: width // 4})
    assert min(run.size for run in plan.runs) >= 4


class Layered(nn.Module):
    """Scaled by its depth, and slow to build when deep."""

    deepest = 0

    def __init__(self, depth):
        super().__init__()
        Layered.deepest = max(Layered.deepest, depth)
        self.embedding, self.head = nn.Embedding(20, 32), nn.Linear(32, 20)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_depth_is_scaled_without_models_that_are_much_deeper(tmp_path):
    Layered.deepest = 0
    plan = plan_of(Layered, "depth", tmp_path, compute_budgets=[1e7, 1e8], sizes=5)
    assert {run.size for run in plan.runs} <= set(range(1, 12))
    assert Layered.deepest <= 1100  # of the values that are tried; the ladder goes no further


def test_a_listed_size_that_cannot_be_built_is_refused_with_the_error_of_the_model(tmp_path):
    with pytest.raises(PlanError) as caught:
        plan_of(Sized, "width", tmp_path, sizes=[8, -3])
    assert "cannot be built with width = -3: RuntimeError: Trying to create tensor" in str(caught.value)
    assert "identity=" not in str(caught.value)


def test_trials_of_sizes_print_nothing(capsys):
    from flops_fit_core.data import LanguageTask
    from flops_fit_core.planning.probing import probe_sizes

    class Loud(Bench):
        def build_net(self, options, task):
            print("built", options.width)
            if options.width % 6:
                raise RuntimeError("not a multiple of 6")
            return super().build_net(options, task)

    bench = Loud()
    experiment = make_experiment(bench.table(), bench.registry())
    grid, _ = probe_sizes(experiment.model, LanguageTask(vocab_size=12, context=8))
    assert (grid.step, grid.first) == (6, 6)
    assert capsys.readouterr().out == ""


def test_a_model_without_a_working_forward_is_sized_by_construction(tmp_path):
    from flops_fit_core.data import LanguageTask
    from flops_fit_core.planning.probing import probe_sizes

    class Silent(Bench):
        def build_net(self, options, task):
            if options.width % 4:
                raise RuntimeError("not a multiple of 4")
            return nn.Linear(options.width, 3)

    bench = Silent()
    experiment = make_experiment(bench.table(), bench.registry())
    grid, _ = probe_sizes(experiment.model, LanguageTask(vocab_size=12, context=8))
    assert (grid.step, grid.first) == (4, 4)


def test_a_slow_constructor_ends_in_an_error_with_advice(tmp_path, monkeypatch):
    from flops_fit_core.planning import probing

    monkeypatch.setattr(probing, "MAX_SECONDS", 0.0)
    with pytest.raises(PlanError, match=r"values of d_model were tried for 0 s.*Write multiple_of"):
        plan_of(Attention, "d_model", tmp_path)


def test_find_optimal_takes_a_multiple_and_a_ratio(tmp_path):
    plan = plan_of(Attention, "d_model", tmp_path, multiple_of=36, size_ratio=3.0, sizes=3)
    assert {run.size % 36 for run in plan.runs} == {0}
    fine = plan_of(Attention, "d_model", tmp_path, model_kwargs={"num_heads": 1}, size_ratio=1.2, sizes=5)
    for budget in fine.budgets:
        assert max(neighbours(fine, budget)) < 1.45
    with pytest.raises(
        PlanError, match=r"cannot be built at d_model = 10: AssertionError: 12 heads do not"
    ) as error:
        plan_of(Attention, "d_model", tmp_path, multiple_of=10)
    assert f"({__file__}, line {Attention.__init__.__code__.co_firstlineno + 2}, in __init__)" in str(error.value)


def test_sizes_of_a_function_in_an_experiment_file_are_determined(tmp_path):
    from flops_fit_core.plugins.registry import installed

    (tmp_path / "models.py").write_text(
        "from torch import nn\n\n\ndef make(d, vocab_size):\n"
        "    norm = nn.GroupNorm(6, d)  # refuses what 6 does not divide\n"
        "    return nn.Sequential(nn.Embedding(vocab_size, d), nn.Linear(norm.num_channels, vocab_size))\n"
    )
    model = {"name": "callable", "import_path": f"{tmp_path}/models.py:make", "size_argument": "d"}
    table = {
        "sweep": {"budgets": [1e10], "sizes": 4, "min_steps": 1},
        "model": model,
        "dataset": "text",
        "optimizer": "adamw",
        "counter": "chinchilla",
    }
    plan = make_plan(make_experiment(table, installed()))
    assert {run.size % 6 for run in plan.runs} == {0}


# ---------------------------------------------------------------------------- a cell that misses its budget


def test_a_cell_that_misses_its_budget_is_skipped_with_a_note():
    widths = (64, 96)
    per_token = {w: 3 * (6 * (24 * w**2 + 4 * 128 * w) + 2 * w * 512) for w in widths}
    batch = 50
    budget = 41 * batch * 128 * per_token[64]  # 41 whole steps of the one, 20.3 of the other
    steps = budget / (batch * 128 * per_token[96])
    assert abs(round(steps) / steps - 1) > 0.01
    sweep = {"budgets": [budget], "sizes": [{"width": w} for w in widths], "batch_size": batch, "min_steps": 1}
    plan = planned_from(surface(sweep=sweep))
    assert [(run.size, run.steps) for run in plan.runs] == [(64, 41)]
    (cell,) = plan.skipped
    assert (cell.size, cell.budget) == (96, budget)
    assert f"miss it by {round(steps) / steps - 1:+.1%}" in cell.reason
    nearest = round(steps) * batch * 128 * per_token[96]
    assert f"the nearest budget that this size can meet: {nearest:.6g}" in cell.reason
    assert any("size 96 is skipped" in note for note in plan.notes)
