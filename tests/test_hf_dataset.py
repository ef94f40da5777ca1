import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

import flops_fit_core
from flops_fit_core import DataError
from flops_fit_core.plugins.options import identity_options, runtime_options
from flops_fit_core.plugins.registry import installed

SPEC = installed().find("dataset", "hf/hf-dataset").spec
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def documents():
    """Sources of the standard library, a few kilobytes each."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted([*folder.glob("json/*.py"), *folder.glob("email/*.py"), *folder.glob("concurrent/**/*.py")])
    texts = [file.read_text(encoding="utf-8")[:4000] for file in files]
    texts = [text for text in texts if text] + ["naïve café — 文字\n"]
    assert len(texts) > 25
    assert len(set(texts)) == len(texts)
    return texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, documents):
    """A byte-level BPE of 400 tokens, trained on the documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        documents,
        trainers.BpeTrainer(vocab_size=400, special_tokens=[END], initial_alphabet=alphabet, show_progress=False),
    )
    # What the pipeline of some models asks for, and a data set must not do.
    made.enable_truncation(16)
    made.enable_padding(length=32)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache, of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flops-fit" / "tokens"


@pytest.fixture
def saved(tmp_path, documents):
    """A dataset with three splits, as ``save_to_disk`` leaves it."""
    return save(
        tmp_path / "saved", {"train": documents[:-8], "validation": documents[-8:-4], "test": documents[-4:]}
    )


def save(folder, splits):
    import datasets

    features = datasets.Features(text=datasets.Value("string"), number=datasets.Value("int64"))
    made = {
        name: datasets.Dataset.from_dict({"text": texts, "number": list(range(len(texts)))}, features=features)
        for name, texts in splits.items()
    }
    datasets.disable_progress_bars()
    datasets.DatasetDict(made).save_to_disk(str(folder))
    datasets.enable_progress_bars()
    return folder


def write_files(folder, texts, kind="jsonl"):
    import pyarrow as pa
    import pyarrow.parquet

    folder.mkdir(exist_ok=True)
    path = folder / f"texts.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif kind == "json":
        path.write_text(json.dumps([{"text": text} for text in texts]))
    elif kind == "parquet":
        pa.parquet.write_table(pa.table({"text": texts}), path)
    else:
        table = pa.table({"text": texts})
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    return path


def opened(seed=0, **options):
    options = {"context": 32, **options}
    return SPEC.build(SPEC.options.model_validate({key: _text(value) for key, value in options.items()}), seed)


def _text(value):
    return str(value) if isinstance(value, Path) else value


def tokens_of(batches):
    """The row that windows in order were cut from."""
    windows = torch.cat(list(batches))
    return [int(windows[0, 0]), *windows[:, 1:].flatten().tolist()]


