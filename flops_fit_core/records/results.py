"""What came of a run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, PositiveInt, model_validator

from flops_fit_core.records.base import Record
from flops_fit_core.records.runs import ParameterCounts, RunSpec

Status = Literal["completed", "diverged", "failed"]


class Progress(Record):
    """Where a run is. Sent at most a few times a second; losing one loses nothing."""

    run: str
    step: int
    steps: int
    tokens: int
    loss: float | None = None
    """Training loss of the latest step that was looked at, nats per token."""
    tokens_per_second: float | None = None
    attempt: PositiveInt = 1
    """At this run. The worker fills it in; a trainer leaves it out."""


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


_LONGEST_LINE = 300


class RunError(Record):
    """Why a run failed."""

    type: Text
    message: Text
    traceback: Text = ""

    @property
    def line(self) -> str:
        """Type and message in one line of at most 300 characters."""
        visible = "".join(sign if sign.isprintable() else " " for sign in f"{self.type}: {self.message}")
        text = " ".join(visible.split()).removesuffix(":")
        return text if len(text) <= _LONGEST_LINE else f"{text[: _LONGEST_LINE - 4]} ..."


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
    losses: dict[str, float] = {}
    """Loss on further held-out sets by name, where the dataset has such; nats per token."""
    curve: tuple[Evaluation, ...] = ()
    tokens: int = 0
    """Tokens that were really trained on: valid targets, where data hold padding or masked ones."""
    positions: int | None = None
    """Positions that the model computed, padding and masked targets included; None: as many as ``tokens``."""
    valid_share: float | None = None
    """``tokens`` over ``positions``; None where every position is a valid target."""
    unique_tokens: int = 0
    """Of those, how many were different; less than ``tokens`` where data was repeated."""
    passes: float | None = None
    """How often the training data were read: ``tokens`` over ``unique_tokens``. None where nothing was trained."""
    eval_tokens: int = 0
    parameters: ParameterCounts | None = None
    params_name: str = ""
    flops: float = 0.0
    """Training FLOPs of the tokens seen, by the convention ``flops_name``."""
    flops_name: str = ""
    trained_tokens: int | None = None
    """Tokens that were trained for this result; less than ``tokens`` where it branched off a trunk that
    an earlier result had trained. None: all of them."""
    flops_per_second: float | None = None
    """Counted FLOPs over the time spent in training steps."""
    mfu: float | None = None
    """``flops_per_second`` over the device's dense peak at this precision; None where that is unknown."""
    data_wait: float | None = None
    """Share of the training time in which the device waited for the next batch."""
    seconds: float = 0.0
    """Wall time of what was trained for this result, evaluation included."""
    device: str = ""
    precision: str = ""
    peak_memory: int | None = None
    """Bytes; None where the device does not tell."""
    micro_batch: int | None = None
    """Samples of one forward pass; None for the whole batch."""
    vmap_runs: PositiveInt = 1
    """Runs that were trained side by side as one model; times are this run's share."""
    compiled: bool = False
    """Whether the model ran as ``torch.compile`` made it."""
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
    def flops_spent(self) -> float:
        """Counted FLOPs that were trained for this result; a trunk's are in the first result that needed it."""
        trained = self.tokens if self.trained_tokens is None else self.trained_tokens
        if self.positions is not None and self.tokens:
            return self.flops * trained / self.tokens
        return self.run.flops_per_token * trained

    @property
    def is_finished(self) -> bool:
        """Completed or diverged: training it again would give the same. A failed run is tried again."""
        return self.status != "failed"
