"""``find_optimal`` with Python objects."""

import subprocess
import sys
from functools import partial
from itertools import count

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from flops_fit_core import ConfigError, DataError, PlanError, UserError, find_optimal
from flops_fit_core.plugins import ParameterGroup, ResultStore

IN_PROCESS = "local"


class Net(nn.Module):
    def __init__(self, width, classes=3, act=nn.ReLU):
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.outer = nn.Linear(width, classes)
        self.act = act()

    def forward(self, x):
        return self.outer(self.act(self.inner(x)))


class Counted(Net):
    def num_params(self):
        return 1000 * self.inner.out_features


class Half(Net):
    """Of its inner layer a sample uses a half."""

    def parameter_groups(self):
        return [ParameterGroup(self.inner.parameters(), active=0.5), ParameterGroup(self.outer.parameters())]


class Keyword(Net):
    def forward(self, features):
        return super().forward(features)


class Regressor(Net):
    def __init__(self, width):
        super().__init__(width, classes=1)


class Rebuilder(Net):
    def __init__(self, width):
        super().__init__(width, classes=4)


def examples(number=2000):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(number, 4, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


PAIRS = TensorDataset(*examples())


class Dicts(Dataset):
    def __init__(self):
        self.inputs, self.labels = examples()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"features": self.inputs[index], "labels": self.labels[index]}


class Bare(Dataset):
    def __init__(self):
        self.inputs = examples()[0]

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index]


class Stream(IterableDataset):
    def __init__(self, length=None):
        self.length = length

    def __iter__(self):
        for number in range(self.length) if self.length is not None else count():
            generator = torch.Generator().manual_seed(number)
            x = torch.randn(4, generator=generator)
            yield x, x[:3].argmax()


def planned(tmp_path, model=Net, **given):
    """A plan of two sizes, about 100 steps of 8 samples each."""
    arguments = {
        "dataset": PAIRS,
        "compute_budgets": [2e5],
        "sizes": [3, 4],
        "batch_size": 8,
        "min_steps": 1,
        "counter": "chinchilla",
        "device": "cpu",
        "executor": IN_PROCESS,
        "trainer": {"name": "torch", "eval_tokens": 100},
        "output_dir": tmp_path / "study",
        "train": False,
    }
    return find_optimal(model, "width", **{**arguments, **given})


def trained(tmp_path, model=Net, **given):
    return planned(tmp_path, model, train=True, **given)


def ids(study):
    return [run.id for run in study.plan.runs]


def completed(study):
    outcomes = [(result.status, result.error) for result in study.results]
    assert outcomes == [("completed", None)] * len(study.plan.runs)
    return study.results


# ---------------------------------------------------------------------------- models


def test_n_is_num_params_of_the_model_or_counted(tmp_path):
    assert [run.params for run in planned(tmp_path).plan.runs] == [3 * 5 + 3 * 4, 4 * 5 + 3 * 5]
    own = planned(tmp_path, Counted, compute_budgets=[1.5e7], sizes=[3, 4])
    assert [run.params for run in own.plan.runs] == [3000, 4000]
    for run in own.plan.runs:
        assert abs(6 * run.params * run.tokens / 1.5e7 - 1) < 0.01


@pytest.mark.parametrize("counter", ["chinchilla", lambda module: 6.0 * module.inner.out_features])
def test_a_model_declares_the_share_of_its_parameters_that_a_sample_uses(tmp_path, counter):
    study = trained(
        tmp_path, Half, compute_budgets=[2e6], sizes=[32], counter=counter, optimizer="adamw", allow_repeat=True
    )
    (result,) = completed(study)
    assert (result.parameters.total, result.parameters.active) == (5 * 32 + 33 * 3, 5 * 16 + 33 * 3)
    assert result.run.params == result.parameters.active
    assert study.plan.params_name == "matmul parameters that a token uses (all but lookup tables)"


class WithArgument(Net):
    def num_params(self, non_embedding=True):
        return 1


class Needs(Net):
    def num_params(self, non_embedding):
        return 1


