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
    """What every model family must do. Inherit, set ``name`` and small ``options``, and run pytest.

    Attributes:
        task: The task that models are built for.
        trains: False for a family that is counted and never trained, such as one for a loss surface.
        flops_tolerance: How far the family's own FLOPs may be from three times torch's count of the forward
            pass, relatively. Raise it for a family that computes with more than matrix products.
    """

    kind: ClassVar[str] = "model"
    task: Task = LanguageTask(vocab_size=61, context=16)
    trains = True
    flops_tolerance = 0.1

    # ------------------------------------------------------------------ fixtures

    @pytest.fixture
    def build(self, chosen: PluginConfig[Any]) -> Build:
        """``build(seed=0, **changes)``: the module, on torch's default device."""

        def build(seed: int = 0, **changes: Any) -> nn.Module:
            import torch

            torch.manual_seed(seed)
            options = chosen.with_options(**changes).options
            module: nn.Module = chosen.spec.build(options, self.task)
            return module

        return build

    @pytest.fixture
    def batch(self) -> Batch:
        """Eight samples with random content. Override it for a task of your own."""
        return random_batch(self.task, 8)

    @pytest.fixture
    def trained(self) -> None:
        """Skips what a family that computes nothing cannot do."""
        if not self.trains:
            pytest.skip("this family does not claim to compute anything")

    # ------------------------------------------------------------------ counting

    def test_it_is_built_on_the_meta_device(self, build: Build) -> None:
        """Planning counts models of any size without memory: no tensor may have a ``device=`` of its own, and
        no value may be read."""
        meta = _on_meta(build)
        real = [name for name, it in (*meta.named_parameters(), *meta.named_buffers()) if not it.is_meta]
        assert not real, f"not on the meta device, so their memory is taken: {', '.join(real)}"

    def test_the_meta_device_changes_no_shape(self, build: Build) -> None:
        """What is counted is what is trained."""
        counted = {name: tuple(it.shape) for name, it in _on_meta(build).named_parameters()}
        trained = {name: tuple(it.shape) for name, it in build().named_parameters()}
        assert counted == trained, "N and FLOPs would be those of another model"

    def test_a_larger_size_has_more_parameters(self, build: Build, chosen: PluginConfig[Any]) -> None:
        """Twice the size option, rounded up to what the family asks for."""
        size, sizes = chosen.spec.size, _two_sizes(chosen)
        counts = [_count(_on_meta(build, **{size: one})) for one in sizes]
        assert counts[0] < counts[1], f"{size} = {sizes[0]} and {sizes[1]} have {counts} parameters"

    def test_scale_comes_near_the_parameters_it_is_asked_for(
        self, build: Build, chosen: PluginConfig[Any]
    ) -> None:
        """Within a factor of two, where the family scales by more than one integer."""
        if chosen.spec.scale is None:
            pytest.skip("this family scales by its size option alone")
        smallest = _active(chosen, _on_meta(build))
        for target in (4 * smallest, 64 * smallest):
            options = chosen.spec.scale(chosen.options, target)
            found = _active(chosen, _on_meta(build, **options.model_dump(exclude_unset=True)))
            assert 0.5 <= found / target <= 2, f"asked for {target:,} parameters, got {found:,}"

    def test_its_automatic_sizes_keep_their_heads(self, build: Build, chosen: PluginConfig[Any]) -> None:
        """Three sizes of each ladder are built, and all have heads of one number of channels."""
        spec = chosen.spec
        if spec.ladders is None:
            pytest.skip("this family declares no ladders")
        for ladder in spec.ladders(chosen.options):
            start = chosen.with_options(**ladder.options)
            values = [{spec.size: times * ladder.multiple_of} for times in (1, 2, 3)]
            if ladder.scale is not None:
                smallest = _active(chosen, _on_meta(build))
                targets = (smallest, 4 * smallest, 16 * smallest)
                values = [ladder.scale(start.options, target).model_dump(exclude_unset=True) for target in targets]
            sizes = [start.with_options(**changes) for changes in values]
            for size in sizes:
                _on_meta(build, **size.options.model_dump(exclude_unset=True))
            heads = [spec.heads(size.options) for size in sizes] if spec.heads is not None else []
            channels = {pair[1] for pair in heads if pair is not None}
            assert len(channels) <= 1, f"heads have {sorted(channels)} channels along one ladder: {heads}"

    def test_its_own_flops_are_three_times_the_forward_pass(
        self, build: Build, chosen: PluginConfig[Any], batch: Batch, trained: None
    ) -> None:
        """Forward and backward, as torch counts matrix products, convolutions and attention; at two sizes."""
        count, size = chosen.spec.flops_per_token, chosen.spec.size
        if count is None:
            pytest.skip("this family leaves counting to a FLOPs counter")
        for value in _two_sizes(chosen):
            own = count(chosen.with_options(**{size: value}).options, self.task)
            if own is None:
                pytest.skip("this family has no count for these options")
            expected = 3 * self._forward_flops(build, batch, **{size: value})
            assert own == pytest.approx(expected, rel=self.flops_tolerance), (
                f"own count {own:,.0f} a token at {size} = {value}; three times torch's count of the forward pass "
                f"is {expected:,.0f}"
            )

    def _forward_flops(self, build: Build, batch: Batch, **changes: Any) -> float:
        """On the meta device where that is possible: torch cannot count fused kernels, such as a CPU's LSTM."""
        import torch

        try:
            with torch.device("meta"):
                return forward_flops(build(**changes), self.task, self.task.example(len(next(tensors(batch)))))
        except (NotImplementedError, RuntimeError):
            return forward_flops(build(**changes), self.task, batch)

    def test_options_of_width_scaled_runs_change_no_count(self, build: Build, chosen: PluginConfig[Any]) -> None:
        """Sizes are measured before a recipe scales learning rates by the width: N has to stay."""
        if chosen.spec.width_scaled_options is None:
            pytest.skip("this family has no options for width-scaled runs")
        values = dict(chosen.spec.width_scaled_options(chosen.options))
        unknown = values.keys() - chosen.spec.options.model_fields.keys()
        assert not unknown, f"width_scaled_options gives no options of the family: {', '.join(sorted(unknown))}"
        plain, scaled = _count(_on_meta(build)), _count(_on_meta(build, **values))
        assert scaled == plain, f"width_scaled_options {values} change N from {plain:,} to {scaled:,}"

    # ------------------------------------------------------------------ weights

    def test_the_same_seed_gives_the_same_weights(self, build: Build) -> None:
        """And nothing but torch's generator decides them."""
        first, second = build(seed=0).state_dict(), build(seed=0).state_dict()
        assert first.keys() == second.keys()
        different = [name for name in first if not first[name].equal(second[name])]
        assert not different, f"differ between two builds from one seed: {', '.join(different)}"

    def test_another_seed_gives_other_weights(self, build: Build, trained: None) -> None:
        """A family that seeds the generator itself makes replicates of a run the same run."""
        first, second = build(seed=0).state_dict(), build(seed=1).state_dict()
        assert any(not first[name].equal(second[name]) for name in first), (
            "seeds 0 and 1 gave the same weights: replicates of a run would be the same run. Torch's generator is "
            "seeded before the module is built; build must not seed it again"
        )

    def test_its_state_is_all_there_is(self, build: Build, batch: Batch, trained: None) -> None:
        """A checkpoint restores it in the middle of training: no weight, count or generator of random numbers
        hides outside of the state dict and the global generators."""
        from flops_fit_core.training.rng import random_state, set_random_state

        one, other = build(seed=0), build(seed=1)
        self._descend(one, batch)
        saved, generators = copy.deepcopy(one.state_dict()), random_state("cpu")
        expected = self._descend(one, batch), self._evaluated(one, batch)
        other.load_state_dict(saved)
        set_random_state(generators, "cpu")
        found = self._descend(other, batch), self._evaluated(other, batch)
        assert found == expected, (
            "three steps of training, and an evaluation after them, end elsewhere from the state dict of another "
            f"module: losses {found} instead of {expected}. What forward needs has to be a parameter or a buffer"
        )

    def test_its_groups_hold_every_parameter_once(self, build: Build, chosen: PluginConfig[Any]) -> None:
        """Shared parameters too; and widths are numbers of channels."""
        if chosen.spec.parameter_groups is None:
            pytest.skip("this family has no parameter groups")
        module = build()
        groups = list(chosen.spec.parameter_groups(module))
        names = {id(one): name for name, one in module.named_parameters() if one.requires_grad}
        frozen = [one for group in groups for one in group.parameters if id(one) not in names]
        assert not frozen, f"{len(frozen)} grouped parameters are not trained, or are none of the module's"
        grouped = [names[id(parameter)] for group in groups for parameter in group.parameters]
        assert sorted(grouped) == sorted(names.values()), "each parameter has to be in one group, and in one only"
        assert all(group.width is None or group.width >= 1 for group in groups)

    def test_a_token_uses_no_more_than_its_groups_say(
        self, build: Build, chosen: PluginConfig[Any], trained: None
    ) -> None:
        """Of a mixture of experts: those that get a gradient from a single token are its ``active`` share."""
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
            gradients = [one.grad for one in group.parameters if one.grad is not None]
            used = sum(int(gradient.count_nonzero()) for gradient in gradients)
            share = used / max(1, sum(one.numel() for one in group.parameters))
            assert share <= group.active + 1e-9, (
                f"one token used {share:.1%} of a group that says {group.active:.1%}: N and FLOPs are too small"
            )

    # ------------------------------------------------------------------ computing

    def test_its_outputs_fit_the_loss(self, build: Build, batch: Batch, trained: None) -> None:
        """A finite sum over every prediction, for a batch of eight and of one."""
        module = build()
        for samples in (batch, part(batch, 0, 1)):
            loss, count = self.task.loss(self.task.outputs(module, samples), samples)
            assert loss.ndim == 0
            assert loss.isfinite()
            assert count == len(next(tensors(samples))) * self.task.tokens_per_sample

    def test_it_can_be_tried_on_the_meta_device(self, build: Build, trained: None) -> None:
        """Sizes too large for this machine are tried without memory: ``forward`` may read no value."""
        import torch

        module = _on_meta(build)
        with torch.device("meta"):
            batch = self.task.example(2)
        try:
            self.task.loss(self.task.outputs(module, batch), batch)
        except Exception as error:
            pytest.fail(
                f"forward on the meta device: {type(error).__name__}: {error}. Planning tries models of more than "
                f"{MAX_REAL_PARAMS:,} parameters there, and would refuse them: shapes may not depend on values "
                "(.item(), .nonzero(), boolean masks as an index); multiply by a mask or scatter instead"
            )

    def test_every_parameter_gets_a_gradient(self, build: Build, batch: Batch, trained: None) -> None:
        """In one of the first three steps at least: a head that starts at zero holds back the others in the
        first. A parameter that never gets one would be counted and never trained."""
        module = build()
        still = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        for _ in range(3):
            self._descend(module, batch, steps=1)
            gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
            still -= {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
        assert not still, f"no gradient, or only zeros: {', '.join(sorted(still))}"

    def test_a_prediction_sees_no_later_token(self, build: Build, batch: Batch, trained: None) -> None:
        """Changing the second half of a text leaves the first half's predictions as they are."""
        import torch

        if not isinstance(self.task, LanguageTask):
            pytest.skip("not a language task")
        module, half = build().eval(), self.task.context // 2
        changed = batch.clone()
        changed[:, half:] = (changed[:, half:] + 1) % self.task.vocab_size
        with torch.no_grad():
            before, after = (_logits(self.task.outputs(module, one))[:, :half] for one in (batch, changed))
        assert torch.allclose(before, after, atol=1e-5), (
            "predictions for the first half of a text changed with its second half: the model reads the answers, "
            "or draws random numbers in evaluation mode"
        )

    def test_the_loss_of_a_sample_does_not_depend_on_its_batch(
        self, build: Build, batch: Batch, trained: None
    ) -> None:
        """In evaluation mode, as held-out loss is measured."""
        import torch

        module = build().eval()
        with torch.no_grad():
            whole, *parts = (
                float(self.task.loss(self.task.outputs(module, one), one)[0])
                for one in (batch, part(batch, 0, 3), part(batch, 3, 8))
            )
        assert sum(parts) == pytest.approx(whole, rel=1e-4), (
            f"the summed loss of eight samples is {whole:.6g}, of the same in two batches {sum(parts):.6g}: "
            "held-out loss would depend on how it is batched, or on luck (is dropout off in evaluation mode?)"
        )

    def test_a_forward_pass_leaves_its_batch_as_it_was(self, build: Build, batch: Batch, trained: None) -> None:
        """The loss reads the batch afterwards, and it may be a view of the data themselves."""
        before = [one.clone() for one in tensors(batch)]
        self.task.outputs(build().train(), batch)
        assert all(one.equal(kept) for one, kept in zip(tensors(batch), before, strict=True)), (
            "forward has written into the batch: work on a copy"
        )

    def test_an_evaluation_leaves_no_trace(self, build: Build, batch: Batch, trained: None) -> None:
        """A run that is evaluated more often ends as the others: in evaluation mode, ``forward`` changes no buffer
        and draws no random number."""
        import torch

        module = build().eval()
        before, generator = copy.deepcopy(module.state_dict()), torch.get_rng_state()
        self._evaluated(module, batch)
        changed = [name for name, value in module.state_dict().items() if not value.equal(before[name])]
        assert not changed, f"changed by a forward pass in evaluation mode: {', '.join(changed)}"
        assert torch.get_rng_state().equal(generator), "a random number was drawn in evaluation mode"

    def _descend(self, module: nn.Module, batch: Batch, steps: int = 3) -> list[float]:
        """Losses of gradient descent on one batch, before each step."""
        import torch

        module.train()
        descent = torch.optim.SGD(module.parameters(), lr=0.1)
        losses = []
        for _ in range(steps):
            descent.zero_grad()
            loss, count = self.task.loss(self.task.outputs(module, batch), batch)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            descent.step()
            losses.append(float(loss.detach()))
        return losses

    def _evaluated(self, module: nn.Module, batch: Batch) -> float:
        import torch

        module.eval()
        with torch.no_grad():
            return float(self.task.loss(self.task.outputs(module, batch), batch)[0])


def _two_sizes(chosen: PluginConfig[Any]) -> tuple[int, int]:
    """The size option as it is, and doubled, rounded up to what the family asks for."""
    spec = chosen.spec
    size = getattr(chosen.options, spec.size)
    return size, -(-2 * size // spec.multiple_of) * spec.multiple_of


def _on_meta(build: Build, **changes: Any) -> nn.Module:
    import torch

    try:
        with torch.device("meta"):
            return build(**changes)
    except (NotImplementedError, RuntimeError) as error:
        return pytest.fail(f"it cannot be built on the meta device: {type(error).__name__}: {error}")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _active(chosen: PluginConfig[Any], module: nn.Module) -> int:
    """What a token uses of them."""
    groups = parameter_groups(chosen, module)
    return round(sum(group.active * sum(one.numel() for one in group.parameters) for group in groups))


def _logits(outputs: Any) -> Any:
    return getattr(outputs, "logits", outputs)
