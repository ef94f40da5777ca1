"""Progress and results of runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from flops_fit_core.records.base import FiniteJson, Record
from flops_fit_core.records.runs import ParameterCounts, RunSpec

Status = Literal["completed", "diverged", "failed"]


class Progress(Record):
    """The position of a run in its training. Sent at most a few times per second; a lost message does no harm."""

    run: str
    step: int
    steps: int
    tokens: int
    loss: float | None = None
    """Training loss of the latest step that was read from the device, nats per token."""
    tokens_per_second: float | None = None
    attempt: PositiveInt = 1
    """Number of the attempt at this run. The worker sets it, not the trainer."""


class Evaluation(Record):
    """Held-out loss at a step of a run."""

    step: int
    tokens: int
    loss: float | None
    """Nats per token; None if it is not finite."""


def _encodable(text: Any) -> Any:
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_encodable)]
"""Text from any source. Characters that UTF-8 cannot encode, as in file names of invalid bytes, become escapes."""


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
    """The result of an attempt at a run."""

    run: RunSpec
    status: Status
    attempt: PositiveInt = 1
    loss: float | None = None
    """Held-out loss at the end of the run, nats per token; None unless completed."""
    bits_per_byte: float | None = None
    metrics: dict[str, float] = {}
    """Further held-out metrics of the task, such as accuracy."""
    losses: dict[str, float] = {}
    """Loss on each further held-out set of the dataset, nats per token."""
    curve: tuple[Evaluation, ...] = ()
    tokens: int = 0
    """Tokens trained on. Only valid targets count: neither padding nor masked targets."""
    positions: int | None = None
    """Positions that the model computed, with padding and masked targets; None if equal to ``tokens``."""
    valid_share: float | None = None
    """``tokens`` / ``positions``; None if every position is a valid target."""
    unique_tokens: int = 0
    """Distinct tokens among ``tokens``; less than ``tokens`` if data was repeated."""
    passes: float | None = None
    """Passes over the training data, ``tokens`` / ``unique_tokens``; None if nothing was trained."""
    eval_tokens: int = 0
    parameters: ParameterCounts | None = None
    params_name: str = ""
    flops: float = 0.0
    """Training FLOPs of ``tokens``, by the convention ``flops_name``."""
    flops_name: str = ""
    trained_tokens: int | None = None
    """Tokens trained for this result; less than ``tokens`` if the run branched off a trunk that another run had
    trained. None if equal to ``tokens``."""
    flops_per_second: float | None = None
    """Counted FLOPs / time in training steps."""
    mfu: float | None = None
    """``flops_per_second`` / the device's dense peak at this precision; None if the peak is unknown."""
    data_wait: float | None = None
    """Share of the training time during which the device waited for the next batch."""
    seconds: float = 0.0
    """Wall time of training and evaluation for this result."""
    device: str = ""
    precision: str = ""
    peak_memory: int | None = None
    """Bytes; None if the device does not report it."""
    micro_batch: int | None = None
    """Samples per forward pass; None for the complete batch."""
    vmap_runs: PositiveInt = 1
    """Runs that were trained side by side as one model; times are this run's share."""
    compiled: bool = False
    """Whether ``torch.compile`` compiled the model."""
    error: RunError | None = None
    versions: dict[str, str] = {}
    """Versions of python, torch and the distribution of each plugin used."""
    runtime: dict[str, dict[str, FiniteJson]] = {}
    """Options by kind that are not part of the run's id."""
    synthetic: bool = False
    """Whether the loss was computed from a formula, without training."""
    superseded: bool = False
    """Whether the driver of this attempt had lost its claim while another attempt finished. It counts nowhere."""
    finished: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _only_a_completed_run_has_a_loss(self) -> Self:
        if (self.loss is not None) != (self.status == "completed"):
            raise ValueError(f"a {self.status} run with loss {self.loss}: only a completed run has a loss")
        return self

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def flops_spent(self) -> float:
        """Counted FLOPs of the training for this result. A trunk counts in the first result that needed it."""
        trained = self.tokens if self.trained_tokens is None else self.trained_tokens
        if self.positions is not None and self.tokens:
            return self.flops * trained / self.tokens
        return self.run.flops_per_token * trained

    @property
    def is_finished(self) -> bool:
        """Whether it completed or diverged: training again would give the same result. Failed runs are retried."""
        return self.status != "failed"
