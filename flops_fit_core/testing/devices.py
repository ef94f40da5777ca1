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
    """Tests for every device. Inherit, set ``name``, and run pytest.

    Attributes:
        backend: Backend of torch, such as ``"cuda"`` or ``"mps"``. If this machine does not have it, tests that
            need it are skipped.
    """

    kind: ClassVar[str] = "device"
    backend = "cpu"

    @pytest.fixture
    def device(self, chosen: PluginConfig[Any]) -> Iterator[Device]:
        """The device of this process. torch's defaults are restored afterwards."""
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

    def test_its_slots_are_environment_variables(self, chosen: PluginConfig[Any]) -> None:
        """At least one slot, and the same slots at the next call."""
        slots = chosen.spec.slots(chosen.options)
        assert slots, "no slot on this machine: return at least one"
        for slot in slots:
            assert all(isinstance(text, str) for pair in slot.items() for text in pair), f"{slot} is not text"
        assert list(chosen.spec.slots(chosen.options)) == list(slots)

    def test_listing_slots_starts_no_cuda(self, chosen: PluginConfig[Any]) -> None:
        """A driver that has initialized CUDA cannot leave its GPUs to workers."""
        import torch

        before = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        chosen.spec.slots(chosen.options)
        chosen.spec.devices_per_run(chosen.options, 2**30)
        assert torch.cuda.is_initialized() == before  # type: ignore[no-untyped-call]

    def test_a_larger_run_needs_no_fewer_devices(self, chosen: PluginConfig[Any]) -> None:
        """And every run needs at least one."""
        needs = [chosen.spec.devices_per_run(chosen.options, 2**power) for power in (10, 20, 30, 40)]
        assert all(isinstance(count, int) and count >= 1 for count in needs), needs
        assert needs == sorted(needs), f"for 2^10, 2^20, 2^30 and 2^40 bytes: {needs}"

    # ------------------------------------------------------------------ computing

    def test_it_computes_where_it_says(self, device: Device) -> None:
        """``torch_device`` is a device of torch."""
        import torch

        torch_device = torch.device(device.torch_device)
        product = torch.ones(3, 3, device=torch_device) @ torch.ones(3, 3, device=torch_device)
        device.synchronize()
        assert product.device.type == torch_device.type
        assert product.sum().item() == 27

    def test_its_precision_is_one_that_it_computes_in(self, device: Device) -> None:
        """Autocast supports the precision that ``auto`` selects."""
        import torch

        assert device.precision in PRECISIONS
        torch_device = torch.device(device.torch_device)
        with torch.autocast(torch_device.type, dtype=torch.bfloat16, enabled=device.precision == "bfloat16"):
            product = torch.ones(4, 4, device=torch_device) @ torch.ones(4, 4, device=torch_device)
        assert product.dtype == getattr(torch, device.precision)

    def test_it_leaves_torch_s_defaults_alone(self, chosen: PluginConfig[Any], device: Device) -> None:
        """Datasets and models create tensors with these defaults: on the CPU, in float32."""
        import torch

        assert torch.get_default_dtype() == torch.float32, "another default type changes every model's precision"
        assert torch.get_default_device() == torch.device("cpu"), "another default device moves every tensor"

    def test_it_has_a_name_for_people(self, device: Device) -> None:
        """Every result has it."""
        assert device.name.strip()

    def test_memory_is_bytes_or_unknown(self, device: Device) -> None:
        """Also after its memory has been released."""
        import torch

        for _ in range(2):
            peak = device.peak_memory()
            assert peak is None or (isinstance(peak, int) and peak >= 0), f"{peak!r} bytes"
            tensor = torch.ones(2**24, device=device.torch_device)
            peak = device.peak_memory()
            assert peak is None or peak >= tensor.nbytes, (
                f"a peak of {peak:,} bytes with a tensor of {tensor.nbytes:,}: is it in another unit?"
            )
            del tensor
            device.release()

    def test_its_peak_is_of_a_real_processor_or_unknown(self, device: Device) -> None:
        """FLOP/s, dense: more than a billion, and no less in bfloat16."""
        peaks = [device.peak_flops(precision) for precision in PRECISIONS]
        numbers = [peak for peak in peaks if peak is not None]
        for peak in numbers:
            assert 1e9 < peak < math.inf, f"{peak!r} FLOP/s: not GFLOP/s or TFLOP/s"
        if len(numbers) == len(peaks):
            assert numbers == sorted(numbers), f"float32 {numbers[0]}, bfloat16 {numbers[1]}"
