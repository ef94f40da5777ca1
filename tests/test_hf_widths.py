"""One learning rate for every width, in the families ``hf`` and ``hf-ladder``: the coordinate check of muP."""

import math
from functools import cache

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from coordinates import CONFIGS, GROWN, SHRUNK, coordinates, growth, hf_model
from small import text_table, train, write_text

from flops_fit_core import ConfigError
from flops_fit_core.config import make_experiment
from flops_fit_core.data import LanguageTask
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed
from flops_fit_transformers import HFOptions, build
from flops_fit_transformers.transfer import NOT_VERIFIED, VERIFIED

TASK = LanguageTask(vocab_size=61, context=16)
VERIFIED_CONFIGS = [name for name in CONFIGS if name.split(",")[0] in VERIFIED]
NOTE = "one learning rate is not verified for all widths"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


def experiment(text, model, widths=(64, 256), recipe="width-scaled", **changes):
    table = text_table(text, model=model, recipe=recipe, counter="chinchilla", **changes)
    sizes = [{"config_number" if model["name"] == "hf-ladder" else "width": width} for width in widths]
    table["sweep"] |= {"sizes": sizes, "budgets": [1e12], "batch_size": 16}
    return make_experiment(table, installed())


@cache
def measured(text, name, widths=(64, 256), **options):
    return coordinates(experiment(text, hf_model(name, **options), widths), installed())


# ---------------------------------------------------------------------------- the coordinate check


@pytest.mark.parametrize("name", ["llama", "llama, tied", "gpt2", "qwen3"])
def test_activations_are_of_one_size_at_every_width(name, text):
    values = measured(text, name, widths=(64, 128, 256))
    assert {part: sizes for part, sizes in values.items() if growth(sizes) > GROWN} == {}
    assert {part: sizes for part, sizes in values.items() if growth(sizes[::-1]) > SHRUNK} == {}


@pytest.mark.parametrize("name", ["llama, tied", "gpt2"])
def test_with_the_weights_of_transformers_the_logits_grow(name, text):
    values = measured(text, name, init="architecture")
    assert growth(values["logits"]) > GROWN


@pytest.mark.slow
@pytest.mark.parametrize("name", VERIFIED_CONFIGS)
def test_activations_of_every_verified_architecture_are_of_one_size(name, text):
    values = measured(text, name, widths=(64, 128, 256, 512))
    assert {part: sizes for part, sizes in values.items() if growth(sizes) > GROWN} == {}


def test_every_verified_architecture_is_measured():
    assert {name.split(",")[0] for name in CONFIGS} >= VERIFIED
    assert not VERIFIED & NOT_VERIFIED.keys()


# ---------------------------------------------------------------------------- starting weights


def decoder(name="llama", width=64, task=TASK):
    torch.manual_seed(0)
    model = hf_model(name, init="fan_in", width=width)
    return build(HFOptions.model_validate({key: value for key, value in model.items() if key != "name"}), task)


def spreads(decoder, ending):
    return [float(param.detach().std()) for name, param in decoder.named_parameters() if name.endswith(ending)]


@pytest.mark.parametrize("width", [64, 512])
def test_a_llama_starts_by_fan_in(width):
    llama = decoder(width=width)
    hidden = llama.lm.config.intermediate_size
    for matrix in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"):
        assert spreads(llama, f"{matrix}.weight") == pytest.approx([width**-0.5] * 2, rel=0.1)
    assert spreads(llama, "down_proj.weight") == pytest.approx([hidden**-0.5] * 2, rel=0.1)
    assert spreads(llama, "lm_head.weight") == pytest.approx([1 / width], rel=0.1)
    assert spreads(llama, "embed_tokens.weight") == pytest.approx([1.0], rel=0.1)
    assert all(bool((param == 1).all()) for name, param in llama.named_parameters() if "norm" in name)


def test_a_gpt2_keeps_its_smaller_weights_where_the_stream_is_written_and_its_zeros():
    gpt2 = decoder("gpt2", 256)
    residual = (2 * 2) ** -0.5  # two layers, each writes twice
    assert spreads(gpt2, "attn.c_attn.weight") == pytest.approx([256**-0.5] * 2, rel=0.05)
    assert spreads(gpt2, "attn.c_proj.weight") == pytest.approx([residual * 256**-0.5] * 2, rel=0.05)
    assert spreads(gpt2, "mlp.c_fc.weight") == pytest.approx([256**-0.5] * 2, rel=0.05)
    assert spreads(gpt2, "mlp.c_proj.weight") == pytest.approx([residual * 1024**-0.5] * 2, rel=0.05)
    assert spreads(gpt2, "wte.weight") == pytest.approx([1.0], rel=0.05)
    assert spreads(gpt2, "wpe.weight") == pytest.approx([0.1], rel=0.05)
    assert all(not param.any() for name, param in gpt2.named_parameters() if name.endswith("bias"))


