"""Planned runs: plugin choices, run specs, trajectories, jobs and sweep plans."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from flops_fit_core import numbers
from flops_fit_core.records.base import FiniteJson, Positive, Record, content_hash
from flops_fit_core.records.html import html_block, html_list, html_table, html_text


class PluginChoice(Record):
    """A plugin by its qualified name, with the options that differ from their defaults."""

    name: str
    """Qualified name, ``optim/sgd``."""
    options: dict[str, FiniteJson] = {}
    revision: PositiveInt = 1
    """The plugin's author raises it when behaviour or a default changes."""


class Hyperparameters(Record):
    """The values that a recipe returns. ``None`` leaves a value to the plugin that owns the option."""

    batch_size: PositiveInt | None = None
    """Samples (sequences) per optimizer step."""
    lr: Positive | None = None
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    betas: tuple[float, float] | None = None
    warmup_tokens: Annotated[int, Field(ge=0)] | None = None
    base_width: PositiveInt | None = None
    """Width at which matrices use ``lr`` itself: those with ``width`` inputs get ``lr * base_width / width``.
    ``None``: the same learning rate for all parameters at every width."""


class ParameterCounts(Record):
    """The parameters of a model. A shared parameter counts once."""

    total: PositiveInt
    lookup_table: int = 0
    """In lookup tables, which are never multiplied: an untied input embedding, learned positions."""
    unembedding: int = 0
    """In the output head over the vocabulary, which is also the input embedding if the two are tied."""
    active: PositiveInt
    """Used for one token: less than ``total`` for a mixture of experts. ``lookup_table`` and ``unembedding`` also
    count only parameters used for one token."""

    @property
    def matmul(self) -> int:
        """Active minus lookup tables: the N of C = 6 N D."""
        return self.active - self.lookup_table

    @property
    def non_embedding(self) -> int:
        """Active minus lookup tables and the output head (Kaplan et al. 2020)."""
        return self.active - self.lookup_table - self.unembedding

    @property
    def inactive(self) -> int:
        """Not used for one token: the experts that the router skips."""
        return self.total - self.active


class RunSpec(Record):
    """One training run with all values resolved. :attr:`id` is a hash of all values that change its result."""

    model: PluginChoice
    dataset: PluginChoice
    fingerprint: str
    """Hash of the dataset's content, without path or time."""
    optimizer: PluginChoice
    schedule: PluginChoice
    counter: PluginChoice
    trainer: PluginChoice
    batch_size: PositiveInt
    """Samples per optimizer step."""
    steps: PositiveInt
    tokens: PositiveInt
    """D: the tokens (or samples) of this run. Only valid targets count: neither padding nor masked targets."""
    seed: int
    base_width: PositiveInt | None = None
    """See :class:`Hyperparameters`."""

    # The fields from here on are not in the id, because none of them changes the result.
    budget: Positive
    """The nominal C of the run's IsoFLOP group."""
    size: int | float | str
    """Value of the model's size option, for display."""
    params: PositiveInt
    """N by the FLOPs counter."""
    flops_per_token: Positive
    """Training FLOPs / D. The FLOPs include positions without a valid target."""
    positions: PositiveInt | None = None
    """Positions that the model computes, with padding and masked targets; None if equal to D."""
    branch_step: PositiveInt | None = None
    """Steps that this run shares with longer runs of its trajectory; None without sharing."""

    devices: PositiveInt = 1
    """Devices that train the run jointly."""
    heads: PositiveInt | None = None
    """Attention heads per block; None if the family does not declare them."""
    head_dim: PositiveInt | None = None
    """Channels per head."""

    _NOT_IN_ID: ClassVar = {
        "budget",
        "size",
        "params",
        "flops_per_token",
        "positions",
        "branch_step",
        "devices",
        "heads",
        "head_dim",
    }

    @property
    def flops(self) -> float:
        """Counted training FLOPs: ``flops_per_token * tokens``."""
        return self.flops_per_token * self.tokens

    @property
    def flops_per_position(self) -> float:
        """Training FLOPs per position that the model computes, by the run's counter."""
        return self.flops_per_token if self.positions is None else self.flops / self.positions

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step; the average if samples differ in their number of tokens."""
        return max(1, round(self.tokens / self.steps))

    @property
    def positions_per_step(self) -> int:
        """Positions per optimizer step, on average."""
        return self.tokens_per_step if self.positions is None else max(1, round(self.positions / self.steps))

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits: a hash of every value that changes the result.

        Values equal to their default are omitted, so that a field added later orphans no result.
        """
        return content_hash(self.model_dump(mode="json", exclude=self._NOT_IN_ID, exclude_defaults=True))

    @cached_property
    def trajectory(self) -> str:
        """Hash of the values that all runs of a training trajectory share. It does not depend on the other runs.

        With a trunk, these are all values but D. Without, they are all values: the trajectory has one run.
        """
        if self.branch_step is None:
            return content_hash({"trajectory of": self.id})
        varying = {*self._NOT_IN_ID, "tokens", "steps"}
        return content_hash({"trunk of": self.model_dump(mode="json", exclude=varying, exclude_defaults=True)})


