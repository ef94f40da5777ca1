import sys
import textwrap

import pytest
import torch
from sklearn.datasets import load_digits

import flops_fit_core
from flops_fit_core import DataError
from flops_fit_core.config import explain
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import MultiEvalDataset
from flops_fit_core.plugins.options import identity_options, runtime_options
from flops_fit_core.plugins.registry import installed

SPEC = installed().find("dataset", "images/images").spec
OWN = """
import torch
from torch.utils.data import Dataset, TensorDataset

def bytes_of(seed, count=200, shape=(3, 4, 6)):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=random, dtype=torch.uint8)

class Lazy(Dataset):
    classes = ["cat", "dog", "bird", "fish"]
    def __init__(self): self.images = bytes_of(0)
    def __len__(self): return len(self.images)
    def __getitem__(self, index): return self.images[index], index % 3

class Grey(Lazy):
    classes = None
    def __getitem__(self, index): return self.images[index, 0].float() * (1 + index), index % 3

def train(): return Lazy()
def grey(): return Grey()
def as_tensors(): return TensorDataset(bytes_of(0), torch.arange(200) % 3)
def test(): return TensorDataset(bytes_of(1, 50), torch.arange(50) % 3)
def night(): return TensorDataset(bytes_of(2, 30), torch.arange(30) % 3)
def large(): return TensorDataset(bytes_of(2, 30, (3, 8, 8)), torch.arange(30) % 3)
def constant(): return TensorDataset(torch.full((9, 2, 3, 3), 7.0), torch.arange(9) % 3)
def small(): return TensorDataset(torch.rand(9, 2, 3, 3), torch.arange(9) % 3)
ready = as_tensors()
"""


@pytest.fixture
def own(tmp_path):
    """``own("train")``: the name of a source in a file of the user's."""
    (tmp_path / "own.py").write_text(OWN)
    return lambda name: f"{tmp_path / 'own.py'}:{name}"


def opened(seed=0, **options):
    return SPEC.build(SPEC.options.model_validate(options), seed)


def everything(batches):
    images, classes = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(classes)


def an_epoch(dataset, batch_size=16):
    taken, batches = [], dataset.batches(batch_size)
    while sum(len(classes) for _, classes in taken) < dataset.num_unique_tokens:
        taken.append(next(batches))
    images, classes = everything(taken)
    return images[: dataset.num_unique_tokens], classes[: dataset.num_unique_tokens]


def rows(images):
    return {tuple(image.flatten().tolist()) for image in images}


# ---------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns_each_either_trained_on_or_held_out():
    dataset = opened(normalize=False, eval_share=0.25)
    training, held = an_epoch(dataset)[0], everything(dataset.eval_batches(10**6, 64))[0]
    expected = load_digits().images / 16
    assert training.shape[1:] == (1, 8, 8)
    assert len(training) + len(held) == len(expected) == 1797
    assert rows(training) | rows(held) == {tuple(row) for row in expected.reshape(-1, 64).tolist()}
    assert not rows(training) & rows(held)
    assert 0.2 < len(held) / 1797 < 0.3


def test_every_digit_keeps_its_class():
    bunch = load_digits()
    known = {
        tuple((image / 16).flatten()): target for image, target in zip(bunch.images, bunch.target, strict=True)
    }
    images, classes = an_epoch(opened(normalize=False))
    assert [known[tuple(image.flatten().tolist())] for image in images] == classes.tolist()
    assert opened().task.outputs_size == 10


def test_pixels_are_normalised_by_the_training_part():
    images, _ = an_epoch(opened())
    assert float(images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.std(correction=0)) == pytest.approx(1, abs=1e-5)
    raw, _ = an_epoch(opened(normalize=False))
    assert torch.allclose(images, (raw - raw.mean()) / raw.std(correction=0), atol=1e-5)


# ---------------------------------------------------------------------------- custom sources


def test_bytes_become_parts_of_one_and_each_channel_is_normalised_by_itself(own):
    raw, _ = an_epoch(opened(source=own("train"), normalize=False))
    assert (float(raw.min()), float(raw.max())) == (0, 1)
    assert torch.equal((raw * 255).round() / 255, raw)
    normal, _ = an_epoch(opened(source=own("train")))
    over = (0, 2, 3)
    expected = (raw - raw.mean(over, keepdim=True)) / raw.std(over, correction=0, keepdim=True)
    assert torch.allclose(normal, expected, atol=1e-5)


