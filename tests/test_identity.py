"""Fingerprints of Python objects: equal or different in a second call of ``find_optimal``."""

import enum
import functools
import operator
import subprocess
import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from test_find_optimal import PAIRS, Net, completed, ids, planned, trained
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from flops_fit_core import ConfigError, DataError
from flops_fit_core.api.fingerprint.objects import hash_item, identify_callable, identify_value


def of(value):
    return identify_value(value, "it")


# ---------------------------------------------------------------------------- other things


class Focal(nn.Module):
    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma


@dataclass(slots=True)
class Slotted:
    weight: float

    def __call__(self, outputs, targets):
        return self.weight * functional.cross_entropy(outputs, targets)


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def loss(self, outputs, targets):
        return self.scale * functional.cross_entropy(outputs, targets)


def wrapped(is_doubled):
    def unchanged(function):
        @functools.wraps(function)
        def call(*arguments):
            return function(*arguments)

        return call

    def doubled(function):
        @functools.wraps(function)
        def call(*arguments):
            return 2 * function(*arguments)

        return call

    return (doubled if is_doubled else unchanged)(functional_loss)


def functional_loss(outputs, targets):
    return functional.cross_entropy(outputs, targets)


def with_keyword_default(value):
    def loss(outputs, targets, *, scale=value):
        return scale * functional.cross_entropy(outputs, targets)

    return loss


def with_attribute(value):
    class Model(nn.Module):
        scale = value

        def forward(self, x):
            return self.scale * x

    return Model


ON_ONE_LINE = [lambda outputs, targets: outputs - targets, lambda outputs, targets: outputs * targets]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Focal(1.0), Focal(2.0)),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (nn.Dropout().train(), nn.Dropout().eval()),
        (Slotted(1.0), Slotted(2.0)),
        (Scaled(1.0).loss, Scaled(2.0).loss),
        (wrapped(False), wrapped(True)),
        (with_keyword_default(1), with_keyword_default(2)),
        (with_attribute(1), with_attribute(2)),
        tuple(ON_ONE_LINE),
        (torch.Tensor.relu, torch.Tensor.tanh),
        (operator.itemgetter(0), operator.itemgetter(1)),
        ({0: 1}.get, {0: 2}.get),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_callables_with_different_results_have_different_fingerprints(first, second):
    assert of(first) != of(second)
    assert of(first) == of(first)


LOSS_MODULE = """
from torch import nn

class Loss(nn.Module):
    def forward(self, outputs, targets):
        return FACTOR * (outputs - targets).square().mean()
"""


def test_the_fingerprint_of_a_loss_module_contains_the_source_of_its_class(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for factor in ("1", "10"):
        (tmp_path / "own_loss_module.py").write_text(LOSS_MODULE.replace("FACTOR", factor))
        sys.modules.pop("own_loss_module", None)
        hashes.append(of(__import__("own_loss_module").Loss()))
    assert len(set(hashes)) == 2


def test_two_classes_of_one_name_in_a_file_have_different_fingerprints():
    class Model(nn.Module):
        def forward(self, x):
            return x

    first, before = Model, of(Model)

    class Model(nn.Module):
        def forward(self, x):
            return 2 * x

    assert of(Model) != before == of(first)


def test_the_fingerprint_of_a_class_contains_methods_that_are_assigned_later():
    class Model(Net):
        def forward(self, x):
            return super().forward(x)

    def second(self, x):
        return 2 * x

    before = of(Model)
    Model.forward = second
    assert of(Model) != before


AT_A_PROMPT = """
import torch
from flops_fit_core.api.fingerprint.objects import identify_value
class Model(torch.nn.Module):
    scale = 1
    def forward(self, x):
        return self.scale * x

one = identify_value(Model, "it")
class Model(torch.nn.Module):
    scale = 2
    def forward(self, x):
        return self.scale * x

print(one != identify_value(Model, "it"))
"""


def test_the_fingerprint_of_a_class_typed_at_a_prompt_contains_its_attributes():
    done = subprocess.run([sys.executable, "-i"], input=AT_A_PROMPT, capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr


def dispatched(function):
    return functools.singledispatch(function)


def test_the_fingerprint_of_a_python_wrapper_contains_the_wrapped_function():
    def loss(outputs, targets):
        return functional.cross_entropy(outputs, targets)

    before = of(dispatched(loss))

    def loss(outputs, targets):
        return 2 * functional.cross_entropy(outputs, targets)

    assert of(dispatched(loss)) != before


class Ring:
    def __init__(self):
        self.next = self


@pytest.mark.parametrize("item", [Ring(), [weakref.ref(PAIRS)], functional.relu], ids=type)
def test_an_item_with_hidden_state_needs_a_fingerprint(item):
    with pytest.raises(ConfigError, match=r"dataset cannot be identified.*fingerprint="):
        hash_item(item)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 23], [12, 3]),
        ({"a": 12}, {"a1": 2}),
        (Slotted(torch.zeros(2000)), Slotted((torch.arange(2000) == 500).float())),
        (torch.tensor([1.0], dtype=torch.float64), torch.tensor([1 + 1e-10], dtype=torch.float64)),
        (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()),
        (torch.tensor([1j]).conj(), torch.tensor([1j])),
    ],
)
def test_similar_items_have_different_hashes(first, second):
    assert hash_item(first) != hash_item(second)


