"""The training loop: a trajectory's trunk, and each run's way from it to its held-out loss."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.protocols import TrainContext, Trainer
from flops_fit_core.records import Job, Progress, RunResult, RunSpec, Trajectory
from flops_fit_core.training.batches import prefetched
from flops_fit_core.training.memory import is_out_of_memory
from flops_fit_core.training.packing import PackedStepper
from flops_fit_core.training.run_evaluator import Measuring
from flops_fit_core.training.run_state import Pass, Track
from flops_fit_core.training.step import Stepper
from flops_fit_core.training.throughput import Stopwatch, timed

logger = logging.getLogger("flops_fit")

AnyStepper = Stepper | PackedStepper

LOOK_EVERY = 16
"""Steps between two looks at the training loss. A look waits for the device; the steps between do not."""


class TorchTrainer(Trainer):
    """Trains one trajectory after another on one device. Its options are those of ``trainers/torch``."""

    def __init__(
        self,
        *,
        clip: float | None,
        precision: str,
        heldout_tokens: int,
        evaluations: int,
        divergence: float,
        eval_batch_tokens: int,
        micro_batch: int | None = None,
        compile: bool = False,  # noqa: A002
        checkpoint_minutes: float = 5.0,
        parallel: str = "auto",
    ) -> None:
        self.clip = clip
        self.evaluations = evaluations
        self.measure = Measuring(
            precision=precision,
            heldout_tokens=heldout_tokens,
            divergence=divergence,
            eval_batch_tokens=eval_batch_tokens,
        )
        self.micro_batch = micro_batch
        self.compile = compile
        self.parallel = parallel
        self.checkpoint_seconds = 60 * checkpoint_minutes

    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        """Train the job's runs; an exception ends the job."""
        torch.set_flush_denormal(True)
        shard = partial(self._shards, context)
        tracks = [Track(one, self.evaluations, context, shard=shard) for one in job.trajectories]
        alike = len({one.shape for one in job.trajectories}) == 1
        for together in [tracks] if alike else [[one] for one in tracks]:
            yield from self._tracks(together, context)

    def _shards(self, context: TrainContext, model: nn.Module) -> bool:
        """Whether a model's weights are spread over its devices, not copied to each."""
        device = context.device.torch_device
        if context.together.size == 1:
            return False
        if self.parallel != "auto" or not device.startswith("cuda"):
            return self.parallel == "fsdp"
        kept = 16 * sum(parameter.numel() for parameter in model.parameters())  # weights, gradients, two moments
        return kept > torch.cuda.get_device_properties(device).total_memory / 2

    def tokens_per_second(self, run: RunSpec, context: TrainContext, seconds: float) -> float:
        """Training throughput of a run on this device, measured over about ``seconds`` of real steps."""
        track = Track(Trajectory(id=run.trajectory, runs=(run,)), 0, context)
        one = track.begin(run)
        step = self._stepper(one, context)
        batches = one.parts.dataset.batches(run.batch_size)
        step([next(batches)], 0)
        context.device.synchronize()
        started, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - started < seconds:
            step([next(batches)], 0)
            context.device.synchronize()
            steps += 1
        return steps * run.tokens_per_step / (time.perf_counter() - started)

    def _tracks(self, tracks: Sequence[Track], context: TrainContext) -> Iterator[Progress | RunResult]:
        """Runs by their D: each goes on along the trunk from where the one before it branched off.

        Several trajectories, alike but for their numbers, are trained side by side.
        """
        for runs in zip(*(track.runs for track in tracks), strict=True):
            alive = []
            for track, run in zip(tracks, runs, strict=True):
                if track.dead is None:
                    alive.append((track, run))
                else:
                    yield self.measure.result(track.ended(run), None, context)
            for group, stepper in self._groups(alive, context):
                try:
                    stopped = yield from self._group(group, stepper, context)
                except Exception as error:
                    if not self._can_part(group, stepper, error):
                        raise
                    # What they have trained is built again from their checkpoints, run by run.
                    stopped = False
                del group, stepper
                if stopped:
                    return

    def _can_part(self, group: list[Pass], stepper: AnyStepper, error: Exception) -> bool:
        """Whether runs ran out of memory while they were trained side by side, and can be trained one by one."""
        training = all(one.position.step < one.run.steps for one in group)
        if not (isinstance(stepper, PackedStepper) and training and is_out_of_memory(error)):
            return False
        logger.warning(
            "out of memory with %d runs side by side: each is trained by itself, from its last checkpoint",
            len(group),
        )
        stepper.out_of_memory = True
        return True

    def _groups(
        self, alive: list[tuple[Track, RunSpec]], context: TrainContext
    ) -> Iterator[tuple[list[Pass], AnyStepper]]:
        """All side by side where that is possible, otherwise one by one, each built when its turn comes."""
        if len(alive) > 1 and self.micro_batch is None and not self.compile and context.together.size == 1:
            passes = [track.begin(run) for track, run in alive]
            if stepper := self._packed(passes, context):
                yield passes, stepper
                if not stepper.out_of_memory:
                    return
            del passes, stepper
            for track, _ in alive:
                track.drop()
            context.device.release()
        for track, run in alive:
            one = track.begin(run)
            yield [one], self._stepper(one, context)

    def _packed(self, passes: list[Pass], context: TrainContext) -> PackedStepper | None:
        """None where they cannot be vectorized, or are not at one point of their ways."""
        if len({(one.position.step, bool(one.position.run)) for one in passes}) > 1:
            return None
        return PackedStepper.where_possible(
            passes,
            device=context.device.torch_device,
            clip=self.clip,
            precision=self.measure.precision_on(context),
        )

    def _stepper(self, one: Pass, context: TrainContext) -> Stepper:
        return Stepper(
            one,
            context,
            micro_batch=self.micro_batch,
            compiled=self.compile,
            clip=self.clip,
            precision=self.measure.precision_on(context),
        )

    def _group(
        self, group: list[Pass], stepper: AnyStepper, context: TrainContext
    ) -> Generator[Progress | RunResult, None, bool]:
        """Along the trunk to the branch, then along the runs' own decay, to their results.

        Returns whether it was asked to stop, and has.
        """
        first = group[0]
        if context.should_stop():
            return True
        on_trunk = not first.position.run and first.position.step < first.branch
        if on_trunk and (yield from self._stretch(group, stepper, first.branch, context)):
            return True
        alive = [one for one in group if not one.position.diverged]
        for one in alive:
            self._branch_off(one, len(group))
        if alive and (yield from self._stretch(group, stepper, first.run.steps, context)):
            return True
        self._save_before_evaluation(group)
        for one in group:
            heldout = None if one.position.diverged else self.measure.evaluate(one, context)
            yield self.measure.result(one, heldout, context, stepper, len(group))
        return False

    def _save_before_evaluation(self, group: list[Pass]) -> None:
        """So that what fails in the evaluation, or ends the process, does not cost the steps."""
        for one in group:
            one.count_time(1 / len(group))
            if not one.position.diverged:
                one.checkpoints.save_latest(one.parts, one.position)

    def _branch_off(self, one: Pass, share: int) -> None:
        if not one.position.run and one.run.branch_step is not None:
            one.count_time(1 / share)
            one.checkpoints.save_branch(one.parts, one.position)
        one.position.run = one.run.id

    # ------------------------------------------------------------------ steps

    def _stretch(
        self, group: list[Pass], stepper: AnyStepper, last: int, context: TrainContext
    ) -> Generator[Progress, None, bool]:
        """Steps up to ``last``; ends early where all diverge. Returns whether it was asked to stop, and has."""
        lead, should_stop = group[0], context.should_stop
        evaluate_at = lead.own_evaluations if lead.position.run else lead.trunk_evaluations
        step = lead.position.step
        for one in group:
            one.parts.model.train()
        watch = Stopwatch(group)
        for batches, waited in timed(self._batches(group, last, context)):
            losses = stepper(batches, step)
            step += 1
            counts = [one.count_batch(batch) for one, batch in zip(group, batches, strict=True)]
            watch.step(waited)
            regular = step % LOOK_EVERY == 0 or step in (1, lead.run.steps)
            if regular or watch.speaks():
                self.measure.look(group, losses.reshape(-1).tolist(), counts, regular)
                if all(one.position.diverged for one in group):
                    break
            if step in evaluate_at:
                with watch.paused():
                    self.measure.evaluate_on_the_way(group, context)
            if should_stop():
                break
            if step < last and context.together.agree(watch.since_saved() > self.checkpoint_seconds):
                self._save(group, watch)
            if watch.speaks():
                yield from self._progress(group, watch.speak())
        context.device.synchronize()
        watch.settle()
        return self._stop(group, watch, should_stop(), step < last)

    def _stop(self, group: list[Pass], watch: Stopwatch, asked: bool, early: bool) -> bool:
        """Save what was asked to stop. Returns whether it has. Raises RunFailed if the data ended too early."""
        if all(one.position.diverged for one in group):
            return False
        if asked:
            self._save(group, watch)
        elif early:
            raise RunFailed(_data_ended(group[0]))
        return asked

    def _batches(self, group: list[Pass], last: int, context: TrainContext) -> Iterator[list[Any]]:
        run, step = group[0].run, group[0].position.step
        sources = [one.parts.dataset.batches(run.batch_size, step * run.batch_size) for one in group]
        wanted = itertools.islice(map(list, zip(*sources, strict=True)), last - step)
        return prefetched(wanted) if context.device.torch_device.startswith("cuda") else wanted

    def _save(self, group: list[Pass], watch: Stopwatch) -> None:
        """Write what an interrupted pass goes on from."""
        watch.settle()
        for one in group:
            one.count_time(1 / len(group))
            if not one.position.diverged:
                one.checkpoints.save_latest(one.parts, one.position)
        watch.saved()

    def _progress(self, group: list[Pass], steps_per_second: float) -> Iterator[Progress]:
        for one in group:
            per_step = one.run.tokens_per_step
            yield Progress(
                run=one.run.id,
                step=one.position.step,
                steps=one.run.steps,
                tokens=one.position.step * per_step,
                loss=one.position.last_loss,
                tokens_per_second=steps_per_second * per_step,
            )


def _data_ended(one: Pass) -> str:
    unit = one.parts.dataset.task.unit
    return (
        f"the training data ended after {one.position.tokens:,} of the {one.run.tokens:,} {unit} of this run: "
        "give more data or a smaller budget, or allow the data to be read again (repeat=True, sweep.repeat = true)"
    )
