"""The conformance kit for optimizers.

::

    from flops_fit_core.testing import OptimizerConformance

    class TestMyOptimizer(OptimizerConformance):
        name = "mine"
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from flops_fit_core.config import PluginConfig
from flops_fit_core.plugins.protocols import ParameterGroup, RunInfo
from flops_fit_core.testing.kit import Kit

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

WIDTH, BASE_WIDTH = 32, 8
Build = Callable[..., "optim.Optimizer"]


class OptimizerConformance(Kit):
    """Tests for every optimizer. Inherit, set ``name``, and run pytest.

    Attributes:
        lr: A peak learning rate at which the optimizer learns a small regression.
        lr_option: Name of the option for the learning rate; None for an optimizer without a learning rate.
        decay_option: Name of the option for weight decay. Ignored if the optimizer does not have the option.
        hidden_width_power: For ``width_scaling="custom"``: hidden matrices get ``lr`` times this power of
            ``run.lr_scale(group)``, and all other parameters get Adam's learning rates. None: not tested.
    """

    kind: ClassVar[str] = "optimizer"
    lr = 0.01
    lr_option: str | None = "lr"
    decay_option: str | None = "weight_decay"
    hidden_width_power: float | None = None

    # ------------------------------------------------------------------ fixtures

    @pytest.fixture
    def model(self) -> nn.Module:
        """Two layers: matrices with 32 input channels, which scale with the width, and biases without decay."""
        return _model(WIDTH)

    @pytest.fixture
    def build(self, chosen: PluginConfig[Any]) -> Build:
        """``build(model, base_width=None, **options)`` returns the optimizer in train mode, with ``lr`` by
        default."""
        from flops_fit_core.training.optimizer_modes import train_mode

        def build(model: nn.Module, base_width: int | None = None, **changes: Any) -> optim.Optimizer:
            defaults = {self.lr_option: self.lr} if self.lr_option else {}
            options = chosen.with_options(**{**defaults, **changes}).options
            run = RunInfo(
                steps=100,
                tokens=6400,
                tokens_per_step=64,
                base_width=base_width,
                groups=_groups,
                width_scaling=chosen.spec.width_scaling,
            )
            optimizer: optim.Optimizer = chosen.spec.build(options, model, run)
            train_mode(optimizer)
            return optimizer

        return build

    # ------------------------------------------------------------------ parameters

    def test_every_parameter_is_in_one_group(self, build: Build, model: nn.Module) -> None:
        """A parameter without a group is never trained."""
        names = {id(param): name for name, param in model.named_parameters()}
        grouped = [names[id(param)] for group in build(model).param_groups for param in group["params"]]
        assert sorted(grouped) == sorted(names.values())

    def test_a_step_moves_every_parameter(self, build: Build, model: nn.Module) -> None:
        """Within ten steps, because an optimizer may have a built-in warmup."""
        before = copy.deepcopy(model.state_dict())
        _train(model, build(model), steps=10)
        unchanged = [name for name, value in model.state_dict().items() if value.equal(before[name])]
        assert not unchanged, f"not changed in ten steps: {', '.join(unchanged)}"

    def test_a_parameter_without_gradient_stays(self, build: Build, model: nn.Module) -> None:
        """An expert without tokens has no gradient in a step and must not change."""
        optimizer, before = build(model), copy.deepcopy(model.state_dict())
        _loss(model).backward()  # type: ignore[no-untyped-call]
        for parameter in (model[0].weight, model[0].bias):  # type: ignore[index]
            parameter.grad = None
        optimizer.step()
        assert model.state_dict()["0.weight"].equal(before["0.weight"]), "moved without a gradient"
        assert not model.state_dict()["2.weight"].equal(before["2.weight"]), "other parameters did not move"

    # ------------------------------------------------------------------ learning rate

    def test_groups_start_at_the_peak_learning_rate(self, build: Build, model: nn.Module) -> None:
        """The trainer multiplies each group's ``lr`` by the schedule."""
        if self.lr_option is None:
            pytest.skip("this optimizer takes no learning rate")
        for lr in (self.lr, self.lr / 3):
            rates = [group["lr"] for group in build(model, **{self.lr_option: lr}).param_groups]
            assert rates == pytest.approx([lr] * len(rates))

    def test_a_learning_rate_of_zero_moves_nothing(
        self, build: Build, chosen: PluginConfig[Any], model: nn.Module
    ) -> None:
        """A schedule changes the group's ``lr``, and a step uses the current value. Weight decay, too."""
        decays = self.decay_option in type(chosen.options).model_fields
        optimizer = build(model, **({self.decay_option: 0.1} if self.decay_option and decays else {}))
        before = copy.deepcopy(model.state_dict())
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

    def test_learning_rates_scale_with_the_width_as_declared(
        self, build: Build, chosen: PluginConfig[Any]
    ) -> None:
        """At the base width and at four times the base width: see ``OptimizerSpec.width_scaling``."""
        declared = chosen.spec.width_scaling
        if declared == "custom" and self.hidden_width_power is None:
            pytest.skip('with width_scaling="custom", set hidden_width_power to test the rule')
        for width in (BASE_WIDTH, WIDTH):
            model = _model(width)
            unscaled = _learning_rates(model, build(model, base_width=None))
            rates = _learning_rates(model, build(model, base_width=BASE_WIDTH))
            for name, scale in self._expected_scales(declared, BASE_WIDTH / width).items():
                if name not in rates:
                    continue  # another test reports a parameter without a group
                message = _RULES[declared].format(
                    name=name,
                    width=width,
                    base_width=BASE_WIDTH,
                    expected=unscaled[name] * scale,
                    actual=rates[name],
                    power=self.hidden_width_power,
                )
                assert rates[name] == pytest.approx(unscaled[name] * scale), message

    def _expected_scales(self, declared: str, ratio: float) -> dict[str, float]:
        """Learning rate of each parameter over its learning rate without a base width."""
        scales = {"0.weight": ratio, "0.bias": 1.0, "2.weight": ratio, "2.bias": 1.0}
        if declared == "none":
            return dict.fromkeys(scales, 1.0)
        if declared == "custom" and self.hidden_width_power is not None:
            scales["0.weight"] = ratio**self.hidden_width_power
        return scales

    # ------------------------------------------------------------------ other options

    def test_other_betas_are_another_run(self, build: Build, chosen: PluginConfig[Any], model: nn.Module) -> None:
        """Recipes set an option of this name."""
        if "betas" not in type(chosen.options).model_fields:
            pytest.skip("this optimizer has no option betas")
        weights = []
        for betas in ((0.9, 0.95), (0.9, 0.5), (0.5, 0.95)):
            trained = copy.deepcopy(model)
            _train(trained, build(trained, betas=betas), steps=5)
            weights.append(trained)
        assert _distance(weights[0], weights[1]) > 0, "the second value of betas changes nothing"
        assert _distance(weights[0], weights[2]) > 0, "the first value of betas changes nothing"

    def test_only_groups_that_may_decay_do(
        self, build: Build, chosen: PluginConfig[Any], model: nn.Module
    ) -> None:
        """With gradients of zero, matrices shrink and biases stay."""
        import torch

        if self.decay_option not in type(chosen.options).model_fields:
            pytest.skip("this optimizer has no weight decay")
        before = copy.deepcopy(model.state_dict())
        optimizer = build(model, **{self.decay_option: 0.1})
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        after = model.state_dict()
        assert after["0.weight"].norm() < before["0.weight"].norm(), "a matrix must shrink"
        assert after["0.bias"].equal(before["0.bias"]), "a bias must not shrink"

    # ------------------------------------------------------------------ learning

    def test_it_learns(self, build: Build, model: nn.Module) -> None:
        """A linear function of 32 inputs, in 200 steps."""
        from flops_fit_core.training.optimizer_modes import eval_mode

        optimizer = build(model)
        first = _train(model, optimizer, steps=200)[0]
        with eval_mode(optimizer):
            last = float(_loss(model).detach())
        assert last < 0.7 * first, f"loss {first:.4g} at the start, {last:.4g} after 200 steps"

    def test_its_state_goes_on_where_it_was_saved(self, build: Build, model: nn.Module) -> None:
        """A run resumed from a checkpoint (data without code) ends with the same weights, bit for bit."""
        import torch

        from flops_fit_core.training.optimizer_modes import train_mode

        optimizer = build(model)
        _train(model, optimizer, steps=3)
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        _train(model, optimizer, steps=3)
        resumed = copy.deepcopy(model)
        new_optimizer = build(resumed)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        resumed.load_state_dict(weights)
        new_optimizer.load_state_dict(state)
        train_mode(new_optimizer)
        _train(resumed, new_optimizer, steps=3)
        assert not _different(model, resumed), f"differ after resuming: {', '.join(_different(model, resumed))}"

    # ------------------------------------------------------------------ modes

    def test_it_has_both_modes_or_none(self, build: Build, model: nn.Module) -> None:
        """Trainers call both ``train()`` and ``eval()``, or neither."""
        assert hasattr(optimizer := build(model), "train") == hasattr(optimizer, "eval")

    def test_an_evaluation_changes_nothing(self, build: Build, model: nn.Module) -> None:
        """A run with evaluations, also before its first step, ends like a run without."""
        from flops_fit_core.training.optimizer_modes import eval_mode, has_modes

        optimizer, evaluated = build(model), copy.deepcopy(model)
        if not has_modes(optimizer):
            pytest.skip("this optimizer has no modes")
        _train(model, optimizer, steps=4)
        evaluated_optimizer = build(evaluated)
        for steps in (0, 1, 3):
            _train(evaluated, evaluated_optimizer, steps)
            with eval_mode(evaluated_optimizer):
                _loss(evaluated)
        different = _different(model, evaluated)
        assert not different, f"differ after evaluations: {', '.join(different)}"

    def test_a_mode_that_it_is_in_is_kept(self, build: Build, model: nn.Module) -> None:
        """``train()`` in train mode moves no weight, nor does ``eval()`` in eval mode."""
        from flops_fit_core.training.optimizer_modes import has_modes

        optimizer: Any = build(model)
        if not has_modes(optimizer):
            pytest.skip("this optimizer has no modes")
        _train(model, optimizer, steps=3)
        for mode in (optimizer.train, optimizer.eval):
            mode()
            before = copy.deepcopy(model)
            mode()
            assert not _different(model, before), f"moved by a second {mode.__name__}()"