class Fails(Net):
    def num_params(self):
        raise KeyError("wpe")


def test_a_num_params_with_arguments_is_not_used(tmp_path):
    counted = planned(tmp_path).plan.runs
    for model in (WithArgument, Needs):
        assert [run.params for run in planned(tmp_path, model).plan.runs] == [run.params for run in counted]


def test_a_num_params_that_fails_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"Fails: num_params\(\) raised KeyError: 'wpe'"):
        planned(tmp_path, Fails)


def test_a_function_that_makes_a_model_is_accepted(tmp_path):
    def make(width, depth):
        return nn.Sequential(
            nn.Linear(4, width), *(nn.Linear(width, width) for _ in range(depth)), nn.Linear(width, 3)
        )

    study = trained(tmp_path, make, model_kwargs={"depth": 1})
    completed(study)
    assert [run.params for run in study.plan.runs] == [15 + 12 + 12, 20 + 20 + 15]


def test_sizes_are_chosen_if_only_their_number_is_given(tmp_path):
    study = planned(tmp_path, sizes=4, compute_budgets=[1e6, 1e7], allow_repeat=True)
    assert len(study.plan.runs) == 8
    assert len({run.size for run in study.plan.runs}) >= 4


def test_a_model_that_does_not_accept_the_size_is_refused_with_its_parameters(tmp_path):
    with pytest.raises(ConfigError, match=r"Net cannot be called with depth.*Its parameters: width, classes, act"):
        find_optimal(Net, "depth", dataset=PAIRS, compute_budgets=[1e5], output_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"model_kwargs contains 'width'.*remove it"):
        planned(tmp_path, model_kwargs={"width": 3})
    with pytest.raises(ConfigError, match="model_cls must be a class or function"):
        planned(tmp_path, model=nn.Linear(3, 3).weight)


def test_an_unknown_keyword_argument_is_an_error_that_names_it(tmp_path):
    with pytest.raises(TypeError, match="compute_budget"):
        planned(tmp_path, compute_budget=[1e5])


def test_outputs_that_do_not_fit_the_loss_are_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="cannot be applied to outputs of shape"):
        planned(tmp_path, Net, model_kwargs={"classes": 2}, loss_fn=functional.l1_loss)


# ---------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("model", "data", "loss"),
    [
        (Net, PAIRS, None),
        (Keyword, Dicts(), None),
        (Rebuilder, Bare(), None),
        (Regressor, TensorDataset(examples()[0], examples()[0][:, :1]), None),
        (Net, Stream(), None),
        (Net, Stream(4000), None),
    ],
    ids=["pairs", "dicts", "bare", "regression", "endless", "stream"],
)
def test_every_kind_of_dataset_is_trained_on(tmp_path, model, data, loss):
    for result in completed(trained(tmp_path, model, dataset=data)):
        assert result.loss > 0
        assert result.tokens == result.run.tokens


def test_a_stream_that_ends_is_read_repeatedly(tmp_path):
    study = trained(tmp_path, dataset=Stream(2048 + 50), sizes=[3], allow_repeat=True)
    (result,) = completed(study)
    assert result.tokens > 500
    assert result.unique_tokens == 50
    assert result.passes == pytest.approx(result.tokens / 50)


def test_a_stream_without_training_samples_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"2048.*eval_dataset="):
        planned(tmp_path, dataset=Stream(500), sizes=[3])


def test_the_loss_is_measured_on_separate_held_out_data(tmp_path):
    held = TensorDataset(torch.zeros(20, 4), torch.zeros(20, dtype=torch.long))
    study = trained(tmp_path, eval_dataset=held, sizes=[3])
    (result,) = completed(study)
    assert result.eval_tokens == 20


