"""The conformance kit for model families.

::

    from flops_fit_core.testing import ModelConformance

    class TestMyFamily(ModelConformance):
        name = "mine"
        options = {"width": 32}
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from flops_fit_core.config import PluginConfig
from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.flops.model_stats import MAX_REAL_PARAMS
from flops_fit_core.flops.parameter_counts import parameter_groups
from flops_fit_core.plugins.protocols import Batch, Task
from flops_fit_core.testing.batches import part, tensors
from flops_fit_core.testing.kit import Kit, forward_flops, random_batch

if TYPE_CHECKING:
    from torch import nn

Build = Callable[..., "nn.Module"]


class ModelConformance(Kit):
    """Tests for every model family. Inherit, set ``name`` and small ``options``, and run pytest.

    Attributes:
        task: The task of the models.
        trains: False for a family that is counted but never trained, such as that of a loss surface.
        flops_tolerance: Largest relative difference between the family's FLOPs and three times torch's count of
            the forward pass. Increase it for a family with many operations that are not matrix products.
    """

    kind: ClassVar[str] = "model"
    task: Task = LanguageTask(vocab_size=61, context=16)
    trains = True
    flops_tolerance = 0.1

    # ------------------------------------------------------------------ fixtures

    @pytest.fixture
    def build(self, chosen: PluginConfig[Any]) -> Build:
        """``build(seed=0, **changes)`` returns the module, on torch's default device."""

        def build(seed: int = 0, **changes: Any) -> nn.Module:
            import torch

            torch.manual_seed(seed)
            options = chosen.with_options(**changes).options
            module: nn.Module = chosen.spec.build(options, self.task)
            return module

        return build

    @pytest.fixture
    def batch(self) -> Batch:
        """Eight samples with random content. Override it for a custom task."""
        return random_batch(self.task, 8)

    @pytest.fixture
    def trained(self) -> None:
        """Skips the test for a family that is never trained."""
        if not self.trains:
            pytest.skip("this family does not claim to compute anything")

    # ------------------------------------------------------------------ counting

    def test_it_is_built_on_the_meta_device(self, build: Build) -> None:
        """Planning counts models of any size without memory. Do not pass ``device=`` and do not read values."""
        meta = _on_meta(build)
        named_tensors = (*meta.named_parameters(), *meta.named_buffers())
        real = [name for name, tensor in named_tensors if not tensor.is_meta]
        assert not real, f"not on the meta device, so they take memory: {', '.join(real)}"

    def test_the_meta_device_changes_no_shape(self, build: Build) -> None:
        """The counted model is the trained model."""
        counted = {name: tuple(param.shape) for name, param in _on_meta(build).named_parameters()}
        trained = {name: tuple(param.shape) for name, param in build().named_parameters()}
        assert counted == trained, "N and FLOPs would be those of another model"

    def test_a_larger_size_has_more_parameters(self, build: Build, chosen: PluginConfig[Any]) -> None:
        """Twice the size option, rounded up to the family's ``multiple_of``."""
        size, sizes = chosen.spec.size, _two_sizes(chosen)
        counts = [_count(_on_meta(build, **{size: value})) for value in sizes]
        assert counts[0] < counts[1], f"{size} = {sizes[0]} and {sizes[1]} have {counts} parameters"

    def test_scale_comes_near_the_parameters_it_is_asked_for(
        self, build: Build, chosen: PluginConfig[Any]
    ) -> None:
        """Within a factor of two, if the family has ``scale``."""
        if chosen.spec.scale is None:
            pytest.skip("this family scales by its size option alone")
        smallest = _active(chosen, _on_meta(build))
        for target in (4 * smallest, 64 * smallest):
            options = chosen.spec.scale(chosen.options, target)
            params = _active(chosen, _on_meta(build, **options.model_dump(exclude_unset=True)))
            assert 0.5 <= params / target <= 2, f"requested {target:,} parameters, got {params:,}"

    def test_its_automatic_sizes_keep_their_heads(self, build: Build, chosen: PluginConfig[Any]) -> None:
        """Three sizes of each ladder can be built, and all heads have the same number of channels."""
        spec = chosen.spec
        if spec.ladders is None:
            pytest.skip("this family declares no ladders")
        for ladder in spec.ladders(chosen.options):
            start = chosen.with_options(**ladder.options)
            values = [{spec.size: factor * ladder.multiple_of} for factor in (1, 2, 3)]
            if ladder.scale is not None:
                smallest = _active(chosen, _on_meta(build))
                targets = (smallest, 4 * smallest, 16 * smallest)
                values = [ladder.scale(start.options, target).model_dump(exclude_unset=True) for target in targets]
            sizes = [start.with_options(**changes) for changes in values]
            for size in sizes:
                _on_meta(build, **size.options.model_dump(exclude_unset=True))
            heads = [spec.heads(size.options) for size in sizes] if spec.heads is not None else []
            channels = {pair[1] for pair in heads if pair is not None}
            assert len(channels) <= 1, f"heads have {sorted(channels)} channels within a ladder: {heads}"

    def test_its_own_flops_are_three_times_the_forward_pass(
        self, build: Build, chosen: PluginConfig[Any], batch: Batch, trained: None
    ) -> None:
        """Forward and backward, with torch's count of matrix products, convolutions and attention, at two
        sizes."""
        count_flops, size = chosen.spec.flops_per_token, chosen.spec.size
        if count_flops is None:
            pytest.skip("this family leaves counting to a FLOPs counter")
        for value in _two_sizes(chosen):
            count = count_flops(chosen.with_options(**{size: value}).options, self.task)
            if count is None:
                pytest.skip("this family has no count for these options")
            expected = 3 * self._forward_flops(build, batch, **{size: value})
            assert count == pytest.approx(expected, rel=self.flops_tolerance), (
                f"the family counts {count:,.0f} FLOPs per token at {size} = {value}; three times torch's count "
                f"of the forward pass is {expected:,.0f}"
            )

    def _forward_flops(self, build: Build, batch: Batch, **changes: Any) -> float:
        """Count on the meta device if possible, because torch cannot count fused kernels, such as LSTM on a
        CPU."""
        import torch

        try:
            with torch.device("meta"):
                return forward_flops(build(**changes), self.task, self.task.example(len(next(tensors(batch)))))
        except (NotImplementedError, RuntimeError):
            return forward_flops(build(**changes), self.task, batch)

    def test_options_of_width_scaled_runs_change_no_count(self, build: Build, chosen: PluginConfig[Any]) -> None:
        """Sizes are measured before a recipe scales learning rates by the width, so N must not change."""
        if chosen.spec.width_scaled_options is None:
            pytest.skip("this family has no options for width-scaled runs")
        values = dict(chosen.spec.width_scaled_options(chosen.options))
        unknown = values.keys() - chosen.spec.options.model_fields.keys()
        assert not unknown, f"width_scaled_options returns unknown options: {', '.join(sorted(unknown))}"
        plain, scaled = _count(_on_meta(build)), _count(_on_meta(build, **values))
        assert scaled == plain, f"width_scaled_options {values} change N from {plain:,} to {scaled:,}"

    # ------------------------------------------------------------------ weights

    def test_the_same_seed_gives_the_same_weights(self, build: Build) -> None:
        """Weights depend on torch's generator only."""
        first, second = build(seed=0).state_dict(), build(seed=0).state_dict()
        assert first.keys() == second.keys()
        different = [name for name in first if not first[name].equal(second[name])]
        assert not different, f"differ between two builds with the same seed: {', '.join(different)}"

    def test_another_seed_gives_other_weights(self, build: Build, trained: None) -> None:
        """If a family seeds the generator, replicates of a run are equal."""
        first, second = build(seed=0).state_dict(), build(seed=1).state_dict()
        assert any(not first[name].equal(second[name]) for name in first), (
            "seeds 0 and 1 gave the same weights, so replicates of a run would be equal. Torch's generator is "
            "seeded before the module is built; build must not seed it again"
        )

    def test_its_state_is_all_there_is(self, build: Build, batch: Batch, trained: None) -> None:
        """A checkpoint restores a model in the middle of training. All weights, counters and random states are in
        the state dict or in the global generators."""
        from flops_fit_core.training.rng import random_state, set_random_state

        original, restored = build(seed=0), build(seed=1)
        self._train(original, batch)
        saved, generators = copy.deepcopy(original.state_dict()), random_state("cpu")
        expected = self._train(original, batch), self._evaluate(original, batch)
        restored.load_state_dict(saved)
        set_random_state(generators, "cpu")
        losses = self._train(restored, batch), self._evaluate(restored, batch)
        assert losses == expected, (
            "three steps and an evaluation after loading the state dict of another module have the losses "
            f"{losses} instead of {expected}. State of the model must be a parameter or a buffer"
        )

    def test_its_groups_hold_every_parameter_once(self, build: Build, chosen: PluginConfig[Any]) -> None:
        """Shared parameters, too. Widths are numbers of channels."""
        if chosen.spec.parameter_groups is None:
            pytest.skip("this family has no parameter groups")
        module = build()
        groups = list(chosen.spec.parameter_groups(module))
        names = {id(param): name for name, param in module.named_parameters() if param.requires_grad}
        frozen = [param for group in groups for param in group.parameters if id(param) not in names]
        assert not frozen, f"{len(frozen)} grouped parameters are not trained, or do not belong to the module"
        grouped = [names[id(param)] for group in groups for param in group.parameters]
        assert sorted(grouped) == sorted(names.values()), "each parameter must be in exactly one group"
        assert all(group.width is None or group.width >= 1 for group in groups)

    def test_a_token_uses_no_more_than_its_groups_say(
        self, build: Build, chosen: PluginConfig[Any], trained: None
    ) -> None:
        """For MoE models: the share of parameters with a gradient from a single token is at most ``active``."""
        groups = chosen.spec.parameter_groups
        if groups is None or not isinstance(self.task, LanguageTask):
            pytest.skip("no parameter groups, or not a language task")
        if all(group.active == 1 for group in groups(build())):
            pytest.skip("every token uses all parameters")
        single = replace(self.task, context=1)
        module = chosen.spec.build(chosen.options, single)
        batch = random_batch(single, 1)
        single.loss(single.outputs(module, batch), batch)[0].backward()  # type: ignore[no-untyped-call]
        for group in groups(module):
            gradients = [param.grad for param in group.parameters if param.grad is not None]
            used = sum(int(gradient.count_nonzero()) for gradient in gradients)
            share = used / max(1, sum(param.numel() for param in group.parameters))
            assert share <= group.active + 1e-9, (
                f"a token used {share:.1%} of a group with active = {group.active:.1%}: N and FLOPs are too small"
            )

    # ------------------------------------------------------------------ computing

    def test_its_outputs_fit_the_loss(self, build: Build, batch: Batch, trained: None) -> None:
        """A finite sum over all predictions, for batches of 8 samples and 1 sample."""
        module = build()
        for samples in (batch, part(batch, 0, 1)):
            loss, count = self.task.loss(self.task.outputs(module, samples), samples)
            assert loss.ndim == 0
            assert loss.isfinite()
            assert count == len(next(tensors(samples))) * self.task.tokens_per_sample

    def test_it_can_be_tried_on_the_meta_device(self, build: Build, trained: None) -> None:
        """Planning tries sizes that are too large for this machine without memory. ``forward`` must not read
        values."""
        import torch

        module = _on_meta(build)
        with torch.device("meta"):
            batch = self.task.example(2)
        try:
            self.task.loss(self.task.outputs(module, batch), batch)
        except Exception as error:
            pytest.fail(
                f"forward on the meta device: {type(error).__name__}: {error}. Planning tries models with more "
                f"than {MAX_REAL_PARAMS:,} parameters on the meta device, and would refuse them. Shapes must not "
                "depend on values (.item(), .nonzero(), boolean masks as an index); multiply by a mask or scatter "
                "instead"
            )

    def test_every_parameter_gets_a_gradient(self, build: Build, batch: Batch, trained: None) -> None:
        """In at least one of the first three steps. In the first step, a head of zeros blocks other gradients. A
        parameter that never gets a gradient would be counted but not trained."""
        module = build()
        missing = {name for name, param in module.named_parameters() if param.requires_grad}
        for _ in range(3):
            self._train(module, batch, steps=1)
            gradients = {name: param.grad for name, param in module.named_parameters()}
            missing -= {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
        assert not missing, f"no gradient, or only zeros: {', '.join(sorted(missing))}"

    def test_a_prediction_sees_no_later_token(self, build: Build, batch: Batch, trained: None) -> None:
        """A change in the second half of a text does not change predictions for the first half."""
        import torch

        if not isinstance(self.task, LanguageTask):
            pytest.skip("not a language task")
        module, half = build().eval(), self.task.context // 2
        changed = batch.clone()
        changed[:, half:] = (changed[:, half:] + 1) % self.task.vocab_size
        with torch.no_grad():
            before, after = (_logits(self.task.outputs(module, text))[:, :half] for text in (batch, changed))
        assert torch.allclose(before, after, atol=1e-5), (
            "predictions for the first half of a text changed with its second half: the model reads later tokens, "
            "or draws random numbers in evaluation mode"
        )

    def test_the_loss_of_a_sample_does_not_depend_on_its_batch(
        self, build: Build, batch: Batch, trained: None
    ) -> None:
        """In evaluation mode, in which the held-out loss is measured."""
        import torch

        module = build().eval()
        with torch.no_grad():
            total, *parts = (
                float(self.task.loss(self.task.outputs(module, samples), samples)[0])
                for samples in (batch, part(batch, 0, 3), part(batch, 3, 8))
            )
        assert sum(parts) == pytest.approx(total, rel=1e-4), (
            f"the summed loss of eight samples is {total:.6g} in one batch, and {sum(parts):.6g} in two: held-out "
            "loss would depend on the batch size or on random numbers (is dropout off in evaluation mode?)"
        )

    def test_a_forward_pass_leaves_its_batch_as_it_was(self, build: Build, batch: Batch, trained: None) -> None:
        """The loss reads the batch afterwards, and the batch may be a view of the dataset."""
        before = [tensor.clone() for tensor in tensors(batch)]
        self.task.outputs(build().train(), batch)
        assert all(tensor.equal(copied) for tensor, copied in zip(tensors(batch), before, strict=True)), (
            "forward changed the batch: work on a copy"
        )

    def test_an_evaluation_leaves_no_trace(self, build: Build, batch: Batch, trained: None) -> None:
        """Evaluations must not change the result of a run. In evaluation mode, ``forward`` changes no buffer and
        draws no random number."""
        import torch

        module = build().eval()
        before, generator = copy.deepcopy(module.state_dict()), torch.get_rng_state()
        self._evaluate(module, batch)
        changed = [name for name, value in module.state_dict().items() if not value.equal(before[name])]
        assert not changed, f"changed by a forward pass in evaluation mode: {', '.join(changed)}"
        assert torch.get_rng_state().equal(generator), "a random number was drawn in evaluation mode"

    def _train(self, module: nn.Module, batch: Batch, steps: int = 3) -> list[float]:
        """Train on a single batch by gradient descent. Returns the loss before each step."""
        import torch

        module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss, count = self.task.loss(self.task.outputs(module, batch), batch)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    def _evaluate(self, module: nn.Module, batch: Batch) -> float:
        import torch

        module.eval()
        with torch.no_grad():
            return float(self.task.loss(self.task.outputs(module, batch), batch)[0])


def _two_sizes(chosen: PluginConfig[Any]) -> tuple[int, int]:
    """The value of the size option, and twice the value, rounded up to the family's ``multiple_of``."""
    spec = chosen.spec
    size = getattr(chosen.options, spec.size)
    return size, -(-2 * size // spec.multiple_of) * spec.multiple_of


def _on_meta(build: Build, **changes: Any) -> nn.Module:
    import torch

    try:
        with torch.device("meta"):
            return build(**changes)
    except (NotImplementedError, RuntimeError) as error:
        return pytest.fail(f"the model cannot be built on the meta device: {type(error).__name__}: {error}")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _active(chosen: PluginConfig[Any], module: nn.Module) -> int:
    """Number of parameters that a token uses."""
    groups = parameter_groups(chosen, module)
    return round(sum(group.active * sum(param.numel() for param in group.parameters) for group in groups))


def _logits(outputs: Any) -> Any:
    return getattr(outputs, "logits", outputs)