# ---------------------------------------------------------------------------- the same


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "value", [Colour.RED, Path("here"), torch.float32, torch.device("cpu"), float("inf"), b"text"], ids=repr
)
def test_an_argument_with_a_stable_repr_is_identified(value):
    assert identify_callable(Net, {"given": value}, "it") != identify_callable(Net, {"given": None}, "it")


@dataclass
class Listed:
    weights: list = field(default_factory=list)

    def __call__(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)


def test_a_dataclass_with_a_default_factory_is_identified():
    assert of(Listed([1])) == of(Listed([1])) != of(Listed([2]))


def test_an_object_that_refers_to_itself_is_identified():
    def countdown(number):
        return countdown(number - 1) if number else 0

    class OldStyle(nn.Module):
        def __init__(self, width):
            super(OldStyle, self).__init__()  # noqa: UP008

    assert len({of(countdown), of(OldStyle)}) == 2


def test_other_code_on_the_line_of_a_lambda_does_not_count(tmp_path):
    hashes = []
    for budget in ("1e5", "2e5"):
        file = tmp_path / f"of_{budget}.py"
        file.write_text(f"given = dict(budget={budget}, loss=lambda outputs, targets: outputs - targets)")
        names = {"__name__": "somewhere"}
        exec(compile(file.read_text(), str(file), "exec"), names)
        hashes.append(of(names["given"]["loss"]))
    assert hashes[0] == hashes[1]


IN_ANY_PROCESS = """
import numpy as np
from flops_fit_core.api.fingerprint.objects import hash_item

class Item:
    def __init__(self):
        self.words = {"one", "two", "three"}

print(hash_item([{"one", "two", "three"}, np.array(["text", [1]], dtype=object), Item()]))
"""


def test_an_items_hash_is_the_same_in_every_process():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", IN_ANY_PROCESS], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs != {""}


# ---------------------------------------------------------------------------- use


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, outputs, targets):
        self.seen += 1
        return functional.cross_entropy(outputs, targets)


def test_a_loss_that_changes_with_use_is_the_same_loss_to_every_run_and_the_next_call(tmp_path):
    loss = Counting()
    first = trained(tmp_path, loss_fn=loss)
    completed(first)
    assert loss.seen == 0
    assert ids(planned(tmp_path, loss_fn=loss)) == ids(first)


class Shifted(Net):
    def __init__(self, width, shift):
        super().__init__(width)
        self.shift = nn.Parameter(shift)

    def forward(self, x):
        return super().forward(x) + self.shift


def test_a_run_does_not_see_changes_that_an_earlier_run_made_to_the_arguments(tmp_path):
    shift = torch.zeros(3)
    swept = completed(trained(tmp_path, Shifted, model_kwargs={"shift": shift}))
    assert shift.tolist() == [0, 0, 0]
    alone = completed(trained(tmp_path / "alone", Shifted, model_kwargs={"shift": torch.zeros(3)}, sizes=[4]))
    assert [result.loss for result in swept if result.run.id == alone[0].run.id] == [alone[0].loss]


WITH_CLASSES = """
import linecache, sys
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, default_collate
from flops_fit_core import find_optimal

CELL = '''
class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)

def collate(items):
    return default_collate(items)
'''

class Loss:
    def __call__(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)

linecache.cache["<cell>"] = len(CELL), None, CELL.splitlines(True), "<cell>"  # as a notebook does
exec(compile(CELL, "<cell>", "exec"))
inputs = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
data = TensorDataset(inputs, inputs[:, :3].argmax(1))
study = find_optimal(
    Net, "width", dataset=DataLoader(data, batch_size=8, collate_fn=collate), compute_budgets=[5e4], sizes=[3],
    loss_fn=Loss(), min_steps=1, device="cpu", executor={"name": "processes", "workers": 1}, output_dir="study",
)
print(*[(run.status, run.error) for run in study.results])
"""


