"""Devices: ``auto`` (CUDA if available, else the CPU), ``cpu`` and ``cuda``."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from pydantic import NonNegativeInt, PositiveInt, model_validator

from flops_fit_core import ConfigError
from flops_fit_core.plugins import Device, DeviceSpec, Options, Runtime, hookimpl


class CPU(Device):
    """The processor, in float32: on most, bfloat16 autocast is slower.

    Torch caches no CPU memory. The peak FLOP/s are unknown: they depend on the clock and on other programs.
    """

    torch_device = "cpu"

    def __init__(self) -> None:
        self.name = f"CPU ({platform.processor() or platform.machine()})"


class CUDA(Device):
    """A GPU, with bfloat16 autocast if the hardware supports it."""

    def __init__(self, index: int) -> None:
        import torch

        if not torch.cuda.is_available():
            raise ConfigError('device \'cuda\': torch finds no CUDA device; write device = "cpu" or "auto"')
        if index >= (count := torch.cuda.device_count()):
            raise ConfigError(f"device cuda:{index}: valid indices are 0 to {count - 1}")
        # FSDP, NCCL and ``.cuda()`` in a user's model use the current device.
        torch.cuda.set_device(index)
        self.torch_device = f"cuda:{index}"
        self.name = torch.cuda.get_device_name(index)
        self.precision = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize(self.torch_device)

    def peak_memory(self) -> int | None:
        import torch

        return torch.cuda.max_memory_allocated(self.torch_device)

    def release(self) -> None:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    def peak_flops(self, precision: str) -> float | None:
        """FLOP/s from the manufacturers' data sheets, without sparsity. None for a card, slice or virtual GPU that
        is not listed."""
        import torch

        from flops_fit_devices.peaks import dense_peak

        multiprocessors = torch.cuda.get_device_properties(self.torch_device).multi_processor_count
        return dense_peak(self.name, precision, multiprocessors)


class DeviceOptions(Options):
    """Options of all devices."""

    devices_per_run: Annotated[PositiveInt | None, Runtime()] = None
    """Number of devices that train a run. Unset: 1, or as many GPUs as a run's weights, gradients and optimizer
    state need."""


class CUDAOptions(DeviceOptions):
    """Options of the device ``cuda``."""

    index: NonNegativeInt | None = None
    """Index of a GPU, from 0. Unset: all GPUs of this machine, each for one run at a time."""

    @model_validator(mode="after")
    def _check_index(self) -> CUDAOptions:
        if self.index is not None and (self.devices_per_run or 1) > 1:
            raise ValueError("index names one GPU: with devices_per_run above 1, leave it out")
        return self


def build_cuda(options: CUDAOptions) -> Device:
    """The GPU ``index`` if set. Otherwise the first visible GPU; if several processes train a run, the GPU of this
    process's rank."""
    return CUDA(options.index if options.index is not None else _local_rank())


def build_auto(options: DeviceOptions) -> Device:
    """CUDA if available, else the CPU. The choice is made when a run starts."""
    import torch

    return CUDA(_local_rank()) if torch.cuda.is_available() else CPU()


def _local_rank() -> int:
    """Rank of this process among those that train a run; 0 if it trains alone. LOCAL_RANK is not used: torchrun
    may have set it for the driver."""
    return int(os.environ.get("FLOPS_FIT_LOCAL_RANK", "0"))


def count_cpus(options: DeviceOptions, training_bytes: int) -> int:
    """Devices per run; 1 by default."""
    return options.devices_per_run or 1


def count_gpus(options: DeviceOptions, training_bytes: int) -> int:
    """GPUs per run. By default, the smallest power of two such that ``training_bytes`` (weights, gradients and
    optimizer state) fill at most half of their memory; the other half is for activations. Powers of two divide
    batches and matrices."""
    if options.devices_per_run is not None:
        return options.devices_per_run
    if isinstance(options, CUDAOptions) and options.index is not None:
        return 1
    memory = _gpu_memory()
    return 2 ** max(0, math.ceil(math.log2(2 * training_bytes / memory))) if memory else 1


def cpu_slots(options: DeviceOptions) -> Sequence[Mapping[str, str]]:
    """One slot per core that this process may use. GPUs are hidden from CPU runs."""
    return [{"CUDA_VISIBLE_DEVICES": ""} for _ in range(_cores())]


def cuda_slots(options: CUDAOptions) -> Sequence[Mapping[str, str]]:
    """One slot per GPU, or one slot for the GPU ``index``."""
    if options.index is not None:
        return [{}]
    return [{"CUDA_VISIBLE_DEVICES": visible} for visible in _visible_gpus()] or [{}]


def auto_slots(options: DeviceOptions) -> Sequence[Mapping[str, str]]:
    """One slot per GPU, or per core if there is no GPU."""
    return [{"CUDA_VISIBLE_DEVICES": visible} for visible in _visible_gpus()] or [{} for _ in range(_cores())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _visible_gpus() -> list[str]:
    """Names of the GPUs for CUDA_VISIBLE_DEVICES. Torch counts them with NVML and creates no CUDA context."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(count)]
    return names[:count]


def _gpu_memory() -> int | None:
    """Bytes of the smallest GPU; None without a GPU. Uses nvidia-smi, because torch would create a CUDA context in
    this process."""
    if not _visible_gpus():
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return min(int(mebibytes) for mebibytes in output.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def named_peaks() -> Mapping[str, float]:
    """Peaks of the GPUs with a data sheet, by name."""
    from flops_fit_devices.peaks import named_peaks

    return named_peaks()


def build_cpu(options: DeviceOptions) -> Device:
    return CPU()


@hookimpl
def flops_fit_devices() -> Iterable[DeviceSpec]:
    """Offer ``auto``, ``cpu`` and ``cuda``."""
    yield DeviceSpec(
        name="auto", options=DeviceOptions, build=build_auto, slots=auto_slots, devices_per_run=count_gpus
    )
    yield DeviceSpec(
        name="cpu", options=DeviceOptions, build=build_cpu, slots=cpu_slots, devices_per_run=count_cpus
    )
    yield DeviceSpec(
        name="cuda",
        options=CUDAOptions,
        build=build_cuda,
        slots=cuda_slots,
        devices_per_run=count_gpus,
        peaks=named_peaks,
    )