def _shared_values(run: RunSpec) -> dict[str, Any]:
    """The values that must be equal for models that are trained as one vectorised model."""
    values = run.model_dump(mode="json", exclude={*RunSpec._NOT_IN_ID, "seed"})
    for option in ("lr", "weight_decay"):
        values["optimizer"]["options"].pop(option, None)
    return values | {"branch_step": run.branch_step, "devices": run.devices}


class Trajectory(Record):
    """Runs that share a trunk, in order of their tokens; or a single run."""

    id: str
    runs: tuple[RunSpec, ...]

    @property
    def flops(self) -> float:
        """Training FLOPs of the trunk up to its last branch, and of every run after its branch."""
        return self.flops_after(0)

    @property
    def shape(self) -> str:
        """Equal for trajectories that differ in seed, learning rate and weight decay only."""
        return content_hash([_shared_values(run) for run in self.runs])

    def flops_after(self, step: int) -> float:
        """Training FLOPs if the trunk is trained up to ``step`` already."""
        shared = max((run.branch_step or 0 for run in self.runs), default=0)
        branches = (
            run.tokens_per_step * (run.steps - (run.branch_step or 0)) * run.flops_per_token for run in self.runs
        )
        trunk = max(0, shared - step) * self.runs[0].tokens_per_step * self.runs[0].flops_per_token
        return trunk + math.fsum(branches)


class Job(Record):
    """The unit of dispatch: trajectories, with the device and the runtime options to train them."""

    id: str
    trajectories: tuple[Trajectory, ...]
    device: PluginChoice
    runtime: dict[str, dict[str, FiniteJson]] = {}
    """Options by kind that do not change the result (paths, threads, compile)."""
    attempts: dict[str, int] = {}
    """Attempt number by run id; 1 if missing."""
    claim_tokens: dict[str, str] = {}
    """Token of the driver's claim by run id and trajectory id; empty if the store is not fenced."""

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        return tuple(run for trajectory in self.trajectories for run in trajectory.runs)

    def only(self, is_needed: Callable[[RunSpec], bool]) -> Job | None:
        """The job with the runs for which ``is_needed`` is true; None if there are none."""
        trajectories = [
            item.model_copy(update={"runs": tuple(run for run in item.runs if is_needed(run))})
            for item in self.trajectories
        ]
        remaining = tuple(item for item in trajectories if item.runs)
        return self.model_copy(update={"trajectories": remaining}) if remaining else None

    @property
    def devices(self) -> int:
        """Devices that the job needs at the same time."""
        return max(run.devices for run in self.runs)

    @property
    def flops(self) -> float:
        """Training FLOPs without checkpoints of earlier training."""
        return math.fsum(trajectory.flops for trajectory in self.trajectories)


class SkippedCell(Record):
    """A size that a budget cannot train, and the reason."""

    budget: Positive
    size: int | float | str
    params: PositiveInt
    reason: str