def test_the_held_out_share_is_not_trained_on(tmp_path):
    numbered = TensorDataset(torch.arange(200.0)[:, None].repeat(1, 4) / 200, torch.zeros(200, dtype=torch.long))
    seen = {}

    class Spy(Net):
        def forward(self, x):
            if not x.is_meta:
                key = "trained" if torch.is_grad_enabled() else "held"
                seen.setdefault(key, set()).update(x[:, 0].tolist())
            return super().forward(x)

    study = planned(tmp_path, Spy, dataset=numbered, allow_repeat=True, eval_share=0.2, fingerprint="spy")
    seen.clear()  # a few samples are passed through the model while it is planned
    study.train()
    completed(study)
    assert len(seen["trained"]) == 160
    held = seen["held"] - set(numbered.tensors[0][:2, 0].tolist())  # the batch of the model check
    assert 39 <= len(held) <= 40
    assert not seen["trained"] & held


def test_a_data_loaders_batch_size_and_collate_function_are_used(tmp_path):
    def collate(items):
        return {"features": torch.stack([x for x, _ in items]), "labels": torch.stack([y for _, y in items])}

    loader = DataLoader(PAIRS, batch_size=5, shuffle=True, collate_fn=collate)
    study = trained(tmp_path, Keyword, dataset=loader, batch_size=None)
    assert {run.batch_size for run in study.plan.runs} == {5}
    completed(study)


def test_a_custom_sampler_is_refused(tmp_path):
    loader = DataLoader(PAIRS, batch_size=5, sampler=WeightedRandomSampler([1.0] * 2000, 100))
    with pytest.raises(DataError, match=r"its own sampler.*pass its dataset instead"):
        planned(tmp_path, dataset=loader)


def test_repeated_data_are_refused_unless_repetition_is_allowed(tmp_path):
    few = TensorDataset(*examples(100))
    with pytest.raises(UserError, match=r"epochs of the 90 available"):
        planned(tmp_path, dataset=few)
    completed(trained(tmp_path, dataset=few, allow_repeat=True))


