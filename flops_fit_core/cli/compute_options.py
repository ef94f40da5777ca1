"""The options for devices and time that ``predict`` and ``budget`` share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated

import typer

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry

GpusOption = Annotated[float | None, typer.Option("--gpus", help="Number of devices.", metavar="COUNT")]
DaysOption = Annotated[float | None, typer.Option("--days", help="Days of training.", metavar="DAYS")]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="Name of the device, for its peak in bfloat16: --device h100.", metavar="NAME"),
]
PeakOption = Annotated[
    float | None, typer.Option("--peak-flops", help="Peak FLOP/s of a device that has no name.", metavar="FLOP/S")
]
MfuOption = Annotated[float, typer.Option("--mfu", help="Share of the peak that training reaches.")]
PriceOption = Annotated[float | None, typer.Option("--price", help="Price of a device hour.")]


def find_peak(device: str | None, peak_flops: float | None, registry: Registry) -> float | None:
    """Peak FLOP/s of a device, by its name or as a number; None if neither is set. Raises ConfigError."""
    if device is None:
        return peak_flops
    if peak_flops is not None:
        raise ConfigError("--device and --peak-flops cannot be combined: omit one")
    peaks: dict[str, float] = {}
    for offer in registry.offers("device"):
        peaks |= offer.spec.peaks()
    name = re.sub(r"[\s_-]+", "-", device.strip().lower()).removeprefix("nvidia-")
    if name not in peaks:
        close = difflib.get_close_matches(name, peaks, n=4, cutoff=0.3)
        hint = f"Similar names: {', '.join(close)}. " if close else ""
        raise ConfigError(
            f"--device {device}: no peak is known for this device. {hint}Or write its peak: --peak-flops 989e12"
        )
    return peaks[name]


def device_hours(gpus: float | None, days: float | None) -> float | None:
    """Device hours of ``--gpus`` and ``--days``; None without them. Raises ConfigError for only one of them."""
    if gpus is None and days is None:
        return None
    if gpus is None or days is None:
        raise ConfigError("--gpus and --days belong together: --gpus 64 --days 14")
    if not (gpus > 0 and days > 0):
        raise ConfigError(f"--gpus {gpus:g} --days {days:g}: both must be positive")
    return gpus * days * 24


def budgets(
    flops: Sequence[float], gpus: float | None, days: float | None, peak_flops: float | None, mfu: float
) -> list[float]:
    """The budgets of ``--flops``, and that of ``--gpus`` and ``--days``. Raises ConfigError without any."""
    hours = device_hours(gpus, days)
    if hours is None and not flops:
        raise ConfigError("no budget: write --flops 1e22, or --gpus 64 --days 14 --device h100")
    if hours is None:
        return list(flops)
    if peak_flops is None:
        raise ConfigError("--gpus and --days need the speed of a device: --device h100, or --peak-flops 989e12")
    from flops_fit_core.fitting import training_flops

    return [*flops, training_flops(hours, peak_flops, mfu)]