class SweepPlan(Record):
    """All runs of a sweep, the skipped sizes with reasons, and the cost."""

    name: str
    runs: tuple[RunSpec, ...]
    skipped: tuple[SkippedCell, ...] = ()
    notes: tuple[str, ...] = ()
    """Remarks of the planner for the user."""
    unit: str = "tokens"
    """The unit of D."""
    params_name: str
    """The convention by which N (``params``) is counted."""
    flops_name: str
    """The convention by which C is counted."""
    device: PluginChoice
    runtime: dict[str, dict[str, FiniteJson]] = {}
    vmap_runs: PositiveInt = 1
    """The most trajectories of equal shape in a job, which are trained as one vectorised model."""
    checkpoint_bytes: int = 0
    """Approximate size of the checkpoints for further branches; 0 without shared trunks."""
    replaced: dict[str, RunSpec] = {}
    """Id of a planned run that failed or diverged -> the run that replaces it."""

    def with_replacements(self, replaced: Mapping[str, RunSpec]) -> SweepPlan:
        """The plan with some runs replaced. Keys are the ids of originally planned runs; other ids are ignored."""
        original_ids = {new.id: old for old, new in self.replaced.items()}
        planned = [original_ids.get(run.id, run.id) for run in self.runs]
        replacements = {**self.replaced, **{old: replaced[old] for old in planned if old in replaced}}
        runs = tuple(replacements.get(old, run) for old, run in zip(planned, self.runs, strict=True))
        return SweepPlan(**{**dict(self), "runs": runs, "replaced": replacements})

    def with_notes(self, notes: Iterable[str]) -> SweepPlan:
        """The plan with further notes."""
        return SweepPlan(**{**dict(self), "notes": (*self.notes, *notes)})

    @property
    def flops(self) -> float:
        """Training FLOPs of the plan. Each shared trunk counts once."""
        return math.fsum(trajectory.flops for trajectory in self.trajectories)

    @property
    def flops_without_sharing(self) -> float:
        """Training FLOPs if every run is trained from its first step."""
        return math.fsum(run.flops for run in self.runs)

    @cached_property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """The trajectories, in the order of their first run."""
        return _trajectories(self.runs)

    def flops_left(self, finished: Collection[str]) -> float:
        """Training FLOPs of the runs with ids not in ``finished``.

        Each trunk continues at the branch of its longest finished run.
        """
        remaining = 0.0
        for trajectory in self.trajectories:
            missing = [run for run in trajectory.runs if run.id not in finished]
            if missing:
                done = max((run.branch_step or 0 for run in trajectory.runs if run.id in finished), default=0)
                remaining += Trajectory(id=trajectory.id, runs=tuple(missing)).flops_after(done)
        return remaining

    @property
    def budgets(self) -> tuple[float, ...]:
        return tuple(sorted({run.budget for run in self.runs}))

    def _repr_html_(self) -> str:
        """For notebooks: a row per budget, skipped sizes, and the planner's remarks."""
        rows = []
        for budget in self.budgets:
            runs = [run for run in self.runs if run.budget == budget]
            ranges = (
                (numbers.count, [run.params for run in runs]),
                (numbers.count, [run.tokens for run in runs]),
                ("{:,}".format, [run.steps for run in runs]),
            )
            spans = [f"{show(min(values))} – {show(max(values))}" for show, values in ranges]
            flops = numbers.scientific(math.fsum(run.flops for run in runs))
            rows.append((numbers.scientific(budget), str(len(runs)), *spans, flops))
        skipped = f" Sizes skipped: {len(self.skipped)}, see .skipped." if self.skipped else ""
        return html_block(
            f"Plan {self.name}: {len(self.runs)} runs, {numbers.scientific(self.flops)} FLOPs",
            html_list(self.notes),
            html_table(("C", "runs", "N", f"D ({self.unit})", "steps", "FLOPs"), rows),
            html_text(f"N: {self.params_name}. C: {self.flops_name}.{skipped}"),
        )

    def jobs(self, missing: Collection[str], attempts: Mapping[str, int] | None = None) -> list[Job]:
        """Jobs for the runs with these ids, in descending order of FLOPs, so that workers end at similar times."""
        groups: dict[str, list[Trajectory]] = defaultdict(list)
        for trajectory in _trajectories(run for run in self.runs if run.id in missing):
            groups[trajectory.shape if self.vmap_runs > 1 else trajectory.id].append(trajectory)
        jobs = []
        for group in groups.values():
            for first in range(0, len(group), self.vmap_runs):
                trajectories = tuple(group[first : first + self.vmap_runs])
                ids = [item.id for item in trajectories]
                run_ids = [run.id for item in trajectories for run in item.runs]
                jobs.append(
                    Job(
                        id=ids[0] if len(ids) == 1 else content_hash({"vmapped": ids}),
                        trajectories=trajectories,
                        device=self.device,
                        runtime=self.runtime,
                        attempts={run_id: (attempts or {}).get(run_id, 1) for run_id in run_ids},
                    )
                )
        return sorted(jobs, key=lambda job: -job.flops)


def _trajectories(runs: Iterable[RunSpec]) -> tuple[Trajectory, ...]:
    groups: dict[str, list[RunSpec]] = defaultdict(list)
    for run in runs:
        groups[run.trajectory].append(run)
    return tuple(
        Trajectory(id=name, runs=tuple(sorted(members, key=lambda run: run.tokens)))
        for name, members in groups.items()
    )
