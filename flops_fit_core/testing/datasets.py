"""The conformance kit for datasets.

::

    from flops_fit_core.testing import DatasetConformance

    class TestMyData(DatasetConformance):
        name = "mine"
        options = {"path": "tests/data/small"}
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import JsonValue

from flops_fit_core.config import PluginConfig, build_dataset
from flops_fit_core.data.tasks import LanguageTask, SupervisedTask
from flops_fit_core.plugins.protocols import Batch, Dataset, MultiEvalDataset, Task, eval_batches
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.testing.batches import samples_of, tensors
from flops_fit_core.testing.elsewhere import dataset_elsewhere, sample_digests
from flops_fit_core.testing.kit import Kit

if TYPE_CHECKING:
    from torch import Tensor

Build = Callable[..., Dataset]


class DatasetConformance(Kit):
    """What every dataset must do. Inherit, set ``name`` and ``options`` that give little data, run pytest.

    Every further held-out set is held to the same as the main one.

    The search for held-out data in the training data reads ``most`` samples, so it finds a leak only where
    the data are not much more than that.

    Attributes:
        most: Training samples that are looked at.
        duplicates: Share of an epoch's samples that may be the same as another one's.
        leak_tolerance: Share of held-out samples that may occur in the training data too: chance finds some
            where samples are short or the data repeat themselves.
    """

    kind: ClassVar[str] = "dataset"
    most = 2000
    duplicates = 0.1
    leak_tolerance = 0.1

    @pytest.fixture
    def build(self, chosen: PluginConfig[Any]) -> Iterator[Build]:
        """``build(seed=0)``: the dataset. The global generators stand somewhere else each time."""
        import numpy as np
        import torch

        states = random.getstate(), np.random.get_state(), torch.get_rng_state()

        def build(seed: int = 0) -> Dataset:
            dataset = build_dataset(chosen, seed)
            random.seed()
            np.random.seed()
            torch.seed()
            return dataset

        yield build
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

    @pytest.fixture
    def dataset(self, build: Build) -> Dataset:
        """With seed 0."""
        return build()

    # ------------------------------------------------------------------ what it says of itself

    def test_what_it_says_of_itself_has_the_right_form(self, dataset: Dataset) -> None:
        """Tokens and bytes per token are positive, or None."""
        assert dataset.fingerprint
        assert dataset.task.unit
        assert dataset.task.tokens_per_sample >= 1
        assert dataset.num_unique_tokens is None or dataset.num_unique_tokens >= dataset.task.tokens_per_sample
        assert dataset.bytes_per_token is None or 0 < dataset.bytes_per_token < math.inf

    def test_the_seed_does_not_change_the_fingerprint(self, build: Build) -> None:
        """The fingerprint says which data, the seed says in which order."""
        first, again, other = (build(seed=seed).fingerprint for seed in (0, 0, 1))
        assert first == again, "built twice with one seed: the next command would train every run again"
        assert first == other, "with another seed: its runs would not be of the same data"

    def test_the_seed_changes_nothing_but_the_order(self, build: Build) -> None:
        """The task is part of a run's identity, and D is compared with ``num_unique_tokens``."""
        one, other = build(seed=0), build(seed=1)
        for said in ("num_unique_tokens", "bytes_per_token", "eval_sets"):
            found = getattr(one, said, None), getattr(other, said, None)
            assert found[0] == found[1], f"{said} with seeds 0 and 1: {found[0]} and {found[1]}"
        assert _description(one.task) == _description(other.task), "another task with another seed"

    def test_another_process_finds_the_same_data(
        self, build: Build, registry: Registry, given_options: Mapping[str, JsonValue]
    ) -> None:
        """Text has another ``hash()`` there, and sets another order; results are found by the fingerprint."""
        if registry.objects:
            pytest.skip("this plugin is an object: another process cannot import it")
        found = dataset_elsewhere(registry.setup, self.name, given_options, seed=3, samples=8)
        if "cannot" in found:
            pytest.skip(f"in another process, {found['cannot']}")
        assert "error" not in found, f"in another process: {found['error']}"
        dataset = build(seed=3)
        assert found["fingerprint"] == dataset.fingerprint, (
            f"the fingerprint is {dataset.fingerprint!r} here and {found['fingerprint']!r} in another process: "
            "the next command would train every run again"
        )
        assert found["samples"] == sample_digests(dataset, 8), "another process reads other samples"

    def test_further_held_out_sets_have_names_of_their_own(self, dataset: Dataset) -> None:
        """None for a dataset with one set; the main one has no name."""
        names = _names(dataset)[1:]
        assert all(isinstance(name, str) and name for name in names), f"no names: {names}"
        assert len(set(names)) == len(names), f"one name twice: {names}"

    # ------------------------------------------------------------------ training data

    def test_batches_look_like_the_task_s_example(self, dataset: Dataset) -> None:
        """The same tensors, types and shapes; as many samples as were asked for."""
        (batch,) = islice(dataset.batches(5), 1)
        assert _form(batch) == _form(dataset.task.example(5)), "types and shapes; the second is the task's example"
        assert all(len(one) == 5 for one in tensors(batch)), "asked for 5 samples"

    def test_values_are_those_of_the_task(self, dataset: Dataset) -> None:
        """Tokens within the vocabulary, classes among those there are, numbers that are finite: on a GPU anything
        else ends a process without a word of which sample it was."""
        training = islice(dataset.batches(50), max(1, self.most // 50))
        eval_data = (
            eval_batches(dataset, 200 * dataset.task.tokens_per_sample, 8, name) for name in _names(dataset)
        )
        for batch in chain(training, *eval_data):
            for one in tensors(batch):
                assert not one.is_floating_point() or one.isfinite().all(), "a number is not finite"
            answers, there_are = _answers(dataset.task, batch)
            if answers is not None:
                low, high = int(answers.min()), int(answers.max())
                assert 0 <= low <= high < there_are, f"from {low} to {high}, and the task has {there_are}"

    def test_a_batch_stays_as_it_was_given(self, dataset: Dataset) -> None:
        """Trainers read ahead: a batch is used after the next one has been asked for."""
        changed = "looked at after the next batch was read: each needs memory of its own"
        _same(samples_of(list(islice(dataset.batches(4), 6))), _read(dataset, 4, 24), changed)
        for name in _names(dataset):
            tokens = 24 * dataset.task.tokens_per_sample
            held = samples_of(list(eval_batches(dataset, tokens, 4, name)))
            _same(held, samples_of(eval_batches(dataset, tokens, 4, name)), f"held-out data{_of(name)} {changed}")

    def test_the_same_seed_gives_the_same_samples(self, build: Build) -> None:
        """Whatever state the global generators are in."""
        _same(_read(build(seed=3), 4, 24), _read(build(seed=3), 4, 24), "built twice with seed 3")

    def test_another_seed_gives_another_order(self, build: Build) -> None:
        """Otherwise replicates of a run are the same run."""
        same = _read(build(seed=0), 4, 24) == _read(build(seed=1), 4, 24)
        assert not same, "seeds 0 and 1 give the same samples in the same order"

    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    def test_the_batch_size_does_not_change_the_order(self, dataset: Dataset, batch_size: int) -> None:
        """Runs of different batch sizes see the same samples in the same order."""
        _same(_read(dataset, batch_size, 24), _read(dataset, 4, 24), f"in batches of {batch_size} and of 4")

    @pytest.mark.parametrize("start", [1, 7, 16])
    def test_it_starts_at_any_sample(self, dataset: Dataset, start: int) -> None:
        """A run that is resumed goes on with the next sample."""
        _same(_read(dataset, 4, 12, start), _read(dataset, 4, start + 12)[start:], f"from sample {start} on")

    @pytest.fixture
    def epoch(self, dataset: Dataset) -> int:
        """Samples of an epoch, where it is short enough to be read here."""
        if dataset.num_unique_tokens is None:
            pytest.skip("these data are endless")
        epoch = dataset.num_unique_tokens // dataset.task.tokens_per_sample
        if epoch > self.most:
            pytest.skip(f"an epoch has {epoch:,} samples; give less data, or raise `most`")
        return epoch

    def test_it_never_ends_and_repeats_in_another_order(self, dataset: Dataset, epoch: int) -> None:
        """Also for a run that begins, or is resumed, in the second epoch."""
        read = _read(dataset, 4, 2 * epoch)
        assert len(read) == 2 * epoch, "training batches end"
        again = read[:epoch] == read[epoch:]
        assert not again, "the second epoch is the first again, in the same order"
        start = epoch + epoch // 2
        _same(_read(dataset, 4, 8, start), read[start : start + 8], f"from sample {start} on, in the second epoch")

    def test_an_epoch_has_every_sample_once(self, dataset: Dataset, epoch: int) -> None:
        """``tokens`` are different ones: fits, and the plan's warnings, go by how often data were seen."""
        different = len(set(_read(dataset, 4, epoch)))
        assert different >= (1 - self.duplicates) * epoch, (
            f"{different:,} different samples among the first {epoch:,}, which `tokens` says all are: are they "
            "drawn with replacement, or is `tokens` too large? (raise `duplicates` for data that hold copies)"
        )

    def test_evaluating_does_not_disturb_training(self, build: Build) -> None:
        """Nor does another iterator over the training data."""
        undisturbed = _read(build(), 4, 24)
        dataset = build()
        iterator = iter(dataset.batches(4))
        read = samples_of(islice(iterator, 3))
        for name in _names(dataset):
            samples_of(eval_batches(dataset, 8 * dataset.task.tokens_per_sample, 4, name))
        _read(dataset, 4, 8, start=3)
        _same(read + samples_of(islice(iterator, 3)), undisturbed, "with an evaluation after the third batch")

    # ------------------------------------------------------------------ held-out data

    def test_held_out_data_are_the_same_for_every_seed_batch_size_and_call(self, build: Build) -> None:
        """Losses are comparable only on one fixed sample."""
        dataset = build(seed=0)
        tokens = 30 * dataset.task.tokens_per_sample
        for name in _names(dataset):
            expected = samples_of(eval_batches(dataset, tokens, 4, name))
            assert expected, f"there is no held-out data{_of(name)}"
            held = f"held-out data{_of(name)}"
            _same(samples_of(eval_batches(dataset, tokens, 4, name)), expected, f"{held}, another call")
            _same(samples_of(eval_batches(dataset, tokens, 9, name)), expected, f"{held}, another batch size")
            _same(samples_of(eval_batches(build(seed=1), tokens, 4, name)), expected, f"{held}, another seed")

    def test_held_out_data_are_as_many_as_asked_for_or_fewer(self, dataset: Dataset) -> None:
        """Rounded up to whole samples; asking for more never gives less."""
        per_sample = dataset.task.tokens_per_sample
        for name in _names(dataset):
            asked = [1, 5, 20]
            counts = [len(samples_of(eval_batches(dataset, samples * per_sample, 8, name))) for samples in asked]
            said = f"{counts} samples where {asked} were asked for{_of(name)}"
            assert counts == sorted(counts), said
            assert all(1 <= count <= most for count, most in zip(counts, asked, strict=True)), said

    def test_held_out_batches_look_like_the_task_s_example(self, dataset: Dataset) -> None:
        """The last one may be smaller."""
        form = _form(dataset.task.example(4))
        for name in _names(dataset):
            batches = list(eval_batches(dataset, 11 * dataset.task.tokens_per_sample, 4, name))
            for batch in batches:
                assert _form(batch) == form, f"types and shapes{_of(name)}; the second is the task's example"
                assert len(next(tensors(batch))) <= 4, f"asked for batches of 4{_of(name)}"

    def test_held_out_windows_do_not_overlap(self, dataset: Dataset) -> None:
        """A text that is counted twice makes the loss look surer than it is."""
        if not isinstance(dataset.task, LanguageTask):
            pytest.skip("not a language task")
        for name in _names(dataset):
            windows = _rows(eval_batches(dataset, 200 * dataset.task.context, 8, name))
            owner: dict[bytes, int] = {}
            overlapping = 0
            for number, row in enumerate(windows):
                pieces = _pieces(row, max(8, dataset.task.context // 4))
                overlapping += sum(owner.setdefault(one, number) != number for one in pieces) > len(pieces) / 8
            assert windows, f"there is no held-out data{_of(name)}"
            share = overlapping / len(windows)
            assert share <= self.leak_tolerance, f"{share:.0%} of the windows{_of(name)} overlap with another"

    def test_training_data_do_not_contain_the_held_out_data(self, dataset: Dataset) -> None:
        """Looked for sample by sample; in language data by stretches of half a window, at any
        offset."""
        training = islice(dataset.batches(50), self.most // 50)
        length = min(32, max(8, dataset.task.tokens_per_sample // 2))
        is_text = isinstance(dataset.task, LanguageTask)
        if is_text:
            known = {piece for row in _rows(training) for piece in _pieces(row, length)}
        else:
            known = set(samples_of(training))
        for name in _names(dataset):
            eval_data = eval_batches(dataset, 200 * dataset.task.tokens_per_sample, 8, name)
            if is_text:
                asked = [piece for row in _rows(eval_data) for piece in _pieces(row, length)[::length]]
            else:
                asked = samples_of(eval_data)
            assert asked, f"there is no held-out data{_of(name)}"
            share = sum(one in known for one in asked) / len(asked)
            assert share <= self.leak_tolerance, f"{share:.0%} of the held-out data{_of(name)} are trained on"


def _same(found: list[bytes], expected: list[bytes], what: str) -> None:
    __tracebackhide__ = True
    pairs = zip(found, expected, strict=False)
    different = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    if different is not None:
        pytest.fail(f"{what}: other samples, from number {different} of {len(expected)} on")
    if len(found) != len(expected):
        pytest.fail(f"{what}: {len(found)} samples instead of {len(expected)}")


def _description(task: Task) -> tuple[object, ...]:
    numbers = (getattr(task, name, None) for name in ("vocab_size", "context", "inputs", "outputs_size", "kind"))
    return task.unit, task.tokens_per_sample, _form(task.example(1)), *numbers


def _answers(task: Task, batch: Batch) -> tuple[Tensor | None, int]:
    """Numbers of tokens or classes, and how many of them the task has."""
    if isinstance(task, LanguageTask):
        return batch, task.vocab_size
    if isinstance(task, SupervisedTask) and task.kind == "cross_entropy":
        return batch[1], task.outputs_size
    return None, 0


def _names(dataset: Dataset) -> list[str | None]:
    """The held-out sets: None is the main one."""
    return [None, *(dataset.eval_sets if isinstance(dataset, MultiEvalDataset) else ())]


def _of(name: str | None) -> str:
    return "" if name is None else f" of {name!r}"


def _form(batch: Batch) -> list[tuple[str, tuple[int, ...]]]:
    return [(str(one.dtype), tuple(one.shape[1:])) for one in tensors(batch)]


def _read(dataset: Dataset, batch_size: int, samples: int, start: int = 0) -> list[bytes]:
    """The first samples from ``start``, each as bytes."""
    batches = islice(dataset.batches(batch_size, start=start), -(-samples // batch_size))
    return samples_of(batches)[:samples]


def _rows(batches: Iterable[Batch]) -> list[Tensor]:
    return [row for batch in batches for row in batch]


def _pieces(row: Tensor, length: int) -> list[bytes]:
    """Every stretch of ``length`` tokens of a window, or the window where it is shorter."""
    ids = row.numpy()
    return [ids[start : start + length].tobytes() for start in range(max(1, len(ids) - length + 1))]
