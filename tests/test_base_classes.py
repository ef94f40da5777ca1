"""Plugins inherit from base classes: their defaults, and the errors for objects that do not inherit."""

from __future__ import annotations

import pytest
import torch
from small import Bench

import flops_fit_core
from flops_fit_core import ConfigError, Observation, PluginError, find_optimal
from flops_fit_core.config import build_dataset, build_fitter, build_logger, make_experiment
from flops_fit_core.data import SupervisedTask
from flops_fit_core.plugins import (
    Dataset,
    DatasetSpec,
    Device,
    Fitter,
    FitterSpec,
    Logger,
    LoggerSpec,
    MultiEvalDataset,
    Task,
    Trainer,
    hookimpl,
)
from flops_fit_core.plugins.registry import installed


class Pairs(Task):
    """Three predictions per sample; batches are dicts."""

    unit = "tokens"
    tokens_per_sample = 3

    def example(self, batch_size):
        return {"rate": 0.5, "inputs": torch.zeros(batch_size, 2), "targets": torch.zeros(batch_size, 3)}

    def outputs(self, model, batch):
        return model(batch["inputs"])

    def loss(self, outputs, batch):
        return ((outputs - batch["targets"]) ** 2).sum(), batch["targets"].numel()


class Constant(Dataset):
    """Only what a dataset must have."""

    task = Pairs()
    fingerprint = "constant"

    def batches(self, batch_size, start=0):
        while True:
            yield self.task.example(batch_size)

    def eval_batches(self, tokens, batch_size):
        yield self.task.example(batch_size)


class Unrelated:
    """All members of a dataset, a logger and a fitter, and no base class."""

    task = SupervisedTask(inputs=(2,), outputs_size=2)
    fingerprint = "unrelated"
    num_unique_tokens = bytes_per_token = None

    def batches(self, batch_size, start=0):
        yield self.task.example(batch_size)

    def eval_batches(self, tokens, batch_size):
        yield self.task.example(batch_size)

    def started(self, plan):
        pass

    progress = finished = started

    def close(self):
        pass

    def fit(self, observations):
        raise AssertionError

    def optimum(self, fit, flops):
        raise AssertionError


class Offers:
    """A plugin whose objects do not inherit, and a dataset without a fingerprint."""

    @hookimpl
    def flops_fit_datasets(self):
        class Nameless(Constant):
            def __getattribute__(self, name):
                if name == "fingerprint":
                    raise AttributeError(name)
                return super().__getattribute__(name)

        class OtherTask(Constant):
            task = Unrelated()

        yield DatasetSpec(name="unrelated", build=lambda options, seed: Unrelated())
        yield DatasetSpec(name="nameless", build=lambda options, seed: Nameless())
        yield DatasetSpec(name="other-task", build=lambda options, seed: OtherTask())

    @hookimpl
    def flops_fit_loggers(self):
        yield LoggerSpec(name="unrelated", build=lambda options, folder: Unrelated())

    @hookimpl
    def flops_fit_fitters(self):
        yield FitterSpec(name="unrelated", build=lambda options: Unrelated())


def experiment(**tables):
    table = {"sweep": {"budgets": [1e9]}, "model": "mlp", "dataset": "images", **tables}
    return make_experiment(table, installed().with_plugins({"mine": Offers()}))


# ---------------------------------------------------------------------------- defaults


def test_a_sample_counts_tokens_per_sample_by_default():
    assert Constant.task.count(Constant.task.example(4)) == (12, 12)
    assert Constant().sample_size(32) == (3, 3)
    assert Constant.task.metrics(None, None) == {}
    assert Constant.task.whole_batches is False


def test_a_batch_without_tensors_cannot_be_counted():
    with pytest.raises(ValueError, match="this batch holds no tensor"):
        Constant.task.count({"rate": 0.5})


def test_data_are_endless_and_no_text_by_default():
    data = Constant()
    assert (data.num_unique_tokens, data.bytes_per_token, tuple(data.notes)) == (None, None, ())


def test_a_device_has_no_queue_and_no_memory_of_its_own_by_default():
    device = Device()
    device.synchronize()
    device.release()
    assert (device.precision, device.peak_memory(), device.peak_flops("float32")) == ("float32", None, None)


