"""``budget``: training FLOPs from devices and days, and the reverse."""

from __future__ import annotations

from typing import Annotated

import typer

from flops_fit_core import numbers
from flops_fit_core.cli import arguments as args
from flops_fit_core.cli import compute_options as compute
from flops_fit_core.cli.printing import print_json, print_text
from flops_fit_core.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(budget)


def budget(
    gpus: compute.GpusOption = None,
    days: compute.DaysOption = None,
    flops: Annotated[
        float | None, typer.Option("--flops", help="Training FLOPs, to compute device hours.", metavar="C")
    ] = None,
    device: compute.DeviceOption = None,
    peak_flops: compute.PeakOption = None,
    mfu: compute.MfuOption = 0.4,
    price: compute.PriceOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """Convert devices and days to training FLOPs C (--gpus 64 --days 14), or C to device hours (--flops 1e22)."""
    from flops_fit_core.fitting import training_cost, training_flops

    registry = args.registry_for(None, plugin, disabled)
    peak = compute.find_peak(device, peak_flops, registry)
    if peak is None:
        raise ConfigError("the speed of a device is needed: --device h100, or --peak-flops 989e12")
    if flops is None:
        hours = compute.device_hours(gpus, days)
        if hours is None:
            raise ConfigError(
                "write --gpus 64 --days 14 for the FLOPs of devices, or --flops 1e22 for their hours"
            )
        flops = training_flops(hours, peak, mfu)
    elif days is not None:
        raise ConfigError("--flops and --days cannot be combined: with --flops, --gpus gives the days")
    cost = training_cost(flops, peak, mfu, price)
    training_days = None if gpus is None else cost.device_hours / gpus / 24
    if json:
        shown = {"flops": flops, "peak_flops": peak, "mfu": mfu, "days": training_days}
        print_json({**shown, **cost.model_dump(mode="json")})
        return
    speed = f"at {mfu:.0%} of {numbers.scientific(peak)} FLOP/s per device"
    duration = "" if training_days is None else f", {training_days:,.4g} days on {gpus:,g} devices"
    money = "" if cost.money is None else f", {cost.money:,.2f} at that price"
    print_text(
        f"C = {numbers.scientific(flops, 4)} FLOPs: {cost.device_hours:,.6g} device hours"
        f"{duration}{money} ({speed})"
    )
