"""Multiple-choice questions, answered by the choice with the highest likelihood."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.errors import DataError
from flops_fit_core.plugins.protocols import ModelEvaluation
from flops_fit_core.plugins.utilities import content_hash

if TYPE_CHECKING:
    from torch import Tensor, nn

Encode = Callable[[str], Sequence[int]]
"""Text -> token ids, without special tokens."""
_KEYS = {"context", "choices", "answer"}


@dataclass(frozen=True)
class Question:
    """A question as token ids."""

    contexts: tuple[tuple[int, ...], ...]
    """The context before each choice. They differ if the tokenizer joins the end of the context with a choice."""
    choices: tuple[tuple[int, ...], ...]
    answer: int
    """Number of the correct choice, from 0."""
    choice_bytes: tuple[int, ...] | None = None
    """UTF-8 bytes of each choice; None for choices of token ids."""


class MultipleChoice(ModelEvaluation):
    """Ranked likelihood: the answer of a model is the choice with the highest log-probability after the context.

    Metrics, with three ways to compare choices of different lengths:

    * ``acc``: share of questions with the highest sum of log-probabilities at the correct choice.
    * ``acc_per_token``, ``acc_per_byte``: the same, with the sums divided by the choice's tokens or bytes.
    * ``bpb``: bits per byte of the correct choice, averaged over questions. Choices of token ids have
      ``bits_per_token`` instead.

    Of equal choices, the first counts. A context that does not fit into the window loses its first tokens, as in
    lm-evaluation-harness. All rows are padded on the right to the window, which does not change the predictions of
    a causal model.

    Args:
        name: Name of the evaluation.
        questions: The questions.
        task: The dataset's task, with its context length.

    Raises DataError without questions, and for a choice that is empty or longer than the window.
    """

    def __init__(self, name: str, questions: Sequence[Question], task: LanguageTask) -> None:
        if not questions:
            raise DataError(f"multiple choice {name!r}: there are no questions")
        for number, question in enumerate(questions, 1):
            try:
                _check_question(question, task)
            except ValueError as error:
                raise DataError(f"multiple choice {name!r}, question {number}: {error}") from None
        self.name = name
        self.questions = tuple(questions)
        self.task = task

    @property
    def fingerprint(self) -> str:
        """Identifies the questions."""
        return content_hash([[q.contexts, q.choices, q.answer, q.choice_bytes] for q in self.questions])

    def metrics(self, model: nn.Module, device: str, batch_tokens: int) -> Mapping[str, float]:
        """The metrics of a model in eval mode. ``batch_tokens``: tokens per forward pass."""
        import numpy as np

        rows = [
            row for question in self.questions for row in zip(question.contexts, question.choices, strict=True)
        ]
        size = max(1, batch_tokens // self.task.context)
        scores: list[float] = []
        for first in range(0, len(rows), size):
            scores += self._log_likelihoods(model, device, rows[first : first + size])
        if not all(map(math.isfinite, scores)):
            return {}
        sums: dict[str, list[float]] = {}
        first = 0
        for question in self.questions:
            score = np.array(scores[first : first + len(question.choices)])
            first += len(score)
            for metric, value in _score_question(question, score):
                sums.setdefault(metric, []).append(value)
        return {metric: float(np.mean(values)) for metric, values in sums.items()}

    def _log_likelihoods(
        self, model: nn.Module, device: str, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> list[float]:
        """Log-probability of each choice after its context, in nats; tokens are summed in float64."""
        import torch
        from torch.nn import functional

        batch = torch.zeros(len(rows), self.task.context + 1, dtype=torch.long)
        is_choice = torch.zeros(len(rows), self.task.context, dtype=torch.bool)
        for number, (context, choice) in enumerate(rows):
            ids = (*context, *choice)[-(self.task.context + 1) :]
            batch[number, : len(ids)] = torch.tensor(ids)
            is_choice[number, len(ids) - 1 - len(choice) : len(ids) - 1] = True
        batch, is_choice = batch.to(device), is_choice.to(device)
        logits = self._logits(model, batch)
        losses = functional.cross_entropy(
            logits[is_choice].float(), batch[:, 1:][is_choice], reduction="none"
        ).double()
        lengths = is_choice.sum(1)
        owner = torch.repeat_interleave(torch.arange(len(rows)), lengths.cpu())
        sums = torch.zeros(len(rows), dtype=torch.float64).index_add(0, owner, losses.cpu())
        return [-value for value in sums.tolist()]

    def _logits(self, model: nn.Module, batch: Tensor) -> Tensor:
        outputs = self.task.outputs(model, batch)
        logits: Tensor = getattr(outputs, "logits", outputs)
        expected = (len(batch), self.task.context, self.task.vocab_size)
        if tuple(logits.shape) != expected:
            raise ValueError(
                f"the model returned outputs of shape {tuple(logits.shape)}; multiple choice needs logits of "
                f"shape {expected}: (batch, context, vocabulary)"
            )
        return logits


def _score_question(question: Question, log_likelihoods: Any) -> list[tuple[str, float]]:
    """Metrics of one question; ``log_likelihoods`` has a value per choice, in nats."""
    import numpy as np

    answer = question.answer
    tokens = np.array([len(choice) for choice in question.choices])
    bits = -float(log_likelihoods[answer]) / math.log(2)
    values = [
        ("acc", float(np.argmax(log_likelihoods) == answer)),
        ("acc_per_token", float(np.argmax(log_likelihoods / tokens) == answer)),
    ]
    if question.choice_bytes is None:
        return [*values, ("bits_per_token", bits / tokens[answer])]
    sizes = np.array(question.choice_bytes)
    return [
        *values,
        ("acc_per_byte", float(np.argmax(log_likelihoods / sizes) == answer)),
        ("bpb", bits / sizes[answer]),
    ]


def read_multiple_choice(
    name: str,
    path: Path,
    task: LanguageTask,
    *,
    encode: Encode | None,
    start: int | None = None,
    max_questions: int | None = None,
) -> MultipleChoice:
    """Read questions from a JSON-lines file.

    A line is an object with ``context`` (text), ``choices`` (two or more texts, each appended to the context as it
    is) and ``answer`` (the number of the correct choice from 0, or its text). Other keys are ignored. Context and
    choices may also be lists of token ids.

    Args:
        name: Name of the evaluation.
        path: The file.
        task: The dataset's task.
        encode: The dataset's tokenizer; None if the file must hold token ids.
        start: Token before an empty context, such as the end of the previous document.
        max_questions: More questions are reduced to this many, evenly spaced. None for all.

    Raises DataError, with the line, for a file that cannot be read or a question that is not valid.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"multiple choice {name!r}: cannot read {path}: {reason}") from None
    numbers = [number for number, line in enumerate(lines) if line.strip()]
    if max_questions is not None and len(numbers) > max_questions:
        count = len(numbers)
        numbers = [numbers[(2 * i + 1) * count // (2 * max_questions)] for i in range(max_questions)]
    questions = []
    for number in numbers:
        try:
            question = _parse_question(lines[number], encode, start)
            _check_question(question, task)
        except (ValueError, RecursionError) as error:
            raise DataError(f"multiple choice {name!r}, {path}, line {number + 1}: {error}") from None
        questions.append(question)
    return MultipleChoice(name, questions, task)


def _parse_question(line: str, encode: Encode | None, start: int | None) -> Question:
    """Raises ValueError for a line that is not a question."""
    values = json.loads(line)
    if not isinstance(values, dict) or not values.keys() >= _KEYS:
        raise ValueError('write an object with the keys "context", "choices" and "answer"')
    context, choices, answer = values["context"], values["choices"], values["answer"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError("choices must be a list of two or more texts")
    if not isinstance(answer, int) or isinstance(answer, bool):
        if answer not in choices or choices.count(answer) > 1:
            raise ValueError(
                f"answer {answer!r} is neither the number of a choice, from 0, nor one of the choices"
            )
        answer = choices.index(answer)
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer} is not the number of one of {len(choices)} choices, which count from 0")
    parts = [context, *choices]
    if all(isinstance(part, list) and all(type(token) is int for token in part) for part in parts):
        ids = tuple(context) or _start_ids(start)
        return Question((ids,) * len(choices), tuple(tuple(choice) for choice in choices), answer)
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("context and choices must all be texts, or all be lists of token ids")
    if encode is None:
        raise ValueError("this dataset has no tokenizer: write context and choices as lists of token ids")
    pairs = [_encode_pair(context, choice, encode, start) for choice in choices]
    return Question(
        tuple(context_ids for context_ids, _ in pairs),
        tuple(ids for _, ids in pairs),
        answer,
        tuple(len(choice.encode()) for choice in choices),
    )


def _encode_pair(
    context: str, choice: str, encode: Encode, start: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of context and choice, encoded as one text and divided at the length of the context alone.

    Spaces at the end of the context belong to the choice, because tokenizers join a space with the next word.
    """
    stripped = context.rstrip(" ")
    choice = context[len(stripped) :] + choice
    if not stripped:
        return _start_ids(start), tuple(encode(choice))
    complete, length = tuple(encode(stripped + choice)), len(encode(stripped))
    return complete[:length], complete[length:]


def _start_ids(start: int | None) -> tuple[int, ...]:
    if start is None:
        raise ValueError("the context is empty, and this dataset has no token that starts a document")
    return (start,)


def _check_question(question: Question, task: LanguageTask) -> None:
    """Raises ValueError for a choice that cannot be scored."""
    if not all(question.contexts):
        raise ValueError("the context has no token, so the first token of a choice has no prediction")
    for choice in question.choices:
        if not 1 <= len(choice) <= task.context:
            raise ValueError(
                f"a choice has {len(choice)} tokens; the window has room for 1 to {task.context} (dataset.context)"
            )
    ids = [token for row in (*question.contexts, *question.choices) for token in row]
    if not 0 <= min(ids) <= max(ids) < task.vocab_size:
        invalid = next(token for token in ids if not 0 <= token < task.vocab_size)
        raise ValueError(f"token id {invalid} is not below vocab_size = {task.vocab_size}")
