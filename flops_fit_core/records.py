"""The records that travel: what was asked, what was planned, what was measured, what was fitted.

All are frozen, go to JSON and back equal (``model_dump_json`` and ``model_validate_json``) and hold
no torch object. Notation: N parameters, D tokens (or samples; the task says which), C training FLOPs
(forward and backward), L held-out loss in nats per token.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, PositiveInt, model_validator

Status = Literal["completed", "diverged", "failed"]
Positive = Annotated[float, Field(gt=0)]


class Record(BaseModel):
    """Base of all records: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields replaced, not validated. What is cached, such as an id, is computed anew."""
        copy = super().model_copy(update=update, deep=deep)
        for name in set(copy.__dict__) - set(type(self).model_fields):
            del copy.__dict__[name]
        return copy


# ---------------------------------------------------------------------------- what is to be run


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
    lookup: int = 0
    """In tables that are only looked up, never multiplied: an untied input embedding, learned positions."""
    unembedding: int = 0
    """In the output head over the vocabulary (also the input embedding where the two are tied)."""
    active: PositiveInt
    """Used for one token: less than ``total`` for a mixture of experts."""

    @property
    def matmul(self) -> int:
        """Total minus lookup tables: what 6 N D counts."""
        return self.total - self.lookup

    @property
    def non_embedding(self) -> int:
        """Total minus lookup tables and the output head (Kaplan et al. 2020)."""
        return self.total - self.lookup - self.unembedding


class RunSpec(Record):
    """One training run, fully resolved. :attr:`id` identifies it by everything that changes its result."""

    model: PluginChoice
    dataset: PluginChoice
    fingerprint: str
    """Of the dataset's content, without path or time."""
    optimizer: PluginChoice
    schedule: PluginChoice
    flops_counter: PluginChoice
    trainer: PluginChoice
    batch_size: PositiveInt
    """Samples an optimizer step."""
    steps: PositiveInt
    tokens: PositiveInt
    """D: the tokens (or samples) this run trains on, ``steps * batch_size * tokens_per_sample``."""
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

    _ABOUT: ClassVar = {"budget", "size", "params", "flops_per_token"}

    @property
    def flops(self) -> float:
        """Counted training FLOPs: ``flops_per_token * tokens``."""
        return self.flops_per_token * self.tokens

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits: a hash of every value that changes the result.

        Values equal to their default are left out, so that a field added later orphans no result.
        """
        return content_hash(self.model_dump(mode="json", exclude=self._ABOUT, exclude_defaults=True))

    @cached_property
    def trajectory(self) -> str:
        """Hash of what runs on one training trajectory share. Until trunks are shared, one run each."""
        return content_hash({"trajectory of": self.id})


class Trajectory(Record):
    """Runs that one pass of training can serve, in order of their tokens."""

    id: str
    runs: tuple[RunSpec, ...]


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

    @property
    def flops(self) -> float:
        return sum(run.flops for run in self.runs)


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

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole plan."""
        return math.fsum(run.flops for run in self.runs)

    @property
    def budgets(self) -> tuple[float, ...]:
        return tuple(sorted({run.budget for run in self.runs}))

    def jobs(self, missing: Collection[str], attempts: Mapping[str, int] | None = None) -> list[Job]:
        """Jobs for the runs whose ids are ``missing``, most FLOPs first, so that workers end together."""
        groups: dict[str, list[RunSpec]] = defaultdict(list)
        for run in self.runs:
            if run.id in missing:
                groups[run.trajectory].append(run)
        jobs = [
            Job(
                id=trajectory,
                trajectories=(Trajectory(id=trajectory, runs=tuple(sorted(runs, key=lambda run: run.tokens))),),
                device=self.device,
                runtime=self.runtime,
                attempts={run.id: (attempts or {}).get(run.id, 1) for run in runs},
            )
            for trajectory, runs in groups.items()
        ]
        return sorted(jobs, key=lambda job: -job.flops)


# ---------------------------------------------------------------------------- what came of it


class Progress(Record):
    """Where a run is. Sent at most a few times a second; losing one loses nothing."""

    run: str
    step: int
    steps: int
    tokens: int
    loss: float | None = None
    """Training loss of the latest step that was looked at, nats per token."""
    tokens_per_second: float | None = None


class Evaluation(Record):
    """Held-out loss at one moment of a run."""

    step: int
    tokens: int
    loss: float | None
    """Nats per token; None where it is not finite."""


def _encodable(text: Any) -> Any:
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_encodable)]
"""Text from anywhere: what UTF-8 cannot encode (a file name of odd bytes has such) is kept as an escape."""


class RunError(Record):
    """Why a run failed."""

    type: Text
    message: Text
    traceback: Text = ""


