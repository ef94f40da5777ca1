"""The families ``hf`` and ``hf-ladder``: any decoder of transformers, counted as torch counts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from small import text_table, train, write_text

from flops_fit_core import ConfigError
from flops_fit_core.config import PluginConfig, make_experiment
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.flops.model_stats import SizeMeasurer, measure_model
from flops_fit_core.flops.parameter_counts import count_parameters
from flops_fit_core.planning import make_plan
from flops_fit_core.planning.sizes import SizeLadder
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing.kit import forward_flops, random_batch
from flops_fit_hf_models.counting import GATED, PLAIN
from flops_fit_hf_models.model import Decoder

TASK = LanguageTask(vocab_size=61, context=16)
TWO_LAYERS = {"num_hidden_layers": 2}


def chosen(name: str = "hf", **options):
    offer = installed().find("model", name)
    return PluginConfig(offer, offer.spec.options.model_validate(options))


def built(name: str = "hf", task=TASK, **options):
    model = chosen(name, **options)
    return model.spec.build(model.options, task)


def config_of(**options):
    return built(**options).lm.config


# ---------------------------------------------------------------------------- counting


@pytest.mark.parametrize("architecture", sorted(GATED | PLAIN))
def test_a_known_architecture_counts_exactly_what_torch_counts(architecture):
    model = chosen(architecture=architecture, width=48, head_dim=8, config=TWO_LAYERS)
    own = model.spec.flops_per_token(model.options, TASK)
    expected = 3 * forward_flops(model.spec.build(model.options, TASK), TASK, random_batch(TASK, 2))
    assert own == pytest.approx(expected, rel=1e-9)


def test_grouped_queries_and_heads_apart_from_the_width_are_counted():
    config = {**TWO_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
    model = chosen(architecture="qwen3", width=32, config=config)
    shape = model.spec.shape(model.options, TASK)
    assert (shape.heads, shape.kv_heads, shape.key_size) == (4, 2, 12)
    expected = 3 * forward_flops(model.spec.build(model.options, TASK), TASK, random_batch(TASK, 2))
    assert model.spec.flops_per_token(model.options, TASK) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("architecture", ["mamba", "bert"])
def test_an_architecture_without_a_formula_is_left_to_the_trace(architecture):
    model = chosen(architecture=architecture, width=32, head_dim=8, config=TWO_LAYERS)
    measured = measure_model(model, model.options, TASK)
    assert measured.own_flops_per_token is None
    assert measured.shape is None
    counter = installed().find("counter", "traced").spec
    assert counter.build(counter.options(), measured).flops_per_token > 6 * measured.parameters.matmul * 0.5


def test_a_tied_head_is_no_lookup_and_an_untied_embedding_is():
    tied = count_parameters(built(architecture="gpt2", width=32, head_dim=8, config=TWO_LAYERS), TASK)
    assert (tied.lookup_table, tied.unembedding) == (16 * 32, 61 * 32)  # positions; the shared table
    untied = count_parameters(built(width=32, head_dim=8, config=TWO_LAYERS), TASK)
    assert (untied.lookup_table, untied.unembedding) == (61 * 32, 61 * 32)


# ---------------------------------------------------------------------------- mixtures of experts

MIXTURES = {
    "aria_text": {},
    "cohere2_moe": {},
    "deepseek_v3": {"first_k_dense_replace": 1, "num_attention_heads": 4, "qk_rope_head_dim": 16, "v_head_dim": 16,
                    "qk_nope_head_dim": 16, "kv_lora_rank": 16, "q_lora_rank": 16, "n_group": 1, "topk_group": 1},
    "ernie4_5_moe": {},
    "glm4_moe": {},
    "gpt_oss": {},
    "granitemoe": {},
    "mixtral": {},
    "olmoe": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
}  # fmt: skip


@pytest.mark.parametrize("architecture", MIXTURES)
def test_what_a_token_uses_of_a_mixture_is_what_torch_multiplies_with(architecture):
    model = chosen(
        architecture=architecture, width=64, head_dim=16, config={**TWO_LAYERS, **MIXTURES[architecture]}
    )
    measured = measure_model(model, model.options, TASK)
    assert measured.parameters.active < 0.6 * measured.parameters.total
    counter = installed().find("counter", "traced").spec
    traced = counter.build(counter.options(), measured).flops_per_token
    config = measured.module.lm.config
    keys, values = getattr(config, "qk_head_dim", 16), getattr(config, "v_head_dim", 16)
    attention = 3 * 2 * 2 * TASK.context * config.num_attention_heads * (keys + values)
    # Gains, biases and what is elementwise multiply nothing, or no matrix.
    assert traced == pytest.approx(6 * measured.parameters.matmul + attention, rel=0.02)


def test_experts_that_a_token_is_not_sent_to_are_counted_by_hand_too():
    config = {**TWO_LAYERS, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 40}
    model = chosen(architecture="mixtral", width=32, head_dim=8, config=config)
    counts = measure_model(model, model.options, TASK).parameters
    assert counts.inactive == 2 * 6 * 3 * 32 * 40  # layers, experts, matrices of an expert


@pytest.mark.parametrize(
    ("architecture", "config", "idle"),
    [  # layers x idle experts x matrices of an expert, of 32 x 16
        ("gemma4_text", {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2,
                         "moe_intermediate_size": 16, "vocab_size_per_layer_input": 8}, 2 * 6 * 3 * 32 * 16),
        ("hunyuan_v1_moe", {"num_experts": 8, "moe_topk": [2, 5], "intermediate_size": 16}, (6 + 3) * 3 * 32 * 16),
        ("inkling_text", {"n_routed_experts": 8, "num_experts_per_tok": 1, "n_shared_experts": 2,
                          "moe_intermediate_size": 16}, 2 * 7 * 3 * 32 * 16),
    ],
)  # fmt: skip
def test_how_many_experts_a_token_has_is_said_in_several_ways(architecture, config, idle):
    model = chosen(architecture=architecture, width=32, head_dim=8, config={**TWO_LAYERS, **config})
    assert measure_model(model, model.options, TASK).parameters.inactive == idle


class Listed(nn.Module):
    """Experts as transformers 4 has them: a list of modules."""

    def __init__(self):
        super().__init__()
        self.config = config_of(architecture="mixtral", width=32, head_dim=8, config=TWO_LAYERS)
        self.layer = nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(32, 32) for _ in range(8))})

    def get_output_embeddings(self):
        return None


def test_experts_in_a_list_are_shared_out_like_stacked_ones():
    decoder = Decoder(Listed())
    counts = count_parameters(decoder, TASK, chosen().spec.parameter_groups(decoder))
    assert (counts.total, counts.inactive) == (8 * 33 * 32, 6 * 33 * 32)


def test_a_mixture_that_does_not_say_what_a_token_uses_is_not_counted_as_if_it_used_all():
    model = chosen(architecture="deepseek_v2", width=32, head_dim=8, config=TWO_LAYERS)
    with pytest.raises(ConfigError, match="has no number of experts per token: write num_experts_per_tok"):
        measure_model(model, model.options, TASK)


def test_a_router_has_a_width_and_what_a_model_corrects_by_hand_is_not_trained():
    decoder = built(architecture="ernie4_5_moe", width=32, head_dim=8, config=TWO_LAYERS)
    groups = list(chosen().spec.parameter_groups(decoder))
    (router,) = [param for name, param in decoder.named_parameters() if name.endswith("gate.weight")]
    (group,) = [group for group in groups if any(param is router for param in group.parameters)]
    assert (group.width, group.hidden, group.active) == (32, False, 1.0)
    corrections = [param for param in decoder.parameters() if not param.requires_grad]
    assert len(corrections) == 1
    assert not any(param is corrections[0] for group in groups for param in group.parameters)


def test_numbers_that_shift_tokens_of_an_rwkv_are_no_matrices():
    decoder = built(architecture="rwkv", width=32, config=TWO_LAYERS)
    groups = list(chosen().spec.parameter_groups(decoder))
    shifts = {id(param) for name, param in decoder.named_parameters() if "time_mix" in name}
    assert shifts
    assert shifts <= {id(param) for group in groups if group.width is None for param in group.parameters}


def test_a_field_that_a_configuration_takes_under_two_names_may_be_set():
    assert config_of(architecture="qwen3_moe", width=32, config={**TWO_LAYERS, "num_experts": 4}).num_experts == 4


def test_a_small_mixture_is_planned_and_trained_with_what_a_token_uses(tmp_path):
    config = {"num_hidden_layers": 1, "num_experts": 4, "num_experts_per_tok": 1}
    model = {"name": "hf", "architecture": "qwen3_moe", "head_dim": 8, "config": config}
    sweep = {"budgets": [3e8], "sizes": [{"width": 16}], "allow_repeat": True, "min_steps": 1}
    (result,) = train(text_table(write_text(tmp_path), model=model, sweep=sweep, counter="traced"))
    assert result.status == "completed", result.error
    assert result.loss < 3.0
    assert result.parameters.inactive == 3 * 3 * 16 * 8  # experts, matrices of an expert, of 16 x 8
    assert result.run.params == result.parameters.matmul < result.parameters.total - result.parameters.lookup_table


# ---------------------------------------------------------------------------- what scales, and what follows


def test_what_follows_the_width_keeps_the_proportions_of_the_architecture():
    config = config_of(architecture="mistral", width=256, head_dim=32, config={"num_hidden_layers": 1})
    assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (896, 8, 2)
    assert config.head_dim == 32


def test_experts_and_those_that_all_tokens_share_follow_the_width_too():
    config = config_of(architecture="qwen2_moe", width=256, config={"num_hidden_layers": 1, "num_experts": 2})
    assert (config.moe_intermediate_size, config.shared_expert_intermediate_size) == (176, 704)
    config = config_of(architecture="granitemoeshared", width=256, config={"num_hidden_layers": 1})
    assert config.shared_intermediate_size == 0  # none stays none


@pytest.mark.parametrize(("width", "config"), [(48, {}), (48, {"head_dim": 16}), (64, {"expand": 1})])
def test_a_mamba2_has_heads_for_its_width(width, config):
    small = {"num_hidden_layers": 1, "state_size": 8, "n_groups": 1, "use_cache": False}
    made = config_of(architecture="mamba2", width=width, head_dim=8, config={**small, **config})
    assert made.num_heads * made.head_dim == made.expand * width
    assert made.head_dim == config.get("head_dim", 8)


def test_heads_of_a_small_mamba2_come_in_groups_that_divide_them():
    made = config_of(architecture="mamba2", width=64, config={**TWO_LAYERS, "state_size": 8})
    assert (made.num_heads, made.n_groups) == (2, 2)  # eight groups by default


def test_rotary_channels_are_no_more_than_a_head_has():
    assert config_of(architecture="gptj", width=64, head_dim=16, config=TWO_LAYERS).rotary_dim == 16
    assert config_of(architecture="gptj", width=256, head_dim=128, config=TWO_LAYERS).rotary_dim == 64


@pytest.mark.parametrize("width", [16, 48, 64, 80])
def test_experts_have_rows_that_torch_can_multiply(width):
    """Torch's product for them takes rows of whole 16 bytes."""
    decoder = built(architecture="mellum", width=width, head_dim=8, config={**TWO_LAYERS, "num_experts": 8})
    assert decoder.lm.config.moe_intermediate_size % 8 == 0
    assert decoder(torch.zeros(1, 16, dtype=torch.long)).shape == (1, 16, 61)


