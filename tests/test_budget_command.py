"""``flops-fit budget`` and ``predict --gpus --days``: training FLOPs from devices and time, and the reverse."""

from __future__ import annotations

import json
import math

import pytest

from flops_fit_core import FitError
from flops_fit_core.fitting import training_cost, training_flops
from flops_fit_core.plugins.registry import installed

C = 64 * 14 * 86_400 * 989e12 * 0.4
"""64 H100 for 14 days at 40% of 989 TFLOP/s, computed by hand: 3.0625e22."""
TABLE = "params,tokens,loss\n" + "".join(
    f"{n},{d},{1.69 + 406.4 / n**0.34 + 410.7 / d**0.28}\n"
    for budget in (1e18, 1e19, 1e20)
    for k in (-1, -0.5, 0, 0.5, 1)
    for n, d in [((budget / 120) ** 0.5 * 2.0**k, budget / 6 / ((budget / 120) ** 0.5 * 2.0**k))]
)


def numbers(call, *arguments):
    status, output, error = call(*arguments, "--json")
    assert (status, error) == (0, "")
    return json.loads(output)


def test_devices_and_days_are_flops(call) -> None:
    shown = numbers(call, "budget", "--gpus", 64, "--days", 14, "--device", "h100", "--mfu", 0.4)
    assert shown["flops"] == pytest.approx(C, rel=1e-12)
    assert shown["device_hours"] == pytest.approx(64 * 14 * 24)
    assert shown["peak_flops"] == 989e12
    status, output, _ = call("budget", "--gpus", 64, "--days", 14, "--peak-flops", "989e12")
    assert status == 0
    assert output == (
        "C = 3.063e22 FLOPs: 21,504 device hours, 14 days on 64 devices (at 40% of 9.89e14 FLOP/s per device)\n"
    )


def test_flops_are_hours_days_and_money(call) -> None:
    shown = numbers(call, "budget", "--flops", C, "--gpus", 64, "--device", "H100", "--price", 2.5)
    assert shown["device_hours"] == pytest.approx(21_504)
    assert shown["days"] == pytest.approx(14)
    assert shown["money"] == pytest.approx(53_760)
    assert numbers(call, "budget", "--flops", C, "--device", "h100")["days"] is None


def test_the_functions_are_inverse() -> None:
    flops = training_flops(21_504, 989e12, 0.4)
    assert flops == pytest.approx(C, rel=1e-12)
    assert training_cost(flops, 989e12, 0.4).device_hours == pytest.approx(21_504, rel=1e-12)
    for hours, peak, share in ((0, 1e12, 0.4), (1, -1e12, 0.4), (1, 1e12, 1.1), (math.inf, 1e12, 0.4)):
        with pytest.raises(FitError, match="must be positive"):
            training_flops(hours, peak, share)


def test_a_prediction_for_devices_and_days_is_that_for_their_flops(tmp_path, call) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(TABLE)
    devices = numbers(call, "predict", path, "--gpus", 64, "--days", 14, "--device", "h100", "--set", "draws=0")
    flops = numbers(call, "predict", path, "--flops", C, "--device", "h100", "--set", "draws=0")
    assert devices["flops"] == pytest.approx(C, rel=1e-12)
    assert devices["params"]["value"] == pytest.approx(flops["params"]["value"], rel=1e-9)
    assert devices["cost"]["device_hours"] == pytest.approx(21_504)
    several = numbers(
        call, "predict", path, "--flops", 1e21, "--gpus", 1, "--days", 1, "--device", "a100", "--set", "draws=0"
    )
    assert [row["flops"] for row in several] == pytest.approx([1e21, 86_400 * 312e12 * 0.4])
    status, output, _ = call("predict", path, "--gpus", 1, "--days", 1, "--device", "a100", "--set", "draws=0")
    assert status == 0
    assert "Devices: 40% of 3.12e14 FLOP/s each (a100)" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the speed of a device is needed: --device h100, or --peak-flops 989e12"),
        (["--device", "h100"], "write --gpus 64 --days 14 for the FLOPs of devices, or --flops 1e22"),
        (["--device", "h100", "--gpus", "64"], "--gpus and --days belong together"),
        (["--device", "h100", "--days", "14"], "--gpus and --days belong together"),
        (["--device", "h100", "--gpus", "-1", "--days", "14"], "both must be positive"),
        (["--device", "h100", "--gpus", "nan", "--days", "14"], "both must be positive"),
        (["--device", "h100", "--flops", "1e22", "--days", "14"], "--flops and --days cannot be combined"),
        (["--device", "h100", "--peak-flops", "1e15"], "--device and --peak-flops cannot be combined"),
        (["--device", "h10", "--flops", "1e22"], "no peak is known for this device. Similar names: h100"),
        (["--device", "v100", "--flops", "1e22"], "Or write its peak: --peak-flops 989e12"),
        (["--device", "h100", "--flops", "1e22", "--mfu", "40"], "utilisation between 0 and 1"),
    ],
)
def test_an_incomplete_budget_is_refused(call, arguments, message) -> None:
    status, output, error = call("budget", *arguments)
    assert (status, output) == (2, "")
    assert message in error


def test_a_prediction_without_a_budget_is_refused(tmp_path, call) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(TABLE)
    status, _, error = call("predict", path)
    assert status == 2
    assert "no budget: write --flops 1e22, or --gpus 64 --days 14 --device h100" in error
    status, _, error = call("predict", path, "--gpus", 8, "--days", 1)
    assert status == 2
    assert "--gpus and --days need the speed of a device" in error


def test_names_of_devices_have_the_peaks_of_their_data_sheets() -> None:
    peaks: dict[str, float] = {}
    for offer in installed().offers("device"):
        peaks |= offer.spec.peaks()
    assert {
        name: peaks[name] / 1e12 for name in ("h100", "h100-pcie", "h100-nvl", "a100", "h200", "b200", "l4")
    } == {
        "h100": 989,
        "h100-pcie": 756,
        "h100-nvl": 835,
        "a100": 312,
        "h200": 989,
        "b200": 2250,
        "l4": 121,
    }
    assert all(name == name.lower() and " " not in name for name in peaks)
    assert all(1e12 < peak < 1e16 for peak in peaks.values())
    assert "tesla-t4" not in peaks, "it has no bfloat16"
