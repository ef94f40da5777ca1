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
from flops_fit_core.testing.dataset_process import build_in_other_process, sample_digests
from flops_fit_core.testing.kit import Kit

if TYPE_CHECKING:
    from torch import Tensor

Build = Callable[..., Dataset]


class DatasetConformance(Kit):
    """Tests for every dataset. Inherit, set ``name`` and ``options`` for a small amount of data, and run pytest.

    Additional held-out sets must pass the same tests as the main set.

    The search for held-out data in the training data reads ``most`` samples. It may miss a leak in larger data.

    Attributes:
        most: Number of training samples that are read.
        duplicates: Share of an epoch's samples that may be duplicates of other samples.
        leak_tolerance: Share of held-out samples that may also occur in the training data. Short samples and
            repetitive data match by chance.
    """

    kind: ClassVar[str] = "dataset"
    most = 2000
    duplicates = 0.1
    leak_tolerance = 0.1

    @pytest.fixture
    def build(self, chosen: PluginConfig[Any]) -> Iterator[Build]:
        """``build(seed=0)`` returns the dataset. The state of the global generators differs at each call."""
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
        """The dataset with seed 0."""
        return build()

    # ------------------------------------------------------------------ attributes

    def test_what_it_says_of_itself_has_the_right_form(self, dataset: Dataset) -> None:
        """Numbers of tokens and bytes per token are positive, or None."""
        assert dataset.fingerprint
        assert dataset.task.unit
        assert dataset.task.tokens_per_sample >= 1
        assert dataset.num_unique_tokens is None or dataset.num_unique_tokens >= dataset.task.tokens_per_sample
        assert dataset.bytes_per_token is None or 0 < dataset.bytes_per_token < math.inf

    def test_the_seed_does_not_change_the_fingerprint(self, build: Build) -> None:
        """The fingerprint identifies the data, the seed determines the order."""
        first, second, other = (build(seed=seed).fingerprint for seed in (0, 0, 1))
        assert first == second, "built twice with the same seed: the next command would train every run again"
        assert first == other, "with another seed: runs would count as runs on different data"

    def test_the_seed_changes_nothing_but_the_order(self, build: Build) -> None:
        """The task is part of a run's id, and D is compared with ``num_unique_tokens``."""
        first, second = build(seed=0), build(seed=1)
        for name in ("num_unique_tokens", "bytes_per_token", "eval_sets"):
            values = getattr(first, name, None), getattr(second, name, None)
            assert values[0] == values[1], f"{name} with seeds 0 and 1: {values[0]} and {values[1]}"
        assert _description(first.task) == _description(second.task), "another task with another seed"

    def test_another_process_finds_the_same_data(
        self, build: Build, registry: Registry, given_options: Mapping[str, JsonValue]
    ) -> None:
        """In another process, ``hash()`` of text and the order of sets differ. Fingerprints must not."""
        if registry.objects:
            pytest.skip("this plugin is an object: another process cannot import it")
        answer = build_in_other_process(registry.setup, self.name, given_options, seed=3, samples=8)
        if "cannot" in answer:
            pytest.skip(f"in another process, {answer['cannot']}")
        assert "error" not in answer, f"in another process: {answer['error']}"
        dataset = build(seed=3)
        assert answer["fingerprint"] == dataset.fingerprint, (
            f"the fingerprint is {dataset.fingerprint!r} in this process and {answer['fingerprint']!r} in another "
            "process: the next command would train every run again"
        )
        assert answer["samples"] == sample_digests(dataset, 8), "another process reads other samples"

    def test_evaluations_have_different_names(self, dataset: Dataset) -> None:
        """Their metrics are ``NAME/METRIC`` in a result."""
        names = [evaluation.name for evaluation in dataset.evaluations]
        assert all(isinstance(name, str) and name for name in names), f"no names: {names}"
        assert len(set(names)) == len(names), f"several evaluations have one name: {names}"

    def test_further_held_out_sets_have_names_of_their_own(self, dataset: Dataset) -> None:
        """The main set has no name. A dataset with a single set has no names."""
        names = _names(dataset)[1:]
        assert all(isinstance(name, str) and name for name in names), f"no names: {names}"
        assert len(set(names)) == len(names), f"duplicate name: {names}"

    # ------------------------------------------------------------------ training data

    def test_batches_look_like_the_task_s_example(self, dataset: Dataset) -> None:
        """The same tensors, types and shapes, and the requested number of samples."""
        (batch,) = islice(dataset.batches(5), 1)
        assert _form(batch) == _form(dataset.task.example(5)), "types and shapes; the second is the task's example"
        assert all(len(tensor) == 5 for tensor in tensors(batch)), "requested 5 samples"

    def test_values_are_those_of_the_task(self, dataset: Dataset) -> None:
        """Token ids and classes are in range, numbers are finite. On a GPU, an id out of range ends the process
        without a message about the sample."""
        training = islice(dataset.batches(50), max(1, self.most // 50))
        eval_data = (
            eval_batches(dataset, 200 * dataset.task.tokens_per_sample, 8, name) for name in _names(dataset)
        )
        for batch in chain(training, *eval_data):
            for tensor in tensors(batch):
                assert not tensor.is_floating_point() or tensor.isfinite().all(), "a number is not finite"
            ids, num_ids = _discrete_values(dataset.task, batch)
            if ids is not None:
                low, high = int(ids.min()), int(ids.max())
                assert 0 <= low <= high < num_ids, f"values from {low} to {high}, but the task has {num_ids}"

    def test_a_batch_stays_as_it_was_given(self, dataset: Dataset) -> None:
        """Trainers read ahead and use a batch after they have requested the next."""
        changed = "compared after the next batch was read: batches must not share memory"
        _assert_same(samples_of(list(islice(dataset.batches(4), 6))), _read(dataset, 4, 24), changed)
        for name in _names(dataset):
            tokens = 24 * dataset.task.tokens_per_sample
            read_ahead = samples_of(list(eval_batches(dataset, tokens, 4, name)))
            expected = samples_of(eval_batches(dataset, tokens, 4, name))
            _assert_same(read_ahead, expected, f"held-out data{_of(name)} {changed}")

    def test_the_same_seed_gives_the_same_samples(self, build: Build) -> None:
        """For any state of the global generators."""
        _assert_same(_read(build(seed=3), 4, 24), _read(build(seed=3), 4, 24), "built twice with seed 3")

    def test_another_seed_gives_another_order(self, build: Build) -> None:
        """Otherwise replicates of a run equal each other."""
        same = _read(build(seed=0), 4, 24) == _read(build(seed=1), 4, 24)
        assert not same, "seeds 0 and 1 give the same samples in the same order"

    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    def test_the_batch_size_does_not_change_the_order(self, dataset: Dataset, batch_size: int) -> None:
        """Runs with different batch sizes read the same samples in the same order."""
        _assert_same(_read(dataset, batch_size, 24), _read(dataset, 4, 24), f"in batches of {batch_size} and of 4")

    @pytest.mark.parametrize("start", [1, 7, 16])
    def test_it_starts_at_any_sample(self, dataset: Dataset, start: int) -> None:
        """A resumed run continues with the next sample."""
        expected = _read(dataset, 4, start + 12)[start:]
        _assert_same(_read(dataset, 4, 12, start), expected, f"from sample {start} on")

    @pytest.fixture
    def epoch(self, dataset: Dataset) -> int:
        """Number of samples per epoch. Skips the test if an epoch is too long."""
        if dataset.num_unique_tokens is None:
            pytest.skip("these data are endless")
        epoch = dataset.num_unique_tokens // dataset.task.tokens_per_sample
        if epoch > self.most:
            pytest.skip(f"an epoch has {epoch:,} samples; use less data, or increase `most`")
        return epoch

    def test_it_never_ends_and_repeats_in_another_order(self, dataset: Dataset, epoch: int) -> None:
        """Also for a run that starts or continues in the second epoch."""
        samples = _read(dataset, 4, 2 * epoch)
        assert len(samples) == 2 * epoch, "training batches end"
        same_order = samples[:epoch] == samples[epoch:]
        assert not same_order, "the second epoch has the same order as the first"
        start = epoch + epoch // 2
        expected = samples[start : start + 8]
        _assert_same(_read(dataset, 4, 8, start), expected, f"from sample {start} on, in the second epoch")

    def test_an_epoch_has_every_sample_once(self, dataset: Dataset, epoch: int) -> None:
        """``num_unique_tokens`` counts distinct tokens. Fits and warnings of the plan depend on repetition."""
        distinct = len(set(_read(dataset, 4, epoch)))
        assert distinct >= (1 - self.duplicates) * epoch, (
            f"{distinct:,} distinct samples among the first {epoch:,}, and by `num_unique_tokens` all are: are "
            "they drawn with replacement, or is `num_unique_tokens` too large? (increase `duplicates` for data "
            "with copies)"
        )

    def test_evaluating_does_not_disturb_training(self, build: Build) -> None:
        """And another iterator over the training data does not disturb it either."""
        undisturbed = _read(build(), 4, 24)
        dataset = build()
        iterator = iter(dataset.batches(4))
        samples = samples_of(islice(iterator, 3))
        for name in _names(dataset):
            samples_of(eval_batches(dataset, 8 * dataset.task.tokens_per_sample, 4, name))
        _read(dataset, 4, 8, start=3)
        samples += samples_of(islice(iterator, 3))
        _assert_same(samples, undisturbed, "with an evaluation after the third batch")

    # ------------------------------------------------------------------ held-out data

    def test_held_out_data_are_the_same_for_every_seed_batch_size_and_call(self, build: Build) -> None:
        """Losses are comparable only on a fixed sample."""
        dataset = build(seed=0)
        tokens = 30 * dataset.task.tokens_per_sample
        for name in _names(dataset):
            expected = samples_of(eval_batches(dataset, tokens, 4, name))
            assert expected, f"there is no held-out data{_of(name)}"
            label = f"held-out data{_of(name)}"
            cases = {"another call": (dataset, 4), "another batch size": (dataset, 9)}
            for case, (data, batch_size) in {**cases, "another seed": (build(seed=1), 4)}.items():
                samples = samples_of(eval_batches(data, tokens, batch_size, name))
                _assert_same(samples, expected, f"{label}, {case}")

    def test_held_out_data_are_as_many_as_asked_for_or_fewer(self, dataset: Dataset) -> None:
        """Rounded up to complete samples. A request for more tokens never returns fewer."""
        per_sample = dataset.task.tokens_per_sample
        for name in _names(dataset):
            requested = [1, 5, 20]
            counts = [
                len(samples_of(eval_batches(dataset, samples * per_sample, 8, name))) for samples in requested
            ]
            message = f"{counts} samples for requests of {requested}{_of(name)}"
            assert counts == sorted(counts), message
            assert all(1 <= count <= limit for count, limit in zip(counts, requested, strict=True)), message

    def test_held_out_batches_look_like_the_task_s_example(self, dataset: Dataset) -> None:
        """The last batch may be smaller."""
        form = _form(dataset.task.example(4))
        for name in _names(dataset):
            batches = list(eval_batches(dataset, 11 * dataset.task.tokens_per_sample, 4, name))
            for batch in batches:
                assert _form(batch) == form, f"types and shapes{_of(name)}; the second is the task's example"
                assert len(next(tensors(batch))) <= 4, f"requested batches of 4{_of(name)}"

    def test_held_out_windows_do_not_overlap(self, dataset: Dataset) -> None:
        """Text that is counted twice makes the loss appear more certain than it is."""
        if not isinstance(dataset.task, LanguageTask):
            pytest.skip("not a language task")
        for name in _names(dataset):
            windows = _rows(eval_batches(dataset, 200 * dataset.task.context, 8, name))
            owner: dict[bytes, int] = {}
            overlapping = 0
            for number, row in enumerate(windows):
                pieces = _pieces(row, max(8, dataset.task.context // 4))
                shared = sum(owner.setdefault(piece, number) != number for piece in pieces)
                overlapping += shared > len(pieces) / 8
            assert windows, f"there is no held-out data{_of(name)}"
            share = overlapping / len(windows)
            assert share <= self.leak_tolerance, f"{share:.0%} of the windows{_of(name)} overlap with another"

    def test_training_data_do_not_contain_the_held_out_data(self, dataset: Dataset) -> None:
        """Compares samples; for language data, sequences of half a window at any offset."""
        training = islice(dataset.batches(50), self.most // 50)
        length = min(32, max(8, dataset.task.tokens_per_sample // 2))
        is_text = isinstance(dataset.task, LanguageTask)
        if is_text:
            trained = {piece for row in _rows(training) for piece in _pieces(row, length)}
        else:
            trained = set(samples_of(training))
        for name in _names(dataset):
            eval_data = eval_batches(dataset, 200 * dataset.task.tokens_per_sample, 8, name)
            if is_text:
                pieces = [piece for row in _rows(eval_data) for piece in _pieces(row, length)[::length]]
            else:
                pieces = samples_of(eval_data)
            assert pieces, f"there is no held-out data{_of(name)}"
            share = sum(piece in trained for piece in pieces) / len(pieces)
            assert share <= self.leak_tolerance, f"{share:.0%} of the held-out data{_of(name)} are trained on"


def _assert_same(samples: list[bytes], expected: list[bytes], label: str) -> None:
    __tracebackhide__ = True
    pairs = zip(samples, expected, strict=False)
    different = next((number for number, pair in enumerate(pairs) if pair[0] != pair[1]), None)
    if different is not None:
        pytest.fail(f"{label}: other samples, from number {different} of {len(expected)} on")
    if len(samples) != len(expected):
        pytest.fail(f"{label}: {len(samples)} samples instead of {len(expected)}")


def _description(task: Task) -> tuple[object, ...]:
    numbers = (getattr(task, name, None) for name in ("vocab_size", "context", "inputs", "outputs_size", "kind"))
    return task.unit, task.tokens_per_sample, _form(task.example(1)), *numbers


def _discrete_values(task: Task, batch: Batch) -> tuple[Tensor | None, int]:
    """Ids of tokens or classes in a batch, and the number of different ids of the task."""
    if isinstance(task, LanguageTask):
        return batch, task.vocab_size
    if isinstance(task, SupervisedTask) and task.kind == "cross_entropy":
        return batch[1], task.outputs_size
    return None, 0


def _names(dataset: Dataset) -> list[str | None]:
    """Names of the held-out sets; None for the main set."""
    return [None, *(dataset.eval_sets if isinstance(dataset, MultiEvalDataset) else ())]


def _of(name: str | None) -> str:
    return "" if name is None else f" of {name!r}"


def _form(batch: Batch) -> list[tuple[str, tuple[int, ...]]]:
    return [(str(tensor.dtype), tuple(tensor.shape[1:])) for tensor in tensors(batch)]


def _read(dataset: Dataset, batch_size: int, samples: int, start: int = 0) -> list[bytes]:
    """The first samples from ``start``, each as bytes."""
    batches = islice(dataset.batches(batch_size, start=start), -(-samples // batch_size))
    return samples_of(batches)[:samples]


def _rows(batches: Iterable[Batch]) -> list[Tensor]:
    return [row for batch in batches for row in batch]


def _pieces(row: Tensor, length: int) -> list[bytes]:
    """Every sequence of ``length`` tokens in a window, or the window if it is shorter."""
    ids = row.numpy()
    return [ids[start : start + length].tobytes() for start in range(max(1, len(ids) - length + 1))]
