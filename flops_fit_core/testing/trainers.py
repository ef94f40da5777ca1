"""The conformance kit for trainers.

::

    from flops_fit_core.testing import TrainerConformance

    class TestMyTrainer(TrainerConformance):
        name = "mine"
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Job, Progress, RunResult, SweepPlan
from flops_fit_core.testing import tiny
from flops_fit_core.testing.kit import Kit

Events = list[Progress | RunResult]
BATCH = 8
STOPS_AT = 20
"""Step at which a test stops a trainer."""
RAISES = "raise RuntimeError('this model raises')"
BREAKS = "if step == 5: model[0].weight.data.fill_(float('nan'))"


class TrainerConformance(Kit):
    """Tests for every trainer. Inherit, set ``name``, and run pytest.

    The tests train a model of about 50 parameters on computed data, by plain gradient descent with a learning rate
    that falls to zero. They cover ``checkpoint``, ``branch`` and ``vmap_runs`` if these are in ``can`` of the
    trainer's spec, but not ``distribute``.

    Attributes:
        experiment: Tables that replace those of the experiment, such as ``{"dataset": {...}}``.
        size: Size of the model, as in ``sweep.sizes``.
        budget: FLOPs of the smallest run.
        in_process: False for a trainer that starts a program, or computes a loss from a formula. Tests of single
            steps are then skipped, and ``experiment`` must name a model and a dataset that it can train.
        uses_optimizer: False for a trainer with a built-in optimizer and schedule.
        learns: Largest held-out loss after about 200 steps. Guessing has a loss of 0.693.
        tolerance: Largest relative difference between two losses that should be equal.
    """

    kind: ClassVar[str] = "trainer"
    experiment: Mapping[str, Any] = {}
    size: Mapping[str, Any] = {"width": 4}
    budget = 500_000.0
    in_process = True
    uses_optimizer = True
    learns = 0.66
    tolerance = 1e-6

    # ------------------------------------------------------------------ parts

    @pytest.fixture
    def all_plugins(self, registry: Registry) -> Registry:
        """The plugins, and those of ``tiny``."""
        return _with_tiny(registry)

    @pytest.fixture
    def plan(self, all_plugins: Registry, given_options: Mapping[str, Any]) -> Callable[..., SweepPlan]:
        """``plan(budgets=1, seeds=1, **tables)`` plans runs of one size. Each budget is twice the previous
        budget."""

        def plan(budgets: int = 1, seeds: int = 1, **tables: Any) -> SweepPlan:
            table: dict[str, Any] = {
                "sweep": {
                    "budgets": [self.budget * 2**number for number in range(budgets)],
                    "sizes": [dict(self.size)],
                    "batch_size": BATCH,
                    "seeds": list(range(seeds)),
                },
                "model": "tiny/tiny",
                "dataset": "tiny/majority",
                "optimizer": "tiny/plain",
                "counter": "counters/chinchilla",
                "schedule": "tiny/falling",
                "device": "devices/cpu",
                **self.experiment,
                **tables,
            }
            table["trainer"] = {"name": self.name, **given_options, **tables.get("trainer", {})}
            return make_plan(make_experiment(table, all_plugins))

        return plan

    @pytest.fixture
    def train(self, all_plugins: Registry, tmp_path: Path) -> Callable[..., Events]:
        """``train(plan, should_stop=..., done=(), folder=...)`` trains a plan and returns the events of its
        jobs."""

        def train(
            plan: SweepPlan,
            should_stop: Callable[[], bool] = lambda: False,
            done: tuple[str, ...] = (),
            folder: Path = tmp_path / "study",
        ) -> Events:
            events: Events = []
            for job in plan.jobs({run.id for run in plan.runs} - set(done)):
                events += self._work(job, all_plugins, folder, should_stop)
            return events

        return train

    def _work(self, job: Job, registry: Registry, folder: Path, should_stop: Callable[[], bool]) -> Events:
        from flops_fit_core.training import work

        setup, objects = registry.setup.model_dump_json(), _blob(registry)
        return list(work(job.model_dump_json(), setup, objects=objects, folder=folder, should_stop=should_stop))

    @pytest.fixture
    def in_steps(self) -> None:
        """Skips the test for a trainer that does not train in this process."""
        if not self.in_process:
            pytest.skip("this trainer does not claim to train in this process")

    # ------------------------------------------------------------------ results

    def test_every_run_gets_one_result_that_says_what_was_done(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events]
    ) -> None:
        """A finite loss, all tokens, and the plan's FLOPs."""
        runs = plan(budgets=2, seeds=2)
        run_results = results(train(runs))
        assert sorted(result.id for result in run_results) == sorted(run.id for run in runs.runs)
        for result in run_results:
            assert result.status == "completed", result.error
            assert result.loss is not None
            assert math.isfinite(result.loss)
            assert result.tokens == result.run.tokens, f"{result.tokens} tokens of {result.run.tokens}"
            assert result.flops == pytest.approx(result.run.flops)
            assert result.attempt == 1

    def test_progress_is_of_its_runs(self, plan: Callable[..., SweepPlan], train: Callable[..., Events]) -> None:
        """If there is any progress, steps do not decrease and do not exceed the last step."""
        runs = plan()
        by_run = {run.id: run for run in runs.runs}
        last = dict.fromkeys(by_run, 0)
        for event in train(runs):
            if isinstance(event, Progress):
                run = by_run[event.run]
                assert last[run.id] <= event.step <= event.steps == run.steps
                assert event.tokens == event.step * run.tokens_per_step
                last[run.id] = event.step

    def test_the_same_run_has_the_same_loss_and_another_seed_another(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], tmp_path: Path
    ) -> None:
        """A run's id determines its result, and replicates measure the variation between seeds."""
        runs = plan(seeds=2)
        first, second = (losses(train(runs, folder=tmp_path / name)) for name in ("one", "two"))
        assert second == pytest.approx(first, rel=self.tolerance)
        assert len(set(first.values())) == len(first), "two seeds gave the same loss"

    # ------------------------------------------------------------------ training

    def test_the_loss_is_that_of_held_out_data(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], in_steps: None
    ) -> None:
        """The loss is low for correct held-out answers, and high for wrong held-out answers."""
        (correct,) = losses(train(plan())).values()
        assert correct < self.learns, f"the held-out loss is {correct:.3f}; guessing has 0.693"
        contrary = plan(dataset={"name": "tiny/majority", "contrary": True})
        (wrong,) = losses(train(contrary)).values()
        assert wrong > 0.72, f"{wrong:.3f} with wrong held-out answers: this is the training loss"

    def test_the_loss_is_of_the_model_as_it_is_used(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], tmp_path: Path, in_steps: None
    ) -> None:
        """Training uses training mode, and the evaluation uses evaluation mode, without dropout. The loss is the
        mean over all held-out predictions in nats, with the final weights."""
        import torch

        modes, last = tmp_path / "modes", tmp_path / "last.pt"
        save = f"import torch; torch.save((model.training, model.state_dict()), {str(last)!r})"
        runs = plan(model={"name": "tiny/tiny", "code": _append(modes, "model.training"), "evaluated": save})
        last.unlink(missing_ok=True)  # planning runs the model, too
        (result,) = results(train(runs))
        assert all(_lines(modes)), f"step {_lines(modes).index(False)} was trained in evaluation mode"
        assert last.exists(), "the model was not evaluated without gradients"
        in_training, weights = torch.load(last)
        assert not in_training, "held-out loss was measured in training mode: dropout would be on"
        expected = _eval_loss(weights, result)
        assert result.loss == pytest.approx(expected, rel=1e-4), (
            f"the result's loss is {result.loss}; with its weights, the held-out loss is {expected:.6f} nats"
        )

    def test_gradients_are_those_of_one_step(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], in_steps: None
    ) -> None:
        """The trainer clears gradients before each step; otherwise they add up."""
        if not self.uses_optimizer:
            pytest.skip("this trainer brings its own optimizer")
        (result,) = results(train(plan(optimizer={"name": "tiny/plain", "poison": True})))
        assert result.status == "completed", "gradients of the last step are used again: optimizer.zero_grad()"

    def test_it_trains_on_the_samples_of_its_run_in_order(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], tmp_path: Path, in_steps: None
    ) -> None:
        """Each sample once, so that D is that of the plan."""
        runs = plan(model={"name": "tiny/tiny", "code": _append(tmp_path / "samples", "batch.tolist()")})
        train(runs)
        (run,) = runs.runs
        samples = [sample for batch in _lines(tmp_path / "samples") for sample in batch]
        assert len(samples) == run.steps * run.batch_size, (
            f"{len(samples)} samples; {run.steps} steps of {run.batch_size} have {run.steps * run.batch_size}"
        )
        inputs, _ = next(tiny.Majority(run.seed).batches(len(samples)))
        assert samples == inputs.tolist()

    def test_the_learning_rate_follows_the_schedule(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], tmp_path: Path, in_steps: None
    ) -> None:
        """At every step, the group's peak times ``parts.schedule(step)``."""
        if not self.uses_optimizer:
            pytest.skip("this trainer brings its own optimizer")
        runs = plan(optimizer={"name": "tiny/plain", "lr": 0.2, "trace": str(tmp_path / "rates")})
        train(runs)
        steps = runs.runs[0].steps
        assert _lines(tmp_path / "rates") == pytest.approx([0.2 * (1 - step / steps) for step in range(steps)])

    # ------------------------------------------------------------------ failures

    def test_what_the_model_raises_is_the_error_of_its_run(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], in_steps: None
    ) -> None:
        """With message and traceback."""
        (result,) = results(train(plan(model={"name": "tiny/tiny", "code": RAISES})))
        assert result.status == "failed"
        assert result.error is not None
        assert "this model raises" in result.error.message
        assert result.error.traceback

    def test_a_loss_that_is_not_finite_does_not_complete(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], in_steps: None
    ) -> None:
        """Fits do not use diverged runs."""
        (result,) = results(train(plan(model={"name": "tiny/tiny", "code": BREAKS})))
        assert result.status in ("diverged", "failed")
        assert result.loss is None

    # ------------------------------------------------------------------ stopping and continuing

    def test_it_stops_when_it_is_asked_to(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], tmp_path: Path, in_steps: None
    ) -> None:
        """Within two steps, and without a result."""
        runs, trace = self._plan_with_trace(plan, tmp_path)
        events = train(runs, should_stop=lambda: len(_lines(trace)) >= STOPS_AT)
        assert results(events) == [], "a stopped run has a result"
        assert len(_lines(trace)) <= STOPS_AT + 2, (
            f"should_stop was true after {STOPS_AT} steps, but the trainer took {len(_lines(trace))} steps"
        )

    def test_it_goes_on_where_it_was_stopped(
        self,
        plan: Callable[..., SweepPlan],
        train: Callable[..., Events],
        tmp_path: Path,
        all_plugins: Registry,
        in_steps: None,
    ) -> None:
        """It takes every step once, and has the loss of a run that was not stopped."""
        self._require(all_plugins, "checkpoint")
        runs, trace = self._plan_with_trace(plan, tmp_path)
        (undisturbed,) = losses(train(runs, folder=tmp_path / "other")).values()
        trace.unlink()
        train(runs, should_stop=lambda: len(_lines(trace)) >= STOPS_AT)
        (result,) = results(train(runs))
        count, steps = len(_lines(trace)), runs.runs[0].steps
        assert count == steps, f"{count} steps in two parts of a run of {steps} steps"
        assert result.loss == pytest.approx(undisturbed, rel=self.tolerance), (
            "a stopped run has another loss than an undisturbed run: a checkpoint must contain weights, optimizer "
            "state, position in the data, and the states of random generators"
        )

    def test_a_branch_ends_like_a_run_that_was_trained_alone(
        self,
        plan: Callable[..., SweepPlan],
        train: Callable[..., Events],
        tmp_path: Path,
        all_plugins: Registry,
        in_steps: None,
    ) -> None:
        """Runs that differ in D only, with a shared stable phase."""
        self._require(all_plugins, "branch")
        runs = plan(budgets=3, schedule="tiny/level")
        assert len(runs.trajectories) == 1
        branched = losses(train(runs))
        for run in runs.runs:
            done = tuple(other.id for other in runs.runs if other is not run)
            alone = losses(train(runs, done=done, folder=tmp_path / run.id))
            assert alone[run.id] == pytest.approx(branched[run.id], rel=self.tolerance)

    def test_vmapped_runs_end_like_runs_that_were_trained_alone(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], tmp_path: Path, all_plugins: Registry
    ) -> None:
        """Several runs trained as one model, to within rounding."""
        self._require(all_plugins, "vmap_runs")
        separate, vmapped = plan(seeds=3), plan(seeds=3, trainer={"vmap_runs": 3})
        assert len(vmapped.jobs({run.id for run in vmapped.runs})) == 1
        expected = losses(train(separate, folder=tmp_path / "separate"))
        assert losses(train(vmapped)) == pytest.approx(expected, rel=1e-3)

    def _require(self, registry: Registry, ability: str) -> None:
        if ability not in registry.find(self.kind, self.name).spec.can:
            pytest.skip(f"this trainer does not claim that it can {ability}")

    def _plan_with_trace(self, plan: Callable[..., SweepPlan], folder: Path) -> tuple[SweepPlan, Path]:
        """A plan of runs that record their steps, with a model that draws random numbers, as dropout does."""
        trace = folder / "steps"
        noise = "import torch; batch.add_(0.3 * torch.rand_like(batch))\n"
        return plan(model={"name": "tiny/tiny", "code": noise + _append(trace, "step")}), trace


