import numpy as np
import pytest

from flops_fit_core import DataError
from flops_fit_core.data import TokenWindows
from flops_fit_core.data.token_windows import permuted

TOKENS = np.arange(1_000, dtype=np.uint16)


def test_every_token_but_the_first_is_a_target_exactly_once_an_epoch():
    windows = TokenWindows(TOKENS[:961], context=64, seed=3)
    epoch = windows.batch(0, windows.count)
    assert epoch.shape == (15, 65)
    assert epoch.dtype == np.int64
    assert sorted(epoch[:, 1:].ravel()) == list(range(1, 961))
    assert (np.diff(epoch, axis=1) == 1).all()


def test_a_rest_shorter_than_a_window_is_left_out():
    assert TokenWindows(TOKENS[:64], context=32).count == 1
    assert TokenWindows(TOKENS[:65], context=32).count == 2


def test_batch_sizes_and_the_place_of_resumption_do_not_change_the_samples():
    full_batch = TokenWindows(TOKENS, context=10, seed=1).batch(0, 700)
    pieces = TokenWindows(TOKENS, context=10, seed=1)
    for size in (1, 7, 64, 333):
        rows = [pieces.batch(first, min(size, 700 - first)) for first in range(0, 700, size)]
        assert (np.concatenate(rows) == full_batch).all()
    assert (TokenWindows(TOKENS, context=10, seed=1).batch(512, 9) == full_batch[512:521]).all()


def test_epochs_and_seeds_have_orders_of_their_own():
    def orders(seed):
        windows = TokenWindows(TOKENS, context=10, seed=seed)
        return [tuple(windows.order(epoch * windows.count, windows.count)) for epoch in range(3)]

    different = {*orders(0), *orders(1)}
    assert len(different) == 6
    assert all(sorted(order) == list(range(99)) for order in different)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1023, 1024, 1025, 99_991])
def test_the_order_is_a_permutation_whatever_the_count(count):
    moved = permuted(np.arange(count, dtype=np.uint64), count, "key")
    assert sorted(moved) == list(range(count))


def test_the_permutation_of_a_few_windows_reaches_every_order_about_equally_often():
    seen = {}
    for key in range(2_400):
        order = tuple(permuted(np.arange(4, dtype=np.uint64), 4, str(key)))
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    # Chi-square with 23 degrees of freedom exceeds 58.6 once in 15,000 times.
    assert sum((times - 100) ** 2 / 100 for times in seen.values()) < 58.6


def test_a_stretch_of_the_order_is_spread_like_a_random_draw():
    count, drawn = 10_007, 2_000
    order = permuted(np.arange(drawn, dtype=np.uint64), count, "0 0").astype(float)
    cells = np.histogram(order, bins=20, range=(0, count))[0]
    # Chi-square with 19 degrees of freedom exceeds 43.8 once in a thousand times.
    assert ((cells - drawn / 20) ** 2 / (drawn / 20)).sum() < 43.8
    neighbours = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(drawn)


def test_billions_of_windows_take_no_memory():
    # A row of 2**38 tokens that is one token long in memory.
    endless = np.broadcast_to(np.uint8(7), (2**38,))
    windows = TokenWindows(endless, context=2, seed=0)
    assert windows.count == 2**37 - 1
    order = windows.order(10 * windows.count + 2**36, 5_000)
    assert len(set(order.tolist())) == 5_000
    assert order.min() >= 0
    assert order.max() < windows.count
    assert (windows.batch(0, 3) == 7).all()


def test_held_out_windows_are_spread_over_the_whole_row_and_no_seed_moves_them():
    windows = TokenWindows(TOKENS, context=10, seed=5)
    assert windows.spread(3).tolist() == [16, 49, 82]
    assert windows.spread(99).tolist() == list(range(99))
    assert windows.spread(10_000).tolist() == list(range(99))
    assert (windows.rows(windows.spread(3))[:, 0] == [160, 490, 820]).all()


def test_too_few_tokens_for_one_window_are_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match=r"65 tokens are not enough .* 66: use more data or a smaller context"):
        TokenWindows(TOKENS[:65], context=65)
