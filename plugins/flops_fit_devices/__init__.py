"""Devices: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda``."""

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
    """The processor, in float32: bfloat16 autocast is slower on most.

    Torch caches no CPU memory. The peak is unknown: it depends on the clock and on other programs.
    """

    torch_device = "cpu"

    def __init__(self) -> None:
        self.name = f"CPU ({platform.processor() or platform.machine()})"


class CUDA(Device):
    """One GPU. bfloat16 autocast where the hardware has it."""

    def __init__(self, index: int) -> None:
        import torch

        if not torch.cuda.is_available():
            raise ConfigError('device \'cuda\': torch sees no CUDA device here; write device = "cpu" or "auto"')
        if index >= torch.cuda.device_count():
            raise ConfigError(f"device cuda:{index}: there are {torch.cuda.device_count()}, counted from 0")
        # For what asks for the current device: FSDP, NCCL, ``.cuda()`` in a user's model.
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
        """From the makers' data sheets, without sparsity; None for a card, slice or virtual GPU not listed."""
        import torch

        from flops_fit_devices.peaks import dense_peak

        multiprocessors = torch.cuda.get_device_properties(self.torch_device).multi_processor_count
        return dense_peak(self.name, precision, multiprocessors)


class TogetherOptions(Options):
    """How many devices train one run together."""

    devices_per_run: Annotated[PositiveInt | None, Runtime()] = None
    """Unset: one, or on GPUs as many as a run's weights, gradients and optimizer need."""


class CUDAOptions(TogetherOptions):
    """Which GPU."""

    index: NonNegativeInt | None = None
    """Unset: every GPU of this machine, each for one run at a time."""

    @model_validator(mode="after")
    def _one_index_is_one_device(self) -> CUDAOptions:
        if self.index is not None and (self.devices_per_run or 1) > 1:
            raise ValueError("index names one GPU: with devices_per_run above 1, leave it out")
        return self


def build_cuda(options: CUDAOptions) -> Device:
    """The GPU of this process: the first one that its slot shows, or by its number among those that train a run
    together, unless an index says otherwise."""
    return CUDA(options.index if options.index is not None else _local_rank())


def build_auto(options: TogetherOptions) -> Device:
    """CUDA where there is one, else the CPU; decided when a run starts."""
    import torch

    return CUDA(_local_rank()) if torch.cuda.is_available() else CPU()


def _local_rank() -> int:
    """Of the processes that train one run; 0 for a process that trains alone. LOCAL_RANK is not used: torchrun may
    have set it for the process that drives the study."""
    return int(os.environ.get("FLOPS_FIT_LOCAL_RANK", "0"))


def cpu_devices(options: TogetherOptions, training_bytes: int) -> int:
    """One, unless asked for more."""
    return options.devices_per_run or 1


def gpus(options: TogetherOptions, training_bytes: int) -> int:
    """As many GPUs like the first of this machine as hold so much in half of their memory; the other half is for
    activations. A power of two, so that they divide batches and matrices."""
    if options.devices_per_run is not None:
        return options.devices_per_run
    if isinstance(options, CUDAOptions) and options.index is not None:
        return 1
    memory = _gpu_memory()
    return 2 ** max(0, math.ceil(math.log2(2 * training_bytes / memory))) if memory else 1


def cpu_slots(options: TogetherOptions) -> Sequence[Mapping[str, str]]:
    """One a core that this process may use. A CPU run sees no GPU."""
    return [{"CUDA_VISIBLE_DEVICES": ""} for _ in range(_cores())]


def cuda_slots(options: CUDAOptions) -> Sequence[Mapping[str, str]]:
    """One a GPU; with an index, that one alone."""
    if options.index is not None:
        return [{}]
    return [{"CUDA_VISIBLE_DEVICES": visible} for visible in _visible_gpus()] or [{}]


def auto_slots(options: TogetherOptions) -> Sequence[Mapping[str, str]]:
    """One a GPU where there are any, else one a core."""
    return [{"CUDA_VISIBLE_DEVICES": visible} for visible in _visible_gpus()] or [{} for _ in range(_cores())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES. Counts through NVML, so that no CUDA context is made here."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in given.split(",")] if given else [str(index) for index in range(count)]
    return names[:count]


def _gpu_memory() -> int | None:
    """Bytes of the smallest GPU here; None where there is none. Asks the driver's own program: torch would make a
    CUDA context in this process."""
    if not _visible_gpus():
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return min(int(line) for line in said.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def build_cpu(options: TogetherOptions) -> Device:
    """The processor, in float32."""
    return CPU()


@hookimpl
def flops_fit_devices() -> Iterable[DeviceSpec]:
    """Offer ``auto``, ``cpu`` and ``cuda``."""
    yield DeviceSpec(
        name="auto", options=TogetherOptions, build=build_auto, slots=auto_slots, devices_per_run=gpus
    )
    yield DeviceSpec(
        name="cpu", options=TogetherOptions, build=build_cpu, slots=cpu_slots, devices_per_run=cpu_devices
    )
    yield DeviceSpec(name="cuda", options=CUDAOptions, build=build_cuda, slots=cuda_slots, devices_per_run=gpus)