def test_a_worker_trains_with_functions_and_classes_whose_source_only_the_caller_has(tmp_path):
    (tmp_path / "script.py").write_text(WITH_CLASSES)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "('completed', None)", done.stdout + done.stderr


# ---------------------------------------------------------------------------- data


class Noisy(Dataset):
    """Items with random augmentation by the generators of torch, NumPy and Python."""

    def __len__(self):
        return 2000

    def __getitem__(self, index):
        return PAIRS[index][0] + 0.1 * torch.randn(4) + float(np.random.random()), PAIRS[index][1]


def test_randomly_augmented_data_have_one_fingerprint_and_do_not_advance_the_generators(tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    plan = ids(planned(tmp_path, dataset=Noisy()))
    assert torch.get_rng_state().equal(before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    study = trained(tmp_path, dataset=Noisy())
    assert ids(study) == plan
    completed(study)


class OwnGenerator(Dataset):
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return 2000

    def __getitem__(self, index):
        return PAIRS[index][0] + torch.randn(4, generator=self.generator), PAIRS[index][1]


class Advances(IterableDataset):
    def __init__(self):
        self.items = iter(PAIRS)

    def __iter__(self):
        return self.items


def test_data_that_differ_at_every_read_are_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"others when they are read again.*fingerprint="):
        planned(tmp_path, dataset=OwnGenerator())


def test_a_stream_that_differs_in_every_pass_is_refused_even_with_a_fingerprint(tmp_path):
    with pytest.raises(DataError, match=r"other samples each time it is read.*make\(seed\)"):
        planned(tmp_path, dataset=Advances(), fingerprint="data")


def test_an_iterator_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"generator.*can be gone through once.*IterableDataset"):
        planned(tmp_path, dataset=(pair for pair in PAIRS))


class Known(IterableDataset):
    def __len__(self):
        return 2000

    def __iter__(self):
        return (PAIRS[index] for index in range(2000))


def test_an_iterable_dataset_may_have_a_length(tmp_path):
    completed(trained(tmp_path, dataset=DataLoader(Known(), batch_size=8), eval_dataset=PAIRS))


def negated(items):
    inputs, targets = default_collate(items)
    return -inputs, targets


def kept(items):
    return default_collate(items)


class Collating(Dataset):
    """A dataset that cannot be identified as a value; its items can."""

    def __init__(self):
        self.opaque = object()

    def __len__(self):
        return 2000

    def __getitem__(self, index):
        return PAIRS[index]

    def collate(self, items):
        return default_collate(items)


def test_a_collate_function_is_part_of_the_data(tmp_path):
    own = Collating()
    plans = [
        ids(planned(tmp_path, dataset=DataLoader(data, batch_size=8, collate_fn=collate)))
        for data, collate in ((PAIRS, kept), (PAIRS, negated), (PAIRS, None), (own, own.collate))
    ]
    assert len({run for plan in plans for run in plan}) == 8
    assert plans[2] == ids(planned(tmp_path))


# ---------------------------------------------------------------------------- a fingerprint


def test_a_fingerprint_covers_only_model_data_and_loss(tmp_path):
    def sgd(rate):
        return functools.partial(torch.optim.SGD, lr=rate)

    def flops(number):
        return lambda module: number

    plans = [
        ids(planned(tmp_path, fingerprint="mine", allow_repeat=True, **arguments))
        for arguments in (
            {},
            {"optimizer": sgd(0.1)},
            {"optimizer": sgd(0.2)},
            {"flops": flops(100)},
            {"flops": flops(101)},
            {"eval_share": 0.2},
        )
    ]
    assert len({run for plan in plans for run in plan}) == 12


def test_a_fingerprint_stands_for_an_optimizer_that_cannot_be_identified(tmp_path):
    opaque = object()

    def make(parameters):
        assert opaque
        return torch.optim.SGD(parameters, lr=0.1)

    with pytest.raises(ConfigError, match="optimizer cannot be identified"):
        planned(tmp_path, optimizer=make)
    first, second = (ids(planned(tmp_path, optimizer=make, fingerprint=name)) for name in ("first", "second"))
    assert first != second
