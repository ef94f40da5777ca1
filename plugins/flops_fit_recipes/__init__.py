"""Recipes: hyperparameters for runs of every size, for those that the user left unset.

``width-scaled`` (the default), ``constant``, three published laws (``steplaw``, ``deepseek``, ``power-lines``),
and ``power-law`` with constants fitted to your own runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from flops_fit_core.plugins import RecipeSpec, hookimpl
from flops_fit_recipes.constant import ConstantOptions, constant_recipe
from flops_fit_recipes.deepseek import DeepSeekOptions, deepseek_recipe
from flops_fit_recipes.power_law import PowerLawOptions, power_law_recipe
from flops_fit_recipes.power_lines import PowerLinesOptions, power_lines_recipe
from flops_fit_recipes.steplaw import StepLawOptions, steplaw_recipe
from flops_fit_recipes.width_scaled import WidthScaledOptions, width_scaled_recipe


@hookimpl
def flops_fit_recipes() -> Iterable[RecipeSpec]:
    """Offer all recipes."""
    yield RecipeSpec(name="width-scaled", options=WidthScaledOptions, build=width_scaled_recipe, lr_option="lr")
    yield RecipeSpec(name="constant", options=ConstantOptions, build=constant_recipe, lr_option="lr")
    yield RecipeSpec(name="steplaw", options=StepLawOptions, build=steplaw_recipe, lr_option="lr_scale")
    yield RecipeSpec(name="deepseek", options=DeepSeekOptions, build=deepseek_recipe, lr_option="lr_scale")
    yield RecipeSpec(name="power-lines", options=PowerLinesOptions, build=power_lines_recipe, lr_option="lr")
    yield RecipeSpec(name="power-law", options=PowerLawOptions, build=power_law_recipe, lr_option="lr_scale")
