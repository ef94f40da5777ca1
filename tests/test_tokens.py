import shutil

import numpy as np
import pytest
import torch

from flops_fit_core import DataError
from flops_fit_core.config import explain
from flops_fit_core.plugins.registry import installed
from flops_fit_core.plugins.specs import identity_options, runtime_options


def spec():
    return installed().find("dataset", "tokens/tokens").spec


def write(path, tokens, dtype="<u2"):
    np.asarray(tokens).astype(dtype).tofile(path)
    return str(path)


def open_(path, seed=0, **options):
    options = {"vocab_size": 50_000, "context": 32, **options}
    return spec().build(spec().options(path=str(path), **options), seed)


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, 50_000, 10_001)


@pytest.fixture
def folder(tmp_path, ids):
    write(tmp_path / "train.bin", ids)
    write(tmp_path / "val.bin", ids[::-1][:2_001])
    return tmp_path


def test_an_epoch_is_the_file_in_windows_each_once(folder, ids):
    dataset = open_(folder / "train.bin")
    assert dataset.num_unique_tokens == 312 * 32
    batch = next(dataset.batches(312))
    assert batch.dtype == torch.long
    assert batch.shape == (312, 33)
    expected = sorted(tuple(ids[first : first + 33]) for first in range(0, 312 * 32, 32))
    assert sorted(map(tuple, batch.tolist())) == expected


def test_batches_go_on_from_any_sample_and_past_the_end_in_a_new_order(folder):
    dataset = open_(folder / "train.bin", seed=3)
    batches = dataset.batches(100)
    samples = torch.cat([next(batches) for _ in range(7)])
    resumed = open_(folder / "train.bin", seed=3).batches(50, start=330)
    assert torch.equal(torch.cat([next(resumed), next(resumed)]), samples[330:430])
    assert not torch.equal(samples[:312], samples[312:624])
    other = next(open_(folder / "train.bin", seed=4).batches(100))
    assert not torch.equal(other, samples[:100])


def test_held_out_windows_are_the_same_for_every_seed_and_batch_size_and_spread_over_the_file(folder, ids):
    def eval_data(seed, batch_size):
        return torch.cat(list(open_(folder / "train.bin", seed=seed).eval_batches(320, batch_size)))

    assert torch.equal(eval_data(0, 3), eval_data(1, 10))
    val = ids[::-1][:2_001]
    # Ten of 62 windows: the middle one of each tenth.
    starts = [32 * int((k + 0.5) * 62 / 10) for k in range(10)]
    assert eval_data(0, 4).tolist() == [val[start : start + 33].tolist() for start in starts]
    assert len(torch.cat(list(open_(folder / "train.bin").eval_batches(10**9, 16)))) == 62