def test_images_without_channels_are_taken_as_they_are(own):
    dataset = opened(source=own("grey"))
    images, _ = an_epoch(dataset)
    assert dataset.task.inputs == (4, 6)
    assert float(images.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_a_channel_without_variation_is_shifted_and_not_blown_up(own):
    images, _ = an_epoch(opened(source=own("constant"), eval_source=own("small")))
    assert torch.equal(images, torch.zeros_like(images))


@pytest.mark.parametrize("name", ["train", "as_tensors", "ready"])
def test_a_function_a_dataset_and_tensors_give_the_same(own, name):
    reference, other = opened(source=own("train"), classes=4), opened(source=own(name), classes=4)
    assert other.fingerprint == reference.fingerprint
    for first, second in zip(an_epoch(reference), an_epoch(other), strict=True):
        assert torch.equal(first, second)


def test_classes_are_the_sources_own_list_or_what_is_seen_or_what_one_says(own):
    assert opened(source=own("train")).task.outputs_size == 4
    assert opened(source=own("as_tensors")).task.outputs_size == 3
    assert opened(source=own("as_tensors"), classes=12).task.outputs_size == 12
    with pytest.raises(DataError, match=r"has classes from 0 to 2, not from 0 to 1: write dataset\.classes"):
        next(opened(source=own("as_tensors"), classes=2).batches(64))


def test_a_module_of_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_pictures").mkdir()
    (tmp_path / "my_pictures" / "__init__.py").touch()
    (tmp_path / "my_pictures" / "data.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        assert opened(source="my_pictures.data:train").num_unique_tokens + 20 > 180
    finally:
        for name in [name for name in sys.modules if name.startswith("my_pictures")]:
            del sys.modules[name]


def test_a_file_is_named_absolutely_and_neither_it_nor_a_module_identifies_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = SPEC.options(source="own.py:train", eval_source="my.data:test", eval_sets={"a": "own.py:night"})
    assert runtime_options(options) == {
        "source": f"{tmp_path / 'own.py'}:train",
        "eval_source": "my.data:test",
        "eval_sets": {"a": f"{tmp_path / 'own.py'}:night"},
    }
    assert identity_options(options) == {}


# ---------------------------------------------------------------------------- order, split, identity


def test_an_epoch_has_every_image_once_and_the_next_is_in_another_order(own):
    dataset = opened(source=own("train"), normalize=False)
    images, _ = everything([next(dataset.batches(2 * dataset.num_unique_tokens))])
    first, second = images[: dataset.num_unique_tokens], images[dataset.num_unique_tokens :]
    assert len(rows(first)) == dataset.num_unique_tokens
    assert rows(first) == rows(second)
    assert not torch.equal(first, second)


def test_equal_images_are_on_one_side(tmp_path):
    (tmp_path / "twice.py").write_text(
        OWN + "def twice(): return TensorDataset(bytes_of(0).repeat(2, 1, 1, 1), torch.arange(400) % 3)\n"
    )
    dataset = opened(source=f"{tmp_path / 'twice.py'}:twice", eval_share=0.3, normalize=False)
    training, held = an_epoch(dataset)[0], everything(dataset.eval_batches(400, 50))[0]
    assert not rows(training) & rows(held)
    assert len(training) == 2 * len(rows(training))


def test_the_split_depends_on_the_image_alone(own, tmp_path):
    (tmp_path / "more.py").write_text(
        OWN
        + "def more(): return TensorDataset(torch.cat([bytes_of(5, 99), bytes_of(0)]), torch.arange(299) % 3)\n"
    )
    before = rows(everything(opened(source=own("train"), normalize=False).eval_batches(999, 9))[0])
    more = opened(source=f"{tmp_path / 'more.py'}:more", normalize=False)
    after = rows(everything(more.eval_batches(999, 9))[0])
    assert before <= after


def test_the_fingerprint_is_of_pixels_classes_and_every_held_out_set(own):
    seen = {
        opened(source=own("train")).fingerprint,
        opened(source=own("train"), classes=5).fingerprint,
        opened(source=own("train"), eval_share=0.2).fingerprint,
        opened(source=own("train"), eval_source=own("test")).fingerprint,
        opened(source=own("train"), eval_source=own("night")).fingerprint,
        opened(source=own("train"), eval_source=own("test"), eval_sets={"a": own("night")}).fingerprint,
        opened(source=own("train"), eval_source=own("test"), eval_sets={"b": own("night")}).fingerprint,
        opened(source=own("train"), eval_source=own("night"), eval_sets={"a": own("test")}).fingerprint,
    }
    assert len(seen) == 8


def test_further_sets_are_held_out_under_their_names(own):
    dataset = opened(
        source=own("train"), eval_source=own("test"), eval_sets={"night": own("night")}, normalize=False
    )
    assert isinstance(dataset, MultiEvalDataset)
    assert dataset.eval_sets == ("night",)
    assert len(everything(dataset.eval_batches(999, 7))[0]) == 50
    night = everything(dataset.eval_batches(999, 7, "night"))[0]
    assert len(night) == 30
    assert not rows(night) & rows(everything(dataset.eval_batches(999, 7))[0])


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("numbers", r"there is no source 'numbers': write 'digits', 'package.module:name' or 'file.py:name'"),
        ("no_such_package.data:train", r"cannot import no_such_package.data: ModuleNotFoundError"),
        ("FILE:missing", r"has no 'missing'; it has: .*ints, .*strings"),
        ("FILE:fails", r"fails\(\) failed: OSError: no disk"),
        ("FILE:endless", r"is a generator, which has no items by number"),
        ("FILE:empty", "has no images"),
        ("FILE:ints", r"returns int as item 0: items must be pairs of an image tensor"),
        ("FILE:strings", r"returns \(a tensor of float32 of shape \(1, 4, 4\), str\) as item 0"),
        ("FILE:longs", r"returns \(a tensor of int64 of shape \(1, 4, 4\), int\) as item 0"),
        ("FILE:sizes", r"has images of shape \(1, 4, 4\) and of \(1, 5, 5\): give all images the same shape"),
        ("FILE:augmented", "returns another image 0 when it is read again: leave out random augmentation"),
        ("FILE:one", r"has 1 images, which leave nothing to (train on|hold out)"),
        ("BROKEN:train", r"cannot import .*broken.py: SyntaxError"),
    ],
)
def test_what_is_no_dataset_of_images_is_named_with_what_to_write(tmp_path, source, message):
    (tmp_path / "wrong.py").write_text(
        textwrap.dedent("""
        import torch
        def image(side=4): return torch.rand(1, side, side)
        ints, empty, one = [1, 2], [], [(image(), 0)]
        strings = [(image(), "cat")]
        longs = [(image().long(), 0)]
        sizes = [(image(4 + index % 2), 0) for index in range(9)]
        def fails(): raise OSError("no disk")
        def endless(): yield image(), 0
        class Augmented(list):
            def __getitem__(self, index): return image(), 0
        augmented = Augmented(range(9))
        """)
    )
    (tmp_path / "broken.py").write_text("def train(:\n")
    name = source.replace("FILE", str(tmp_path / "wrong.py")).replace("BROKEN", str(tmp_path / "broken.py"))
    with pytest.raises(DataError, match=message):
        opened(source=name)


