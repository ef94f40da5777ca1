"""Dataset ``text``: the bytes of files, by default the sources of the Python standard library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from flops_fit_core.data import LanguageTask, TokenDataset, read_multiple_choice
from flops_fit_core.plugins import Dataset, DatasetSpec, EvalSetName, LocalPath, Options, Runtime, hookimpl


class TextOptions(Options):
    """The files, the held-out files, and the length of a sample."""

    path: Annotated[LocalPath | None, Runtime()] = None
    """A folder, a file or a glob (``data/**/*.txt``), relative to the working directory. Unset: the sources of the
    running Python's standard library (without tests, encodings and generated data). The content identifies the
    runs, not the path."""
    eval_path: Annotated[LocalPath | None, Runtime()] = None
    """Files to hold out. Unset: a share of the files of ``path``."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the files that is held out, chosen by a hash of their relative paths."""
    eval_sets: Annotated[dict[EvalSetName, LocalPath], Runtime()] = {}
    """Additional files to hold out, by name: ``{ poems = "data/poems/*.txt" }``. Each run records its loss on each
    set, and ``flops-fit fit --eval-set poems`` fits one of them. The content identifies the runs, not the path."""
    multiple_choice: Annotated[dict[EvalSetName, LocalPath], Runtime()] = {}
    """Files of multiple-choice questions, by name: ``{ arc = "arc.jsonl" }``. Each run records its accuracy and
    its bits per byte on each, as metrics ``arc/acc`` and ``arc/bpb``. The content identifies the runs, not the
    path."""
    max_questions: PositiveInt = 1000
    """Longer files of questions are reduced to this many, evenly spaced."""
    context: PositiveInt = 64
    """Tokens (bytes) per sample."""


def build_text(options: TextOptions, seed: int) -> Dataset:
    """Read the files. Raises DataError if there are no files, or no files to hold out."""
    from flops_fit_text.corpus import END_OF_FILE, read_corpus

    task = LanguageTask(vocab_size=256, context=options.context)
    evaluations = [
        read_multiple_choice(
            name,
            Path(path),
            task,
            encode=lambda text: list(text.encode()),
            start=END_OF_FILE[0],
            max_questions=options.max_questions,
        )
        for name, path in options.multiple_choice.items()
    ]
    corpus = read_corpus(options)
    return TokenDataset(
        corpus.training,
        corpus.eval_data,
        vocab_size=256,
        context=options.context,
        seed=seed,
        fingerprint=corpus.fingerprint,
        bytes_per_token=1.0,
        further=corpus.further,
        evaluations=evaluations,
    )


@hookimpl
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    """Offer ``text``."""
    yield DatasetSpec(name="text", options=TextOptions, build=build_text)