class RunResult(Record):
    """What became of one attempt at one run."""

    run: RunSpec
    status: Status
    attempt: PositiveInt = 1
    loss: float | None = None
    """Held-out loss at the end of the run, nats per token; None unless completed."""
    bits_per_byte: float | None = None
    metrics: dict[str, float] = {}
    """Further held-out numbers of the task, such as accuracy."""
    curve: tuple[Evaluation, ...] = ()
    tokens: int = 0
    """Tokens that were really trained on."""
    unique_tokens: int = 0
    """Of those, how many were different; less than ``tokens`` where data was repeated."""
    heldout_tokens: int = 0
    parameters: ParameterCounts | None = None
    params_name: str = ""
    flops: float = 0.0
    """Training FLOPs of the tokens seen, by the convention ``flops_name``."""
    flops_name: str = ""
    flops_per_second: float | None = None
    """``flops`` over the time spent in training steps."""
    seconds: float = 0.0
    """Wall time of the run, evaluation included."""
    device: str = ""
    precision: str = ""
    peak_memory: int | None = None
    """Bytes; None where the device does not tell."""
    error: RunError | None = None
    versions: dict[str, str] = {}
    """Of python, torch and every distribution whose plugin took part."""
    runtime: dict[str, dict[str, JsonValue]] = {}
    """Options that were in force and are not part of the run's identity."""
    synthetic: bool = False
    """True where the loss was computed from a formula and nothing was trained."""
    finished: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _only_a_completed_run_has_a_loss(self) -> Self:
        if (self.loss is not None) != (self.status == "completed"):
            raise ValueError(f"a {self.status} run with loss {self.loss}: a completed run has one, no other does")
        return self

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def is_finished(self) -> bool:
        """Completed or diverged: training it again would give the same. A failed run is tried again."""
        return self.status != "failed"


# ---------------------------------------------------------------------------- what was fitted


class Observation(Record):
    """One trained model as a fit sees it, whoever trained it: a run's result or a row of a table."""

    id: str
    """The run's id, or ``row 17``: how diagnostics name it."""
    params: Positive
    tokens: Positive
    flops: Positive
    loss: Positive
    """Held-out loss, nats per token."""
    budget: Positive | None = None
    """Nominal C of its IsoFLOP group, where there is one."""
    seed: int | None = None
    trajectory: str | None = None
    """Runs that share a trunk have correlated errors; this names the trunk."""


class Interval(Record):
    """An estimate with the interval at the fit's level. No interval: both ends are None."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Law(Record):
    """A fitted functional form: its name and its parameters by name."""

    name: str
    parameters: dict[str, float]


class ProfileMinimum(Record):
    """The minimum of one IsoFLOP profile."""

    budget: Positive
    params: Positive
    tokens: Positive
    loss: Positive
    at_edge: bool
    """The lowest point is the smallest or the largest size: the minimum lies outside the grid, and the
    law does not use it."""
    n_runs: int
    curve: dict[str, float] = {}
    """Coefficients of the profile in ln N, for drawing it."""


class Optimum(Record):
    """What to train for a budget."""

    flops: Positive
    params: Interval
    tokens: Interval
    loss: Interval
    notes: tuple[str, ...] = ()
    """Such as how far this lies beyond the fitted budgets."""


class Diagnostic(Record):
    """Something about a fit that a person should know, in plain words, with what to do about it."""

    code: str
    message: str
    severity: Literal["note", "warning"] = "warning"


class LawFit(Record):
    """A fitted law, how it was fitted, and how sure it is."""

    fitter: PluginChoice
    law: Law
    exponents: dict[str, Interval]
    """``a``: N_opt ~ C^a. ``b``: D_opt ~ C^b."""
    level: float
    """Of all intervals, 0.9 for 90%."""
    objective: float
    n_runs: int
    excluded: dict[str, str] = {}
    """Observation id -> why the fit did not use it."""
    diagnostics: tuple[Diagnostic, ...] = ()
    minima: tuple[ProfileMinimum, ...] = ()
    draws: dict[str, tuple[float, ...]] = {}
    """Bootstrap draws of the parameters, by the names in ``law.parameters``."""
    failed_draws: int = 0
    flops_range: tuple[float, float]
    """Smallest and largest C that was fitted."""
    flops_per_token: tuple[tuple[Positive, Positive], ...] = ()
    """(N, C / D) of the fitted runs, from which an optimum is found; empty where it is 6 N to within 1%."""
    params_name: str = "as given"
    flops_name: str = "as given"
    unit: str = "tokens"
    seed: int = 0


# ---------------------------------------------------------------------------- identity


def canonical_json(value: Any) -> str:
    """JSON whose text depends only on the value: sorted keys, floats to 12 significant digits, 1.0 as 1."""
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: Any) -> Any:
    if isinstance(value, float):
        rounded = float(f"{value:.12g}")
        return int(rounded) if rounded.is_integer() else rounded
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def content_hash(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of :func:`canonical_json`.

    Raises ValueError for NaN or infinity, which have no JSON.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
