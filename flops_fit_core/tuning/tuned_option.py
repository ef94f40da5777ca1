"""The option that sets the learning rate of all sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from flops_fit_core.config import Experiment, PluginConfig, explain
from flops_fit_core.errors import ConfigError


@dataclass(frozen=True)
class TunedOption:
    """An option of the experiment to which every size's learning rate is proportional."""

    table: str
    """``recipe`` or ``optimizer``."""
    option: str
    value: float
    """Its present value, or its equivalent if the option is unset."""

    @property
    def name(self) -> str:
        return f"{self.table}.{self.option}"

    def with_value(self, experiment: Experiment, value: float) -> Experiment:
        """The experiment with another value. Raises ConfigError if the plugin refuses the value."""
        chosen: PluginConfig[Any] = getattr(experiment, self.table)
        try:
            return experiment.model_copy(update={self.table: chosen.with_options(**{self.option: value})})
        except ValidationError as error:
            raise ConfigError(f"{self.name} = {value:.6g}:\n{explain(error)}") from None


def find_tuned_option(experiment: Experiment, rates: Mapping[Any, float]) -> TunedOption:
    """The option of an experiment to tune.

    ``optimizer.lr`` if the user set it, because a recipe then has no effect on it; otherwise the recipe's
    ``lr_option``; otherwise ``optimizer.lr``.

    Args:
        experiment: The experiment to tune.
        rates: Size -> peak learning rate of its run at present.

    Raises ConfigError for an optimizer without a learning rate, and if no single number multiplies the rates.
    """
    optimizer, recipe = experiment.optimizer, experiment.recipe
    lr = getattr(optimizer.options, "lr", None)
    if lr is not None and not optimizer.unset("lr"):
        return TunedOption("optimizer", "lr", float(lr))
    option = recipe.spec.lr_option
    value = getattr(recipe.options, option) if option is not None else None
    if option is not None and value is not None:
        return TunedOption("recipe", option, float(value))
    lowest, highest = min(rates.values()), max(rates.values())
    if not math.isclose(lowest, highest, rel_tol=1e-9):
        advice = f"set recipe.{option} in the experiment" if option else "set optimizer.lr in the experiment"
        raise ConfigError(
            f"recipe {recipe.name!r} gives sizes different learning rates ({lowest:.3g} to {highest:.3g}) and "
            f"names no option that multiplies them, so no single number can be tuned: {advice}, or choose "
            f"another recipe"
        )
    return TunedOption("recipe", option, lowest) if option is not None else TunedOption("optimizer", "lr", lowest)
