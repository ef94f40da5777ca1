import hashlib
import os
import shutil
from itertools import pairwise

import pytest
import torch

from flops_fit_core import DataError
from flops_fit_core.plugins.registry import installed

SPEC = installed().find("dataset", "text/text").spec


def opened(seed=0, **options):
    return SPEC.build(SPEC.options.model_validate(options), seed)


def files_of(folder, count=40):
    """Files that no two bytes of a window can confuse: each has its own number in it, everywhere."""
    (folder / "inner").mkdir(parents=True)
    for number in range(count):
        place = folder / "inner" if number % 3 else folder
        (place / f"{number:02d}.txt").write_bytes(bytes([64 + number]) * (100 + number))
    return folder


def kinds(batches):
    return {int(byte) for batch in batches for byte in batch.unique()} - {0}


def everything(dataset):
    count = dataset.num_unique_tokens // dataset.task.context
    return [batch for batch, _ in zip(dataset.batches(count), range(1), strict=False)]


def test_no_file_is_both_trained_on_and_held_out(tmp_path):
    dataset = opened(path=str(files_of(tmp_path / "text")), context=8, eval_share=0.3)
    trained, held = kinds(everything(dataset)), kinds(dataset.eval_batches(10**6, 16))
    assert trained
    assert held
    assert not trained & held
    assert trained | held == set(range(64, 104))


def test_the_share_is_of_files_by_the_hash_of_their_relative_path(tmp_path):
    dataset = opened(path=str(files_of(tmp_path / "text")), context=8, eval_share=0.3)
    expected = set()
    for path in (tmp_path / "text").rglob("*.txt"):
        digest = hashlib.sha256(path.relative_to(tmp_path / "text").as_posix().encode()).digest()
        if int.from_bytes(digest[:8], "big") / 2**64 < 0.3:
            expected.add(64 + int(path.stem))
    assert kinds(dataset.eval_batches(10**6, 16)) == expected


def test_held_out_windows_are_the_same_for_every_seed_and_batch_size(tmp_path):
    path = str(files_of(tmp_path / "text"))
    first = torch.cat(list(opened(0, path=path, context=8).eval_batches(200, 3)))
    second = torch.cat(list(opened(7, path=path, context=8).eval_batches(200, 64)))
    assert torch.equal(first, second)
    assert first.shape == (25, 9)


def test_held_out_windows_do_not_overlap(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    numbers = b"".join(number.to_bytes(2, "big") for number in range(2000))
    (folder / "a.txt").write_bytes(b"train " * 50)
    held = tmp_path / "held.txt"
    held.write_bytes(numbers)
    dataset = opened(path=str(folder), eval_path=str(held), context=16)
    windows = torch.cat(list(dataset.eval_batches(1600, 7)))
    assert len(windows) == 100
    text = numbers + b"\0"
    starts = []
    for window in windows:
        start = text.find(bytes(window.tolist()))
        while start % 16:
            start = text.find(bytes(window.tolist()), start + 1)
        starts.append(start)
    assert len(set(starts)) == 100
    # Targets of one window are no targets of another.
    assert all(later - earlier >= 16 for earlier, later in pairwise(starts))


def test_another_seed_gives_the_same_training_windows_in_another_order(tmp_path):
    path = str(files_of(tmp_path / "text"))
    first, second = (torch.cat(everything(opened(seed, path=path, context=8))) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, second.tolist()))


def test_the_fingerprint_is_of_the_content_not_of_the_place(tmp_path):
    here = files_of(tmp_path / "here")
    there = tmp_path / "elsewhere" / "there"
    shutil.copytree(here, there)
    for path in there.rglob("*.txt"):
        os.utime(path, (1, 1))
    same = opened(3, path=str(there), context=8).fingerprint
    assert opened(0, path=str(here), context=8).fingerprint == same
    changed = there / "inner" / "01.txt"
    changed.write_bytes(b"\1" + changed.read_bytes()[1:])
    assert opened(0, path=str(there), context=8).fingerprint != same


def test_a_path_is_no_part_of_a_runs_identity(tmp_path):
    from small import text_table, write_text

    from flops_fit_core.config import make_experiment
    from flops_fit_core.planning import make_plan

    ids = [
        {run.id for run in make_plan(make_experiment(text_table(write_text(tmp_path / name)), installed())).runs}
        for name in ("one", "two")
    ]
    assert ids[0] == ids[1]


def test_a_glob_takes_what_it_matches_by_its_name_below_the_fixed_part(tmp_path):
    folder = files_of(tmp_path / "text")
    (folder / "notes.md").write_bytes(b"\x7f" * 500)
    whole = opened(path=str(folder / "**" / "*.txt"), context=8, eval_share=0.3)
    assert 0x7F not in kinds(everything(whole)) | kinds(whole.eval_batches(10**6, 8))
    (folder / "notes.md").unlink()
    assert whole.fingerprint == opened(path=str(folder), context=8, eval_share=0.3).fingerprint


def test_a_single_file_cannot_be_split(tmp_path):
    file = tmp_path / "all.txt"
    file.write_text("word " * 1000)
    with pytest.raises(DataError, match=r"1 files .*a file is held out as a whole.*dataset.eval_path"):
        opened(path=str(file))


def test_a_single_file_with_another_to_hold_out_will_do(tmp_path):
    for name in ("train", "held"):
        (tmp_path / name).write_text(f"{name} " * 200)
    dataset = opened(path=str(tmp_path / "train"), eval_path=str(tmp_path / "held"))
    assert kinds(everything(dataset)) == set(b"train ")
    assert kinds(dataset.eval_batches(100, 1)) == set(b"held ")


def test_files_named_twice_are_held_out_only(tmp_path):
    folder = files_of(tmp_path / "text")
    dataset = opened(path=str(folder), eval_path=str(folder / "inner"), context=8)
    assert not kinds(everything(dataset)) & kinds(dataset.eval_batches(10**6, 8))
    with pytest.raises(DataError, match="nothing to train on"):
        opened(path=str(folder), eval_path=str(folder), context=8)


def test_nothing_at_a_path_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"no file matches '.*missing/\*.txt'"):
        opened(path=str(tmp_path / "missing" / "*.txt"))
    with pytest.raises(DataError, match="no file matches"):
        opened(path=str(tmp_path / "missing"))


def test_a_part_without_one_window_says_how_many_bytes_it_has(tmp_path):
    for name in ("train", "held"):
        (tmp_path / name).write_text(name)
    with pytest.raises(
        DataError, match=r"training part .* has 6 bytes, fewer than one window of context . 1 = 65"
    ):
        opened(path=str(tmp_path / "train"), eval_path=str(tmp_path / "held"))


def test_the_default_is_the_standard_librarys_sources():
    dataset = opened()
    assert dataset.num_unique_tokens > 5_000_000
    text = b"".join(bytes(row.tolist()) for row in next(iter(dataset.batches(2000)))[:, :-1])
    assert text.count(b"self") > 50
    assert b"import" in text
    assert sum(batch[:, 1:].numel() for batch in dataset.eval_batches(131_072, 256)) == 131_072
