"""The surroundings of a trainer in a worker: the plugins of each run, built from the record of its job."""

from __future__ import annotations

import gc
import math
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flops_fit_core.config import PluginConfig, choose
from flops_fit_core.errors import ConfigError, RunFailed
from flops_fit_core.flops.build_model import build_model
from flops_fit_core.flops.model_stats import UsageTraces, count_flops, measure_model
from flops_fit_core.flops.parameter_counts import UNTRACED, count_parameters, parameter_groups
from flops_fit_core.flops.parameter_usage import ParameterUsage
from flops_fit_core.plugins.protocols import BuiltRun, Dataset, Device, FlopCount, RunInfo
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Job, ParameterCounts, RunError, RunResult, RunSpec, Status
from flops_fit_core.training.distributed import TorchDistributedContext
from flops_fit_core.training.rng import random_state, seed_everything, set_random_state
from flops_fit_core.training.sharding import shard_model

_KINDS = ("model", "dataset", "optimizer", "schedule", "counter", "trainer")


class WorkerContext:
    """Implements ``TrainContext`` for one job in one process."""

    def __init__(
        self, job: Job, registry: Registry, folder: Path, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.job = job
        self.registry = registry
        self.checkpoints = folder / "checkpoints"
        self.distributed = TorchDistributedContext()
        self._should_stop = should_stop
        self._started: dict[str, float] = {}
        self._counts: dict[str, tuple[ParameterCounts, FlopCount]] = {}
        self._dataset: tuple[str, Dataset] | None = None

    def should_stop(self) -> bool:
        """True once the trainer should write its checkpoints and return. Equal in every process of the run."""
        return self.distributed.broadcast(self._should_stop())

    @cached_property
    def device(self) -> Device:
        """Built on first use, in the process that uses it."""
        chosen = choose("device", self.job.device, self.registry)
        device: Device = chosen.spec.build(chosen.options)
        return device

    def chosen(self, kind: str, run: RunSpec) -> PluginConfig[Any]:
        """The run's plugin of a kind, with the options of the run and the runtime options of the job."""
        choice = getattr(run, kind)
        return choose(kind, choice, self.registry, self.job.runtime.get(kind))

    def options(self, kind: str, run: RunSpec) -> dict[str, Any]:
        """All options of the run's plugin of a kind, defaults included, as plain data."""
        return self.chosen(kind, run).options.model_dump(mode="json")

    def dataset(self, run: RunSpec) -> Dataset:
        """The run's data in the order of its seed.

        Raises RunFailed if the data have changed since the run was planned.
        """
        key = f"{run.dataset.model_dump_json()} {run.seed}"
        if self._dataset is None or self._dataset[0] != key:
            chosen = self.chosen("dataset", run)
            dataset: Dataset = chosen.spec.build(chosen.options, run.seed)
            self._dataset = key, dataset
        dataset = self._dataset[1]
        if dataset.fingerprint != run.fingerprint:
            raise RunFailed(
                f"the data has changed since this run was planned (fingerprint {dataset.fingerprint}, planned "
                f"with {run.fingerprint}): plan again"
            )
        return dataset

    def build(self, run: RunSpec, *, shard: Callable[[nn.Module], bool] | None = None) -> BuiltRun:
        """Build model, data, optimizer and schedule of a run on its device.

        The weights depend on the seed, not on the device: they are initialized on the CPU.

        Args:
            run: The run to build.
            shard: Called with the model on the CPU. Returns whether to divide its weights among the processes.
        """
        self._started[run.id] = time.monotonic()
        self.device.release()
        dataset = self.dataset(run)
        seed_everything(run.seed)
        model_choice = self.chosen("model", run)
        model = build_model(model_choice, model_choice.options, dataset.task, in_training=True)
        self._count(run, model_choice, model, dataset)
        if shard is not None and shard(model):
            shard_model(model, self.device.torch_device, self.distributed.size)
        model = model.to(self.device.torch_device)
        view = self.view(run, model_choice, dataset)
        optimizer = self.chosen("optimizer", run)
        schedule = self.chosen("schedule", run)
        return BuiltRun(
            model=model,
            dataset=dataset,
            optimizer=optimizer.spec.build(optimizer.options, model, view),
            schedule=schedule.spec.build(schedule.options, view),
        )

    def view(self, run: RunSpec, model: PluginConfig[Any], dataset: Dataset) -> RunInfo:
        """The run as its optimizer and schedule see it."""
        return RunInfo(
            steps=run.steps,
            tokens=run.tokens,
            tokens_per_step=run.batch_size * dataset.task.tokens_per_sample,
            base_width=run.base_width,
            groups=partial(parameter_groups, model),
            width_scaling=self.chosen("optimizer", run).spec.width_scaling,
        )

    def _count(self, run: RunSpec, chosen: PluginConfig[Any], model: nn.Module, dataset: Dataset) -> None:
        """Count the model that was built. Raises RunFailed if N or its FLOPs differ from those of the plan."""
        groups = parameter_groups(chosen, model)
        counter = self.chosen("counter", run)
        # Counters get a module on the meta device. Building it, and tracing it, may draw random numbers.
        state = random_state("cpu")
        measured = measure_model(
            chosen, chosen.options, dataset.task, UsageTraces(chosen, dataset.task, by_type=True)
        )
        count: FlopCount | None = None
        failure: ConfigError | None = None
        for usage in self._usages(chosen, dataset, measured.module):
            parameters = count_parameters(model, dataset.task, groups, usage)
            try:
                count = count_flops(counter, replace(measured, parameters=parameters))
            except ConfigError as error:  # counted by module types, N may be 0
                failure = error
                continue
            if count.params == run.params:
                break
        set_random_state(state, "cpu")
        if count is None:
            assert failure is not None
            raise failure
        if count.params != run.params:
            raise RunFailed(
                f"the model has N = {count.params:,}, but was planned with N = {run.params:,}, so its code has "
                f"changed: plan again"
            )
        # The number of positions of padded data is a rounded mean.
        tolerance = 1e-9 if run.positions is None else 1 / run.positions
        if not math.isclose(count.flops_per_token, run.flops_per_position, rel_tol=tolerance):
            raise RunFailed(
                f"{counter.name} counts {count.flops_per_token:.6g} FLOPs per token, but the run was planned with "
                f"{run.flops_per_position:.6g}: plan again"
            )
        self._counts[run.id] = parameters, count

    @staticmethod
    def _usages(chosen: PluginConfig[Any], dataset: Dataset, shapes: nn.Module) -> Iterator[ParameterUsage]:
        """Ways to find the parameters in use, the cheap one first.

        Module types give N of most models. A trace builds the model again.
        """
        yield UNTRACED
        yield UsageTraces(chosen, dataset.task).of(chosen.options, shapes)

    def result(self, run: RunSpec, status: Status, **measured: Any) -> RunResult:
        """The result of a run: the fields that the trainer measured, and those that the worker adds."""
        parameters, count = self._counts.get(run.id, (None, None))
        tokens = measured.get("tokens", 0)
        fields: dict[str, Any] = {
            "attempt": self.job.attempts.get(run.id, 1),
            "flops": run.flops_per_token * tokens,
            "parameters": parameters,
            "seconds": time.monotonic() - self._started[run.id] if run.id in self._started else 0.0,
            "versions": self._versions(run),
            "runtime": self.job.runtime,
        }
        if count is not None:
            fields |= {"params_name": count.params_name, "flops_name": count.flops_name}
        if "device" in self.__dict__:
            fields |= {"device": self.device.name, "peak_memory": self.device.peak_memory()}
        return RunResult(run=run, status=status, **(fields | measured))

    def failed(self, run: RunSpec, error: BaseException) -> RunResult:
        """The result of a run that raised ``error``."""
        text = "".join(traceback.format_exception(error))
        return self.result(
            run, "failed", error=RunError(type=type(error).__name__, message=_message(error), traceback=text)
        )

    def _versions(self, run: RunSpec) -> dict[str, str]:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        for kind in _KINDS:
            choice = getattr(run, kind)
            try:
                name, _, version = self.registry.find(kind, choice.name).source.rpartition(" ")
            except LookupError:
                continue
            versions[name] = version
        return versions

    def release(self) -> None:
        """Drop the dataset and release the memory of the device."""
        self._dataset = None
        if self._started:
            gc.collect()
        if "device" in self.__dict__:
            self.device.release()


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as raised:  # __str__ of a user's exception may raise anything
        return f"its text cannot be shown: {type(raised).__name__}"
