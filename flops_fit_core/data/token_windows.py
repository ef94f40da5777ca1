"""Windows of a long row of tokens, in an order that a seed shuffles anew each epoch.

Nothing here grows with the number of windows: the order is computed, not stored, so a file of a hundred
billion tokens costs no more memory than one of a thousand.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.errors import DataError
from flops_fit_core.plugins.protocols import MultiEvalDataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_BLOCK = 1024
"""Positions whose windows are computed together; a vectorised call costs as much for 16 as for 1,000."""
_ROUNDS = 6


class EpochOrder:
    """Which of ``count`` samples stands where, in an order that a seed shuffles anew each epoch.

    At position ``p`` (from 0, without end) stands number ``permuted(p % count)`` of epoch ``p // count``, and
    every epoch has its own permutation: the same seed gives the same samples at the same positions, whatever
    the batch size, on every machine.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count = count
        """Samples of one epoch."""
        self.seed = seed
        self._latest: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    def order(self, first: int, size: int) -> NDArray[np.int64]:
        """The numbers (0 to ``count - 1``) at positions ``first`` to ``first + size - 1``."""
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

    def spread(self, wanted: int) -> NDArray[np.int64]:
        """``wanted`` numbers (all, if there are fewer), one from the middle of each of ``wanted`` equal
        stretches: what a held-out sample takes. Ascending; no seed changes them."""
        import numpy as np

        wanted = min(wanted, self.count)
        return (2 * np.arange(wanted) + 1) * self.count // (2 * wanted)

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

    Window ``i`` is ``tokens[i * context : i * context + context + 1]``: neighbours share one token, the last
    target of one being the first input of the next. A rest shorter than a window is left out.

    Args:
        tokens: One dimension, any integer type; read in place (a memory map stays on disk).
        context: Tokens of one window that are predicted.
        seed: Of the order. Neither ``count`` nor what a window holds depends on it.

    Raises DataError for fewer than ``context + 1`` tokens.
    """

    def __init__(self, tokens: NDArray[Any], context: int, seed: int = 0) -> None:
        import numpy as np

        super().__init__((len(tokens) - 1) // context, seed)
        if self.count < 1:
            raise DataError(
                f"{len(tokens)} tokens are not enough for one window of context + 1 = {context + 1}: "
                "give more data or a smaller context"
            )
        # asarray: indexing through np.memmap's own class costs several times as much.
        self._windows = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), context + 1)[::context]

    def batch(self, first: int, size: int) -> NDArray[np.int64]:
        """The samples at positions ``first`` to ``first + size - 1``, shape (size, context + 1)."""
        return self.rows(self.order(first, size))

    def rows(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The windows of these numbers (0 to ``count - 1``), shape (len(windows), context + 1)."""
        import numpy as np

        return self._windows[windows].astype(np.int64)


class TokenDataset(MultiEvalDataset):
    """A ``Dataset`` of rows of token ids that share nothing: one to train on, one or several to hold out.

    A plugin that reads tokens from somewhere finds the rows and a fingerprint of them; the rest is here.

    Args:
        training: Ids to train on, one dimension, read in place.
        heldout: Ids to hold out.
        vocab_size: Ids are below it.
        context: Tokens of a sample that are predicted.
        seed: Of the order of the training windows, nothing else.
        fingerprint: Of the content of all rows.
        bytes_per_token: Mean bytes of text that a held-out token stands for, where that is known.
        further: Further rows of ids to hold out, by name.

    Raises DataError for a row without a window, and, while batches are read, for an id beyond the vocabulary.
    """

    task: LanguageTask

    def __init__(
        self,
        training: NDArray[Any],
        heldout: NDArray[Any],
        *,
        vocab_size: int,
        context: int,
        seed: int,
        fingerprint: str,
        bytes_per_token: float | None = None,
        further: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.task = LanguageTask(vocab_size=vocab_size, context=context)
        self.fingerprint = fingerprint
        self.bytes_per_token = bytes_per_token
        self._training = _windows("training part", training, context, seed)
        self._heldout: dict[str | None, TokenWindows] = {None: _windows("held-out part", heldout, context)}
        for name, row in (further or {}).items():
            self._heldout[name] = _windows(f"held-out set {name!r}", row, context)
        self.heldout_sets = tuple(further or ())
        self.num_unique_tokens = self._training.count * context

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Tensor]:
        """Ids of shape (batch_size, context + 1), int64, without end."""
        while True:
            yield self._batch(self._training.batch(start, batch_size))
            start += batch_size

    def heldout(self, tokens: int, batch_size: int, name: str | None = None) -> Iterator[Tensor]:
        """Windows evenly spaced over a held-out row, in its order."""
        row = self._heldout[name]
        windows = row.spread(max(1, round(tokens / self.task.context)))
        for first in range(0, len(windows), batch_size):
            yield self._batch(row.rows(windows[first : first + batch_size]))

    def _batch(self, rows: NDArray[np.int64]) -> Tensor:
        import torch

        # As unsigned numbers, negative ids are beyond any vocabulary, too.
        if rows.view("u8").max() >= self.task.vocab_size:
            beyond = rows[(rows < 0) | (rows >= self.task.vocab_size)][0]
            raise DataError(
                f"the data has a token with id {beyond}, not below vocab_size = {self.task.vocab_size}"
            )
        return torch.from_numpy(rows)


def _windows(part: str, row: NDArray[Any], context: int, seed: int = 0) -> TokenWindows:
    try:
        return TokenWindows(row, context, seed)
    except DataError as error:
        raise DataError(f"the {part}: {error}") from None


def permuted(positions: NDArray[np.uint64], count: int, key: str) -> NDArray[np.uint64]:
    """Where a pseudorandom permutation of ``range(count)``, chosen by ``key``, takes each of ``positions``.

    A Feistel network over the digits of a number in mixed radix (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains", sections 4 and 5): ``small * large`` is less than ``count + small``, and what
    lands beyond ``count`` is sent through again until it does not, which keeps the map one to one.
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
        left = (left + _mixed(right, even) % small) % small
        right = (right + _mixed(left, odd) % large) % large
    return left + small * right


def _mixed(numbers: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """A hash of 64 bits: the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    import numpy as np

    numbers = numbers + key
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
