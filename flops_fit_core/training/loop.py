"""The training loop: the runs of a job, each from its first batch to its held-out loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flops_fit_core.plugins.protocols import TrainContext, Trainer
from flops_fit_core.records import Job, Progress, RunResult
from flops_fit_core.training.batch_loader import BatchLoader
from flops_fit_core.training.options import TrainOptions
from flops_fit_core.training.run_evaluator import RunEvaluator
from flops_fit_core.training.run_queue import RunQueue
from flops_fit_core.training.run_state import all_diverged, all_finished
from flops_fit_core.training.throughput import Throughput


class TorchTrainer(Trainer):
    """Trains the runs of a job in this process, on one device."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options

    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        """Train every run of the job.

        Yields Progress about twice a second and one RunResult per run. If the context asks to stop, writes
        checkpoints and returns without the results of unfinished runs. An exception ends the job.
        """
        torch.set_flush_denormal(True)  # arithmetic with denormal numbers is many times slower on CPUs
        queue = RunQueue(job, context, self.options)
        evaluator = RunEvaluator(context, self.options)
        while group := queue.next_group():
            runs, train_step = group  # one run, or several runs whose models are stacked for vmap
            if context.should_stop():
                return
            throughput = Throughput(runs, context.device)
            steps = range(runs[0].position.step, runs[0].spec.steps)
            with BatchLoader(runs, steps, context.device) as loader:
                for step in steps:
                    batches = loader.next_batches()
                    losses = train_step(batches, step)
                    if losses is None:  # vmapped runs do not fit into memory
                        queue.separate_runs()
                        break
                    throughput.count_step(batches, loader.wait_seconds)
                    # Check first: no evaluation and no checkpoint of weights that have just diverged.
                    evaluator.check_losses_if_due(runs, losses, step + 1, throughput)
                    if all_diverged(runs):
                        break
                    # Evaluate before stopping: a resumed run starts after this step and would miss the evaluation.
                    if not evaluator.evaluate_if_due(runs, step + 1, throughput):
                        queue.separate_runs()
                        break
                    if context.should_stop():
                        queue.save(runs, throughput)
                        return
                    queue.branch_or_save_if_due(runs, step + 1, throughput)
                    if throughput.should_report():
                        yield from throughput.report()
            if all_finished(runs):  # runs that were separated are not: the queue builds them again
                queue.save(runs, throughput)  # if the evaluation fails, the steps are not lost
                yield from (
                    evaluator.result(run, train_step if run in runs else None) for run in queue.finish(runs)
                )
            # The next models are built while these names still exist. Delete them, or two models are in memory.
            del group, runs, train_step, throughput, loader
