"""Windows of a long row of tokens, in an order that is shuffled every epoch.

The order is computed, not stored: memory does not grow with the number of windows, so a file of 100 billion tokens
needs no more memory than a file of 1,000.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flops_fit_core.data.multiple_choice import MultipleChoice
from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.errors import DataError
from flops_fit_core.plugins.protocols import MultiEvalDataset
from flops_fit_core.plugins.utilities import content_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_BLOCK = 1024
"""Positions per vectorised call, which costs as much for 16 positions as for 1,000."""
_ROUNDS = 6


class EpochOrder:
    """An endless order of ``count`` samples, shuffled every epoch.

    The sample at position ``p`` (from 0) is ``permuted(p % count)`` of epoch ``p // count``. Every epoch has a
    different permutation. The same seed gives the same samples at the same positions, for every batch size and on
    every machine.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count = count
        """Samples per epoch."""
        self.seed = seed
        self._latest: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    def order(self, first: int, size: int) -> NDArray[np.int64]:
        """The samples (0 to ``count - 1``) at positions ``first`` to ``first + size - 1``."""
        import numpy as np

        parts = []
        while size > 0:
            epoch, position = divmod(first, self.count)
            block, skipped = divmod(position, _BLOCK)
            part = self._block(epoch, block)[skipped : skipped + size]
            parts.append(part)
            first += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def spread(self, size: int) -> NDArray[np.int64]:
        """``size`` evenly spaced samples in ascending order (all samples if ``size > count``), independent of the
        seed.

        Each is the middle of one of ``size`` equal ranges. Use them for held-out evaluation.
        """
        import numpy as np

        size = min(size, self.count)
        return (2 * np.arange(size) + 1) * self.count // (2 * size)

    def _block(self, epoch: int, block: int) -> NDArray[np.int64]:
        if self._latest is None or self._latest[0] != (epoch, block):
            import numpy as np

            start = block * _BLOCK
            positions = np.arange(start, min(start + _BLOCK, self.count), dtype=np.uint64)
            order = permuted(positions, self.count, f"{self.seed} {epoch}").astype(np.int64)
            self._latest = (epoch, block), order
        return self._latest[1]


