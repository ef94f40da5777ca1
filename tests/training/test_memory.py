"""Memory that runs out: in the optimizer's first step, in evaluations, with several runs side by side."""

import logging

import pytest
import torch
from small import Bench, stopped_after, text_table, train, write_text

from flops_fit_core import RunFailed
from flops_fit_core.plugins import OptimizerSpec, Options, hookimpl
from flops_fit_core.plugins.registry import installed
from flops_fit_core.training import run_evaluator
from flops_fit_core.training.evaluation import evaluate
from flops_fit_core.training.memory import is_out_of_memory
from flops_fit_core.training.step import autocast


class HalfwayOptions(Options):
    """When the optimizer runs out of memory."""

    failing_step: int = 1
    most_samples: int = 4
    """Samples of a micro-batch beside which its step fits."""


class Halfway:
    """A plugin: AdamW that updates its groups one after another; memory runs out between the first and the second.

    As when the second group's moments do not fit beside what a large micro-batch has left of the memory.
    """

    def __init__(self):
        self.samples = 0

    @hookimpl
    def flops_fit_optimizers(self):
        yield OptimizerSpec(name="adamw", options=HalfwayOptions, build=self.build, width_scaling="none")

    def build(self, options, model, run):
        plugin = self
        model.register_forward_pre_hook(lambda module, inputs: setattr(plugin, "samples", len(inputs[0])))

        class AdamW(torch.optim.AdamW):
            def step(self, closure=None):
                groups = self.param_groups
                for group in groups:
                    self.param_groups = [group]
                    super().step()
                    self.param_groups = groups
                    taken = self.state[group["params"][0]]["step"]
                    if taken == options.failing_step and plugin.samples > options.most_samples:
                        raise torch.OutOfMemoryError("the second group does not fit")

        return AdamW([{"params": [parameter]} for parameter in model.parameters()], lr=0.01)


def halfway(trainer=None, folder=None, should_stop=lambda: False, **options):
    """A run with dropout, so that its loss depends on the random generators, too. None for one that is stopped."""
    bench, plugin = Bench(), Halfway()
    registry = bench.registry().with_plugins({"halfway": plugin})
    table = bench.table(
        30,
        batch_size=12,
        model={"name": "bench/net", "dropout": 0.3},
        optimizer={"name": "halfway/adamw", **options},
        trainer=trainer or {},
    )
    return next(iter(train(table, registry, folder, should_stop=should_stop)), None)


def test_a_first_step_that_is_half_applied_is_taken_back_bit_for_bit(caplog):
    with caplog.at_level(logging.WARNING, "flops_fit"):
        result = halfway()
    assert result.error is None
    assert result.micro_batch == 3
    assert "going on with micro-batches of 3 samples" in caplog.text
    never_full = halfway({"micro_batch": 3}, failing_step=1)
    assert result.id == never_full.id
    assert result.loss == never_full.loss


def test_a_resumed_runs_first_step_is_taken_back_bit_for_bit(tmp_path):
    """Then the optimizer has a state before its step."""
    halfway({"micro_batch": 3}, tmp_path, failing_step=10, should_stop=stopped_after(9))
    (latest,) = tmp_path.glob("checkpoints/*/latest.pt")
    assert torch.load(latest, weights_only=True)["position"]["step"] == 9
    resumed = halfway(folder=tmp_path, failing_step=10)
    assert (resumed.error, resumed.micro_batch) == (None, 3)
    assert resumed.loss == halfway({"micro_batch": 3}, failing_step=10).loss


def test_a_later_step_that_is_half_applied_is_refused_and_goes_on_from_the_checkpoint(tmp_path):
    """Its weights are lost, and nobody but the checkpoint has what they were."""
    failed = halfway({"checkpoint_minutes": 1e-9}, tmp_path, failing_step=9)
    assert (failed.status, failed.error.type) == ("failed", "RunFailed")
    assert "may have updated a part of the weights" in failed.error.message
    assert "trainer.micro_batch = 6" in failed.error.message
    (latest,) = tmp_path.glob("checkpoints/*/latest.pt")
    assert torch.load(latest, weights_only=True)["position"]["step"] == 8
    # The process that goes on has a first step again, before which everything is kept.
    again = halfway(folder=tmp_path, failing_step=9)
    assert again.error is None
    assert again.micro_batch == 3
    whole = halfway(most_samples=99)
    assert again.loss == pytest.approx(whole.loss, rel=0.05)  # other dropout masks after step 8
    assert again.tokens == whole.tokens


