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

from flops_fit_core import numbers
from flops_fit_core.config import PluginConfig
from flops_fit_core.data.tasks import LanguageTask, SupervisedTask
from flops_fit_core.errors import FlopsFitError
from flops_fit_core.plugins.protocols import RecipeInput, Task, WidthScaling
from flops_fit_core.records import Hyperparameters, ParameterCounts
from flops_fit_core.testing.kit import Kit

Build = Callable[[RecipeInput], Hyperparameters]

SIZES = (10_000, 10_000_000, 10_000_000_000)
"""N of the tested models, each with 2, 20 and 2,000 tokens per parameter."""


class RecipeConformance(Kit):
    """Tests for every recipe. Inherit, set ``name``, and run pytest.

    Attributes:
        width_scaling: Declaration of the runs' optimizer.
        width: Whether the runs' model family has a width.
        task: Task of the runs.
    """

    kind: ClassVar[str] = "recipe"
    width_scaling: WidthScaling = "adam"
    width = True
    task: Task = LanguageTask(vocab_size=256, context=64)

    @pytest.fixture
    def build(self, chosen: PluginConfig[Any]) -> Build:
        """A function that returns the hyperparameters of a run."""

        def build(run: RecipeInput) -> Hyperparameters:
            hyper = chosen.spec.build(chosen.options, run)
            assert isinstance(hyper, Hyperparameters), f"build returned {hyper!r} instead of Hyperparameters"
            return hyper

        return build

    def run(self, params: int, tokens: int, **changes: Any) -> RecipeInput:
        """A run with this many parameters and tokens."""
        vocabulary = max(1, params // 10)
        defaults: dict[str, Any] = {
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
        return RecipeInput(**{**defaults, **changes})

    def runs(self, **changes: Any) -> list[RecipeInput]:
        """Runs of small and large models, under-trained and over-trained."""
        return [self.run(n, per * n, **changes) for n in SIZES for per in (2, 20, 2000)]

    # ------------------------------------------------------------------ tests

    def test_it_gives_values_that_a_run_can_have(self, build: Build) -> None:
        """For small and large models. A batch has at most as many samples as the run."""
        for run in self.runs():
            hyper = build(run)
            label = f"at N = {numbers.count(run.params)}, D = {numbers.count(run.tokens)}"
            samples = run.tokens // run.task.tokens_per_sample
            assert hyper.batch_size is None or hyper.batch_size <= samples, (
                f"a batch of {hyper.batch_size} samples, but the run has only {samples} {label}"
            )
            assert hyper.warmup_tokens is None or hyper.warmup_tokens <= run.tokens, (
                f"a warmup of {hyper.warmup_tokens:,} tokens, longer than the run {label}"
            )

    def test_a_warmup_is_in_tokens(self, build: Build) -> None:
        """In a run of more than a million steps, a warmup has at least one step, or none."""
        run = self.run(SIZES[-1], 2000 * SIZES[-1])
        hyper = build(run)
        step = (hyper.batch_size or 1) * run.task.tokens_per_sample
        assert not hyper.warmup_tokens or hyper.warmup_tokens >= step, (
            f"a warmup of {hyper.warmup_tokens} tokens is less than one step of {step:,} tokens: are these steps?"
        )

    def test_the_same_run_gets_the_same_values(self, build: Build) -> None:
        """In every process, because hyperparameters are part of a run's id."""
        first = [build(run) for run in self.runs()]
        random.seed()
        assert [build(run) for run in reversed(self.runs())] == first[::-1], "other values in another order"
        # Runs of almost equal size, built in opposite orders, detect a recipe that caches by size or its first
        # result.
        short, long = (build(self.run(123_456_789, per * 123_456_789)) for per in (20, 200))
        long_first, short_second = (build(self.run(123_456_790, per * 123_456_790)) for per in (200, 20))
        for before, after in ((short, short_second), (long, long_first)):
            assert _numbers(after) == pytest.approx(_numbers(before), rel=1e-3), (
                f"the values of a run depend on earlier calls: {before} or {after}"
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
    def test_any_run_is_served_or_refused(self, build: Build, changes: Mapping[str, Any]) -> None:
        """Refused means: with an error class of flops-fit."""
        for run in self.runs(**changes):
            with suppress(FlopsFitError):
                build(run)

    def test_what_the_user_has_set_is_not_contradicted(self, build: Build) -> None:
        """For a run with a learning rate or a batch size, a recipe returns the same values or None."""
        for run in self.runs(lr=0.00123, batch_size=7):
            hyper = build(run)
            assert hyper.batch_size in (None, 7) or hyper == build(self.run(run.params, run.tokens, lr=0.00123))
            assert hyper.lr is None or hyper.lr > 0

    def test_a_shared_stable_phase_is_served_too(self, build: Build) -> None:
        """Runs of several lengths share the values."""
        for run in self.runs(trunk=True):
            build(run)

    def test_the_option_that_tuning_writes_multiplies_the_learning_rate(
        self, build: Build, chosen: PluginConfig[Any]
    ) -> None:
        """``flops-fit tune`` measures the best value at one size and writes it for all sizes."""
        option = chosen.spec.lr_option
        if option is None:
            pytest.skip("this recipe names no option for tuning")
        for run in self.runs():
            rates = []
            for value in (0.01, 0.02):
                hyper = chosen.spec.build(chosen.with_options(**{option: value}).options, run)
                rates.append(hyper.lr)
            assert rates[0] is not None, f"{option} = 0.01 gives no learning rate"
            assert rates[1] == pytest.approx(2 * rates[0]), f"twice {option} gives {rates}"


def _numbers(hyper: Hyperparameters) -> dict[str, float]:
    return {name: value for name, value in hyper.model_dump().items() if isinstance(value, int | float)}