@pytest.mark.parametrize(
    ("data", "message"),
    [(3, "must be a torch Dataset"), ([], "has 0 items"), (TensorDataset(torch.zeros(50, 4)), "must be")],
)
def test_objects_that_are_not_data_are_refused(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        planned(tmp_path, dataset=data)


def test_dicts_without_labels_are_refused_with_their_keys(tmp_path):
    class Unlabelled(Dicts):
        def __getitem__(self, index):
            return {"features": self.inputs[index], "target": self.labels[index]}

    with pytest.raises(DataError, match="'labels'; it contains features, target"):
        planned(tmp_path, Keyword, dataset=Unlabelled())


# ---------------------------------------------------------------------------- losses


def per_sample(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none")


def test_a_mean_and_a_value_per_sample_are_the_same_loss(tmp_path):
    losses = [
        [result.loss for result in completed(trained(tmp_path / name, loss_fn=loss))]
        for name, loss in (("mean", functional.cross_entropy), ("each", per_sample), ("default", None))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


def test_a_different_loss_dataset_or_argument_changes_the_run_ids(tmp_path):
    other = TensorDataset(examples()[0], 2 - examples()[1])
    plans = [
        ids(planned(tmp_path)),
        ids(planned(tmp_path, loss_fn=per_sample)),
        ids(planned(tmp_path, loss_fn=partial(functional.cross_entropy, label_smoothing=0.1))),
        ids(planned(tmp_path, dataset=other)),
        ids(planned(tmp_path, model_kwargs={"act": nn.GELU})),
        ids(planned(tmp_path, Keyword, dataset=Dicts())),
        ids(planned(tmp_path, optimizer={"name": "sgd", "lr": 0.1})),
        ids(planned(tmp_path, eval_share=0.2)),
    ]
    assert len({run for plan in plans for run in plan}) == sum(map(len, plans))
    assert ids(planned(tmp_path)) == plans[0]


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, outputs, targets):
        return self.weight * functional.cross_entropy(outputs, targets)

    def method(self, outputs, targets):
        return self(outputs, targets)


def test_attributes_of_a_callable_object_are_part_of_its_identity(tmp_path):
    plans = [
        ids(planned(tmp_path, loss_fn=loss))
        for loss in (Weighted(1.0), Weighted(2.0), Weighted(1.0).method, nn.CrossEntropyLoss())
    ]
    assert len({run for plan in plans for run in plan}) == 8
    assert ids(planned(tmp_path, loss_fn=Weighted(2.0))) == plans[1]


def test_a_value_in_the_closure_of_a_loss_is_part_of_its_identity(tmp_path):
    def loss(scale):
        return lambda outputs, targets: scale * functional.cross_entropy(outputs, targets)

    first, second, again = (ids(planned(tmp_path, loss_fn=loss(scale))) for scale in (1.0, 2.0, 1.0))
    assert first == again
    assert first != second


def test_a_value_in_the_closure_of_a_class_is_part_of_its_identity(tmp_path):
    def make(factor):
        class Base(Net):
            def forward(self, x):
                return factor * super().forward(x)

        return Base

    first, second = (ids(planned(tmp_path, make(factor))) for factor in (1.0, 2.0))
    assert first != second


def test_a_base_class_is_part_of_a_models_identity(tmp_path):
    class Plain(Net):
        pass

    class Doubled(Net):
        def forward(self, x):
            return 2 * super().forward(x)

    def child(base):
        class Child(base):
            pass

        return Child

    assert ids(planned(tmp_path, child(Plain))) != ids(planned(tmp_path, child(Doubled)))


IDENTITIES = """
from functools import partial
import torch
from flops_fit_core.api.fingerprint.objects import identify_value

class Inherits(torch.optim.Adam):
    pass

class Steps(torch.optim.Adam):
    @torch.no_grad()
    def step(self, closure=None):
        return super().step(closure)

@torch.compile
def loss(outputs, targets):
    return (outputs - targets).square().mean()

def identities():
    torchs = (torch.optim.Adam, partial(torch.optim.Adam, lr=0.1), torch.nn.functional.mse_loss)
    return [identify_value(one, "it") for one in (*torchs, Inherits, Steps, loss)]

before = identities()
assert len(set(before)) == 6
for kind in (torch.optim.Adam, Inherits, Steps):
    model = torch.nn.Linear(2, 2)
    optimizer = kind(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
import torch._dynamo
assert identities() == before
"""


def test_wrappers_that_torch_adds_to_a_used_class_do_not_change_run_ids(tmp_path):
    """Torch replaces ``step`` of an optimizer's class as soon as there is an instance."""
    (tmp_path / "identities.py").write_text(IDENTITIES)
    done = subprocess.run([sys.executable, str(tmp_path / "identities.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_objects_that_cannot_be_identified_need_a_fingerprint(tmp_path):
    class Opaque:
        pass

    with pytest.raises(ConfigError, match=r'model_cls cannot be identified.*fingerprint="..."'):
        planned(tmp_path, model_kwargs={"act": partial(nn.ReLU, Opaque())})
    planned(tmp_path, fingerprint="mine")


# ---------------------------------------------------------------------------- optimizer, store, counter


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.Adam, partial(torch.optim.SGD, lr=0.1, momentum=0.9), adam, "adamw", {"name": "sgd", "lr": 0.2}],
    ids=["class", "partial", "function", "name", "table"],
)
def test_an_optimizer_is_a_class_a_partial_a_function_a_name_or_a_table(tmp_path, optimizer):
    study = trained(tmp_path, optimizer=optimizer)
    losses = [result.loss for result in completed(study)]
    default = [result.loss for result in completed(trained(tmp_path / "default"))]
    assert losses != default


class TwoMethods(ResultStore):
    """In memory."""

    def __init__(self):
        self.kept = {}

    def add(self, result):
        self.kept[result.id, result.attempt] = result

    def all_attempts(self):
        return self.kept.values()


class Duck:
    """Not a ResultStore, whatever its methods."""

    add, all_attempts = TwoMethods.add, TwoMethods.all_attempts


def first_only(parameters):
    return torch.optim.SGD(parameters[:1], lr=0.1)


def none_of_them(parameters):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])},
            r"give the class \(SGD\), or functools.partial",
        ),
        (
            {"optimizer": partial(torch.optim.Adam, lrr=1)},
            r"optimizer: Adam\(parameters\) raised TypeError: .*'lrr'",
        ),
        (
            {"optimizer": partial(torch.optim.Adam, lr=-1)},
            r"Adam\(parameters\) raised ValueError: Invalid learning rate",
        ),
        ({"optimizer": none_of_them}, "has none of the model's parameters"),
        ({"compute_budgets": 2e5}, r"compute_budgets: give a list of numbers, such as \[1e15.*given: 200000.0"),
        ({"seeds": 3}, r"seeds: give a list of numbers, such as \[0, 1\]"),
        ({"sizes": 3.5}, r"sizes: give a list of numbers"),
        ({"store": Duck()}, "store=Duck: pass an object of a class that inherits .*ResultStore"),
        ({"store": TwoMethods}, "store=TwoMethods: pass an object of a class that inherits .*ResultStore"),
        ({"output_dir": f"{__file__}/study"}, "is a file; a study needs a folder.*output_dir="),
    ],
)
def test_an_invalid_argument_is_an_error_with_the_valid_values(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        planned(tmp_path, **given)


def test_numpy_numbers_are_accepted(tmp_path):
    plain = planned(tmp_path, sizes=[3, 4], compute_budgets=[2e5], seeds=[0, 1])
    arrays = {"sizes": numpy.array([3, 4]), "compute_budgets": numpy.array([2e5]), "seeds": numpy.arange(2)}
    assert ids(planned(tmp_path, **arrays)) == ids(plain)
    assert len(planned(tmp_path, sizes=numpy.int64(2)).plan.runs) == len(planned(tmp_path, sizes=2).plan.runs)


def test_parameters_that_the_optimizer_omits_are_noted(tmp_path):
    notes = " ".join(planned(tmp_path, optimizer=first_only).plan.notes)
    assert "omits 3 of the 4 parameters that require gradients" in notes
    assert "inner.bias, outer.weight, outer.bias" in notes
    assert "omits" not in " ".join(planned(tmp_path, optimizer=torch.optim.SGD).plan.notes)


def test_a_store_object_keeps_the_results_and_is_left_open(tmp_path):
    from flops_fit_core.plugins.registry import installed

    spec = installed().find("store", "json").spec
    (tmp_path / "kept").mkdir()
    store = spec.build(spec.options(), tmp_path / "kept")
    study = trained(tmp_path, store=store)
    assert {result.id for result in store.results()} == set(ids(study))
    assert not list((tmp_path / "study").glob("results*"))
    store.close()


def test_a_store_object_needs_two_methods(tmp_path):
    store = TwoMethods()
    study = trained(tmp_path, store=store)
    assert {result.id for result in store.results()} == set(ids(study))
    times = [result.finished for result in study.results]
    assert [result.finished for result in trained(tmp_path, store=store).results] == times


@pytest.mark.parametrize("name", ["sqlite", "json"])
def test_a_store_is_chosen_by_name(tmp_path, name):
    trained(tmp_path, store=name)
    assert [path.suffix for path in (tmp_path / "study").glob("results.*")][:1] == [
        ".json" if name == "json" else ".sqlite"
    ] or list((tmp_path / "study").glob("results*"))


def test_a_custom_counter_determines_the_tokens_of_a_budget(tmp_path):
    study = planned(
        tmp_path,
        counter=lambda module: 600.0 * module.inner.out_features,
        compute_budgets=[4e6],
        batch_size=2,
        allow_repeat=True,
    )
    for run in study.plan.runs:
        assert run.flops_per_token == 600 * run.size
        assert abs(600 * run.size * run.tokens / 4e6 - 1) < 0.01


@pytest.mark.parametrize("given", [{"store": 3}, {"fitter": 3}, {"optimizer": "adamq"}, {"device": "tpu"}])
def test_an_invalid_choice_is_refused_with_its_kind(tmp_path, given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        planned(tmp_path, **given)


# ---------------------------------------------------------------------------- studies


def test_planning_only_writes_and_trains_nothing(tmp_path):
    study = planned(tmp_path)
    assert study.plan.flops == pytest.approx(4e5, rel=0.01)
    assert study.seconds() > 0
    assert study.results == []
    assert not (tmp_path / "study").exists()


def test_finished_runs_are_kept_unless_they_are_to_be_trained_again(tmp_path):
    first = trained(tmp_path)
    kept = trained(tmp_path)
    assert [result.finished for result in kept.results] == [result.finished for result in first.results]
    again = trained(tmp_path, resume=False)
    assert [result.attempt for result in again.results] == [2, 2]
    assert [result.loss for result in again.results] == [result.loss for result in first.results]


def test_runs_are_a_table_and_the_study_has_a_readable_repr(tmp_path):
    study = trained(tmp_path)
    rows = study.runs.json()
    assert [row["id"] for row in rows] == ids(study)
    assert {row["status"] for row in rows} == {"completed"}
    assert "2 of 2 runs completed" in repr(study)


def test_a_whole_study_predicts_tables_and_plots(tmp_path):
    study = find_optimal(
        Net,
        "width",
        dataset=TensorDataset(*examples(6000)),
        allow_repeat=True,
        compute_budgets=[1e5, 2e5, 4e5],
        sizes=[2, 4, 8, 16],
        batch_size=8,
        min_steps=1,
        optimizer={"name": "adamw", "lr": 0.02},
        device="cpu",
        executor=IN_PROCESS,
        trainer={"name": "torch", "eval_tokens": 200},
        output_dir=tmp_path / "study",
        fitter="parametric",
    )
    completed(study)
    assert study.predict(1e7).params.value > 0
    assert len(study.table().json()) == 5
    assert study.chinchilla_table([1e7]).json()
    study.plot(path=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


# ---------------------------------------------------------------------------- processes

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from flops_fit_core import find_optimal

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)

inputs = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
study = find_optimal(
    Net, "width", dataset=TensorDataset(inputs, inputs[:, :3].argmax(1)), compute_budgets=[1e5], sizes=[3],
    batch_size=8, min_steps=1, allow_repeat=True, device="cpu", executor=EXECUTOR, output_dir="study",
)
print(*[(run.id, run.status, run.error) for run in study.results])
"""


SLOW_WAYS = [pytest.param(how, marks=pytest.mark.slow) for how in ("command", "prompt")]


@pytest.mark.parametrize("how", ["script", *SLOW_WAYS])
def test_a_program_needs_no_main_guard_and_no_source(tmp_path, how):
    # Worker processes are slow to start, and are the same ones whatever way the program came.
    text = SCRIPT.replace("EXECUTOR", repr({"name": "processes", "workers": 1} if how == "script" else "local"))
    (tmp_path / "script.py").write_text(text)
    arguments = {"script": ["script.py"], "command": ["-c", text], "prompt": ["-"]}[how]
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        input=text if how == "prompt" else None,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "'completed', None" in process.stdout


def test_objects_that_cannot_be_pickled_are_trained_in_the_calling_process(tmp_path):
    import threading

    lock = threading.Lock()

    class Locked(Net):
        def forward(self, x):
            with lock:
                return super().forward(x)

    with pytest.raises(ConfigError, match=r"cannot be sent to a worker process.*executor = .local."):
        trained(tmp_path, Locked, executor={"name": "processes", "workers": 1}, fingerprint="locked")
    completed(trained(tmp_path, Locked, fingerprint="locked"))


def test_a_mapping_of_splits_is_refused(tmp_path):
    parts = {"train": torch.randn(50, 4), "validation": torch.randn(50, 4)}
    with pytest.raises(
        ConfigError, match=r"several parts \(train, validation\).*dataset=parts\['train'\], eval_dataset="
    ):
        find_optimal(nn.Linear, "out_features", dataset=parts, compute_budgets=[1e6], output_dir=tmp_path)