def test_fields_can_be_fixed_and_can_follow():
    config = config_of(
        architecture="gpt2",
        width=96,
        scaled={"n_inner": 3.0, "n_layer": 1 / 48},
        config={"num_attention_heads": 6},
    )
    assert (config.n_embd, config.n_inner, config.n_layer, config.n_head) == (96, 288, 2, 6)


def test_another_field_may_scale():
    config = config_of(width=3, field="num_hidden_layers", config={"hidden_size": 32, "intermediate_size": 64,
                                                                   "num_attention_heads": 4})  # fmt: skip
    assert (config.num_hidden_layers, config.hidden_size) == (3, 32)


def test_vocabulary_and_positions_are_the_tasks_and_nothing_pads():
    config = config_of(architecture="opt", width=32, head_dim=8, config=TWO_LAYERS)
    assert (config.vocab_size, config.max_position_embeddings, config.pad_token_id) == (61, 16, None)
    assert config.use_cache is False


def test_every_width_that_the_planner_tries_can_be_built():
    widths = range(16, 400, 16)
    heads = [config_of(width=width, config={"num_hidden_layers": 1}).num_attention_heads for width in widths]
    assert all(width % (2 * number) == 0 for width, number in zip(widths, heads, strict=True))


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "lama"}, "did you mean 'llama'?"),
        (
            {"config": {"num_hiden_layers": 2}},
            "has no field 'num_hiden_layers'; did you mean 'num_hidden_layers'?",
        ),
        ({"field": "n_embd"}, "has no field 'n_embd'"),
        ({"architecture": "gpt2", "config": {"hidden_size": 64}}, "n_embd is set by model.width"),
        ({"width": 48, "config": {"num_attention_heads": 7}}, "7 does not divide a width of 48"),
        ({"config": {"vocab_size": 7}}, "the dataset has 61 tokens"),
        ({"config": {"max_position_embeddings": 8}}, "less than the dataset's context of 16"),
        (
            {"scaled": {"num_hidden_layers": 0.1}, "config": TWO_LAYERS},
            "num_hidden_layers in config and in scaled",
        ),
        ({"architecture": "gpt2", "queries_per_kv": 2}, "no separate heads of keys and values"),
        ({"config": {"num_hidden_layers": "two"}}, "transformers could not create 'llama' from"),
        ({"architecture": "bert", "config": {"is_decoder": False}}, "sees the tokens that it must predict"),
        ({"architecture": "xlnet"}, "'xlnet' sees the tokens that it must predict"),
        ({"architecture": "roberta"}, "'roberta' counts positions from a padding token"),
        ({"architecture": "gemma3"}, "takes more than text: choose 'gemma3_text'"),
    ],
)
def test_a_mistake_says_what_there_is(options, message):
    with pytest.raises(ConfigError) as error:
        built(**options)
    assert message in str(error.value)


