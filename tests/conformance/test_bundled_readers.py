"""Every bundled reader passes the conformance kit, on logs in the layout of its tracker."""

from __future__ import annotations

import run_logs
from optional_packages import needs

from flops_fit_core.testing import ReaderConformance

RUNS = run_logs.grid((1e18,))


@needs("wandb")
class TestWandb(ReaderConformance):
    name = "wandb"

    def write(self, folder):
        run_logs.write_wandb_runs(folder / "wandb", RUNS)
        return {f"name of {run} ({run})": numbers for run, numbers in run_logs.expected(RUNS).items()}


class TestWandbExport(ReaderConformance):
    name = "wandb-export"

    def write(self, folder):
        run_logs.write_chart_exports(folder, RUNS)
        return run_logs.expected(RUNS)


class TestTrainerState(ReaderConformance):
    name = "trainer-state"

    def write(self, folder):
        run_logs.write_trainer_states(folder, RUNS)
        return run_logs.expected(RUNS)


@needs("tensorboard")
class TestTensorboard(ReaderConformance):
    name = "tensorboard"

    def write(self, folder):
        run_logs.write_event_files(folder, RUNS)
        return run_logs.expected(RUNS)


class TestLightning(ReaderConformance):
    name = "lightning"

    def write(self, folder):
        run_logs.write_lightning(folder, RUNS)
        return {f"{run}/version_0": numbers for run, numbers in run_logs.expected(RUNS).items()}


class TestJsonLines(ReaderConformance):
    name = "json-lines"

    def write(self, folder):
        run_logs.write_json_logs(folder, RUNS)
        return run_logs.expected(RUNS)


class TestSummariesInJsonLines(ReaderConformance):
    name = "json-lines"

    def write(self, folder):
        run_logs.write_marin(folder, RUNS)
        return {f"gs://bucket/{run}": numbers for run, numbers in run_logs.expected(RUNS).items()}
