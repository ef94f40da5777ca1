"""The conformance kit for model families.

::

    from flops_fit_core.testing import ModelConformance

    class TestMyFamily(ModelConformance):
        name = "mine"
        options = {"width": 32}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from flops_fit_core.config import Chosen
from flops_fit_core.contracts import Batch, Task
from flops_fit_core.tasks import LanguageTask
from flops_fit_core.testing.kit import Kit, forward_flops, part, random_batch, tensors

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
    def build(self, chosen: Chosen[Any]) -> Build:
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
        assert counted == {name: tuple(it.shape) for name, it in build().named_parameters()}

    def test_a_larger_size_has_more_parameters(self, build: Build, chosen: Chosen[Any]) -> None:
        """Twice the size option, rounded up to what the family asks for."""
        spec = chosen.spec
        size = getattr(chosen.options, spec.size)
        larger = -(-2 * size // spec.multiple_of) * spec.multiple_of
        counts = [_count(_on_meta(build, **{spec.size: one})) for one in (size, larger)]
        assert counts[0] < counts[1], f"{spec.size} = {size} and {larger} have {counts} parameters"

    def test_scale_comes_near_the_parameters_it_is_asked_for(self, build: Build, chosen: Chosen[Any]) -> None:
        """Within a factor of two, where the family scales by more than one integer."""
        if chosen.spec.scale is None:
            pytest.skip("this family scales by its size option alone")
        smallest = _count(_on_meta(build))
        for target in (4 * smallest, 64 * smallest):
            options = chosen.spec.scale(chosen.options, target)
            found = _count(_on_meta(build, **options.model_dump(exclude_unset=True)))
            assert 0.5 <= found / target <= 2, f"asked for {target:,} parameters, got {found:,}"

    def test_its_own_flops_are_three_times_the_forward_pass(
        self, build: Build, chosen: Chosen[Any], batch: Batch, trained: None
    ) -> None:
        """Forward and backward, as torch counts matrix products, convolutions and attention."""
        count = chosen.spec.flops_per_token
        if count is None:
            pytest.skip("this family leaves counting to a FLOPs counter")
        own = count(chosen.options, self.task)
        if own is None:
            pytest.skip("this family has no count for these options")
        expected = 3 * self._forward_flops(build, batch)
        assert own == pytest.approx(expected, rel=self.flops_tolerance), (
            f"own count {own:,.0f} a token; three times torch's count of the forward pass is {expected:,.0f}"
        )

    def _forward_flops(self, build: Build, batch: Batch) -> float:
        """On the meta device where that is possible: torch cannot count fused kernels, such as a CPU's LSTM."""
        import torch

        try:
            with torch.device("meta"):
                return forward_flops(build(), self.task, self.task.example(len(next(tensors(batch)))))
        except (NotImplementedError, RuntimeError):
            return forward_flops(build(), self.task, batch)

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
        assert any(not first[name].equal(second[name]) for name in first)

    def test_its_state_is_all_there_is(self, build: Build, batch: Batch, trained: None) -> None:
        """A checkpoint restores it: no weight hides outside of the state dict."""
        import torch

        one, other = build(seed=0).eval(), build(seed=1).eval()
        other.load_state_dict(one.state_dict())
        with torch.no_grad():
            expected = _logits(self.task.outputs(one, batch))
            assert torch.equal(_logits(self.task.outputs(other, batch)), expected)

    def test_its_groups_hold_every_parameter_once(self, build: Build, chosen: Chosen[Any]) -> None:
        """Shared parameters too; and widths are numbers of channels."""
        if chosen.spec.parameter_groups is None:
            pytest.skip("this family has no parameter groups")
        module = build()
        groups = list(chosen.spec.parameter_groups(module))
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        grouped = [names[id(parameter)] for group in groups for parameter in group.parameters]
        assert sorted(grouped) == sorted(names.values())
        assert all(group.width is None or group.width >= 1 for group in groups)

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
            pytest.fail(f"forward on the meta device: {type(error).__name__}: {error}")

    def test_every_parameter_gets_a_gradient(self, build: Build, batch: Batch, trained: None) -> None:
        """In one of the first three steps at least: a head that starts at zero holds back the others in the
        first. A parameter that never gets one would be counted and never trained."""
        import torch

        module = build().train()
        descent = torch.optim.SGD(module.parameters(), lr=0.1)
        still = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        for _ in range(3):
            descent.zero_grad()
            loss, count = self.task.loss(self.task.outputs(module, batch), batch)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
            still -= {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
            descent.step()
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
        assert torch.allclose(before, after, atol=1e-5), "the first half of a text saw the second"

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
        assert sum(parts) == pytest.approx(whole, rel=1e-4)


def _on_meta(build: Build, **changes: Any) -> nn.Module:
    import torch

    try:
        with torch.device("meta"):
            return build(**changes)
    except (NotImplementedError, RuntimeError) as error:
        return pytest.fail(f"it cannot be built on the meta device: {type(error).__name__}: {error}")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _logits(outputs: Any) -> Any:
    return getattr(outputs, "logits", outputs)