def test_without_another_file_the_end_is_held_out_and_not_trained_on(tmp_path):
    dataset = open_(write(tmp_path / "all.bin", np.arange(10_000)), eval_share=0.1, context=9)
    trained = next(dataset.batches(dataset.num_unique_tokens // 9))
    held = torch.cat(list(dataset.eval_batches(10**9, 16)))
    assert trained.max() < 9_000
    assert trained.min() == 0
    assert held.min() == 9_000
    assert held.max() == 9_999


def test_a_file_that_is_named_is_held_out_rather_than_the_one_beside(folder, ids):
    path = write(folder / "other.bin", ids[5_000:6_000])
    dataset = open_(folder / "train.bin", eval_path=path)
    assert next(iter(dataset.eval_batches(32, 1)))[0, 0] in ids[5_000:6_000]
    assert dataset.fingerprint != open_(folder / "train.bin").fingerprint


def test_the_fingerprint_is_of_the_content_alone(folder, ids, tmp_path):
    fingerprint = open_(folder / "train.bin", seed=1).fingerprint
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(folder / "train.bin", elsewhere / "renamed.bin")
    shutil.copy(folder / "val.bin", elsewhere / "val.bin")
    assert open_(elsewhere / "renamed.bin", seed=2).fingerprint == fingerprint
    write(elsewhere / "renamed.bin", np.where(np.arange(10_001) == 7_777, 1, ids))
    assert open_(elsewhere / "renamed.bin").fingerprint != fingerprint


def test_a_large_file_is_looked_at_in_many_places_only(tmp_path):
    path = tmp_path / "large.bin"
    size = 20 * 2**20
    tokens = np.memmap(path, "<u2", "w+", shape=size // 2)
    tokens[:] = np.arange(size // 2) % 50_000
    before = open_(path)
    assert before.num_unique_tokens > 9_900_000
    tokens[: 2**16] = 1
    assert open_(path).fingerprint != before.fingerprint
    tokens[-(2**16) :] = 60_000
    with pytest.raises(DataError, match="id 60,000 when read as uint16"):
        open_(path)


def test_an_id_beyond_the_vocabulary_that_no_look_met_is_an_error_of_its_batch(tmp_path):
    path = tmp_path / "large.bin"
    tokens = np.memmap(path, "<u2", "w+", shape=10 * 2**20)
    # 256 stretches of 32,768 tokens start every 40,992 tokens: this lies between the first two.
    tokens[32_768:40_900] = 60_000
    dataset = open_(path, context=2**14)
    with pytest.raises(DataError, match="the token id 60000, but ids must be below vocab_size = 50000"):
        next(dataset.batches(600))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_every_type_is_read_as_it_was_written(tmp_path, dtype):
    ids = np.arange(2_000) * 7 % 200
    path = write(tmp_path / "train.bin", ids, dtype=np.dtype(dtype).newbyteorder("<"))
    dataset = open_(path, dtype=dtype, vocab_size=200, context=10)
    rows = next(dataset.batches(50))
    assert rows.dtype == torch.long
    assert set(rows.flatten().tolist()) <= set(range(200))
    assert (rows[:, 1:] == (rows[:, :-1] + 7) % 200).all()


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        ("<u4", "uint16", r"every second token is 0 when read as uint16: .* uint32 perhaps"),
        ("<u8", "uint32", r"every second token is 0 when read as uint32: .* uint64 perhaps"),
        ("<u2", "uint32", r"id [\d,]+ when read as uint32, and vocab_size is 50,000: give the .* or the dtype"),
    ],
)
def test_another_type_than_the_file_was_written_with_is_noticed(tmp_path, ids, written, read, message):
    with pytest.raises(DataError, match=message):
        open_(write(tmp_path / "train.bin", ids[:10_000], dtype=written), dtype=read)


def test_files_that_cannot_be_used_are_errors_that_say_what_to_do(tmp_path, folder, ids):
    def message(path, **options):
        with pytest.raises(DataError) as caught:
            open_(path, **options)
        return str(caught.value)

    assert "No such file or directory; .bin files in that folder: train.bin, val.bin" in message(folder / "x.bin")
    assert "Is a directory" in message(folder)
    (tmp_path / "empty.bin").touch()
    assert "empty.bin is empty" in message(tmp_path / "empty.bin")
    (tmp_path / "cut.bin").write_bytes(b"12345")
    assert "5 bytes, which is no whole number of uint16 (2 bytes each): it is cut short" in message(
        tmp_path / "cut.bin"
    )
    short = write(tmp_path / "short.bin", ids[:32])
    assert "the training part, of" in message(short)
    assert "has 32 tokens, fewer than one window of context + 1 = 33" in message(short)
    (folder / "val.bin").unlink()
    assert "the held-out part, of" in message(folder / "train.bin", eval_share=0.001)
    train = str(folder / "train.bin")
    assert "train.bin is trained on and held out at once" in message(train, eval_path=train)


def test_a_vocabulary_that_the_type_cannot_hold_is_an_error_of_the_experiment():
    with pytest.raises(ValueError, match="a vocabulary of 100,000 do not fit in dtype uint16") as caught:
        spec().options(path="train.bin", vocab_size=100_000)
    assert "dtype" in explain(caught.value)


def test_paths_are_made_absolute_and_do_not_identify_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = spec().options(path="data/train.bin", eval_path="v.bin", vocab_size=300)
    assert runtime_options(options) == {
        "path": str(tmp_path / "data" / "train.bin"),
        "eval_path": str(tmp_path / "v.bin"),
    }
    assert identity_options(options) == {"vocab_size": 300}


def test_bits_per_byte_need_to_be_told_how_long_a_token_is(folder):
    assert open_(folder / "train.bin").bytes_per_token is None
    assert open_(folder / "train.bin", bytes_per_token=4.2).bytes_per_token == 4.2
