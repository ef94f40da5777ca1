"""Read the result and the progress that a program writes."""

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
TOLERANCE = 0.01
"""Relative difference allowed between a program's tokens and the plan's: plans meet budgets no closer."""


def _not_finite(value: Any) -> bool:
    """Whether a value is NaN or infinite, which Python's JSON parser accepts."""
    return isinstance(value, float) and not math.isfinite(value)


class Point(Options):
    """An evaluation during training."""

    step: NonNegativeInt
    loss: Annotated[float | None, BeforeValidator(lambda value: None if _not_finite(value) else value)]


class Outcome(Options):
    """The JSON file that a program writes. Minimal content: ``{"loss": 3.21}``."""

    status: Literal["completed", "diverged", "failed"] = "completed"
    loss: float | None = None
    """Held-out loss at the end, in nats per token."""
    tokens: NonNegativeInt | None = None
    """Tokens trained on; by default the plan's."""
    metrics: dict[str, float] = {}
    losses: dict[str, float] = {}
    """Losses on further held-out sets, by name."""
    curve: tuple[Point, ...] = ()
    bits_per_byte: float | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    eval_tokens: NonNegativeInt = 0
    flops_per_second: Annotated[float, Field(gt=0)] | None = None
    peak_memory: PositiveInt | None = None
    device: str = ""
    precision: str = ""
    error: str = ""
    """Reason of a failure."""

    @model_validator(mode="before")
    @classmethod
    def _convert_non_finite(cls, content: Any) -> Any:
        """A loss that is not finite means diverged; metrics that are not finite are dropped."""
        if not isinstance(content, dict):
            return content
        if _not_finite(content.get("loss")):
            content = {"status": "diverged", **content, "loss": None}
        for name in ("metrics", "losses"):
            if isinstance(values := content.get(name), dict):
                finite = {key: value for key, value in values.items() if not _not_finite(value)}
                content = {**content, name: finite}
        return content

    @model_validator(mode="after")
    def _require_loss(self) -> Self:
        if self.status == "completed" and self.loss is None:
            raise ValueError("a completed run needs a loss: the held-out loss in nats per token")
        return self


def read_outcome(file: Path, run: RunSpec) -> Outcome:
    """Read a program's result. Raises RunFailed for a missing or invalid file or a wrong number of tokens."""
    try:
        outcome = Outcome.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunFailed(
            f'ended without writing its result: write {{"loss": ...}} to the file in FLOPS_FIT_RESULT ({file})'
        ) from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'result'}: {item['msg']}" for item in error.errors()
        )
        raise RunFailed(f"wrote an invalid result to {file}: {problems}") from None
    except (OSError, ValueError) as error:
        raise RunFailed(f"wrote a result to {file} that cannot be read: {error}") from None
    trained = outcome.tokens if outcome.tokens is not None and outcome.status == "completed" else run.tokens
    if abs(trained / run.tokens - 1) > TOLERANCE:
        raise RunFailed(f"trained on {trained:,} tokens, but the plan has {run.tokens:,}")
    return outcome


def result_fields(outcome: Outcome, run: RunSpec) -> dict[str, Any]:
    """Fields of a RunResult, without its status and error."""
    optional = outcome.model_dump(exclude_unset=True, exclude={"status", "loss", "tokens", "curve", "error"})
    per_step = run.tokens_per_step
    curve = (Evaluation(step=point.step, tokens=point.step * per_step, loss=point.loss) for point in outcome.curve)
    tokens = run.tokens if outcome.tokens is None and outcome.status == "completed" else outcome.tokens or 0
    loss = outcome.loss if outcome.status == "completed" else None
    return {**optional, "loss": loss, "tokens": tokens, "curve": tuple(curve)}


class ProgressFile:
    """The file of JSON lines, ``{"step": 10, "loss": 3.2}``, that a program appends to."""

    def __init__(self, file: Path, run: RunSpec) -> None:
        self._file = file
        self._run = run
        self._offset = 0
        self._step = 0
        self._has_warned = False

    def read_latest(self) -> Iterator[Progress]:
        """The latest progress since the last call, if any. The first invalid line is logged."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except OSError:
            return
        complete = new[: new.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in reversed(complete.splitlines()):
            if (progress := self._parse(line)) is not None:
                yield progress
                return

    def _parse(self, line: bytes) -> Progress | None:
        try:
            entry = json.loads(line)
            step, loss = int(entry["step"]), entry.get("loss")
            self._step = max(self._step, min(step, self._run.steps))
            return Progress(
                run=self._run.id,
                step=self._step,
                steps=self._run.steps,
                tokens=self._step * self._run.tokens_per_step,
                loss=loss if loss is not None and math.isfinite(loss) else None,
                tokens_per_second=entry.get("tokens_per_second"),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            if line.strip() and not self._has_warned:
                logger.warning(
                    '%s: expected a line like {"step": 10, "loss": 3.2}, not %r', self._file, line[:200]
                )
                self._has_warned = True
            return None
