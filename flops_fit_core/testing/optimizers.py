"""The conformance kit for optimizers.

::

    from flops_fit_core.testing import OptimizerConformance

    class TestMyOptimizer(OptimizerConformance):
        name = "mine"
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from flops_fit_core.config import Chosen
from flops_fit_core.contracts import ParameterGroup, RunView
from flops_fit_core.testing.kit import Kit

if TYPE_CHECKING:
    from torch import nn, optim

WIDTH, BASE_WIDTH = 32, 8
Build = Callable[..., "optim.Optimizer"]


class OptimizerConformance(Kit):
    """What every optimizer must do. Inherit, set ``name``, and run pytest.

    Attributes:
        lr: A peak learning rate at which it learns a small regression.
        lr_option: Name of the option for it; None for an optimizer that takes none.
        decay_option: Name of the option for weight decay, where it has one.
    """

    kind: ClassVar[str] = "optimizer"
    lr = 0.01
    lr_option: str | None = "lr"
    decay_option: str | None = "weight_decay"

    # ------------------------------------------------------------------ fixtures

    @pytest.fixture
    def model(self) -> nn.Module:
        """Two layers: matrices fed by 32 channels that the family scales with, and biases that are not decayed."""
        import torch

        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 3))

    @pytest.fixture
    def build(self, chosen: Chosen[Any]) -> Build:
        """``build(model, base_width=None, **changed options)``, with ``lr`` unless it is changed."""

        def build(model: nn.Module, base_width: int | None = None, **changes: Any) -> optim.Optimizer:
            given = {self.lr_option: self.lr} if self.lr_option else {}
            options = chosen.with_options(**{**given, **changes}).options
            view = RunView(steps=100, tokens=6400, tokens_per_step=64, base_width=base_width, groups=_groups)
            optimizer: optim.Optimizer = chosen.spec.build(options, model, view)
            return optimizer

        return build

    # ------------------------------------------------------------------ parameters

    def test_every_parameter_is_in_one_group(self, build: Build, model: nn.Module) -> None:
        """One that is in none is never trained."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        grouped = [names[id(it)] for group in build(model).param_groups for it in group["params"]]
        assert sorted(grouped) == sorted(names.values())

    def test_a_step_moves_every_parameter(self, build: Build, model: nn.Module) -> None:
        """In the first ten, that is: a warmup of its own may hold it back."""
        before = copy.deepcopy(model.state_dict())
        _train(model, build(model), steps=10)
        still = [name for name, value in model.state_dict().items() if value.equal(before[name])]
        assert not still, f"not moved in ten steps: {', '.join(still)}"

    # ------------------------------------------------------------------ learning rate

    def test_groups_start_at_the_peak_learning_rate(self, build: Build, model: nn.Module) -> None:
        """The trainer multiplies each group's ``lr`` by the schedule."""
        if self.lr_option is None:
            pytest.skip("this optimizer takes no learning rate")
        for lr in (self.lr, self.lr / 3):
            rates = [group["lr"] for group in build(model, **{self.lr_option: lr}).param_groups]
            assert rates == pytest.approx([lr] * len(rates))

    def test_a_learning_rate_of_zero_moves_nothing(self, build: Build, model: nn.Module) -> None:
        """A step goes by the group's ``lr`` of that moment, which is how a schedule acts."""
        optimizer, before = build(model), copy.deepcopy(model.state_dict())
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        _train(model, optimizer, steps=2)
        moved = [name for name, value in model.state_dict().items() if not value.equal(before[name])]
        assert not moved, f"moved although every group's lr is 0: {', '.join(moved)}"

    def test_a_tenth_of_the_learning_rate_is_a_smaller_first_step(self, build: Build, model: nn.Module) -> None:
        """Less than half as long."""
        if self.lr_option is None:
            pytest.skip("this optimizer takes no learning rate")
        lengths = []
        for lr in (self.lr, self.lr / 10):
            moved = copy.deepcopy(model)
            _train(moved, build(moved, **{self.lr_option: lr}), steps=1)
            lengths.append(_distance(model, moved))
        assert lengths[1] < 0.5 * lengths[0], f"steps of {lengths} at lr = {self.lr} and a tenth of it"

    def test_wide_matrices_get_a_smaller_learning_rate(
        self, build: Build, chosen: Chosen[Any], model: nn.Module
    ) -> None:
        """``lr * run.lr_scale(group)``: a quarter at four times the base width; the same without one."""
        if not chosen.spec.adam_like or self.lr_option is None:
            pytest.skip("widths scale the learning rates of Adam-like optimizers only")
        rates = {}
        for base_width in (None, BASE_WIDTH):
            groups = build(model, base_width).param_groups
            rates[base_width] = {it.ndim: group["lr"] for group in groups for it in group["params"]}
        assert rates[None] == pytest.approx({2: self.lr, 1: self.lr})
        assert rates[BASE_WIDTH] == pytest.approx({2: self.lr * BASE_WIDTH / WIDTH, 1: self.lr})

    # ------------------------------------------------------------------ weight decay

    def test_only_groups_that_may_decay_do(self, build: Build, chosen: Chosen[Any], model: nn.Module) -> None:
        """Without a gradient, matrices shrink and biases stay."""
        import torch

        if self.decay_option not in type(chosen.options).model_fields:
            pytest.skip("this optimizer has no weight decay")
        before = copy.deepcopy(model.state_dict())
        optimizer = build(model, **{self.decay_option: 0.1})
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        after = model.state_dict()
        assert after["0.weight"].norm() < before["0.weight"].norm(), "a matrix has to shrink"
        assert after["0.bias"].equal(before["0.bias"]), "a bias must not shrink"

    # ------------------------------------------------------------------ learning

    def test_it_learns(self, build: Build, model: nn.Module) -> None:
        """A linear function of 32 inputs, in 200 steps."""
        losses = _train(model, build(model), steps=200)
        assert losses[-1] < 0.7 * losses[0], f"loss {losses[0]:.4g} at first, {losses[-1]:.4g} after 200 steps"

    def test_its_state_goes_on_where_it_was_saved(self, build: Build, model: nn.Module) -> None:
        """A run that is resumed from a checkpoint ends with the same weights, bit for bit."""
        optimizer = build(model)
        _train(model, optimizer, steps=3)
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        _train(model, optimizer, steps=3)
        other = copy.deepcopy(model)
        again = build(other)
        other.load_state_dict(saved[0])
        again.load_state_dict(saved[1])
        _train(other, again, steps=3)
        different = [
            name for name, value in other.state_dict().items() if not value.equal(model.state_dict()[name])
        ]
        assert not different, f"differ after resuming: {', '.join(different)}"


def _groups(model: nn.Module) -> Sequence[ParameterGroup]:
    parameters = list(model.parameters())
    return [
        ParameterGroup([it for it in parameters if it.ndim == 2], width=WIDTH),
        ParameterGroup([it for it in parameters if it.ndim == 1], decay=False),
    ]


def _train(model: nn.Module, optimizer: optim.Optimizer, steps: int) -> list[float]:
    """Mean squared error before each step."""
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, WIDTH, generator=generator)
    targets = inputs @ torch.randn(WIDTH, 3, generator=generator) / WIDTH**0.5
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _distance(one: nn.Module, other: nn.Module) -> float:
    import torch

    pairs = zip(one.parameters(), other.parameters(), strict=True)
    with torch.no_grad():
        return float(sum((a - b).square().sum() for a, b in pairs) ** 0.5)