def test_a_tied_head_reads_its_input_times_four_over_the_width():
    tied = decoder("llama, tied", 32)
    table = tied.lm.get_input_embeddings().weight
    ids = torch.randint(0, 61, (2, 16))
    expected = tied.lm.model(input_ids=ids).last_hidden_state @ table.T * 4 / 32
    assert torch.allclose(tied(ids), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama, tied", "gpt2", "qwen3"])
def test_a_model_starts_from_a_uniform_guess(name):
    model = decoder(name, 64, LanguageTask(vocab_size=256, context=16))
    ids = torch.randint(0, 256, (64, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    # A tied head gives a token that the stream still holds a logit of up to 4, so a little above ln V.
    assert float(loss) == pytest.approx(math.log(256), abs=0.25)


@pytest.mark.parametrize("name", ["llama, tied", "gpt2"])
def test_the_weights_have_the_names_of_transformers(name):
    torch.manual_seed(0)
    model = {key: value for key, value in hf_model(name, width=32).items() if key != "name"}
    plain = build(HFOptions.model_validate(model), TASK)
    assert plain.lm.state_dict().keys() == decoder(name, 32).lm.state_dict().keys()


def test_weights_by_fan_in_are_those_of_transformers_times_a_number():
    torch.manual_seed(0)
    model = {key: value for key, value in hf_model("llama", width=64).items() if key != "name"}
    plain = build(HFOptions.model_validate(model), TASK).lm.model.layers[0].self_attn.q_proj.weight
    scaled = decoder("llama", 64).lm.model.layers[0].self_attn.q_proj.weight
    assert torch.allclose(scaled, plain / (0.02 * 8), rtol=1e-5)


# ---------------------------------------------------------------------------- which runs get them


def inits(plan):
    return {run.model.options.get("init", "architecture") for run in plan.runs}


def notes(plan):
    return [note for note in plan.notes if note.startswith(NOTE)]


def test_a_recipe_that_scales_by_the_width_starts_the_weights_by_fan_in(text):
    plan = make_plan(experiment(text, hf_model("llama")))
    assert (inits(plan), notes(plan)) == ({"fan_in"}, [])


@pytest.mark.parametrize(
    "changes", [{"recipe": {"name": "constant", "lr": 0.001}}, {"optimizer": "sgd"}], ids=["constant", "sgd"]
)
def test_other_runs_start_as_transformers_does(changes, text):
    plan = make_plan(experiment(text, hf_model("llama"), **changes))
    assert (inits(plan), notes(plan)) == ({"architecture"}, [])


def test_what_the_user_writes_wins_and_is_noted(text):
    plan = make_plan(experiment(text, hf_model("llama", init="architecture")))
    assert inits(plan) == {"architecture"}
    assert notes(plan) == [
        f'{NOTE}: model.init = "architecture"; activations grow with the width, and with "fan_in" they do not'
    ]


@pytest.mark.parametrize(
    ("name", "field", "value"), [("llama", "initializer_range", 0.01), ("granite", "embedding_multiplier", 12.0)]
)
def test_a_start_in_the_configuration_wins_and_is_noted(name, field, value, text):
    model = hf_model(name)
    model["config"] |= {field: value}
    plan = make_plan(experiment(text, model))
    assert inits(plan) == {"architecture"}
    assert notes(plan) == [f"{NOTE}: model.config sets {field}; leave it out for weights that start by fan-in"]


def test_a_study_that_exists_keeps_the_weights_it_was_planned_with(text):
    table = text_table(text, model=hf_model("llama"), recipe="width-scaled", counter="chinchilla", planner=1)
    assert inits(make_plan(make_experiment(table, installed()))) == {"architecture"}


def test_an_architecture_that_is_not_verified_keeps_its_weights_and_is_noted(text):
    plan = make_plan(experiment(text, hf_model("gemma")))
    assert inits(plan) == {"architecture"}
    (note,) = notes(plan)
    assert "'gemma' multiplies its embeddings by the root of the width" in note


def test_at_the_base_width_alone_nothing_is_noted(text):
    assert notes(make_plan(experiment(text, hf_model("gemma"), widths=(64,)))) == []


def test_a_ladder_starts_by_fan_in_too(text):
    configs = [
        {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 2}
        for width in (32, 128)
    ]
    llamas = make_plan(experiment(text, {"name": "hf-ladder", "configs": configs}, (1, 2)))
    assert (inits(llamas), notes(llamas)) == ({"fan_in"}, [])
    mixed = [configs[0], {**configs[1], "model_type": "gemma", "head_dim": 64}]
    both = make_plan(experiment(text, {"name": "hf-ladder", "configs": mixed}, (1, 2)))
    assert [run.model.options.get("init") for run in both.runs] == ["fan_in", None]
    assert "'gemma'" in notes(both)[0]


def test_the_weights_that_are_trained_are_those_of_the_plan(text):
    runs = {
        init: train(text_table(text, model=hf_model("llama", init=init), recipe="width-scaled"))[0]
        for init in ("fan_in", "architecture")
    }
    assert runs["fan_in"].status == runs["architecture"].status == "completed"
    assert runs["fan_in"].run.id != runs["architecture"].run.id
    assert runs["fan_in"].loss != runs["architecture"].loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gemma"}, "verified for .*, gpt2, gpt_neox, .*, not for 'gemma': leave it out"),
        ({"config": {"initializer_range": 0.1}}, "initializer_range is for the weights of transformers"),
        (
            {"architecture": "granite", "config": {"logits_scaling": 8.0}},
            "logits_scaling is for the weights of transformers",
        ),
    ],
)
def test_a_start_that_is_not_verified_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(HFOptions.model_validate({"width": 32, "head_dim": 8, "init": "fan_in", **options}), TASK)