def test_parts_that_do_not_fit_together_are_errors(own):
    with pytest.raises(DataError, match=r"large has images of shape \(3, 8, 8\), not \(3, 4, 6\)"):
        opened(source=own("train"), eval_source=own("large"))
    with pytest.raises(DataError, match="is both trained on and held out"):
        opened(source=own("train"), eval_source=own("train"))
    with pytest.raises(ValueError, match="eval_sets") as caught:
        SPEC.options(eval_sets={"a/b": "digits"})
    assert "eval_sets" in explain(caught.value)


# ---------------------------------------------------------------------------- end to end


def table(**sweep):
    return {
        "name": "digits",
        "sweep": {"budgets": [4e8], "sizes": [{"width": 8}, {"width": 16}], "min_steps": 1, **sweep},
        "model": {"name": "vit", "depth": 1, "patch": 4, "head_dim": 8},
        "dataset": "images",
        "optimizer": {"name": "adamw", "lr": 0.01},
        "counter": "model",
        "device": "cpu",
        "executor": "local",
    }


def test_a_sweep_on_digits_learns_repeats_knowingly_and_shows_its_accuracy(tmp_path):
    with pytest.raises(flops_fit_core.PlanError, match=r"epochs of the 1\.\d+K available; to allow repetition"):
        flops_fit_core.plan(table(), out=tmp_path)
    study = flops_fit_core.run(table(allow_repeat=True), out=tmp_path / "study")
    assert any("2 of 2 runs repeat the 1,6" in note for note in study.plan.notes)
    results = study.results
    assert [result.status for result in results] == ["completed", "completed"]
    available = opened().num_unique_tokens
    for result in results:
        assert result.tokens > result.unique_tokens == available
        assert result.metrics["accuracy"] > 0.6
        assert result.loss < 1.5
        assert result.eval_tokens == 1797 - available
    shown = str(study.runs)
    assert "accuracy" in shown
    assert f"{results[0].metrics['accuracy']:.4f}" in shown
    assert study.runs.json()[0]["accuracy"] == results[0].metrics["accuracy"]
    assert {observation.unique_tokens for observation in study.observations} == {available}


def test_the_same_digits_by_another_name_are_the_same_runs(tmp_path):
    (tmp_path / "copy.py").write_text(
        "from sklearn.datasets import load_digits\nimport torch\nbunch = load_digits()\n"
        "copy = [(torch.tensor(i[None] / 16).float(), int(c)) for i, c in zip(bunch.images, bunch.target)]\n"
    )
    named = {"name": "images", "source": f"{tmp_path / 'copy.py'}:copy"}
    ids = [
        {run.id for run in make_plan(flops_fit_core.config.make_experiment(experiment, installed())).runs}
        for experiment in (table(allow_repeat=True), table(allow_repeat=True) | {"dataset": named})
    ]
    assert ids[0] == ids[1]
