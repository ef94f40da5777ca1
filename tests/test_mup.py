"""The coordinate check of muP (Yang et al. 2022, Tensor Programs V, appendix D.1).

With the width-scaled recipe, activations and their changes are of one size at every width; with one learning rate
for all widths they grow.
"""

from functools import cache
from pathlib import Path

import pytest
from coordinates import GROWN, SHRUNK, Images, coordinates, growth
from small import text_table, write_text

from flops_fit_core.config import make_experiment
from flops_fit_core.plugins.registry import installed

WIDTHS = (32, 64, 128, 256)
GROWN_OTHERWISE = 3.0
"""What the worst activation grows by from width 32 to 256 without it, at least."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


MODELS = {
    "gpt": {"name": "gpt", "depth": 2, "head_dim": 16},
    "gpt, tied": {"name": "gpt", "depth": 2, "head_dim": 16, "tied": True},
    "gpt, learned positions": {"name": "gpt", "depth": 2, "head_dim": 16, "positions": "learned"},
    "mlp on text": {"name": "mlp", "depth": 2, "window": 4},
    "mlp on images": {"name": "mlp", "depth": 2},
    "vit": {"name": "vit", "depth": 2, "patch": 2},
    "vit, class token": {"name": "vit", "depth": 2, "patch": 2, "pool": "class", "norm": "layer"},
}
RECIPES = {
    "width-scaled": {"name": "width-scaled"},
    "constant": {"name": "constant", "lr": 0.008, "betas": [0.9, 0.95]},
}


@cache
def sizes(what: str, recipe: str, text: Path) -> dict[str, list[float]]:
    """Root mean square by width of what every part puts out after some steps, and of its change."""
    images = MODELS[what]["name"] == "vit" or what == "mlp on images"
    registry = installed().with_plugins({"noise": Images()} if images else {})
    table = text_table(text, model=MODELS[what], recipe=RECIPES[recipe], counter="chinchilla")
    table |= {"dataset": "noise/random"} if images else {}
    table["sweep"] |= {"sizes": [{"width": width} for width in WIDTHS], "budgets": [1e11], "batch_size": 16}
    return coordinates(make_experiment(table, registry), registry)


@pytest.mark.parametrize("what", MODELS)
def test_with_the_width_scaled_recipe_activations_are_of_one_size_at_every_width(what, text):
    found = sizes(what, "width-scaled", text)
    assert {name: values for name, values in found.items() if growth(values) > GROWN} == {}
    assert {name: values for name, values in found.items() if growth(values[::-1]) > SHRUNK} == {}


@pytest.mark.parametrize("what", MODELS)
def test_with_one_learning_rate_at_all_widths_the_same_activations_grow(what, text):
    found = sizes(what, "constant", text)
    worst = max(found.values(), key=growth)
    assert worst == sorted(worst)
    assert worst[-1] / worst[0] > GROWN_OTHERWISE


def test_at_the_base_width_the_two_recipes_are_one(text):
    at_64 = WIDTHS.index(64)
    scaled, constant = (sizes("mlp on text", recipe, text) for recipe in RECIPES)
    for name, values in scaled.items():
        same = [one == other for one, other in zip(values, constant[name], strict=True)]
        assert same == [index == at_64 for index in range(len(WIDTHS))], name