def test_one_sample_beside_which_the_step_does_not_fit_fails_the_run():
    failed = halfway(most_samples=0)
    assert (failed.status, failed.error.type) == ("failed", "OutOfMemoryError")


def test_buffers_are_taken_back_too(monkeypatch):
    bench, models = Bench(), []

    def count_forward_passes(model):
        def add(module, inputs):
            if module.training:
                module.calls += 1

        model.register_buffer("calls", torch.zeros(()))
        model.register_forward_pre_hook(add)
        models.append(model)

    bench.built.append(count_forward_passes)
    step, attempts = torch.optim.AdamW.step, []

    def out_of_memory_once(self, *arguments, **named):
        attempts.append(len(attempts))
        if attempts == [0]:
            raise torch.OutOfMemoryError("the moments do not fit")
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", out_of_memory_once)
    (result,) = train(bench.table(20, batch_size=8), bench.registry())
    assert (result.error, result.micro_batch) == (None, 4)
    trained = max(int(model.calls) for model in models)
    assert trained == 2 * 20, "two micro-batches of each of the steps, and none of the first attempt"


# ------------------------------------------------------------------ evaluations


def too_large_to_evaluate(most):
    def spoil(model):
        def check(module, inputs):
            if not module.training and len(inputs[0]) > most:
                raise torch.OutOfMemoryError(f"{len(inputs[0])} samples")

        model.register_forward_pre_hook(check)

    return spoil


@pytest.mark.parametrize("most", [1, 3, 10, 49])
def test_an_evaluation_goes_on_in_smaller_batches_to_the_same_loss(most, caplog):
    (whole,) = train(Bench().table(20, trainer={"num_evals": 2}), Bench().registry())
    bench = Bench()
    bench.built.append(too_large_to_evaluate(most))
    with caplog.at_level(logging.WARNING, "flops_fit"):
        (parts,) = train(bench.table(20, trainer={"num_evals": 2}), bench.registry())
    assert parts.error is None
    assert parts.eval_tokens == whole.eval_tokens == 400
    assert parts.loss == pytest.approx(whole.loss, rel=1e-7)
    assert [one.loss for one in parts.curve] == pytest.approx([one.loss for one in whole.curve], rel=1e-7)
    assert "out of memory in an evaluation" in caplog.text