def sees_the_future(model) -> bool:
    """Whether logits depend on later ids."""
    model.eval()
    ids = torch.arange(16)[None]
    changed = torch.cat([ids[:, :8], ids[:, 8:] + 1], dim=1)
    with torch.no_grad():
        return not torch.allclose(model(ids)[:, :8], model(changed)[:, :8], atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "electra", "gemma3_text", "gpt2", "llama", "mamba", "rwkv"])
def test_no_model_sees_the_tokens_that_it_is_to_predict(architecture):
    assert not sees_the_future(built(architecture=architecture, width=32, head_dim=8, config=TWO_LAYERS))


def test_images_are_no_task_for_a_decoder():
    with pytest.raises(ConfigError, match="this dataset has a SupervisedTask"):
        built(task=SupervisedTask(inputs=(8,), outputs_size=2))


# ---------------------------------------------------------------------------- ladders

SMALL = {
    "model_type": "gpt_neox",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 50_304,
    "torch_dtype": "float16",
    "architectures": ["X"],
}
LARGE = {**SMALL, "hidden_size": 32, "num_hidden_layers": 2}


def test_a_ladder_reads_files_and_folders_and_keeps_what_is_in_them(tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text(json.dumps(LARGE))
    model = chosen("hf-ladder", configs=[str(tmp_path / "small.json"), str(tmp_path / "large")], config_number=2)
    assert model.options.config == LARGE
    config = model.spec.build(model.options, TASK).lm.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (32, 2, 61)
    assert model.choice.options == {"config": LARGE}  # no path, and none of the other sizes
    assert {param.dtype for param in model.spec.build(model.options, TASK).parameters()} == {torch.float32}


def test_what_transformers_wrote_is_understood_as_it_is():
    """With entries of earlier versions, which the present signature does not name."""
    old = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "rope_theta": 500_000.0,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "bos_token_id": 128_000,
    }
    config = built("hf-ladder", configs=[old]).lm.config
    assert (config.rope_parameters["rope_theta"], config.bos_token_id) == (500_000.0, None)


