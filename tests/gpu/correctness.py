"""Rows of ``check.py``: numbers that must agree with an independent computation."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from experiments import CheckFailed, check, gpt_table, loss_of, plan_of, relative, train, train_one
from torch import distributed as dist

from flops_fit_core.plugins import ModelSpec, ParameterGroup, RunInfo, hookimpl
from flops_fit_core.plugins.registry import installed
from flops_fit_core.training import evaluate
from flops_fit_core.training.sharding import gather_state, is_sharded, shard_model, shard_state
from flops_fit_core.training.step import autocast
from flops_fit_gpt import GPTOptions, build_gpt
from flops_fit_optim.adamw import AdamWOptions, build_adamw


def environment(device: str, quick: bool) -> str:
    """The hardware and library versions of the other rows."""
    threads = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores"
    if device == "cpu":
        return f"torch {torch.__version__}, CPU only, {threads}"
    name, memory = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory
    nccl = ".".join(str(part) for part in torch.cuda.nccl.version())
    count = torch.cuda.device_count()
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, NCCL {nccl}, {count} x {name}, "
        f"{memory / 2**30:.1f} GiB, bfloat16 {'yes' if bfloat16 else 'no'}, {threads}"
    )


def precision(device: str, quick: bool) -> str:
    """Compare one run in float32 on the CPU with the run in float32 and bfloat16 on the device."""
    steps = 20 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        table = gpt_table("cpu", steps=steps, trainer={"precision": "float32"})
        reference = train_one(table, folder=Path(folder))
        (file,) = Path(folder).glob("checkpoints/*/latest.pt")
        weights = torch.load(file, weights_only=True)["model"]
    losses = {"CPU float32": loss_of(reference)}
    for kind in ("float32", "bfloat16"):
        trained = train_one(gpt_table(device, steps=steps, trainer={"precision": kind}))
        losses[f"{device} {kind}"] = loss_of(trained)
    evaluated = _evaluate_weights(device, table, weights)
    shown = ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items())
    same = ", ".join(f"{kind} {relative(loss, loss_of(reference)):.1e}" for kind, loss in evaluated.items())
    _, float32, bfloat16 = losses.values()
    check(relative(float32, loss_of(reference)) < 0.01, f"float32 is more than 1% off: {shown}")
    check(relative(bfloat16, loss_of(reference)) < 0.03, f"bfloat16 is more than 3% off: {shown}")
    check(relative(evaluated["float32"], loss_of(reference)) < 1e-4, f"evaluation of the same weights: {same}")
    check(relative(evaluated["bfloat16"], loss_of(reference)) < 1e-2, f"evaluation of the same weights: {same}")
    return f"trained: {shown}; the CPU's weights evaluated on {device}, relative difference: {same}"


def _evaluate_weights(device: str, table: dict[str, Any], weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """Held-out loss of the weights on the device, by precision."""
    experiment, plan = plan_of(table, installed())
    dataset = experiment.dataset.spec.build(experiment.dataset.options, 0)
    options = experiment.model.with_options(**plan.runs[0].model.options).options
    model = experiment.model.spec.build(options, dataset.task)
    model.load_state_dict(weights)
    model.to(device)
    return {
        kind: evaluate(
            model, dataset, 8192, device=device, batch_tokens=16_384, autocast=autocast(device, kind)
        ).loss
        for kind in ("float32", "bfloat16")
    }


def resume(device: str, quick: bool) -> str:
    """Compare a run that is stopped and resumed with two uninterrupted runs."""
    table = gpt_table(device, steps=20 if quick else 60)
    default = _resume_differences(table)
    check(default[1] < 5e-3, f"resumed and uninterrupted differ by {default[1]:.1e}")
    torch.use_deterministic_algorithms(True)
    try:
        repeated, resumed = _resume_differences(table)
        check(
            resumed == 0.0 or repeated != 0.0,
            f"deterministic kernels: two runs are equal, but the resumed run differs by {resumed:.1e}",
        )
        deterministic = f"two runs {repeated:.1e}, resumed {resumed:.1e}"
    except CheckFailed as error:
        if "deterministic implementation" not in str(error):
            raise
        deterministic = f"missing for some kernels ({str(error).partition(chr(10))[0][:100]})"
    finally:
        torch.use_deterministic_algorithms(False)
    return (
        f"relative difference of held-out losses, default kernels: two runs {default[0]:.1e}, resumed "
        f"{default[1]:.1e}; deterministic kernels: {deterministic}"
    )


def _resume_differences(table: dict[str, Any]) -> tuple[float, float]:
    """Relative differences of the held-out loss from a first run: of a second run, and of a resumed run."""
    first, second = loss_of(train_one(table)), loss_of(train_one(table))
    with tempfile.TemporaryDirectory() as folder:
        calls = itertools.count(1)
        stopped = train(table, folder=Path(folder), should_stop=lambda: next(calls) > 10)
        check(not stopped, "the run ended before it was stopped")
        resumed = loss_of(train_one(table, folder=Path(folder)))
    return relative(second, first), relative(resumed, first)


class CurrentDevice:
    """Plugin: a gpt that uses the current GPU, like code that calls ``.cuda()``."""

    @hookimpl
    def flops_fit_models(self) -> Any:
        """Offer the family."""
        yield ModelSpec(name="gpt", options=GPTOptions, build=self.build, size="width", width=lambda o: o.width)

    def build(self, options: Any, task: Any) -> torch.nn.Module:
        """A gpt that moves its inputs to the current GPU first."""
        model = build_gpt(options, task)

        def to_current(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
            return tuple(tensor.cuda() for tensor in inputs) if next(module.parameters()).is_cuda else None

        model.register_forward_pre_hook(to_current)
        return model


def current_device(device: str, quick: bool) -> str:
    """Train on the last GPU with a model that uses the current GPU."""
    index = torch.cuda.device_count() - 1
    registry = installed().with_plugins({"current": CurrentDevice()})
    table = gpt_table("cuda", steps=5, model={"name": "current/gpt"}, counter={"name": "chinchilla"})
    table["device"] = {"name": "cuda", "index": index}
    result = train_one(table, registry)
    check(torch.cuda.current_device() == index, f"the current device is cuda:{torch.cuda.current_device()}")
    return f"trained on cuda:{index}, which is the current device; held-out loss {loss_of(result):.4f}"


def one_rank(device: str, quick: bool) -> str:
    """NCCL (gloo on a CPU) with one rank, and a gpt sharded by FSDP2 against the same gpt unsharded."""
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's name may not resolve
    if device == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        total = torch.full((4,), 3.0, device=device)
        dist.all_reduce(total)
        gathered = [torch.empty_like(total)]
        dist.all_gather(gathered, total)
        check(bool((gathered[0] == 3.0).all()), f"all_reduce and all_gather of 3 gave {gathered[0].tolist()}")
        steps = 5 if quick else 20
        unsharded, _ = _train_few_steps(device, steps, sharded=False)
        sharded, restored = _train_few_steps(device, steps, sharded=True)
    finally:
        dist.destroy_process_group()
    difference = max(relative(loss, reference) for loss, reference in zip(sharded, unsharded, strict=True))
    check(difference < 1e-3, f"training losses of FSDP2 and of one process differ by up to {difference:.1e}")
    check(restored, "weights change when they are gathered into a checkpoint and sharded again")
    return (
        f"{backend}: all_reduce, all_gather; FSDP2 against unsharded, {steps} training losses: differences up to "
        f"{difference:.1e}"
    )


def _train_few_steps(device: str, steps: int, *, sharded: bool) -> tuple[list[float], bool]:
    """Training losses, and whether gathering and sharding restores the weights."""
    torch.manual_seed(0)
    experiment, plan = plan_of(gpt_table(device, steps=steps, head_dim=16), installed())
    dataset = experiment.dataset.spec.build(experiment.dataset.options, 0)
    options = experiment.model.with_options(**plan.runs[0].model.options).options
    model = experiment.model.spec.build(options, dataset.task)
    if sharded:
        shard_model(model, device, 1)
    model.to(device)
    check(is_sharded(model) is sharded, "the model is not sharded")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    losses = []
    for batch in itertools.islice(dataset.batches(16), steps):
        batch = batch.to(device)
        total, count = dataset.task.loss(dataset.task.outputs(model, batch), batch)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(total.detach()) / count)
    state = gather_state(model.state_dict(), keep=True)
    model.load_state_dict(shard_state(state, model.state_dict()))
    restored = gather_state(model.state_dict(), keep=True)
    return losses, all(torch.equal(restored[name], value) for name, value in state.items())


def fused(device: str, quick: bool) -> str:
    """Compare torch's three implementations of AdamW: time of a step and difference of the weights."""
    width, depth, steps = (64, 2, 5) if quick else (512, 6, 30) if device == "cuda" else (128, 3, 30)
    experiment, plan = plan_of(gpt_table(device, width=width, depth=depth, steps=10), installed())
    dataset = experiment.dataset.spec.build(experiment.dataset.options, 0)
    options = experiment.model.with_options(**plan.runs[0].model.options).options
    implementations: dict[str, dict[str, bool]] = {
        "fused": {"fused": True},
        "foreach": {"foreach": True},
        "neither": {"foreach": False, "fused": False},
    }
    seconds, weights = {}, {}
    for name, flags in implementations.items():
        torch.manual_seed(0)
        model = experiment.model.spec.build(options, dataset.task).to(device)
        seconds[name] = _seconds_per_step(torch.optim.AdamW(model.parameters(), lr=1e-3, **flags), steps, device)
        weights[name] = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    scale = weights["neither"].abs().max()
    differences = {
        name: float((weights[name] - weights["neither"]).abs().max() / scale) for name in ("fused", "foreach")
    }
    check(max(differences.values()) < 1e-4, f"weights differ by {differences} of the largest weight")
    group = ParameterGroup(list(model.parameters()))
    run_info = RunInfo(
        steps=1, tokens=1, tokens_per_step=1, base_width=None, groups=lambda _: [group], width_scaling="adam"
    )
    optimizer = build_adamw(AdamWOptions(), model, run_info)
    check(
        all(group["fused"] for group in optimizer.param_groups), "the project's adamw is not fused on this device"
    )
    shown = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in seconds.items())
    return (
        f"AdamW step of {weights['fused'].numel():,} parameters: {shown}; difference of weights from 'neither': "
        f"{differences['fused']:.0e} (fused), {differences['foreach']:.0e} (foreach) of the largest"
    )


def _seconds_per_step(optimizer: torch.optim.Optimizer, steps: int, device: str) -> float:
    """Mean time of a step. The gradients depend only on the shapes."""
    generator = torch.Generator().manual_seed(0)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
    optimizer.step()  # allocates the optimizer state
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    _synchronize(device)
    return (time.perf_counter() - started) / steps


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