def encode_row(tokenizer, texts):
    """The expected row of these documents, encoded one by one by the tokenizer."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(tokenizer))
    plain.no_truncation()
    plain.no_padding()
    end = plain.token_to_id(END)
    return [token_id for text in texts for token_id in [*plain.encode(text).ids, end]]


def cut(row, context=32):
    """The part of a row that whole windows predict, with the first token."""
    return row[: (len(row) - 1) // context * context + 1]


def trained_on(dataset):
    windows = next(dataset.batches(dataset.num_unique_tokens // dataset.task.context))
    return sorted(map(tuple, windows.tolist()))


def windows_of(row, context=32):
    return sorted(tuple(row[k : k + context + 1]) for k in range(0, len(row) - context, context))


# ---------------------------------------------------------------------------- tokens


def test_documents_are_encoded_whole_and_joined_with_the_end_of_text(saved, tokenizer, documents):
    dataset = opened(path=saved, tokenizer=tokenizer)
    assert dataset.task.vocab_size == 400
    assert tokens_of(dataset.eval_batches(10**6, 8)) == cut(encode_row(tokenizer, documents[-8:-4]))
    assert trained_on(dataset) == windows_of(encode_row(tokenizer, documents[:-8]))


def test_bytes_a_token_are_those_of_the_held_out_text(saved, tokenizer, documents):
    held = documents[-8:-4]
    expected = sum(len(text.encode()) for text in held) / len(encode_row(tokenizer, held))
    assert opened(path=saved, tokenizer=tokenizer).bytes_per_token == pytest.approx(expected)
    assert 1.5 < expected < 4


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "arrow"])
def test_files_of_every_kind_give_what_a_saved_dataset_gives(tmp_path, saved, tokenizer, documents, kind):
    training = write_files(tmp_path / "training", documents[:-8], kind)
    eval_source = write_files(tmp_path / "eval_source", documents[-8:-4], kind)
    expected = opened(path=saved, tokenizer=tokenizer)
    for path in (training, training.parent, training.parent / f"*.{kind}", saved / "train"):
        dataset = opened(path=path, eval_source=eval_source, tokenizer=tokenizer)
        assert dataset.fingerprint == expected.fingerprint
        assert trained_on(dataset) == trained_on(expected)


def test_a_split_is_chosen_by_name(saved, tokenizer, documents):
    dataset = opened(path=saved, split="validation", eval_source="test", tokenizer=tokenizer)
    assert tokens_of(dataset.eval_batches(10**6, 8)) == cut(encode_row(tokenizer, documents[-4:]))
    assert trained_on(dataset) == windows_of(encode_row(tokenizer, documents[-8:-4]))


def test_without_a_split_to_hold_out_a_share_of_the_documents_is(tmp_path, tokenizer, documents):
    path = write_files(tmp_path / "all", documents)
    dataset = opened(path=path, eval_share=0.3, tokenizer=tokenizer)
    limit = 0.3 * 2**64
    out = [
        document
        for document in documents
        if int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") < limit
    ]
    assert 3 < len(out) < len(documents) / 2
    assert tokens_of(dataset.eval_batches(10**6, 8)) == cut(encode_row(tokenizer, out))
    assert trained_on(dataset) == windows_of(
        encode_row(tokenizer, [document for document in documents if document not in out])
    )


def test_a_share_that_is_asked_for_counts_more_than_the_split_validation(saved, tokenizer, documents):
    dataset = opened(path=saved, eval_share=0.3, tokenizer=tokenizer)
    held = tokens_of(dataset.eval_batches(10**6, 8))
    assert held != cut(encode_row(tokenizer, documents[-8:-4]))
    assert len(held) + dataset.num_unique_tokens <= len(encode_row(tokenizer, documents[:-8]))
    with pytest.raises(ValueError, match="cannot be combined: write one of them"):
        SPEC.options(path="x", eval_source="test", eval_share=0.05)


def test_further_sets_are_splits_or_files(tmp_path, saved, tokenizer, documents):
    other = write_files(tmp_path / "other", documents[:3])
    dataset = opened(path=saved, tokenizer=tokenizer, eval_sets={"test": "test", "other": str(other)})
    assert dataset.eval_sets == ("test", "other")
    assert tokens_of(dataset.eval_batches(10**6, 8, "test")) == cut(encode_row(tokenizer, documents[-4:]))
    assert tokens_of(dataset.eval_batches(10**6, 8, "other")) == cut(encode_row(tokenizer, documents[:3]))
    assert tokens_of(dataset.eval_batches(10**6, 8)) == cut(encode_row(tokenizer, documents[-8:-4]))
    one_set = opened(path=saved, tokenizer=tokenizer, eval_sets={"test": "test"})
    assert (
        len({dataset.fingerprint, one_set.fingerprint, opened(path=saved, tokenizer=tokenizer).fingerprint}) == 3
    )


def test_a_column_of_ids_needs_no_tokenizer(tmp_path):
    import datasets

    rows = [list(range(start, start + 40)) for start in range(0, 400, 7)]
    path = tmp_path / "ids.parquet"
    datasets.Dataset.from_dict({"input_ids": rows, "other": ["x"] * len(rows)}).to_parquet(str(path))
    eval_source = tmp_path / "held.parquet"
    datasets.Dataset.from_dict({"input_ids": rows[:3]}).to_parquet(str(eval_source))
    dataset = opened(path=path, eval_source=eval_source, column="input_ids", vocab_size=70_000, end_of_text=69_999)
    assert dataset.bytes_per_token is None
    assert trained_on(dataset) == windows_of([token_id for row in rows for token_id in [*row, 69_999]])
    with pytest.raises(DataError, match=r"row 52 of .*ids.parquet has id 400, not below vocab_size = 400"):
        opened(path=path, eval_source=eval_source, column="input_ids", vocab_size=400, end_of_text=0)


# ---------------------------------------------------------------------------- the cache


def test_the_second_reader_tokenizes_nothing_and_imports_nothing_heavy(saved, tokenizer, cache):
    expected = opened(path=saved, tokenizer=tokenizer).fingerprint
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    before = {file.name: file.stat().st_mtime_ns for file in made.iterdir()}
    code = (
        "import sys; from flops_fit_core.plugins.registry import installed\n"
        "spec = installed().find('dataset', 'hf-dataset').spec\n"
        f"options = spec.options(path={str(saved)!r}, tokenizer={str(tokenizer)!r}, context=32)\n"
        "heavy = sorted({'datasets', 'tokenizers', 'pyarrow'} & set(sys.modules))\n"
        "print(spec.build(options, 1).fingerprint, heavy)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{expected} []\n", "")
    assert {file.name: file.stat().st_mtime_ns for file in made.iterdir()} == before


def test_the_rows_are_mapped_from_npy_files_that_anybody_can_read(saved, tokenizer, documents, cache):
    dataset = opened(path=saved, tokenizer=tokenizer)
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    metadata = json.loads((made / "about.json").read_text())
    row = np.load(made / metadata["files"]["training"])
    assert row.dtype == np.uint16
    assert row.tolist() == encode_row(tokenizer, documents[:-8])
    assert metadata["fingerprint"] == dataset.fingerprint
    # Nothing of the conversion is left, neither here nor in a cache of the library's own.
    assert sorted(file.name for file in made.iterdir()) == ["0.npy", "1.npy", "about.json"]
    assert not (cache.parents[1] / "huggingface").exists()


def test_a_folder_of_ones_own_is_used_instead(tmp_path, saved, tokenizer, cache):
    opened(path=saved, tokenizer=tokenizer, cache=tmp_path / "mine")
    assert any(path.is_dir() for path in (tmp_path / "mine").iterdir())
    assert not cache.exists()


def test_other_contents_are_other_tokens_and_the_same_elsewhere_are_the_same_runs(tmp_path, tokenizer, documents):
    path = write_files(tmp_path / "here", documents)
    options = {"eval_share": 0.3, "tokenizer": tokenizer}
    before = opened(path=path, **options).fingerprint
    assert opened(path=write_files(tmp_path / "there", documents), **options).fingerprint == before
    seen = {before, opened(path=path, **{**options, "end_of_text": "a"}).fingerprint}
    seen.add(opened(path=path, **{**options, "eval_share": 0.2}).fingerprint)
    seen.add(opened(path=path, **options, vocab_size=512).fingerprint)
    write_files(tmp_path / "here", [*documents[:-1], documents[-1] + "x"])
    seen.add(opened(path=path, **options).fingerprint)
    assert len(seen) == 5


def test_a_large_file_that_changes_unseen_is_noticed_by_its_time(tmp_path):
    from flops_fit_hf_datasets.places import find_places

    path = tmp_path / "large.jsonl"
    path.write_bytes(b"x" * 3_000_000)

    def identity():
        return find_places(SPEC.options(path=str(path), vocab_size=9)).training.identity()

    before = identity()
    assert identity() == before
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(b"y")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
    assert identity() != before


def test_several_processes_make_the_tokens_once(saved, tokenizer, cache):
    code = (
        "import logging, sys; logging.basicConfig(level='INFO', stream=sys.stdout)\n"
        "from flops_fit_core.plugins.registry import installed\n"
        "spec = installed().find('dataset', 'hf-dataset').spec\n"
        f"options = spec.options(path={str(saved)!r}, tokenizer={str(tokenizer)!r}, context=32)\n"
        "print(spec.build(options, 1).fingerprint)"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0].splitlines() for process in started]
    assert all(process.returncode == 0 for process in started)
    assert sum("tokenizing" in line for lines in outputs for line in lines) == 1
    assert len({lines[-1] for lines in outputs}) == 1


def test_a_maker_that_is_killed_leaves_nothing_that_counts(saved, tokenizer, cache):
    code = (
        "import time; from flops_fit_core.plugins.registry import installed\n"
        "from flops_fit_hf_datasets import tokens\n"
        "tokens._check_not_empty = lambda *given: (print('now', flush=True), time.sleep(60))\n"
        "spec = installed().find('dataset', 'hf-dataset').spec\n"
        f"options = spec.options(path={str(saved)!r}, tokenizer={str(tokenizer)!r}, context=32)\n"
        "spec.build(options, 1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.kill()
    process.wait()
    process.stdout.close()
    (remaining,) = (path for path in cache.iterdir() if path.is_dir())
    assert remaining.name.startswith(".")
    assert opened(path=saved, tokenizer=tokenizer).num_unique_tokens > 0
    assert [path.name for path in cache.iterdir() if path.is_dir() and path.name.startswith(".")] == []


def test_a_cache_that_cannot_be_used_says_what_to_write(tmp_path, saved, tokenizer, cache):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write tokens to .*file.*write dataset.cache = 'a folder'"):
        opened(path=saved, tokenizer=tokenizer, cache=tmp_path / "file" / "inner")
    opened(path=saved, tokenizer=tokenizer)
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    (made / "0.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"0.npy is damaged .*: delete "):
        opened(path=saved, tokenizer=tokenizer)
    (made / "about.json").write_text("{")
    with pytest.raises(DataError, match=r"is damaged .*: delete it"):
        opened(path=saved, tokenizer=tokenizer)


def test_the_fingerprint_and_the_cache_stay_those_of_earlier_versions(tmp_path, cache):
    """A run's id depends on the fingerprint, and the names of the rows are part of it."""
    path, code = tmp_path / "ids.jsonl", tmp_path / "held.jsonl"
    for file, starts in ((path, range(0, 400, 7)), (code, (500, 600))):
        file.write_text("".join(json.dumps({"ids": list(range(start, start + 40))}) + "\n" for start in starts))
    options = {"path": path, "column": "ids", "vocab_size": 1000, "end_of_text": 0, "eval_share": 0.2}
    dataset = opened(**options, eval_sets={"code": str(code)})
    assert dataset.fingerprint == "63e8c24220c2ed4e"
    (metadata,) = cache.glob("*/about.json")
    assert metadata.parent.name == "a3cc2cb78b4994a6"
    assert json.loads(metadata.read_text())["files"] == {
        "training": "0.npy",
        "heldout": "1.npy",
        "heldout code": "2.npy",
    }


