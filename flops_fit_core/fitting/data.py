"""Observations as float64 arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flops_fit_core.errors import FitError
from flops_fit_core.plugins.protocols import LossLaw
from flops_fit_core.records import Observation, RunResult

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Runs:
    """Trained models, one per array entry. All arrays are float64 and positive."""

    ids: tuple[str, ...]
    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    """Held-out loss, nats per token."""
    budget: Floats
    """Nominal C; NaN if the run has no nominal budget."""
    seeds: tuple[int | None, ...]
    trunks: tuple[str, ...]
    """Runs with equal entries share a stable phase or are points of one training run."""
    unique: Floats
    """Unique training tokens; equals ``tokens`` if no token was repeated."""
    loss_se: Floats
    """Standard error of the loss; 0 if unknown."""
    noise: Floats
    """Standard deviation of the noise of a run, relative to that of the most precise run; at least 1.

    All 1, until standard errors of the losses are taken into account.
    """
    inputs: Mapping[str, Floats] = field(default_factory=dict)
    """Further inputs of a law by name; NaN for a run without the input."""

    @classmethod
    def of(cls, observations: Sequence[Observation], *, signed_loss: bool = False) -> Runs:
        """Build arrays from observations.

        Raises FitError if there are none, an id occurs twice, or a loss is not positive, unless ``signed_loss``.
        """
        if not observations:
            raise FitError("there are no completed runs to fit: train some, or give a table of runs")
        ids = tuple(run.id for run in observations)
        if len(set(ids)) < len(ids):
            repeated = sorted({run_id for run_id in ids if ids.count(run_id) > 1})[:5]
            raise FitError(f"several runs share an id: {', '.join(repeated)}; give each run a unique id")
        if not signed_loss and (negative := [run.id for run in observations if run.loss <= 0]):
            raise FitError(
                f"the loss of {', '.join(negative[:5])} is not positive, and laws are fitted to ln L: give the "
                "loss in nats per token, or fit a law of the loss itself, such as vocabulary"
            )
        columns = np.array([(run.params, run.tokens, run.flops, run.loss) for run in observations], dtype=float)
        return cls(
            ids=ids,
            params=columns[:, 0],
            tokens=columns[:, 1],
            flops=columns[:, 2],
            loss=columns[:, 3],
            budget=np.array([np.nan if run.budget is None else run.budget for run in observations]),
            seeds=tuple(run.seed for run in observations),
            trunks=tuple(run.trajectory or run.id for run in observations),
            unique=np.array([min(run.unique_tokens or run.tokens, run.tokens) for run in observations]),
            loss_se=np.array([run.loss_se or 0.0 for run in observations]),
            noise=np.ones(len(observations)),
            inputs={
                name: np.array([run.inputs.get(name, np.nan) for run in observations])
                for name in sorted({name for run in observations for name in run.inputs})
            },
        )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Ints) -> Runs:
        """Select runs by row, in the order of ``rows``."""
        return Runs(
            ids=tuple(self.ids[row] for row in rows),
            params=self.params[rows],
            tokens=self.tokens[rows],
            flops=self.flops[rows],
            loss=self.loss[rows],
            budget=self.budget[rows],
            seeds=tuple(self.seeds[row] for row in rows),
            trunks=tuple(self.trunks[row] for row in rows),
            unique=self.unique[rows],
            loss_se=self.loss_se[rows],
            noise=self.noise[rows],
            inputs={name: values[rows] for name, values in self.inputs.items()},
        )

    def inputs_of(self, law: LossLaw) -> dict[str, Floats]:
        """The inputs of a law, each of shape (n,). Raises FitError that names the missing columns."""
        columns = {"params": self.params, "tokens": self.tokens, "unique_tokens": self.unique, **self.inputs}
        missing = [name for name in law.inputs if name not in columns or not np.isfinite(columns[name]).all()]
        if missing:
            example = " ".join(f"--column {name}=NAME" for name in missing)
            raise FitError(f"the law needs {', '.join(missing)} of every run: name the columns, {example}")
        return {name: columns[name] for name in law.inputs}


def median_inputs(law: LossLaw, runs: Runs) -> dict[str, float]:
    """The median of each further input, at which the optimum of the runs is computed."""
    further = [name for name in law.inputs if name not in ("params", "tokens", "unique_tokens")]
    return {name: float(np.median(runs.inputs[name])) for name in further}


def observations(results: Iterable[RunResult], eval_set: str | None = None) -> list[Observation]:
    """Completed runs of a study as observations, with their actual N, D and counted FLOPs.

    ``eval_set`` names a further held-out set to take losses from instead of the main set. Runs without a finite
    loss on it are left out. Raises FitError if no completed run has a loss on it.
    """
    completed = [result for result in results if result.status == "completed" and result.loss is not None]
    losses = {result.id: result.loss if eval_set is None else result.losses.get(eval_set) for result in completed}
    if eval_set is not None and completed and not any(losses.values()):
        names = sorted({name for result in completed for name in result.losses})
        raise FitError(
            f"no run has a loss on held-out set {eval_set!r}; further held-out sets of these runs: "
            f"{', '.join(names) or 'none'}"
        )
    return [
        Observation(
            id=result.id,
            params=result.run.params,
            tokens=result.tokens,
            flops=result.flops,
            loss=loss,
            budget=result.run.budget,
            seed=result.run.seed,
            trajectory=result.run.trajectory,
            unique_tokens=result.unique_tokens or None,
        )
        for result in completed
        if (loss := losses[result.id]) is not None
    ]
