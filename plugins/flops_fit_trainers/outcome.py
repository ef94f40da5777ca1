"""What a program says of its run: its result, and where it is."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from flops_fit_core import Evaluation, Progress, RunFailed, RunSpec
from flops_fit_core.plugins import Options

logger = logging.getLogger("flops_fit")
NEAR = 0.01
"""Tokens may differ from the plan's by this share: budgets are met no better."""


def _not_finite(value: Any) -> bool:
    """Of what JSON gives, and Python's NaN and Infinity in it."""
    return isinstance(value, float) and not math.isfinite(value)


class Moment(Options):
    """One evaluation on the way."""

    step: NonNegativeInt
    loss: Annotated[float | None, BeforeValidator(lambda value: None if _not_finite(value) else value)]


class Outcome(Options):
    """The JSON file that a program writes. ``{"loss": 3.21}`` is enough."""

    status: Literal["completed", "diverged", "failed"] = "completed"
    loss: float | None = None
    """Held-out loss at the end, in nats per token."""
    tokens: NonNegativeInt | None = None
    """Tokens that it trained on; those of the plan where it does not say."""
    metrics: dict[str, float] = {}
    losses: dict[str, float] = {}
    """On further held-out sets."""
    curve: tuple[Moment, ...] = ()
    bits_per_byte: float | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    eval_tokens: NonNegativeInt = 0
    flops_per_second: Annotated[float, Field(gt=0)] | None = None
    peak_memory: PositiveInt | None = None
    device: str = ""
    precision: str = ""
    error: str = ""
    """Why it failed."""

    @model_validator(mode="before")
    @classmethod
    def _a_loss_that_is_not_finite_has_diverged(cls, written: Any) -> Any:
        if not isinstance(written, dict):
            return written
        if _not_finite(written.get("loss")):
            written = {"status": "diverged", **written, "loss": None}
        for name in ("metrics", "losses"):
            if isinstance(found := written.get(name), dict):
                kept = {key: value for key, value in found.items() if not _not_finite(value)}
                written = {**written, name: kept}
        return written

    @model_validator(mode="after")
    def _a_completed_run_has_a_loss(self) -> Self:
        if self.status == "completed" and self.loss is None:
            raise ValueError("a completed run needs a loss: the held-out loss in nats per token")
        return self


def read_outcome(file: Path, run: RunSpec) -> Outcome:
    """Raises RunFailed, saying what is wrong with it, for a file that is missing or is no outcome of this run."""
    try:
        outcome = Outcome.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunFailed(
            f'ended without writing its result: write {{"loss": ...}} to the file in FLOPS_FIT_RESULT ({file})'
        ) from None
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'result'}: {one['msg']}" for one in error.errors())
        raise RunFailed(f"wrote a result, {file}, that is not as it should be: {lines}") from None
    except (OSError, ValueError) as error:
        raise RunFailed(f"wrote a result, {file}, that cannot be read: {error}") from None
    trained = outcome.tokens if outcome.tokens is not None and outcome.status == "completed" else run.tokens
    if abs(trained / run.tokens - 1) > NEAR:
        raise RunFailed(f"trained on {trained:,} tokens, and the plan asks for {run.tokens:,}")
    return outcome


def measured(outcome: Outcome, run: RunSpec) -> dict[str, Any]:
    """What a RunResult has of it, but for its status and error."""
    given = outcome.model_dump(exclude_unset=True, exclude={"status", "loss", "tokens", "curve", "error"})
    per_step = run.tokens_per_step
    curve = (Evaluation(step=at.step, tokens=at.step * per_step, loss=at.loss) for at in outcome.curve)
    tokens = run.tokens if outcome.tokens is None and outcome.status == "completed" else outcome.tokens or 0
    loss = outcome.loss if outcome.status == "completed" else None
    return {**given, "loss": loss, "tokens": tokens, "curve": tuple(curve)}


class ProgressFile:
    """Lines of JSON, ``{"step": 10, "loss": 3.2}``, that a program appends."""

    def __init__(self, file: Path, run: RunSpec) -> None:
        self._file = file
        self._run = run
        self._read = 0
        self._step = 0
        self._complained = False

    def latest(self) -> Iterator[Progress]:
        """Where the program is, if it has said so since the last call. A line that is none is logged once."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in reversed(whole.splitlines()):
            if (progress := self._parsed(line)) is not None:
                yield progress
                return

    def _parsed(self, line: bytes) -> Progress | None:
        try:
            said = json.loads(line)
            step, loss = int(said["step"]), said.get("loss")
            self._step = max(self._step, min(step, self._run.steps))
            return Progress(
                run=self._run.id,
                step=self._step,
                steps=self._run.steps,
                tokens=self._step * self._run.tokens_per_step,
                loss=loss if loss is not None and math.isfinite(loss) else None,
                tokens_per_second=said.get("tokens_per_second"),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            if line.strip() and not self._complained:
                logger.warning('%s: %r is no line such as {"step": 10, "loss": 3.2}', self._file, line[:200])
                self._complained = True
            return None