def test_a_cache_with_other_rows_is_an_error_that_names_its_folder(saved, tokenizer, cache):
    opened(path=saved, tokenizer=tokenizer)
    (metadata,) = cache.glob("*/about.json")
    metadata.write_text(metadata.read_text().replace('"heldout"', '"eval"'))
    message = rf"{metadata.parent} is damaged \(its rows are training, eval\): delete it"
    with pytest.raises(DataError, match=message):
        opened(path=saved, tokenizer=tokenizer)


# ---------------------------------------------------------------------------- mistakes


def test_places_are_absolute_and_no_part_of_a_runs_identity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"path": "data", "tokenizer": "t.json", "eval_source": "./held", "cache": "c", "column": "ids"}
    options = SPEC.options(**given, eval_sets={"a": "test", "b": "b.jsonl"})
    assert runtime_options(options) == {
        "path": str(tmp_path / "data"),
        "tokenizer": str(tmp_path / "t.json"),
        "eval_source": str(tmp_path / "held"),
        "eval_sets": {"a": "test", "b": str(tmp_path / "b.jsonl")},
        "cache": str(tmp_path / "c"),
    }
    assert identity_options(options) == {"column": "ids"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere"}, r"nowhere: write a folder that save_to_disk wrote, or files .*; found: nothing"),
        (
            {"path": "mixed"},
            r"files of one kind out of .parquet, .jsonl, .json, .arrow; found: .jsonl, .parquet",
        ),
        (
            {"split": "training"},
            r"has no split 'training'; it has: train, validation, test, empty. Write dataset.split",
        ),
        (
            {"eval_source": "val"},
            r"has no split 'val'; it has: train, validation, test, empty. Write dataset.eval_source",
        ),
        ({"eval_source": "train"}, r"is trained on and .* is held out, and both have .*data-00000"),
        ({"eval_source": "./saved"}, r"saved has splits: write the folder of one split, such as .*saved/train"),
        ({"path": "texts", "split": "train"}, r"texts has no splits: leave out dataset.split = 'train'"),
        ({"path": "texts", "eval_source": "test"}, r"can be held out only as a path: write ./test"),
        ({"column": "content"}, r"has no column 'content'; it has: text, number. Write dataset.column"),
        ({"column": "number"}, r"column 'number' of .* holds int64, neither text nor lists of ids; columns: text"),
        ({"tokenizer": None, "vocab_size": 9, "end_of_text": 0}, r"holds text: write dataset.tokenizer"),
        ({"tokenizer": None}, r"the vocabulary size is unknown: write dataset.tokenizer"),
        ({"tokenizer": None, "vocab_size": 9}, "without a tokenizer, dataset.end_of_text must be an id"),
        ({"tokenizer": "missing.json"}, r"cannot read .*missing.json: No such file"),
        ({"tokenizer": "broken.json"}, r"broken.json is not a tokenizer of the library tokenizers"),
        (
            {"end_of_text": "</s>"},
            r"no token '</s>'; its special tokens are: <\|endoftext\|>. Write dataset.end_of",
        ),
        ({"end_of_text": 400}, "the end of text has id 400, not below vocab_size = 400"),
        ({"vocab_size": 300}, r"row 0 of split 'train' .* has id 3\d\d, not below vocab_size = 300"),
        ({"path": "nulls"}, r"row 1 of .*nulls is null: filter such rows out"),
        ({"path": "damaged"}, r"datasets cannot read .*damaged: "),
        (
            {"path": "one"},
            r"one leave nothing to (train on|hold out): use more documents, another dataset.eval_share",
        ),
        ({"eval_source": "empty"}, "split 'empty' of .* has no documents"),
        ({"context": 10**6}, r"the training part: [\d,]+ tokens are not enough for one window of context . 1"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_to_write(unusable, monkeypatch, tokenizer, options, message):
    import datasets

    monkeypatch.chdir(unusable)
    with pytest.raises(DataError, match=message):
        opened(**{"path": "saved", "tokenizer": tokenizer, **options})
    assert datasets.is_progress_bar_enabled()


@pytest.fixture(scope="module")
def unusable(tmp_path_factory, documents):
    """A folder of all kinds of data."""
    folder = tmp_path_factory.mktemp("unusable")
    save(
        folder / "saved",
        {"train": documents[:-8], "validation": documents[-8:-4], "test": documents[-4:], "empty": []},
    )
    for name, texts in (
        ("texts", documents),
        ("mixed", documents),
        ("one", documents[:1]),
        ("nulls", ["a", None]),
    ):
        write_files(folder / name, texts)
    write_files(folder / "mixed", documents, "parquet")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "x.parquet").write_bytes(b"PAR1 not really")
    (folder / "broken.json").write_text("{}")
    return folder


# ---------------------------------------------------------------------------- end to end


def test_a_sweep_on_documents_of_ones_own_learns(tmp_path, saved, tokenizer):
    study = flops_fit_core.run(
        {
            "sweep": {"budgets": [6e8], "sizes": [{"width": 16}], "min_steps": 1, "allow_repeat": True},
            "model": {"name": "gpt", "depth": 1, "head_dim": 8},
            "dataset": {"name": "hf-dataset", "path": str(saved), "tokenizer": str(tokenizer), "context": 32},
            "optimizer": "adamw",
            "counter": "model",
            "device": "cpu",
            "executor": {"name": "processes", "workers": 1},
        },
        out=tmp_path / "study",
    )
    (result,) = study.results
    assert result.status == "completed", result.error
    assert result.loss < 0.9 * np.log(400)
    bytes_per_token = opened(path=saved, tokenizer=tokenizer).bytes_per_token
    assert result.bits_per_byte == pytest.approx(result.loss / np.log(2) / bytes_per_token)


# ---------------------------------------------------------------------------- end of text, tokenizer folders


def write_rows(path, rows):
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return path


def test_false_leaves_the_end_of_text_out_of_packed_rows(tmp_path):
    rows = [[number % 7 + 1] * 33 for number in range(12)]
    path = write_rows(tmp_path / "packed.jsonl", rows)
    eval_source = write_rows(tmp_path / "held.jsonl", rows[:3])
    given = {"path": path, "eval_source": eval_source, "column": "input_ids", "vocab_size": 9}
    dataset = opened(**given, end_of_text=False)
    assert tokens_of(dataset.eval_batches(10**6, 8)) == cut([token_id for row in rows[:3] for token_id in row])
    assert trained_on(dataset) == windows_of([token_id for row in rows for token_id in row])
    zero = opened(**given, end_of_text=0)
    assert tokens_of(zero.eval_batches(10**6, 8)) == cut([token_id for row in rows[:3] for token_id in [*row, 0]])
    assert zero.fingerprint != dataset.fingerprint


def test_false_joins_texts_and_empty_documents_without_a_token_between(tmp_path, tokenizer, documents):
    path = write_files(tmp_path / "a", [*documents, ""])
    eval_source = write_files(tmp_path / "b", documents[:4])
    dataset = opened(path=path, eval_source=eval_source, tokenizer=tokenizer, end_of_text=False)
    end = encode_row(tokenizer, [""])[0]
    plain = [token_id for token_id in encode_row(tokenizer, documents[:4]) if token_id != end]
    assert tokens_of(dataset.eval_batches(10**6, 8)) == cut(plain)


@pytest.mark.parametrize(("value", "kind"), [(False, bool), (0, int), (1, int), ("</s>", str)])
def test_the_end_of_text_keeps_its_type(value, kind):
    assert type(SPEC.options(path="x", end_of_text=value).end_of_text) is kind


@pytest.mark.parametrize("value", [True, None, 1.5, -1, [0]])
def test_another_end_of_text_is_refused(value):
    with pytest.raises(ValueError, match="end_of_text"):
        SPEC.options(path="x", end_of_text=value)


def test_a_folder_of_save_pretrained_is_a_tokenizer(tmp_path, saved, tokenizer):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(tokenizer))
    plain.no_padding()  # or transformers adds a token for it
    plain.no_truncation()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=END)
    fast.save_pretrained(str(tmp_path / "pretrained"))
    folder = opened(path=saved, tokenizer=tmp_path / "pretrained")
    assert folder.fingerprint == opened(path=saved, tokenizer=tokenizer).fingerprint
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"slow has no tokenizer.json; it has: vocab.json"):
        opened(path=saved, tokenizer=tmp_path / "slow")
