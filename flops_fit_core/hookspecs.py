"""The hooks a plugin may implement.

A plugin is a module (or any object) with functions marked ``@hookimpl``. Registration hooks take no
arguments and return specs; the specs of all plugins are collected, and what runs is selected by name in the
experiment, never by order: installing a package changes no result. Observers are called in the driver; what
they raise is logged and never stops a sweep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from flops_fit_core.records import RunResult, RunSpec, SweepPlan
    from flops_fit_core.specs import (
        DatasetSpec,
        DeviceSpec,
        ExecutorSpec,
        FitterSpec,
        FlopCounterSpec,
        LoggerSpec,
        ModelSpec,
        OptimizerSpec,
        RecipeSpec,
        ScheduleSpec,
        StoreSpec,
        TrainerSpec,
    )

PROJECT = "flops_fit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def flops_fit_models() -> Iterable[ModelSpec]:
    """Offer model families: ``[model]`` in an experiment.

    ::

        from flops_fit_core import LanguageTask, ModelSpec, Options, hookimpl

        class BigramOptions(Options):
            width: int = 16

        def build_bigram(options, task: LanguageTask):
            from torch import nn

            return nn.Sequential(
                nn.Embedding(task.vocab_size, options.width), nn.Linear(options.width, task.vocab_size)
            )

        @hookimpl
        def flops_fit_models():
            yield ModelSpec(name="bigram", options=BigramOptions, build=build_bigram, size="width")
    """
    return ()


@hookspec
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    """Offer datasets: ``[dataset]`` in an experiment.

    ::

        from flops_fit_core import DatasetSpec, SupervisedTask, hookimpl

        class Parity:
            task = SupervisedTask(inputs=(32,), outputs_size=2)
            tokens = None  # endless
            bytes_per_token = None
            fingerprint = "parity of 32 bits, version 1"

            def __init__(self, seed):
                self.seed = seed

            def batches(self, batch_size, start=0):
                position = start
                while True:
                    yield make_bits([(self.seed, position + i) for i in range(batch_size)])
                    position += batch_size

            def heldout(self, tokens, batch_size):
                for first in range(0, tokens, batch_size):
                    yield make_bits([("held out", i) for i in range(first, min(first + batch_size, tokens))])

        def make_bits(keys):
            import random

            import torch

            numbers = [random.Random(str(key)).getrandbits(32) for key in keys]
            bits = [[number >> i & 1 for i in range(32)] for number in numbers]
            return torch.tensor(bits, dtype=torch.float32), torch.tensor([sum(row) % 2 for row in bits])

        @hookimpl
        def flops_fit_datasets():
            yield DatasetSpec(name="parity", build=lambda options, seed: Parity(seed))
    """
    return ()


@hookspec
def flops_fit_optimizers() -> Iterable[OptimizerSpec]:
    """Offer optimizers: ``[optimizer]`` in an experiment.

    ::

        from flops_fit_core import OptimizerSpec, Options, hookimpl

        class RMSpropOptions(Options):
            lr: float = 0.001
            weight_decay: float = 0.0

        def build_rmsprop(options, model, run):
            import torch

            groups = [
                {
                    "params": group.parameters,
                    "lr": options.lr * run.lr_scale(group),
                    "weight_decay": options.weight_decay if group.decay else 0.0,
                }
                for group in run.groups(model)
            ]
            return torch.optim.RMSprop(groups)

        @hookimpl
        def flops_fit_optimizers():
            yield OptimizerSpec(name="rmsprop", options=RMSpropOptions, build=build_rmsprop, adam_like=True)
    """
    return ()


@hookspec
def flops_fit_schedules() -> Iterable[ScheduleSpec]:
    """Offer learning-rate schedules: ``[schedule]`` in an experiment.

    ::

        from flops_fit_core import ScheduleSpec, hookimpl

        def build_linear(options, run):
            return lambda step: 1 - step / run.steps

        @hookimpl
        def flops_fit_schedules():
            yield ScheduleSpec(name="linear-to-zero", build=build_linear)
    """
    return ()


@hookspec
def flops_fit_recipes() -> Iterable[RecipeSpec]:
    """Offer recipes, which choose the hyperparameters that the user left unset: ``[recipe]``.

    ::

        from flops_fit_core import Hyperparameters, RecipeSpec, hookimpl

        def build_big_batches(options, about):
            return Hyperparameters(batch_size=max(1, round(about.tokens**0.5 / about.task.tokens_per_sample)))

        @hookimpl
        def flops_fit_recipes():
            yield RecipeSpec(name="big-batches", build=build_big_batches)
    """
    return ()


@hookspec
def flops_fit_flop_counters() -> Iterable[FlopCounterSpec]:
    """Offer FLOPs counters: ``[flops]`` in an experiment.

    ::

        from flops_fit_core import FlopCount, FlopCounterSpec, hookimpl

        def build_recomputing(options, measured):
            n = measured.parameters.matmul
            return FlopCount(8.0 * n, n, "8 N D: the forward pass is computed twice", "matmul parameters")

        @hookimpl
        def flops_fit_flop_counters():
            yield FlopCounterSpec(name="recomputing", build=build_recomputing)
    """
    return ()


@hookspec
def flops_fit_stores() -> Iterable[StoreSpec]:
    """Offer result stores: ``[store]`` in an experiment.

    ::

        import json
        import time

        from flops_fit_core import RunResult, StoreSpec, hookimpl

        class LineStore:
            # One file, with a result or a claim in each line.
            def __init__(self, path):
                self.path, self.kept, self.claims = path, {}, {}
                for line in path.read_text().splitlines() if path.exists() else ():
                    self.take(line)

            def take(self, line):
                if line.startswith("["):
                    run_id, *claim = json.loads(line)
                    self.claims[run_id] = claim
                else:
                    result = RunResult.model_validate_json(line)
                    self.kept.setdefault(result.id, {})[result.attempt] = result

            def write(self, line):
                with self.path.open("a") as file:
                    file.write(line + "\\n")
                self.take(line)

            def add(self, result):
                result = RunResult.model_validate(result.model_dump())  # refuses NaN
                if self.kept.get(result.id, {}).get(result.attempt) != result:
                    self.write(result.model_dump_json())

            def attempts(self, run_id):
                return [result for _, result in sorted(self.kept.get(run_id, {}).items())]

            def get(self, run_id):
                return next(reversed(self.attempts(run_id)), None)

            def results(self):
                return [self.get(run_id) for run_id in self.kept]

            def claim(self, run_id, owner, seconds):
                holder, until = self.claims.get(run_id, (owner, 0))
                if holder != owner and until > time.time():
                    return False
                self.write(json.dumps([run_id, owner, time.time() + seconds]))
                return True

            def renew(self, run_id, owner, seconds):
                holder, _ = self.claims.get(run_id, (None, 0))
                return holder == owner and self.claim(run_id, owner, seconds)

            def release(self, run_id, owner):
                holder, _ = self.claims.get(run_id, (None, 0))
                if holder == owner:
                    self.write(json.dumps([run_id, None, 0]))

            def close(self):
                pass

        @hookimpl
        def flops_fit_stores():
            yield StoreSpec(name="lines", build=lambda options, folder: LineStore(folder / "results.jsonl"))
    """
    return ()


@hookspec
def flops_fit_devices() -> Iterable[DeviceSpec]:
    """Offer devices: ``[device]`` in an experiment.

    ::

        from flops_fit_core import DeviceSpec, hookimpl

        class AMX:
            torch_device, name, precision = "cpu", "CPU with AMX units", "bfloat16"

            def synchronize(self):
                pass  # a CPU returns when it is done

            def peak_memory(self):
                return None

            def release(self):
                pass

            def peak_flops(self, precision):
                return None

        @hookimpl
        def flops_fit_devices():
            yield DeviceSpec(name="amx", build=lambda options: AMX(), slots=lambda options: [{}])
    """
    return ()


@hookspec
def flops_fit_trainers() -> Iterable[TrainerSpec]:
    """Offer trainers: ``[trainer]`` in an experiment.

    ::

        from flops_fit_core import TrainerSpec, hookimpl

        class PlainTrainer:
            def train(self, job, context):
                import torch

                for run in job.runs:
                    parts = context.build(run)
                    task, groups = parts.dataset.task, parts.optimizer.param_groups
                    peaks = [group["lr"] for group in groups]
                    batches = parts.dataset.batches(run.batch_size)
                    for step in range(run.steps):
                        if context.should_stop():
                            return
                        for group, peak in zip(groups, peaks, strict=True):
                            group["lr"] = peak * parts.schedule(step)
                        batch = next(batches)
                        loss, count = task.loss(task.outputs(parts.model, batch), batch)
                        parts.optimizer.zero_grad()
                        (loss / count).backward()
                        parts.optimizer.step()
                    parts.model.eval()  # without dropout
                    with torch.no_grad():
                        held = [task.loss(task.outputs(parts.model, b), b)
                                for b in parts.dataset.heldout(4096, 64)]
                    mean = sum(float(loss) for loss, _ in held) / sum(count for _, count in held)
                    yield context.result(run, "completed", loss=mean, tokens=run.tokens)

        @hookimpl
        def flops_fit_trainers():
            yield TrainerSpec(name="plain", build=lambda options: PlainTrainer())
    """
    return ()


@hookspec
def flops_fit_executors() -> Iterable[ExecutorSpec]:
    """Offer executors, which run jobs somewhere: ``[executor]`` in an experiment.

    ::

        from collections import deque

        from flops_fit_core import ExecutorSpec, JobEnded, hookimpl

        class OneAfterAnother:
            capacity = 1

            def __init__(self, context):
                self.context, self.waiting, self.running, self.cancelled = context, deque(), None, set()

            def submit(self, job):
                self.waiting.append(job)

            def events(self, timeout):
                while self.running or self.waiting:
                    self.running = self.running or self.work_on(self.waiting.popleft())
                    for event in self.running:  # whoever reads may stop here, and come back
                        yield event
                    self.running = None

            def work_on(self, job):
                from flops_fit_core import work  # and torch with it

                yield from work(job.model_dump_json(), self.context.plugins,
                                objects=self.context.live, folder=self.context.folder,
                                should_stop=lambda: job.id in self.cancelled)
                yield JobEnded(job.id, "cancelled" if job.id in self.cancelled else None)

            def cancel(self, job_id):
                self.cancelled.add(job_id)

            def close(self):
                self.waiting.clear()
                self.running = None

        @hookimpl
        def flops_fit_executors():
            yield ExecutorSpec(name="one-after-another", build=lambda options, context: OneAfterAnother(context))
    """
    return ()


@hookspec
def flops_fit_loggers() -> Iterable[LoggerSpec]:
    """Offer loggers: ``loggers = ["..."]`` in an experiment.

    ::

        from flops_fit_core import LoggerSpec, hookimpl

        class LineLogger:
            def __init__(self, folder):
                self.path = folder / "log.txt"

            def started(self, plan):
                self.write(f"{plan.name}: {len(plan.runs)} runs")

            def progress(self, progress):
                pass

            def finished(self, result):
                self.write(f"{result.id} {result.status} {result.loss}")

            def close(self):
                pass

            def write(self, line):
                with self.path.open("a") as file:
                    file.write(line + "\\n")

        @hookimpl
        def flops_fit_loggers():
            yield LoggerSpec(name="lines", build=lambda options, folder: LineLogger(folder))
    """
    return ()


@hookspec
def flops_fit_fitters() -> Iterable[FitterSpec]:
    """Offer fitters: ``[fitter]`` in an experiment.

    ::

        import math

        from flops_fit_core import (
            FitError, FitterSpec, Interval, Law, LawFit, Optimum, PluginChoice, hookimpl
        )

        class BestOfEach:
            # Straight lines through the best run of each budget: ln N and ln L against ln C.
            def fit(self, observations):
                best = {}
                for one in sorted(observations, key=lambda one: one.loss, reverse=True):
                    best[one.budget or one.flops] = one
                if len(best) < 2:
                    raise FitError(f"runs of {len(best)} budgets; a line needs two")
                runs = sorted(best.values(), key=lambda one: one.flops)
                x = [math.log(one.flops) for one in runs]
                a, params = line(x, [math.log(one.params) for one in runs])
                slope, loss = line(x, [math.log(one.loss) for one in runs])
                law = Law(name="best of each", parameters={"a": a, "ln_N": params, "slope": slope, "ln_L": loss})
                others = {one.id: "not the best of its budget" for one in observations if one not in runs}
                return LawFit(
                    fitter=PluginChoice(name="mine/best-of-each"), law=law, excluded=others,
                    exponents={"a": Interval(value=a), "b": Interval(value=1 - a)}, level=0.9, objective=0.0,
                    n_runs=len(runs), flops_range=(runs[0].flops, runs[-1].flops),
                )

            def optimum(self, fit, flops):
                it, x = fit.law.parameters, math.log(flops)
                params = math.exp(it["ln_N"] + it["a"] * x)
                return Optimum(flops=flops, params=Interval(value=params),
                               tokens=Interval(value=flops / (6 * params)),
                               loss=Interval(value=math.exp(it["ln_L"] + it["slope"] * x)))

        def line(x, y):
            mean, middle = sum(x) / len(x), sum(y) / len(y)
            both = zip(x, y, strict=True)
            slope = sum((p - mean) * (q - middle) for p, q in both) / sum((p - mean) ** 2 for p in x)
            return slope, middle - slope * mean

        @hookimpl
        def flops_fit_fitters():
            yield FitterSpec(name="best-of-each", build=lambda options: BestOfEach())
    """
    return ()


@hookspec
def flops_fit_run_finished(run: RunSpec, result: RunResult) -> None:
    """Observe each result, after it has been stored.

    ::

        from flops_fit_core import hookimpl

        @hookimpl
        def flops_fit_run_finished(run, result):
            print(run.id, result.status, result.loss)
    """


@hookspec
def flops_fit_sweep_finished(plan: SweepPlan, results: Sequence[RunResult]) -> None:
    """Observe the end of a sweep, with the latest result of every run of the plan.

    ::

        from flops_fit_core import hookimpl

        @hookimpl
        def flops_fit_sweep_finished(plan, results):
            print(plan.name, sum(result.status == "completed" for result in results))
    """
