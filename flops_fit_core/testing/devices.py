"""The conformance kit for devices.

::

    from flops_fit_core.testing import DeviceConformance

    class TestMyDevice(DeviceConformance):
        name = "mine"
        backend = "mps"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from flops_fit_core.config import PluginConfig
from flops_fit_core.plugins.protocols import Device
from flops_fit_core.testing.kit import Kit

Build = Callable[[], Device]
PRECISIONS = ("float32", "bfloat16")


class DeviceConformance(Kit):
    """What every device must do. Inherit, set ``name``, and run pytest.

    Attributes:
        backend: Of torch, such as ``"cuda"`` or ``"mps"``; where this machine has none, what needs it is skipped.
    """

    kind: ClassVar[str] = "device"
    backend = "cpu"

    @pytest.fixture
    def device(self, chosen: PluginConfig[Any]) -> Iterator[Device]:
        """The device of this process; torch's defaults are what they were afterwards."""
        import torch

        backend = getattr(torch, self.backend, None)
        if self.backend != "cpu" and not (backend is not None and backend.is_available()):
            pytest.skip(f"torch finds no {self.backend} here")
        dtype, default = torch.get_default_dtype(), torch.get_default_device()
        device = chosen.spec.build(chosen.options)
        assert isinstance(device, Device), "inherit from flops_fit_core.plugins.Device"
        yield device
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != default:  # after set_default_device(None), torch 2.7 cannot name it
            torch.set_default_device(default)

    # ------------------------------------------------------------------ before a run

    def test_its_places_are_environment_variables(self, chosen: PluginConfig[Any]) -> None:
        """At least one place, the same ones when asked again."""
        slots = chosen.spec.slots(chosen.options)
        assert slots, "no place on this machine: one run at a time is the least"
        for slot in slots:
            assert all(isinstance(it, str) for pair in slot.items() for it in pair), f"{slot} is not text"
        assert list(chosen.spec.slots(chosen.options)) == list(slots)

    def test_asking_for_places_starts_no_cuda(self, chosen: PluginConfig[Any]) -> None:
        """A driver that had started it could not hand its GPUs to workers."""
        import torch

        before = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        chosen.spec.slots(chosen.options)
        chosen.spec.devices_per_run(chosen.options, 2**30)
        assert torch.cuda.is_initialized() == before  # type: ignore[no-untyped-call]

    def test_a_larger_run_needs_no_fewer_devices(self, chosen: PluginConfig[Any]) -> None:
        """At least one."""
        needs = [chosen.spec.devices_per_run(chosen.options, 2**power) for power in (10, 20, 30, 40)]
        assert all(isinstance(count, int) and count >= 1 for count in needs), needs
        assert needs == sorted(needs), f"for 2^10, 2^20, 2^30 and 2^40 bytes: {needs}"

    # ------------------------------------------------------------------ computing

    def test_it_computes_where_it_says(self, device: Device) -> None:
        """``torch_device`` is one of torch's."""
        import torch

        there = torch.device(device.torch_device)
        product = torch.ones(3, 3, device=there) @ torch.ones(3, 3, device=there)
        device.synchronize()
        assert product.device.type == there.type
        assert product.sum().item() == 27

    def test_its_precision_is_one_that_it_computes_in(self, device: Device) -> None:
        """What ``auto`` means on it; autocast takes it."""
        import torch

        assert device.precision in PRECISIONS
        there = torch.device(device.torch_device)
        with torch.autocast(there.type, dtype=torch.bfloat16, enabled=device.precision == "bfloat16"):
            product = torch.ones(4, 4, device=there) @ torch.ones(4, 4, device=there)
        assert product.dtype == getattr(torch, device.precision)

    def test_it_leaves_torch_s_defaults_alone(self, chosen: PluginConfig[Any], device: Device) -> None:
        """Datasets and models make their tensors on the CPU in float32 unless they say otherwise."""
        import torch

        assert torch.get_default_dtype() == torch.float32, "another default type changes every model's precision"
        assert torch.get_default_device() == torch.device("cpu"), "another default device is for every tensor"

    def test_it_has_a_name_for_people(self, device: Device) -> None:
        """Every result keeps it."""
        assert device.name.strip()

    def test_memory_is_bytes_or_unknown(self, device: Device) -> None:
        """Also after its memory has been released."""
        import torch

        for _ in range(2):
            peak = device.peak_memory()
            assert peak is None or (isinstance(peak, int) and peak >= 0), f"{peak!r} bytes"
            held = torch.ones(2**24, device=device.torch_device)
            peak = device.peak_memory()
            assert peak is None or peak >= held.nbytes, (
                f"a peak of {peak:,} bytes with a tensor of {held.nbytes:,}: is it in another unit?"
            )
            del held
            device.release()

    def test_its_peak_is_of_a_real_processor_or_unknown(self, device: Device) -> None:
        """FLOP/s, dense: more than a billion, and no less in bfloat16."""
        peaks = [device.peak_flops(precision) for precision in PRECISIONS]
        known = [peak for peak in peaks if peak is not None]
        for peak in known:
            assert 1e9 < peak < math.inf, f"{peak!r} FLOP/s: not GFLOP/s or TFLOP/s"
        if len(known) == len(peaks):
            assert known == sorted(known), f"float32 {known[0]}, bfloat16 {known[1]}"
