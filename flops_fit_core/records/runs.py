"""What is to be run: from one plugin's choice to the plan of a sweep."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field, JsonValue, PositiveInt

from flops_fit_core.records.base import Positive, Record, content_hash


class PluginChoice(Record):
    """One plugin picked by its qualified name, with the options that differ from their defaults."""

    name: str
    """Qualified: ``optim/sgd``."""
    options: dict[str, JsonValue] = {}
    revision: PositiveInt = 1
    """Raised by the plugin's author when behaviour or a default changes."""


class Hyperparameters(Record):
    """What a recipe decides. ``None`` leaves the value to the plugin that owns it."""

    batch_size: PositiveInt | None = None
    """Samples (sequences) an optimizer step."""
    lr: Positive | None = None
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    betas: tuple[float, float] | None = None
    warmup_tokens: Annotated[int, Field(ge=0)] | None = None
    base_width: PositiveInt | None = None
    """Width at which ``lr`` holds as it is: matrices fed by ``width`` channels get ``lr * base_width / width``.
    ``None``: one learning rate for all parameters at every width."""


class ParameterCounts(Record):
    """The parameters of one model, each counted once however often it is shared."""

    total: PositiveInt
    lookup_table: int = 0
    """In tables that are only looked up, never multiplied: an untied input embedding, learned positions."""
    unembedding: int = 0
    """In the output head over the vocabulary (also the input embedding where the two are tied)."""
    active: PositiveInt
    """Used for one token: less than ``total`` for a mixture of experts. Of tables and head, only what is used for
    one token is in ``lookup_table`` and ``unembedding``."""

    @property
    def matmul(self) -> int:
        """Active minus lookup tables: what 6 N D counts."""
        return self.active - self.lookup_table

    @property
    def non_embedding(self) -> int:
        """Active minus lookup tables and the output head (Kaplan et al. 2020)."""
        return self.active - self.lookup_table - self.unembedding

    @property
    def inactive(self) -> int:
        """Not used for one token: experts that it is not sent to."""
        return self.total - self.active


