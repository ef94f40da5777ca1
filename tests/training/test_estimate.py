"""The estimate of time and the utilization of runs that several devices train."""

import importlib

import pytest
from small import text_table, train, write_text

import flops_fit_devices as devices
from flops_fit_core import RunResult
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import DeviceSpec, hookimpl
from flops_fit_core.plugins.registry import installed
from flops_fit_core.study.time_left import TimeLeft
from flops_fit_core.training import estimate, measure_timings


def plan_of_nine_runs(folder, devices_per_run):
    device = {"name": "cpu", "devices_per_run": devices_per_run}
    sweep = {"sizes": [{"width": 8}], "seeds": list(range(9)), "batch_size": 16}
    return make_plan(make_experiment(text_table(write_text(folder), device=device, sweep=sweep), installed()))


@pytest.mark.parametrize(
    ("workers", "devices_per_run", "seconds"), [(2, 1, 400), (2, 2, 800), (4, 2, 400), (3, 2, 800), (1, 2, 800)]
)
def test_runs_on_several_devices_are_estimated_with_the_devices_that_they_take(
    tmp_path, workers, devices_per_run, seconds
):
    """One run took 100 s and eight are left; n devices of k train k // n runs at a time."""
    plan = plan_of_nine_runs(tmp_path / "text", devices_per_run)
    first = plan.runs[0]
    done = RunResult(run=first, status="completed", loss=1.0, tokens=first.tokens, seconds=100.0)
    estimate = TimeLeft(plan).estimate([done], {first.id}, (), max(1, workers // devices_per_run))
    assert estimate.seconds == pytest.approx(seconds, rel=0.01)


def test_a_gpu_is_probed_with_larger_models_than_a_core(tmp_path):
    plan = plan_of_nine_runs(tmp_path / "text", 1)
    large = plan.runs[0].model_copy(update={"params": 300_000_000})
    step = large.model_copy(update={"flops_per_token": 1e13 / large.tokens_per_step})
    assert not estimate._is_small(step, estimate.ON_CPU)
    assert estimate._is_small(step, estimate.ON_GPU)


def test_no_estimate_is_made_for_a_device_that_this_machine_lacks(tmp_path):
    class Elsewhere:
        @hookimpl
        def flops_fit_devices(self):
            def missing(options):
                return devices.CUDA(99)

            yield DeviceSpec(name="elsewhere", build=missing, slots=lambda options: [{}])

    registry = installed().with_plugins({"mine": Elsewhere()})
    table = text_table(write_text(tmp_path / "text"), device="mine/elsewhere")
    plan = make_plan(make_experiment(table, registry))
    assert measure_timings(plan, registry, plan.runs) == {}


PEAKY = """
import flops_fit_devices as devices
from flops_fit_core.plugins import DeviceSpec, hookimpl


class Peaky(devices.CPU):
    def peak_flops(self, precision):
        return 1e10


@hookimpl
def flops_fit_devices():
    yield DeviceSpec(
        name="peaky",
        options=devices.DeviceOptions,
        build=lambda options: Peaky(),
        slots=devices.cpu_slots,
        devices_per_run=devices.count_cpus,
    )
"""


@pytest.mark.parametrize("devices_per_run", [1, 2])
def test_utilization_is_over_the_peak_of_all_devices(tmp_path, monkeypatch, devices_per_run):
    (tmp_path / "peaky.py").write_text(PEAKY)
    monkeypatch.syspath_prepend(tmp_path)
    registry = installed().with_plugins({"peaky": importlib.import_module("peaky")})
    table = text_table(
        write_text(tmp_path / "text"),
        device={"name": "peaky/peaky", "devices_per_run": devices_per_run},
        trainer={"parallel": "ddp"} if devices_per_run > 1 else {},
        sweep={"budgets": [8e7], "sizes": [{"width": 8}], "batch_size": 6},
    )
    (result,) = train(table, registry)
    assert result.status == "completed", result.error
    assert result.mfu == pytest.approx(result.flops_per_second / (devices_per_run * 1e10))