@functools.lru_cache(maxsize=4)
def _with_tiny(registry: Registry) -> Registry:
    """Once per class, because discovery takes longer than a run."""
    return registry.with_plugins({"tiny": tiny})


@functools.lru_cache(maxsize=4)
def _blob(registry: Registry) -> bytes | None:
    """Pickled plugins that are objects, as a driver sends them to workers."""
    import cloudpickle

    return cloudpickle.dumps(registry.objects) if registry.objects else None


def results(events: Events) -> list[RunResult]:
    """The results among a job's events."""
    return [event for event in events if isinstance(event, RunResult)]


def losses(events: Events) -> dict[str, float]:
    """Run id -> loss. Fails if a run did not complete."""
    loss_of = {}
    for result in results(events):
        assert result.loss is not None, result.error
        loss_of[result.id] = result.loss
    return loss_of


def _eval_loss(weights: Mapping[str, Any], result: RunResult) -> float:
    import torch

    data = tiny.Majority(result.run.seed)
    model = tiny.build_tiny(tiny.TinyOptions(width=len(weights["0.bias"])), data.task)
    model.load_state_dict({name: value.cpu() for name, value in weights.items()})
    model.eval()
    with torch.no_grad():
        pairs = [
            data.task.loss(data.task.outputs(model, batch), batch)
            for batch in data.eval_batches(result.eval_tokens or 10**9, 50)
        ]
    return sum(float(loss) for loss, _ in pairs) / sum(count for _, count in pairs)


def _append(file: Path, expression: str) -> str:
    """Code that appends the value of an expression to a file in every step."""
    return f"with open({str(file)!r}, 'a') as file: file.write(repr({expression}) + '\\n')"


def _lines(file: Path) -> list[Any]:
    import ast

    return [ast.literal_eval(line) for line in file.read_text().splitlines()] if file.exists() else []