def test_an_encoder_of_a_hub_is_trained_as_a_decoder_and_without_a_cache():
    encoder = {**SMALL, "model_type": "bert", "is_decoder": False, "use_cache": True}
    model = built("hf-ladder", configs=[encoder])
    assert (model.lm.config.is_decoder, model.lm.config.use_cache) == (True, False)
    assert not sees_the_future(model)


def test_a_table_with_a_wrong_field_is_not():
    with pytest.raises(ConfigError, match="no field 'hiden_size'; did you mean 'hidden_size'"):
        built("hf-ladder", configs=[{"model_type": "llama", "hiden_size": 32}])


def test_a_configuration_that_is_added_leaves_the_others_their_runs(tmp_path):
    text = write_text(tmp_path / "text")

    def runs(configs):
        model = {"name": "hf-ladder", "configs": configs}
        sweep = {
            "budgets": [2e8],
            "sizes": [{"config_number": number + 1} for number in range(len(configs))],
            "allow_repeat": True,
        }
        table = text_table(text, model=model, sweep=sweep)
        return {run.id for run in make_plan(make_experiment(table, installed())).runs}

    middle = {**SMALL, "hidden_size": 24}
    assert runs([SMALL, LARGE]) < runs([SMALL, middle, LARGE])


def test_the_planner_finds_the_rungs_around_a_budgets_optimum(tmp_path):
    configs = [{**SMALL, "hidden_size": width, "intermediate_size": 4 * width} for width in (8, 16, 32, 64, 128)]
    model = {"name": "hf-ladder", "configs": configs}
    sweep = {"budgets": [1e8, 1e11], "sizes": 3, "allow_repeat": True, "tokens_per_param": 5}
    plan = make_plan(make_experiment(text_table(write_text(tmp_path), model=model, sweep=sweep), installed()))
    sizes = {budget: [run.size for run in plan.runs if run.budget == budget] for budget in (1e8, 1e11)}
    assert all(len(rungs) == 3 and rungs == list(range(rungs[0], rungs[0] + 3)) for rungs in sizes.values())
    assert sizes[1e8][0] < sizes[1e11][0]