@pytest.mark.parametrize("batch_tokens", [8, 24, 100, 4000])
def test_a_held_out_loss_does_not_depend_on_the_batch(batch_tokens):
    """Compared with one sum in float64 over all samples."""
    bench = Bench()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(12, 8), torch.nn.Linear(8, 12))
    walk = bench.build_walk(Options(), 0)
    rows = torch.cat(list(walk.eval_batches(800, 7)))
    expected = torch.nn.functional.cross_entropy(
        model.double()(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten().long()
    ).item()
    model.float()
    measured = evaluate(
        model, walk, 800, device="cpu", batch_tokens=batch_tokens, autocast=autocast("cpu", "float32")
    )
    assert measured.tokens == 800
    assert measured.loss == pytest.approx(expected, rel=1e-6)


def test_one_sample_that_cannot_be_evaluated_fails_the_run_and_costs_no_step(tmp_path):
    bench = Bench()
    bench.built.append(too_large_to_evaluate(0))
    (failed,) = train(bench.table(40), bench.registry(), tmp_path)
    assert (failed.status, failed.error.type) == ("failed", "OutOfMemoryError")
    assert len(bench.served) == 40
    again = Bench()
    (result,) = train(again.table(40), again.registry(), tmp_path)
    assert again.served == []
    (whole,) = train(Bench().table(40), Bench().registry())
    assert (result.loss, result.tokens) == (whole.loss, whole.tokens)


# ------------------------------------------------------------------ several runs side by side


def test_runs_side_by_side_that_do_not_fit_are_trained_one_by_one(monkeypatch, caplog):
    """Memory runs out when the second of three runs is about to be updated: the first is a step further."""
    step, calls = torch.optim.AdamW.step, []

    def out_of_memory_once(self, *arguments, **named):
        calls.append(self)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("the second run's moments do not fit")
        return step(self, *arguments, **named)

    def runs(vmap_runs):
        bench = Bench()
        return train(
            bench.table(20, sweep={"seeds": [0, 1, 2]}, trainer={"vmap_runs": vmap_runs}), bench.registry()
        )

    alone = runs(1)
    monkeypatch.setattr(torch.optim.AdamW, "step", out_of_memory_once)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        packed = runs(3)
    assert "out of memory with 3 runs side by side" in caplog.text
    assert [(result.id, result.loss, result.vmap_runs) for result in packed] == [
        (result.id, result.loss, 1) for result in alone
    ]


def test_runs_side_by_side_that_do_not_fit_in_an_evaluation_are_trained_one_by_one(monkeypatch, caplog):
    evaluate, calls = run_evaluator.evaluate, []

    def out_of_memory_once(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("one sample does not fit next to three models")
        return evaluate(*arguments, **named)

    def runs(vmap_runs):
        bench = Bench()
        trainer = {"vmap_runs": vmap_runs, "num_evals": 2}
        return train(bench.table(20, sweep={"seeds": [0, 1, 2]}, trainer=trainer), bench.registry())

    alone = runs(1)
    monkeypatch.setattr(run_evaluator, "evaluate", out_of_memory_once)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        packed = runs(3)
    assert "out of memory in an evaluation with 3 runs side by side" in caplog.text
    assert [(result.id, result.loss, result.curve, result.vmap_runs) for result in packed] == [
        (result.id, result.loss, result.curve, 1) for result in alone
    ]


# ------------------------------------------------------------------ which errors it is


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
    ],
)
def test_failed_allocations_of_libraries_are_out_of_memory(error):
    assert is_out_of_memory(error)


def test_torchs_own_failed_allocation_on_the_cpu_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("CUDA error: out of memory"), RunFailed("out of memory")]
)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


# ------------------------------------------------------------------ every bundled optimizer


class FailsOnce:
    """A plugin: a bundled optimizer whose first step is applied and then runs out of memory."""

    def __init__(self, name):
        self.spec = installed().find("optimizer", name).spec
        self.failures = 0

    @hookimpl
    def flops_fit_optimizers(self):
        yield OptimizerSpec(
            name="once",
            options=self.spec.options,
            build=self.build,
            width_scaling=self.spec.width_scaling,
        )

    def build(self, options, model, run):
        optimizer = self.spec.build(options, model, run)
        step = optimizer.step

        def failing(*arguments, **named):
            loss = step(*arguments, **named)
            if not self.failures:
                self.failures += 1
                raise torch.OutOfMemoryError("after the step")
            return loss

        optimizer.step = failing
        return optimizer


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "lion", "adafactor", "schedule-free"])
def test_the_first_step_of_every_bundled_optimizer_can_be_taken_back(name, tmp_path):
    text = write_text(tmp_path / "text", files=10)
    plugin = FailsOnce(name)
    if plugin.spec.extra:
        pytest.importorskip("schedulefree" if name == "schedule-free" else "pytorch_optimizer")
    momentum = {"momentum": 0.9} if name == "sgd" else {}

    def result(**trainer):
        sweep = {"budgets": [3.06708e7], "sizes": [{"width": 8}], "batch_size": 8}
        optimizer = {"name": "fails/once", "lr": 0.01, **momentum}
        table = text_table(text, sweep=sweep, optimizer=optimizer, trainer=trainer)
        return train(table, installed().with_plugins({"fails": plugin}))[0]

    taken_back = result()
    assert (taken_back.error, plugin.failures, taken_back.micro_batch) == (None, 1, 4)
    assert taken_back.loss == result(micro_batch=4).loss
