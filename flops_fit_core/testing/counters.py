"""The conformance kit for FLOPs counters.

::

    from flops_fit_core.testing import FlopCounterConformance

    class TestMyCounter(FlopCounterConformance):
        name = "mine"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from flops_fit_core.config import PluginConfig
from flops_fit_core.data.tasks import LanguageTask, SupervisedTask
from flops_fit_core.errors import FlopsFitError
from flops_fit_core.plugins.protocols import CounterInput, FlopCount, TransformerShape
from flops_fit_core.records import ParameterCounts
from flops_fit_core.testing.kit import Kit, forward_flops, random_batch

if TYPE_CHECKING:
    from torch import nn

Count = Callable[[CounterInput], FlopCount]
TASK = LanguageTask(vocab_size=61, context=16)


class FlopCounterConformance(Kit):
    """Tests for every FLOPs counter. Inherit, set ``name``, and run pytest.

    Attributes:
        slack: Largest factor between a count and three times torch's count of the forward pass. Conventions differ
            in the operations that they leave out or count twice. With 3 or more, a counter without the backward
            pass would pass.
    """

    kind: ClassVar[str] = "counter"
    slack = 2.0

    @pytest.fixture
    def count(self, chosen: PluginConfig[Any]) -> Count:
        """A function that counts a model."""

        def count(model: CounterInput) -> FlopCount:
            flop_count: FlopCount = chosen.spec.build(chosen.options, model)
            assert isinstance(flop_count, FlopCount), f"build returned {flop_count!r} instead of a FlopCount"
            return flop_count

        return count

    def test_it_counts_forward_and_backward(self, count: Count) -> None:
        """About three times the forward pass, at several widths."""
        for width in (16, 64):
            forward = forward_flops(_build(width), TASK, random_batch(TASK, 2))
            ratio = count(example_model(width)).flops_per_token / (3 * forward)
            assert 1 / self.slack < ratio < self.slack, (
                f"{ratio:.2f} of three times the forward pass at width {width}"
                + (": is the backward pass, twice the forward pass, counted?" if ratio < 1 else "")
            )

    def test_a_larger_model_costs_more(self, count: Count) -> None:
        """In FLOPs and in N."""
        small, large = count(example_model(16)), count(example_model(32))
        assert small.flops_per_token < large.flops_per_token, "at twice the width"
        assert small.params < large.params, "N at twice the width"

    def test_it_says_what_it_counts(self, count: Count) -> None:
        """Every table and figure shows these names. Terms, if any, add up to the FLOPs."""
        result = count(example_model(16))
        assert result.flops_name.strip(), "flops_name is empty"
        assert result.params_name.strip(), "params_name is empty"
        total = sum(result.terms.values())
        assert not result.terms or total == pytest.approx(result.flops_per_token), (
            f"terms add up to {total:,.0f}, flops_per_token is {result.flops_per_token:,.0f}"
        )

    def test_n_is_a_number_of_the_model_s_parameters(self, count: Count) -> None:
        """A positive integer, at most the number of all parameters."""
        model = example_model(16)
        params = count(model).params
        assert isinstance(params, int)
        assert 0 < params <= model.parameters.total

    def test_it_counts_without_reading_or_changing_the_model(self, count: Count) -> None:
        """Tensors on the meta device have no values. The same model has the same count."""
        model = example_model(16)
        before = _condition(model.module)
        assert count(model) == count(model), "two counts of the same model differ"
        after = _condition(model.module)
        for aspect, value in before.items():
            assert after[aspect] == value, f"the counter changed {aspect} of the model"

    def test_a_family_that_does_not_describe_itself_is_counted_or_refused(self, count: Count) -> None:
        """Refused means: with an error class of flops-fit."""
        undeclared = replace(example_model(16), own_flops_per_token=None, shape=None)
        try:
            result = count(undeclared)
        except FlopsFitError:
            return
        assert result.flops_per_token > 0

    def test_a_model_of_images_is_counted_or_refused(self, count: Count) -> None:
        """Refused means: with an error class of flops-fit. A task need not have a context or a vocabulary."""
        model = _example_classifier()
        try:
            result = count(model)
        except FlopsFitError:
            return
        forward = forward_flops(_build_classifier(), model.task, random_batch(model.task, 2))
        ratio = result.flops_per_token / (3 * forward)
        assert 1 / self.slack < ratio < self.slack, f"{ratio:.2f} of three times the forward pass of a sample"


def _condition(module: nn.Module) -> dict[str, object]:
    return {
        "the parameters": [
            (name, tuple(param.shape), param.requires_grad, param.grad is None)
            for name, param in module.named_parameters()
        ],
        "the device": [param.device.type for param in module.parameters()],
        "the mode (train or eval)": [part.training for part in module.modules()],
        "the hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()],
    }


def _example_classifier() -> CounterInput:
    import torch

    with torch.device("meta"):
        module = _build_classifier()
    size = 12 * 32 + 32 * 5
    return CounterInput(
        module=module,
        task=SupervisedTask(inputs=(12,), outputs_size=5),
        parameters=ParameterCounts(total=size, lookup_table=0, unembedding=32 * 5, active=size),
        own_flops_per_token=6.0 * size,
        family="example/vectors",
    )


def _build_classifier() -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.Linear(12, 32, bias=False), nn.ReLU(), nn.Linear(32, 5, bias=False))


def example_model(width: int) -> CounterInput:
    """A small language model on the meta device, counted by hand."""
    import torch

    with torch.device("meta"):
        module = _build(width)
    vocabulary, hidden = TASK.vocab_size, 4 * width
    table, matrices = vocabulary * width, 2 * width * hidden + width * vocabulary
    return CounterInput(
        module=module,
        task=TASK,
        parameters=ParameterCounts(
            total=table + matrices, lookup_table=table, unembedding=width * vocabulary, active=table + matrices
        ),
        own_flops_per_token=3 * 2.0 * matrices,
        family="example/example",
        shape=TransformerShape(
            vocabulary=vocabulary, context=TASK.context, width=width, depth=1, heads=0, key_size=0, hidden=hidden
        ),
    )


def _build(width: int) -> nn.Module:
    from torch import nn

    return nn.Sequential(
        nn.Embedding(TASK.vocab_size, width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
        nn.Linear(width, TASK.vocab_size, bias=False),
    )