@pytest.mark.parametrize("base", [Task, Dataset, MultiEvalDataset, Trainer, Fitter])
def test_a_class_without_its_abstract_methods_cannot_be_made(base):
    with pytest.raises(TypeError, match="abstract"):
        type("Incomplete", (base,), {})()


def test_a_logger_needs_only_the_events_that_it_shows(tmp_path):
    class Finished(Logger):
        def __init__(self):
            self.results = []

        def finished(self, result):
            self.results.append(result.status)

    logger, bench = Finished(), Bench()
    flops_fit_core.run(bench.table(20), registry=bench.registry(), out=tmp_path / "study", loggers=[logger])
    assert logger.results == ["completed"]


# ---------------------------------------------------------------------------- objects of plugins


def test_a_plugins_dataset_that_does_not_inherit_is_an_error_that_names_the_class():
    with pytest.raises(PluginError, match=r"dataset 'mine/unrelated' \(.*\): Unrelated does not inherit"):
        build_dataset(experiment(dataset="mine/unrelated").dataset, 0)
    with pytest.raises(PluginError, match=r"write class Unrelated\(Task\), with from flops_fit_core"):
        build_dataset(experiment(dataset="mine/other-task").dataset, 0)


def test_a_plugins_dataset_without_a_fingerprint_is_an_error_that_names_it():
    with pytest.raises(PluginError, match="Nameless has no fingerprint: set it in the class or in __init__"):
        build_dataset(experiment(dataset="mine/nameless").dataset, 0)


def test_a_plugins_logger_or_fitter_that_does_not_inherit_is_an_error(tmp_path):
    chosen = experiment(loggers=["mine/unrelated"], fitter="mine/unrelated")
    with pytest.raises(PluginError, match=r"logger 'mine/unrelated'.*Unrelated does not inherit from Logger"):
        build_logger(chosen.loggers[0], tmp_path)
    with pytest.raises(PluginError, match=r"fitter 'mine/unrelated'.*Unrelated does not inherit from Fitter"):
        build_fitter(chosen.fitter)


# ---------------------------------------------------------------------------- objects of users


def optimal(tmp_path, **given):
    arguments = {"dataset": "images", "compute_budgets": [1e8], "sizes": [4], "train": False, **given}
    return find_optimal(torch.nn.LazyLinear, "out_features", output_dir=tmp_path / "study", **arguments)


def test_a_users_dataset_that_does_not_inherit_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"returned a Unrelated, .*: write class Unrelated\(Dataset\)"):
        optimal(tmp_path, dataset=lambda seed: Unrelated())


def test_a_dataset_that_is_made_already_is_an_error_that_asks_for_a_function(tmp_path):
    with pytest.raises(ConfigError, match=r"is a Constant, made for one seed.* give a function make\(seed\)"):
        optimal(tmp_path, dataset=Constant())


def test_a_users_logger_and_fitter_go_into_a_spec(tmp_path):
    class Quiet(Logger):
        pass

    class Never(Fitter):
        fit = optimum = Unrelated.fit

    with pytest.raises(ConfigError, match=r"logger: .* not Quiet; wrap it in a spec: LoggerSpec\(name='qui"):
        optimal(tmp_path, loggers=[Quiet()])
    with pytest.raises(ConfigError, match=r"fitter: .* not Never; wrap it in a spec: FitterSpec\(name='nev"):
        optimal(tmp_path, fitter=Never())


def test_loggers_and_fitters_that_do_not_inherit_are_errors_of_run_and_fit(tmp_path):
    bench = Bench()
    with pytest.raises(ConfigError, match="loggers: Unrelated does not inherit from Logger"):
        flops_fit_core.run(bench.table(20), registry=bench.registry(), out=tmp_path, loggers=[Unrelated()])
    runs = [Observation(id="a", params=10.0, tokens=10.0, flops=600.0, loss=1.0)]
    with pytest.raises(ConfigError, match="fitter: Unrelated does not inherit from Fitter"):
        flops_fit_core.fit(runs, fitter=Unrelated())