def test_a_rung_with_many_experts_is_as_large_as_what_a_token_uses():
    shape = {"model_type": "mixtral", "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    many = {**shape, "hidden_size": 32, "intermediate_size": 64, "num_local_experts": 64, "num_experts_per_tok": 1}
    few = {**shape, "hidden_size": 64, "intermediate_size": 128, "num_local_experts": 2, "num_experts_per_tok": 2}
    ladder = chosen("hf-ladder", configs=[{**config, "vocab_size": 64} for config in (many, few)])
    assert [ladder.spec.scale(ladder.options, target).config_number for target in (12_000, 400_000)] == [1, 2]


def test_a_ladder_with_a_mixture_is_labelled_as_what_a_token_uses(tmp_path):
    mixture = {"model_type": "qwen3_moe", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2}  # fmt: skip
    model = {"name": "hf-ladder", "configs": [SMALL, mixture]}
    sweep = {"budgets": [1e10], "sizes": [{"config_number": 1}, {"config_number": 2}], "allow_repeat": True}
    table = text_table(write_text(tmp_path), model=model, sweep=sweep, counter="chinchilla")
    plan = make_plan(make_experiment(table, installed()))
    assert [run.size for run in plan.runs] == [1, 2]
    assert plan.params_name == "matmul parameters that a token uses (all but lookup tables)"


@pytest.mark.parametrize("n", ["matmul", "total"])
def test_the_rungs_of_a_mixture_are_found_by_the_n_that_is_counted(tmp_path, n):
    experts = {"model_type": "qwen3_moe", "num_hidden_layers": 2, "num_experts": 32, "num_experts_per_tok": 1}
    configs = [
        {**experts, "hidden_size": width, "moe_intermediate_size": 4 * width, "num_attention_heads": width // 8,
         "num_key_value_heads": width // 8}
        for width in (16, 24, 32, 48, 64, 96, 128)
    ]  # fmt: skip
    model = {"name": "hf-ladder", "configs": configs}
    sweep = {"budgets": [1e11], "sizes": 1, "allow_repeat": True}
    table = text_table(write_text(tmp_path), model=model, sweep=sweep, counter={"name": "chinchilla", "n": n})
    experiment = make_experiment(table, installed())
    meter = SizeMeasurer(experiment.model, LanguageTask(vocab_size=256, context=16), experiment.counter)
    rungs = [
        meter.measure(experiment.model.with_options(config_number=number + 1).options)
        for number in range(len(configs))
    ]
    for expected in rungs:
        (size,) = SizeLadder(experiment, meter, lambda budget, n=expected.params: n).for_budget(1e11)
        assert size.size == expected.size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "configs is empty"),
        ({"configs": [SMALL], "config_number": 2}, "config_number 2 of 1 configs"),
        ({"configs": ["nowhere.json"]}, "cannot read"),
    ],
)
def test_a_ladder_with_a_mistake_says_what_to_write(options, message):
    with pytest.raises(ValueError, match=message):
        chosen("hf-ladder", **options)


