"""How far the estimate of the time left is off, over a finished sweep whose results have their times.

    python tests/benchmarks/time_left.py runs/text-gpt [--workers 2]

Prints the estimate / the true remaining time at several moments: by the model of finished runs, and by the FLOPs
left at the present rate. The sweep must have trained in one go. The load of the machine during it counts as error.
"""

from __future__ import annotations

import argparse

from flops_fit_core import Progress, RunResult, Study
from flops_fit_core.study.time_left import TimeLeft

MOMENTS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)


def progress_at(result: RunResult, seconds: float) -> Progress | None:
    """The progress of a run that began so many seconds ago; None before its first step."""
    speed = (result.flops_per_second or 0.0) / result.run.flops_per_token
    step = min(result.run.steps, int(seconds * speed / result.run.tokens_per_step))
    tokens = step * result.run.tokens_per_step
    if not step:
        return None
    return Progress(run=result.id, step=step, steps=result.run.steps, tokens=tokens, tokens_per_second=speed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    study = Study.open(arguments.study)
    results = [result for result in study.results if result.flops_per_second]
    end = {result.id: result.finished.timestamp() for result in results}
    begin = {result.id: end[result.id] - result.seconds for result in results}
    start, total = min(begin.values()), max(end.values()) - min(begin.values())
    runs = {run.id: run for run in study.plan.runs}
    print(f"{len(results)} runs, {total:.0f} s\n   at   time left   estimate   FLOPs at the present rate")
    for moment in MOMENTS:
        now = start + moment * total
        done = [result for result in results if end[result.id] <= now]
        at_work = [result for result in results if begin[result.id] < now < end[result.id]]
        running = [item for result in at_work if (item := progress_at(result, now - begin[result.id]))]
        ids = {result.id for result in done}
        estimate = TimeLeft(study.plan).estimate(done, ids, running, arguments.workers)
        rate = sum((item.tokens_per_second or 0.0) * runs[item.run].flops_per_token for item in running)
        trained = sum(item.tokens * runs[item.run].flops_per_token for item in running)
        left = total * (1 - moment)
        by_model = "-" if estimate is None else f"{estimate.seconds / left:.2f}"
        by_rate = "-" if not rate else f"{(study.plan.flops_left(ids) - trained) / rate / left:.2f}"
        print(f"{moment:>5.0%} {left:>9.0f} s {by_model:>10} {by_rate:>27}")


if __name__ == "__main__":
    main()
