"""Every bundled dataset keeps its contract."""

from __future__ import annotations

import json
import random

import pytest

from flops_fit_core.testing import DatasetConformance


class TestText(DatasetConformance):
    name = "text"
    most = 4000

    @staticmethod
    def write_files(folder):
        source = random.Random(0)
        for number in range(60):
            words = ("".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(300))
            (folder / f"{number}.txt").write_text(" ".join(words))

    @pytest.fixture
    def given_options(self, tmp_path):
        self.write_files(tmp_path)
        return {"path": str(tmp_path), "context": 64}


class TestTextWithFurtherHeldOutSets(TestText):
    @pytest.fixture
    def given_options(self, tmp_path):
        source = random.Random(1)
        for name in ("small", "large"):
            words = ("".join(source.choices("nopqrstuvwxyz", k=7)) for _ in range(3000))
            (tmp_path / f"{name}.md").write_text(" ".join(words))
        further = {name: str(tmp_path / f"{name}.md") for name in ("small", "large")}
        self.write_files(tmp_path)
        return {"path": str(tmp_path / "*.txt"), "context": 64, "eval_sets": further}


class TestTokens(DatasetConformance):
    name = "tokens"

    @pytest.fixture
    def given_options(self, tmp_path):
        import numpy as np

        ids = np.random.default_rng(0).integers(0, 500, size=20_000).astype("<u2")
        ids.tofile(tmp_path / "all.bin")
        return {"path": str(tmp_path / "all.bin"), "vocab_size": 500, "context": 32, "eval_share": 0.2}


class TestDigits(DatasetConformance):
    name = "images"
    options = {"eval_share": 0.2}


class TestImagesOfOnesOwn(DatasetConformance):
    name = "images"

    @pytest.fixture
    def given_options(self, tmp_path):
        (tmp_path / "own.py").write_text(
            "import torch\n"
            "def make(seed, count):\n"
            "    random = torch.Generator().manual_seed(seed)\n"
            "    images = torch.randint(256, (count, 3, 6, 4), generator=random, dtype=torch.uint8)\n"
            "    return [(image, number % 3) for number, image in enumerate(images)]\n"
            "def train(): return make(0, 500)\n"
            "def test(): return make(1, 90)\n"
            "def other(): return make(2, 70)\n"
        )
        own = {name: f"{tmp_path / 'own.py'}:{name}" for name in ("train", "test", "other")}
        return {
            "source": own["train"],
            "eval_source": own["test"],
            "eval_sets": {"other": own["other"]},
            "normalize": False,
        }


class TestHFDataset(DatasetConformance):
    name = "hf-dataset"

    @pytest.fixture
    def given_options(self, tmp_path):
        for number, (name, documents) in enumerate((("train", 400), ("other", 90))):
            source = random.Random(number)
            rows = [[source.randrange(500) for _ in range(60)] for _ in range(documents)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
        return {
            "path": str(tmp_path / "train.jsonl"),
            "column": "ids",
            "vocab_size": 501,
            "end_of_text": 500,
            "context": 32,
            "eval_share": 0.2,
            "eval_sets": {"other": str(tmp_path / "other.jsonl")},
            "cache": str(tmp_path / "cache"),
        }
