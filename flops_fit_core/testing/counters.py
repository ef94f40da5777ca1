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
    """What every FLOPs counter must do. Inherit, set ``name``, and run pytest.

    Attributes:
        slack: How far a count may be from three times torch's count of the forward pass, as a factor:
            conventions differ in what they leave out, or count twice. Three or more would let a counter
            pass that forgets the backward pass.
    """

    kind: ClassVar[str] = "counter"
    slack = 2.0

    @pytest.fixture
    def count(self, chosen: PluginConfig[Any]) -> Count:
        """Counts a model."""

        def count(measured: CounterInput) -> FlopCount:
            found: FlopCount = chosen.spec.build(chosen.options, measured)
            assert isinstance(found, FlopCount), f"gave {found!r} instead of a FlopCount"
            return found

        return count

    def test_it_counts_forward_and_backward(self, count: Count) -> None:
        """About three times the forward pass, at several widths."""
        for width in (16, 64):
            forward = forward_flops(_build(width), TASK, random_batch(TASK, 2))
            ratio = count(measured_model(width)).flops_per_token / (3 * forward)
            assert 1 / self.slack < ratio < self.slack, (
                f"{ratio:.2f} of three times the forward pass at width {width}"
                + (": is the backward pass, twice the forward pass, counted?" if ratio < 1 else "")
            )

    def test_a_larger_model_costs_more(self, count: Count) -> None:
        """In FLOPs and in N."""
        small, large = count(measured_model(16)), count(measured_model(32))
        assert small.flops_per_token < large.flops_per_token, "at twice the width"
        assert small.params < large.params, "N at twice the width"

    def test_it_says_what_it_counts(self, count: Count) -> None:
        """Every table and figure repeats these words; terms, where there are any, are of these FLOPs."""
        found = count(measured_model(16))
        assert found.flops_name.strip(), "flops_name is empty"
        assert found.params_name.strip(), "params_name is empty"
        total = sum(found.terms.values())
        assert not found.terms or total == pytest.approx(found.flops_per_token), (
            f"terms add up to {total:,.0f}, flops_per_token is {found.flops_per_token:,.0f}"
        )

    def test_n_is_a_number_of_the_model_s_parameters(self, count: Count) -> None:
        """A whole one, and no more than there are."""
        measured = measured_model(16)
        found = count(measured)
        assert isinstance(found.params, int)
        assert 0 < found.params <= measured.parameters.total

    def test_it_counts_without_reading_or_changing_the_model(self, count: Count) -> None:
        """On the meta device there is nothing to read; the same model has the same count."""
        measured = measured_model(16)
        before = _condition(measured.module)
        assert count(measured) == count(measured), "counted twice, the model has two counts"
        after = _condition(measured.module)
        for what, was in before.items():
            assert after[what] == was, f"it has changed {what} of the model"

    def test_a_family_that_does_not_describe_itself_is_counted_or_refused(self, count: Count) -> None:
        """Refused with one of flops-fit's own errors, that is."""
        silent = replace(measured_model(16), own_flops_per_token=None, shape=None)
        try:
            found = count(silent)
        except FlopsFitError:
            return
        assert found.flops_per_token > 0

    def test_a_model_of_images_is_counted_or_refused(self, count: Count) -> None:
        """Refused with one of flops-fit's own errors: a task need not have a context or a vocabulary."""
        images = _model_of_vectors()
        try:
            found = count(images)
        except FlopsFitError:
            return
        forward = forward_flops(_vectors(), images.task, random_batch(images.task, 2))
        ratio = found.flops_per_token / (3 * forward)
        assert 1 / self.slack < ratio < self.slack, f"{ratio:.2f} of three times the forward pass of a sample"


def _condition(module: nn.Module) -> dict[str, object]:
    return {
        "the parameters": [
            (name, tuple(it.shape), it.requires_grad, it.grad is None) for name, it in module.named_parameters()
        ],
        "the device": [it.device.type for it in module.parameters()],
        "the mode (train or eval)": [part.training for part in module.modules()],
        "the hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()],
    }


def _model_of_vectors() -> CounterInput:
    import torch

    with torch.device("meta"):
        module = _vectors()
    size = 12 * 32 + 32 * 5
    return CounterInput(
        module=module,
        task=SupervisedTask(inputs=(12,), outputs_size=5),
        parameters=ParameterCounts(total=size, lookup_table=0, unembedding=32 * 5, active=size),
        own_flops_per_token=6.0 * size,
        family="example/vectors",
    )


def _vectors() -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.Linear(12, 32, bias=False), nn.ReLU(), nn.Linear(32, 5, bias=False))


def measured_model(width: int) -> CounterInput:
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
