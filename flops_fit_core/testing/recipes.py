"""The conformance kit for recipes.

::

    from flops_fit_core.testing import RecipeConformance

    class TestMyRecipe(RecipeConformance):
        name = "mine"
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import pytest

from flops_fit_core.config import PluginConfig
from flops_fit_core.data.tasks import LanguageTask, SupervisedTask
from flops_fit_core.errors import FlopsFitError
from flops_fit_core.plugins.protocols import RecipeInput, Task, WidthScaling
from flops_fit_core.records import Hyperparameters, ParameterCounts
from flops_fit_core.testing.kit import Kit

Ask = Callable[[RecipeInput], Hyperparameters]

SIZES = (10_000, 10_000_000, 10_000_000_000)
"""N of the models that it is asked for, each with 2, 20 and 2,000 tokens a parameter."""


class RecipeConformance(Kit):
    """What every recipe must do. Inherit, set ``name``, and run pytest.

    Attributes:
        width_scaling: Declared by the optimizer that it is asked for.
        width: Whether the family that it is asked for has a width.
        task: What the models are trained for.
    """

    kind: ClassVar[str] = "recipe"
    width_scaling: WidthScaling = "adam"
    width = True
    task: Task = LanguageTask(vocab_size=256, context=64)

    @pytest.fixture
    def ask(self, chosen: PluginConfig[Any]) -> Ask:
        """What it says of a run."""

        def ask(about: RecipeInput) -> Hyperparameters:
            hyper = chosen.spec.build(chosen.options, about)
            assert isinstance(hyper, Hyperparameters), f"gave {hyper!r} instead of Hyperparameters"
            return hyper

        return ask

    def about(self, params: int, tokens: int, **changes: Any) -> RecipeInput:
        """A run of so many parameters and tokens."""
        vocabulary = max(1, params // 10)
        given: dict[str, Any] = {
            "params": params,
            "tokens": tokens,
            "width": round(params ** (1 / 3)) if self.width else None,
            "task": self.task,
            "width_scaling": self.width_scaling,
            "flops": 6.0 * params * tokens,
            "parameters": ParameterCounts(
                total=params + vocabulary,
                lookup_table=vocabulary,
                unembedding=vocabulary,
                active=params + vocabulary,
            ),
        }
        return RecipeInput(**{**given, **changes})

    def runs(self, **changes: Any) -> list[RecipeInput]:
        """Small and large models, under-trained and over-trained."""
        return [self.about(n, per * n, **changes) for n in SIZES for per in (2, 20, 2000)]

    # ------------------------------------------------------------------ tests

    def test_it_gives_values_that_a_run_can_have(self, ask: Ask) -> None:
        """Small and large; a batch is samples, so it is at most all of the data."""
        for about in self.runs():
            hyper = ask(about)
            where = f"at N = {about.params:.3g}, D = {about.tokens:.3g}"
            samples = about.tokens // about.task.tokens_per_sample
            assert hyper.batch_size is None or hyper.batch_size <= samples, (
                f"a batch of {hyper.batch_size} samples, and there are {samples} {where}"
            )
            assert hyper.warmup_tokens is None or hyper.warmup_tokens <= about.tokens, (
                f"a warmup of {hyper.warmup_tokens:,} tokens, longer than the run {where}"
            )

    def test_a_warmup_is_in_tokens(self, ask: Ask) -> None:
        """In a run of more than a million steps it is one step at least, or none at all."""
        about = self.about(SIZES[-1], 2000 * SIZES[-1])
        hyper = ask(about)
        step = (hyper.batch_size or 1) * about.task.tokens_per_sample
        assert not hyper.warmup_tokens or hyper.warmup_tokens >= step, (
            f"a warmup of {hyper.warmup_tokens} tokens is less than one step of {step:,} tokens: are these steps?"
        )

    def test_the_same_run_gets_the_same_values(self, ask: Ask) -> None:
        """Now and in any process: they are part of what identifies a run."""
        first = [ask(about) for about in self.runs()]
        random.seed()
        assert [ask(about) for about in reversed(self.runs())] == first[::-1], "asked again, in another order"
        # One that remembers a size or its first answer is found by neighbours, asked in opposite orders.
        short, long = (ask(self.about(123_456_789, per * 123_456_789)) for per in (20, 200))
        long_first, short_then = (ask(self.about(123_456_790, per * 123_456_790)) for per in (200, 20))
        for one, other in ((short, short_then), (long, long_first)):
            assert _numbers(other) == pytest.approx(_numbers(one), rel=1e-3), (
                f"what it says of a run depends on what it was asked before: {one} or {other}"
            )

    @pytest.mark.parametrize(
        "changes",
        [
            {"width": None},
            {"width_scaling": "none"},
            {"task": SupervisedTask(inputs=(3, 8, 8), outputs_size=10)},
        ],
        ids=["no width", "an optimizer unlike Adam", "images"],
    )
    def test_any_run_is_served_or_refused(self, ask: Ask, changes: Mapping[str, Any]) -> None:
        """Refused with one of flops-fit's own errors, which says what is missing."""
        for about in self.runs(**changes):
            with suppress(FlopsFitError):
                ask(about)

    def test_what_the_user_has_set_is_not_contradicted(self, ask: Ask) -> None:
        """A recipe that is told a learning rate or a batch gives that one, or none."""
        for about in self.runs(lr=0.00123, batch_size=7):
            hyper = ask(about)
            assert hyper.batch_size in (None, 7) or hyper == ask(
                self.about(about.params, about.tokens, lr=0.00123)
            )
            assert hyper.lr is None or hyper.lr > 0

    def test_a_trunk_is_served_too(self, ask: Ask) -> None:
        """Runs of many lengths get one set of values."""
        for about in self.runs(trunk=True):
            ask(about)

    def test_the_option_that_tuning_writes_multiplies_the_learning_rate(
        self, ask: Ask, chosen: PluginConfig[Any]
    ) -> None:
        """``flops-fit tune`` measures the best value at one size and writes it for all."""
        option = chosen.spec.lr_option
        if option is None:
            pytest.skip("this recipe names no option for tuning")
        for about in self.runs():
            rates = []
            for value in (0.01, 0.02):
                hyper = chosen.spec.build(chosen.with_options(**{option: value}).options, about)
                rates.append(hyper.lr)
            assert rates[0] is not None, f"{option} = 0.01 gives no learning rate"
            assert rates[1] == pytest.approx(2 * rates[0]), f"twice {option} gives {rates}"


def _numbers(hyper: Hyperparameters) -> dict[str, float]:
    return {name: value for name, value in hyper.model_dump().items() if isinstance(value, int | float)}