class TokenWindows(EpochOrder):
    """The windows of ``context + 1`` tokens that predict every token but the first exactly once.

    Window ``i`` is ``tokens[i * context : i * context + context + 1]``. Neighbours share one token: the last
    target of a window is the first input of the next. A remainder shorter than a window is not used.

    Args:
        tokens: One dimension, any integer type; read in place (a memory map stays on disk).
        context: Predicted tokens per window.
        seed: Seed of the order. Neither ``count`` nor the windows depend on it.

    Raises DataError for fewer than ``context + 1`` tokens.
    """

    def __init__(self, tokens: NDArray[Any], context: int, seed: int = 0) -> None:
        import numpy as np

        super().__init__((len(tokens) - 1) // context, seed)
        if self.count < 1:
            raise DataError(
                f"{len(tokens)} tokens are not enough for one window of context + 1 = {context + 1}: "
                "use more data or a smaller context"
            )
        # asarray: indexing through np.memmap's own class costs several times as much.
        self._windows = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), context + 1)[::context]

    def batch(self, first: int, size: int) -> NDArray[np.int64]:
        """The samples at positions ``first`` to ``first + size - 1``, shape (size, context + 1)."""
        return self.rows(self.order(first, size))

    def rows(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The windows with these numbers (0 to ``count - 1``), shape (len(windows), context + 1)."""
        import numpy as np

        return self._windows[windows].astype(np.int64)


class TokenDataset(MultiEvalDataset):
    """A ``Dataset`` of disjoint rows of token ids: one row for training, one or more held-out rows.

    A plugin for token data provides the rows and a fingerprint of their content.

    Args:
        training: Training ids, one dimension, read in place.
        eval_data: Held-out ids.
        vocab_size: Upper bound of the ids (exclusive).
        context: Predicted tokens per sample.
        seed: Seed of the order of the training windows only.
        fingerprint: Fingerprint of the content of all rows.
        bytes_per_token: Mean bytes of text per held-out token, if known.
        further: Further held-out rows, by name.
        evaluations: Multiple-choice questions for every trained model. The dataset's fingerprint includes them.

    Raises DataError for a row shorter than a window and, while batches are read, for an id outside the vocabulary.
    """

    task: LanguageTask

    def __init__(
        self,
        training: NDArray[Any],
        eval_data: NDArray[Any],
        *,
        vocab_size: int,
        context: int,
        seed: int,
        fingerprint: str,
        bytes_per_token: float | None = None,
        further: Mapping[str, NDArray[Any]] | None = None,
        evaluations: Sequence[MultipleChoice] = (),
    ) -> None:
        self.task = LanguageTask(vocab_size=vocab_size, context=context)
        self.fingerprint = fingerprint
        if evaluations:
            contents = {evaluation.name: evaluation.fingerprint for evaluation in evaluations}
            self.fingerprint = content_hash([fingerprint, contents])
        self.evaluations = tuple(evaluations)
        self.bytes_per_token = bytes_per_token
        self._training = _windows("training part", training, context, seed)
        self._eval_data: dict[str | None, TokenWindows] = {None: _windows("held-out part", eval_data, context)}
        for name, row in (further or {}).items():
            self._eval_data[name] = _windows(f"held-out set {name!r}", row, context)
        self.eval_sets = tuple(further or ())
        self.num_unique_tokens = self._training.count * context

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Tensor]:
        """Endless batches of ids, shape (batch_size, context + 1), int64."""
        while True:
            yield self._batch(self._training.batch(start, batch_size))
            start += batch_size

    def eval_batches(self, tokens: int, batch_size: int, name: str | None = None) -> Iterator[Tensor]:
        """Evenly spaced windows of a held-out row, in the order of the row."""
        row = self._eval_data[name]
        windows = row.spread(max(1, round(tokens / self.task.context)))
        for first in range(0, len(windows), batch_size):
            yield self._batch(row.rows(windows[first : first + batch_size]))

    def _batch(self, rows: NDArray[np.int64]) -> Tensor:
        import torch

        # Viewed as unsigned numbers, negative ids exceed every vocabulary size.
        if rows.view("u8").max() >= self.task.vocab_size:
            invalid = rows[(rows < 0) | (rows >= self.task.vocab_size)][0]
            raise DataError(
                f"the data contain the token id {invalid}, but ids must be below vocab_size = "
                f"{self.task.vocab_size}"
            )
        return torch.from_numpy(rows)


def _windows(part: str, row: NDArray[Any], context: int, seed: int = 0) -> TokenWindows:
    try:
        return TokenWindows(row, context, seed)
    except DataError as error:
        raise DataError(f"the {part}: {error}") from None


def permuted(positions: NDArray[np.uint64], count: int, key: str) -> NDArray[np.uint64]:
    """The images of ``positions`` under a pseudorandom permutation of ``range(count)``, which ``key`` selects.

    A Feistel network over the two digits of a number in mixed radix (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains", sections 4 and 5). Results of ``count`` or more are permuted again until they are
    smaller, which keeps the map one-to-one. There are few: ``small * large < count + small``.
    """
    import numpy as np

    small = math.isqrt(count - 1) + 1
    large = -(-count // small)
    digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    result = _feistel(positions, np.uint64(small), np.uint64(large), keys)
    while len(outside := np.flatnonzero(result >= count)):
        result[outside] = _feistel(result[outside], np.uint64(small), np.uint64(large), keys)
    return result


def _feistel(
    numbers: NDArray[np.uint64], small: np.uint64, large: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    left, right = numbers % small, numbers // small
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        left = (left + _mix(right, even) % small) % small
        right = (right + _mix(left, odd) % large) % large
    return left + small * right


def _mix(numbers: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """A hash of 64 bits: the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    import numpy as np

    numbers = numbers + key
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