_PARAM_GROUPS = "run.param_groups(model, options.lr, options.weight_decay)"
_RULES = {
    "adam": (
        'width_scaling="adam": {name} must have the learning rate {expected:g} at width {width} with base width '
        f"{{base_width}}, and it has {{actual:g}}. Make the optimizer from {_PARAM_GROUPS}, or declare "
        'width_scaling="none" or "custom"'
    ),
    "none": (
        'width_scaling="none": {name} must have the learning rate {expected:g} at every width, and it has '
        f"{{actual:g}} at width {{width}} with base width {{base_width}}. "
        f'Make the optimizer from {_PARAM_GROUPS}, or declare width_scaling="adam" or "custom"'
    ),
    "custom": (
        'width_scaling="custom" with hidden_width_power = {power}: {name} must have the learning rate '
        "{expected:g} at width {width} with base width {base_width}, and it has {actual:g}"
    ),
}


def _model(width: int) -> nn.Module:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, 3))


def _learning_rates(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, float]:
    """Parameter name -> learning rate."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(param)]: group["lr"] for group in optimizer.param_groups for param in group["params"]}


def _groups(model: nn.Module) -> Sequence[ParameterGroup]:
    hidden, head = (param for param in model.parameters() if param.ndim == 2)
    return [
        ParameterGroup([hidden], width=hidden.shape[1], hidden=True),
        ParameterGroup([head], width=head.shape[1], hidden=False),
        ParameterGroup([param for param in model.parameters() if param.ndim == 1], decay=False, hidden=False),
    ]


def _train(model: nn.Module, optimizer: optim.Optimizer, steps: int) -> list[float]:
    """Train, and return the mean squared error before each step."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = _loss(model)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _loss(model: nn.Module) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, WIDTH, generator=generator)
    targets = inputs @ torch.randn(WIDTH, 3, generator=generator) / WIDTH**0.5
    loss: Tensor = (model(inputs) - targets).square().mean()
    return loss


def _different(first: nn.Module, second: nn.Module) -> list[str]:
    """Names of parameters and buffers that are not equal, bit for bit."""
    return [name for name, value in first.state_dict().items() if not value.equal(second.state_dict()[name])]


def _distance(first: nn.Module, second: nn.Module) -> float:
    import torch

    pairs = zip(first.parameters(), second.parameters(), strict=True)
    with torch.no_grad():
        return float(sum((a - b).square().sum() for a, b in pairs) ** 0.5)
