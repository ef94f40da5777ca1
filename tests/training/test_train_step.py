"""One optimizer step: in parts, with too little memory, compiled."""

import logging

import pytest
import torch
from small import Bench, train

from flops_fit_devices.peaks import dense_peak


def result(micro_batch=None, spoil=None, **changes):
    bench = Bench()
    if spoil is not None:
        bench.built.append(spoil)
    trainer = {"micro_batch": micro_batch} if micro_batch else {}
    (run_result,) = train(bench.table(40, batch_size=12, trainer={**trainer, **changes}), bench.registry())
    return run_result


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 12, 99])
def test_micro_batches_reach_the_loss_of_the_whole_batch_within_rounding(micro_batch):
    undivided, parts = result(), result(micro_batch)
    assert parts.loss == pytest.approx(undivided.loss, rel=2e-5)
    assert parts.id == undivided.id
    assert parts.micro_batch == (micro_batch if micro_batch < 12 else None)
    assert parts.tokens == undivided.tokens


def test_clipping_sees_the_gradient_of_the_whole_batch():
    undivided, parts = result(grad_clip=1e-3), result(4, grad_clip=1e-3)
    assert parts.loss == pytest.approx(undivided.loss, rel=2e-5)
    assert parts.loss != pytest.approx(result().loss, rel=1e-4)


def too_large_for(samples):
    """A model that has memory for so many samples while it is trained."""

    def spoil(model):
        def check(module, inputs):
            if torch.is_grad_enabled() and len(inputs[0]) > samples:
                raise torch.OutOfMemoryError(f"tried to allocate {len(inputs[0])} samples")

        model.register_forward_pre_hook(check)

    return spoil


def test_running_out_of_memory_halves_the_micro_batch_and_goes_on(caplog):
    with caplog.at_level(logging.WARNING, "flops_fit"):
        small = result(spoil=too_large_for(4))
    assert small.status == "completed"
    assert small.micro_batch == 3
    assert small.loss == pytest.approx(result().loss, rel=2e-5)
    assert "continuing with micro-batches of 6 samples" in caplog.text
    assert "continuing with micro-batches of 3 samples" in caplog.text


def test_one_sample_that_is_too_large_fails_the_run():
    failed = result(spoil=too_large_for(0))
    assert failed.status == "failed"
    assert failed.error.type == "OutOfMemoryError"


def test_a_model_that_cannot_be_compiled_is_trained_as_it_is(monkeypatch, caplog):
    from torch._dynamo.exc import TorchDynamoException

    def broken(model, **options):
        calls = []

        def call(*inputs):
            if not calls:
                calls.append(torch.rand(100))
                raise TorchDynamoException("no compiler here\nand more")
            raise AssertionError("asked again")

        return call

    plain = result()
    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        compiled = result(compile=True)
    assert compiled.error is None
    assert compiled.loss == plain.loss
    assert not compiled.compiled
    assert "no compiler here" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, when it loads its compiler
def test_a_compiled_model_learns_what_it_learns_uncompiled():
    compiled = result(compile=True)
    assert compiled.error is None
    assert compiled.compiled
    assert compiled.loss == pytest.approx(result().loss, rel=1e-4)


def test_an_error_of_the_model_is_not_taken_for_one_of_the_compiler():
    def spoil(model):
        def fail(module, inputs):
            if torch.is_grad_enabled():
                raise ValueError("mine")

        model.register_forward_pre_hook(fail)

    failed = result(spoil=spoil)
    assert (failed.error.type, failed.error.message) == ("ValueError", "mine")


def test_a_result_says_how_long_the_device_waited_for_data(monkeypatch):
    import time

    bench = Bench()
    build = bench.build_walk

    def slow(options, seed):
        walk = build(options, seed)
        batches = walk.batches

        def late(batch_size, start=0):
            for batch in batches(batch_size, start):
                time.sleep(0.02)
                yield batch

        walk.batches = late
        return walk

    monkeypatch.setattr(bench, "build_walk", slow)
    (late,) = train(bench.table(30), bench.registry())
    assert 0.5 < late.data_wait <= 1
    assert result().data_wait < 0.5


def test_batches_that_are_fetched_ahead_come_in_order_and_errors_in_their_place(monkeypatch):
    from flops_fit_core.training import batch_loader

    monkeypatch.setattr(batch_loader, "pinned", lambda batch: batch)

    def source():
        yield from range(5)
        raise ValueError("the sixth")

    fetched = batch_loader.Prefetcher(source())
    assert [next(fetched) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="the sixth"):
        next(fetched)
    fetched = batch_loader.Prefetcher(iter(range(1000)))
    assert [next(fetched) for _ in range(10)] == list(range(10))
    fetched.stop()


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H100 NVL", 835e12, 60e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA H200 NVL", 835e12, 60e12),
        ("NVIDIA H20", 148e12, 44e12),
        ("NVIDIA B200", 2250e12, 75e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("A100-SXM4-40GB", 312e12, 19.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40", 181.05e12, 90.5e12),
        ("NVIDIA L40S", 362.05e12, 91.6e12),
        ("NVIDIA RTX A6000", 154.8e12, 38.7e12),
        ("NVIDIA RTX 6000 Ada Generation", 364.2e12, 91.1e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce RTX 5090", 209.5e12, 104.8e12),
        ("Tesla T4", None, 8.1e12),
        ("Tesla V100-SXM2-32GB", None, 15.7e12),
        ("AMD Instinct MI300X", 1307.4e12, 163.4e12),
        ("AMD Instinct MI250X", 191.5e12, 47.85e12),
    ],
)
def test_peaks_are_those_of_the_data_sheets(name, bfloat16, float32):
    for precision, peak in (("bfloat16", bfloat16), ("float32", float32)):
        assert dense_peak(name, precision) == (peak and pytest.approx(peak, rel=1e-12))


@pytest.mark.parametrize(
    "name",
    [
        "An unknown GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "GRID A100-10C",
        "NVIDIA A100X",
        "NVIDIA A10M",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA RTX 6000",
        "NVIDIA GeForce RTX 3080",
        "AMD Instinct MI250X/MI250",
    ],
)
def test_a_card_whose_name_only_begins_as_another_has_no_peak(name):
    assert dense_peak(name, "bfloat16") is None
    assert dense_peak(name, "float32") is None


def test_a_partition_of_a_gpu_has_no_peak():
    assert dense_peak("AMD Instinct MI300X", "bfloat16", 304) == pytest.approx(1307.4e12)
    assert dense_peak("AMD Instinct MI300X", "bfloat16", 38) is None
    assert dense_peak("NVIDIA A100-SXM4-80GB", "bfloat16", 108) == pytest.approx(312e12)