class RunSpec(Record):
    """One training run, fully resolved. :attr:`id` identifies it by everything that changes its result."""

    model: PluginChoice
    dataset: PluginChoice
    fingerprint: str
    """Of the dataset's content, without path or time."""
    optimizer: PluginChoice
    schedule: PluginChoice
    counter: PluginChoice
    trainer: PluginChoice
    batch_size: PositiveInt
    """Samples an optimizer step."""
    steps: PositiveInt
    tokens: PositiveInt
    """D: the tokens (or samples) this run trains on: valid targets, where data hold padding or masked ones."""
    seed: int
    base_width: PositiveInt | None = None
    """See :class:`Hyperparameters`."""

    # Predicted or for grouping; none of these changes the result, so none is in the id.
    budget: Positive
    """The nominal C of the IsoFLOP group for which this run was planned."""
    size: int | float | str
    """Value of the model's size option, for people."""
    params: PositiveInt
    """N as the FLOPs counter counts it."""
    flops_per_token: Positive
    """Training FLOPs for each token of D, of the positions included that are no valid target."""
    positions: PositiveInt | None = None
    """Positions that the model computes, padding and masked targets included; None: every one is a token of D."""
    branch_step: PositiveInt | None = None
    """Steps that this run shares with longer runs of its trajectory; None for a run that shares nothing."""

    devices: PositiveInt = 1
    """Devices that train it together."""
    heads: PositiveInt | None = None
    """Attention heads of a block; None for a family that does not declare them."""
    head_dim: PositiveInt | None = None
    """Channels of a head."""

    _ABOUT: ClassVar = {
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
        """Training FLOPs for each position that the model computes, by the run's counter."""
        return self.flops_per_token if self.positions is None else self.flops / self.positions

    @property
    def tokens_per_step(self) -> int:
        """Of one optimizer step of ``batch_size`` samples; on average, where samples differ in their tokens."""
        return max(1, round(self.tokens / self.steps))

    @property
    def positions_per_step(self) -> int:
        """Of one optimizer step, on average."""
        return self.tokens_per_step if self.positions is None else max(1, round(self.positions / self.steps))

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits: a hash of every value that changes the result.

        Values equal to their default are left out, so that a field added later orphans no result.
        """
        return content_hash(self.model_dump(mode="json", exclude=self._ABOUT, exclude_defaults=True))

    @cached_property
    def trajectory(self) -> str:
        """Hash of what the runs of one training trajectory share: with a trunk, all values but D; otherwise
        everything, so that a trajectory is one run. It does not depend on which runs there are or are left."""
        if self.branch_step is None:
            return content_hash({"trajectory of": self.id})
        own = {*self._ABOUT, "tokens", "steps"}
        return content_hash({"trunk of": self.model_dump(mode="json", exclude=own, exclude_defaults=True)})


def _without_numbers(run: RunSpec) -> dict[str, Any]:
    """A run without what may differ between models that are trained side by side."""
    values = run.model_dump(mode="json", exclude={*RunSpec._ABOUT, "seed"})
    for free in ("lr", "weight_decay"):
        values["optimizer"]["options"].pop(free, None)
    return values | {"branch_step": run.branch_step, "devices": run.devices}


class Trajectory(Record):
    """Runs that one pass of training can serve, in order of their tokens."""

    id: str
    runs: tuple[RunSpec, ...]

    @property
    def flops(self) -> float:
        """Training FLOPs of the trunk up to its last branch, and of every run from its branch on."""
        return self.flops_after(0)

    @property
    def shape(self) -> str:
        """Equal for trajectories that differ in seed, learning rate and weight decay only."""
        return content_hash([_without_numbers(run) for run in self.runs])

    def flops_after(self, step: int) -> float:
        """The same where the trunk has been trained up to ``step`` before."""
        shared = max((run.branch_step or 0 for run in self.runs), default=0)
        own = (
            run.tokens_per_step * (run.steps - (run.branch_step or 0)) * run.flops_per_token for run in self.runs
        )
        trunk = max(0, shared - step) * self.runs[0].tokens_per_step * self.runs[0].flops_per_token
        return trunk + math.fsum(own)


class Job(Record):
    """The unit of dispatch: trajectories, and what a worker needs beside them to train them here."""

    id: str
    trajectories: tuple[Trajectory, ...]
    device: PluginChoice
    runtime: dict[str, dict[str, JsonValue]] = {}
    """Options by kind that change how a run is done but not its result (paths, threads, compile)."""
    attempts: dict[str, int] = {}
    """Attempt number by run id; 1 where missing."""

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        return tuple(run for trajectory in self.trajectories for run in trajectory.runs)

    def only(self, wanted: Callable[[RunSpec], bool]) -> Job | None:
        """The job with the runs that are wanted; None where there are none."""
        trajectories = [
            one.model_copy(update={"runs": tuple(run for run in one.runs if wanted(run))})
            for one in self.trajectories
        ]
        left = tuple(one for one in trajectories if one.runs)
        return self.model_copy(update={"trajectories": left}) if left else None

    @property
    def devices(self) -> int:
        """Devices that it needs at the same time."""
        return max(run.devices for run in self.runs)

    @property
    def flops(self) -> float:
        """Training FLOPs, where nothing of it has been trained before."""
        return math.fsum(trajectory.flops for trajectory in self.trajectories)


class SkippedCell(Record):
    """A size that a budget would have used, and why it does not."""

    budget: Positive
    size: int | float | str
    params: PositiveInt
    reason: str


class SweepPlan(Record):
    """Every run of a sweep, resolved; what was left out and why; what it costs."""

    name: str
    runs: tuple[RunSpec, ...]
    skipped: tuple[SkippedCell, ...] = ()
    notes: tuple[str, ...] = ()
    """What a person should know of how the plan came about."""
    unit: str = "tokens"
    """What D counts."""
    params_name: str
    """Which N: the convention by which ``params`` are counted."""
    flops_name: str
    """Which C: the convention by which FLOPs are counted."""
    device: PluginChoice
    runtime: dict[str, dict[str, JsonValue]] = {}
    vmap_runs: PositiveInt = 1
    """Trajectories of one shape that a job may have, to be trained side by side."""
    checkpoint_bytes: int = 0
    """About what the checkpoints take that are kept for further branches; 0 where no trunk is shared."""
    replaced: dict[str, RunSpec] = {}
    """By the id of a run that was planned: what is trained in its place, after it had failed or diverged."""

    def with_replacements(self, replaced: Mapping[str, RunSpec]) -> SweepPlan:
        """The plan with other runs in the place of some. Keys are ids of runs as they were planned at first; those
        that are not in this plan are left out."""
        first = {new.id: old for old, new in self.replaced.items()}
        planned = [first.get(run.id, run.id) for run in self.runs]
        known = {**self.replaced, **{old: replaced[old] for old in planned if old in replaced}}
        runs = tuple(known.get(old, run) for old, run in zip(planned, self.runs, strict=True))
        return SweepPlan(**{**dict(self), "runs": runs, "replaced": known})

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole plan, each shared trunk counted once."""
        return math.fsum(trajectory.flops for trajectory in self.trajectories)

    @property
    def flops_without_sharing(self) -> float:
        """Training FLOPs if every run were trained from its start."""
        return math.fsum(run.flops for run in self.runs)

    @cached_property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """What the runs share, in the order of their first run."""
        return _trajectories(self.runs)

    def flops_left(self, finished: Collection[str]) -> float:
        """Training FLOPs of the runs whose ids are not in ``finished``; a trunk goes on where its longest
        finished run left it."""
        left = 0.0
        for trajectory in self.trajectories:
            missing = [run for run in trajectory.runs if run.id not in finished]
            if missing:
                done = max((run.branch_step or 0 for run in trajectory.runs if run.id in finished), default=0)
                left += Trajectory(id=trajectory.id, runs=tuple(missing)).flops_after(done)
        return left

    @property
    def budgets(self) -> tuple[float, ...]:
        return tuple(sorted({run.budget for run in self.runs}))

    def jobs(self, missing: Collection[str], attempts: Mapping[str, int] | None = None) -> list[Job]:
        """Jobs for the runs whose ids are ``missing``, most FLOPs first, so that workers end together."""
        packs: dict[str, list[Trajectory]] = defaultdict(list)
        for trajectory in _trajectories(run for run in self.runs if run.id in missing):
            packs[trajectory.shape if self.vmap_runs > 1 else trajectory.id].append(trajectory)
        jobs = []
        for alike in packs.values():
            for first in range(0, len(alike), self.vmap_runs):
                together = tuple(alike[first : first + self.vmap_runs])
                ids = [one.id for one in together]
                jobs.append(
                    Job(
                        id=ids[0] if len(ids) == 1 else content_hash({"vmapped": ids}),
                        trajectories=together,
                        device=self.device,
                        runtime=self.runtime,
                        attempts={run.id: (attempts or {}).get(run.id, 1) for one in together for run in one.runs},
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
