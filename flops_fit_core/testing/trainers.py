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
"""Steps after which a test asks a trainer to stop."""
RAISES = "raise RuntimeError('this model raises')"
BREAKS = "if step == 5: model[0].weight.data.fill_(float('nan'))"


class TrainerConformance(Kit):
    """What every trainer must do. Inherit, set ``name``, and run pytest.

    It is given a model of some fifty parameters, data that are computed, plain gradient descent and a learning
    rate that falls to zero. What the trainer's spec says that it ``can`` do (``checkpoint``, ``branch``, ``vmap_runs``)
    is tried; ``distribute`` is not.

    Attributes:
        experiment: Tables of the experiment to use instead, such as ``{"dataset": {...}}``.
        size: Of the model, as in ``sweep.sizes``.
        budget: FLOPs of the smallest run.
        in_process: False for a trainer that starts a program, or computes a loss from a formula: what looks at
            single steps is skipped, and ``experiment`` says what it can train.
        uses_optimizer: False for a trainer that brings its own optimizer and schedule.
        learns: Largest held-out loss after some two hundred steps. Guessing gives 0.693.
        tolerance: How far two losses may be apart, relatively, that ought to be the same.
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
        """The plugins, with those that the tests train."""
        return _with_tiny(registry)

    @pytest.fixture
    def plan(self, all_plugins: Registry, given_options: Mapping[str, Any]) -> Callable[..., SweepPlan]:
        """``plan(budgets=1, seeds=1, **tables)``: runs of one size; of twice the FLOPs for each further budget."""

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
        """``train(plan, should_stop=..., done=(), folder=...)``: everything that comes of its jobs."""

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
        """Skips what cannot be looked at from outside."""
        if not self.in_process:
            pytest.skip("this trainer does not claim to train in this process")

    # ------------------------------------------------------------------ results

    def test_every_run_gets_one_result_that_says_what_was_done(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events]
    ) -> None:
        """A finite loss, all of the tokens, and the plan's FLOPs."""
        runs = plan(budgets=2, seeds=2)
        found = results(train(runs))
        assert sorted(one.id for one in found) == sorted(run.id for run in runs.runs)
        for one in found:
            assert one.status == "completed", one.error
            assert one.loss is not None
            assert math.isfinite(one.loss)
            assert one.tokens == one.run.tokens, f"{one.tokens} tokens of {one.run.tokens}"
            assert one.flops == pytest.approx(one.run.flops)
            assert one.attempt == 1

    def test_progress_is_of_its_runs(self, plan: Callable[..., SweepPlan], train: Callable[..., Events]) -> None:
        """Where there is any: it goes forward, and never beyond the end."""
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
        """Results are kept by what identifies a run, and replicates measure luck."""
        runs = plan(seeds=2)
        first, again = (losses(train(runs, folder=tmp_path / name)) for name in ("one", "two"))
        assert again == pytest.approx(first, rel=self.tolerance)
        assert len(set(first.values())) == len(first), "two seeds gave the same loss"

    # ------------------------------------------------------------------ training

    def test_the_loss_is_that_of_held_out_data(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], in_steps: None
    ) -> None:
        """After training, on data with the right answers; and with the wrong ones where those are held out."""
        (usual,) = losses(train(plan())).values()
        assert usual < self.learns, f"the held-out loss is {usual:.3f}, and guessing gives 0.693"
        contrary = plan(dataset={"name": "tiny/majority", "contrary": True})
        (wrong,) = losses(train(contrary)).values()
        assert wrong > 0.72, f"{wrong:.3f} where held-out answers are wrong: this is the training loss"

    def test_the_loss_is_of_the_model_as_it_is_used(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], tmp_path: Path, in_steps: None
    ) -> None:
        """In evaluation mode, without dropout, while training is in training mode; the mean over all held-out
        predictions, in nats, of the weights at the end."""
        import torch

        modes, last = tmp_path / "modes", tmp_path / "last.pt"
        keep = f"import torch; torch.save((model.training, model.state_dict()), {str(last)!r})"
        runs = plan(model={"name": "tiny/tiny", "code": _append(modes, "model.training"), "evaluated": keep})
        last.unlink(missing_ok=True)  # planning tries the model
        (result,) = results(train(runs))
        assert all(_lines(modes)), f"step {_lines(modes).index(False)} was trained in evaluation mode"
        assert last.exists(), "the model was not evaluated without gradients"
        in_training, weights = torch.load(last)
        assert not in_training, "held-out loss was measured in training mode: dropout would be on"
        expected = _eval_loss(weights, result)
        assert result.loss == pytest.approx(expected, rel=1e-4), (
            f"{result.loss} is given; with these weights, held-out predictions have {expected:.6f} nats each"
        )

    def test_gradients_are_those_of_one_step(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], in_steps: None
    ) -> None:
        """Cleared before each: those of all steps before would be added to it."""
        if not self.uses_optimizer:
            pytest.skip("this trainer brings its own optimizer")
        (result,) = results(train(plan(optimizer={"name": "tiny/plain", "poison": True})))
        assert result.status == "completed", "gradients of the step before are used again: optimizer.zero_grad()"

    def test_it_trains_on_the_samples_of_its_run_in_order(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], tmp_path: Path, in_steps: None
    ) -> None:
        """Every one, once: D is what the plan says."""
        runs = plan(model={"name": "tiny/tiny", "code": _append(tmp_path / "samples", "batch.tolist()")})
        train(runs)
        (run,) = runs.runs
        seen = [sample for batch in _lines(tmp_path / "samples") for sample in batch]
        assert len(seen) == run.steps * run.batch_size, (
            f"{len(seen)} samples; {run.steps} steps of {run.batch_size} have {run.steps * run.batch_size}"
        )
        inputs, _ = next(tiny.Majority(run.seed).batches(len(seen)))
        assert seen == inputs.tolist()

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

    # ------------------------------------------------------------------ failing

    def test_what_the_model_raises_is_the_error_of_its_run(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], in_steps: None
    ) -> None:
        """In words, with the traceback."""
        (result,) = results(train(plan(model={"name": "tiny/tiny", "code": RAISES})))
        assert result.status == "failed"
        assert result.error is not None
        assert "this model raises" in result.error.message
        assert result.error.traceback

    def test_a_loss_that_is_not_finite_does_not_complete(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], in_steps: None
    ) -> None:
        """A run that has diverged is no point of a law."""
        (result,) = results(train(plan(model={"name": "tiny/tiny", "code": BREAKS})))
        assert result.status in ("diverged", "failed")
        assert result.loss is None

    # ------------------------------------------------------------------ stopping and going on

    def test_it_stops_when_it_is_asked_to(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], tmp_path: Path, in_steps: None
    ) -> None:
        """Within two steps, and gives no result."""
        runs, trace = self._traced(plan, tmp_path)
        found = results(train(runs, should_stop=lambda: len(_lines(trace)) >= STOPS_AT))
        assert found == [], "a run that was stopped has a result"
        assert len(_lines(trace)) <= STOPS_AT + 2, (
            f"asked to stop after {STOPS_AT} steps, took {len(_lines(trace))}"
        )

    def test_it_goes_on_where_it_was_stopped(
        self,
        plan: Callable[..., SweepPlan],
        train: Callable[..., Events],
        tmp_path: Path,
        all_plugins: Registry,
        in_steps: None,
    ) -> None:
        """Every step once, and the loss of a run that nobody stopped."""
        self._needs(all_plugins, "checkpoint")
        runs, trace = self._traced(plan, tmp_path)
        (undisturbed,) = losses(train(runs, folder=tmp_path / "other")).values()
        trace.unlink()
        train(runs, should_stop=lambda: len(_lines(trace)) >= STOPS_AT)
        (result,) = results(train(runs))
        taken, steps = len(_lines(trace)), runs.runs[0].steps
        assert taken == steps, f"{taken} steps in two parts of a run of {steps}"
        assert result.loss == pytest.approx(undisturbed, rel=self.tolerance), (
            "a run that was stopped ends elsewhere than one that was not: a checkpoint holds weights, the "
            "optimizer's state, the position in the data, and the generators of random numbers"
        )

    def test_a_branch_ends_like_a_run_that_was_trained_alone(
        self,
        plan: Callable[..., SweepPlan],
        train: Callable[..., Events],
        tmp_path: Path,
        all_plugins: Registry,
        in_steps: None,
    ) -> None:
        """Runs that differ in D only, with a schedule whose beginning they share."""
        self._needs(all_plugins, "branch")
        runs = plan(budgets=3, schedule="tiny/level")
        assert len(runs.trajectories) == 1
        together = losses(train(runs))
        for run in runs.runs:
            others = tuple(other.id for other in runs.runs if other is not run)
            alone = losses(train(runs, done=others, folder=tmp_path / run.id))
            assert alone[run.id] == pytest.approx(together[run.id], rel=self.tolerance)

    def test_packed_runs_end_like_runs_that_were_trained_alone(
        self, plan: Callable[..., SweepPlan], train: Callable[..., Events], tmp_path: Path, all_plugins: Registry
    ) -> None:
        """Side by side as one model, to within rounding."""
        self._needs(all_plugins, "vmap_runs")
        apart, packed = plan(seeds=3), plan(seeds=3, trainer={"vmap_runs": 3})
        assert len(packed.jobs({run.id for run in packed.runs})) == 1
        alone = losses(train(apart, folder=tmp_path / "apart"))
        assert losses(train(packed)) == pytest.approx(alone, rel=1e-3)

    def _needs(self, registry: Registry, ability: str) -> None:
        if ability not in registry.find(self.kind, self.name).spec.can:
            pytest.skip(f"this trainer does not claim that it can {ability}")

    def _traced(self, plan: Callable[..., SweepPlan], folder: Path) -> tuple[SweepPlan, Path]:
        """Runs that write down their steps, and whose model draws random numbers, as dropout does."""
        trace = folder / "steps"
        noise = "import torch; batch.add_(0.3 * torch.rand_like(batch))\n"
        return plan(model={"name": "tiny/tiny", "code": noise + _append(trace, "step")}), trace


@functools.lru_cache(maxsize=4)
def _with_tiny(registry: Registry) -> Registry:
    """Once for a class: discovery takes longer than a run."""
    return registry.with_plugins({"tiny": tiny})


@functools.lru_cache(maxsize=4)
def _blob(registry: Registry) -> bytes | None:
    """Plugins that are objects, as a driver sends them: a worker unpacks them once."""
    import cloudpickle

    return cloudpickle.dumps(registry.objects) if registry.objects else None


def results(events: Events) -> list[RunResult]:
    """The results among what a job gave."""
    return [event for event in events if isinstance(event, RunResult)]


def losses(events: Events) -> dict[str, float]:
    """Run id -> loss. Fails where a run did not complete."""
    found = {}
    for result in results(events):
        assert result.loss is not None, result.error
        found[result.id] = result.loss
    return found


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


def _append(file: Path, what: str) -> str:
    """Code that appends the value of an expression to a file in every step."""
    return f"with open({str(file)!r}, 'a') as file: file.write(repr({what}) + '\\n')"


def _lines(file: Path) -> list[Any]:
    import ast

    return [ast.literal_eval(line) for line in file.read_text().splitlines()] if file.exists() else []