# ---------------------------------------------------------------------------- training


def test_a_small_llama_learns_and_its_loss_is_that_of_its_seed(tmp_path):
    model = {"name": "hf", "head_dim": 8, "config": TWO_LAYERS}
    sweep = {"budgets": [3e8], "sizes": [{"width": 16}], "allow_repeat": True, "min_steps": 1}
    table = text_table(write_text(tmp_path), model=model, sweep=sweep)
    (first,), (second,) = train(table), train(table)
    assert first.status == "completed"
    assert first.loss == second.loss
    assert first.loss < 3.0  # a uniform guess has ln 256 = 5.5


@pytest.mark.slow
def test_the_documented_llama_is_trained_by_the_command_line(tmp_path):
    example = Path(__file__).parents[1] / "docs" / "examples" / "llama.toml"
    tiny = [
        "sweep.budgets=[3e8]",
        "sweep.sizes=[{width=8}, {width=16}]",
        "sweep.min_steps=5",
        "dataset.context=16",
    ]
    tiny += [f"dataset.path={write_text(tmp_path / 'text')}", "sweep.allow_repeat=true", "trainer.eval_tokens=512"]
    command = ["run", str(example), "--out", str(tmp_path / "study"), "--executor", "processes"]
    command += ["--set", "executor.workers=1"]  # a worker takes seconds to import transformers
    command += [part for option in tiny for part in ("--set", option)]
    done = subprocess.run(
        [sys.executable, "-c", "from flops_fit_core.cli import main; main()", *command],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert "[2/2]" in done.stdout + done.stderr, done.stdout + done.stderr
    assert "[transformers]" not in done.stdout + done.stderr
