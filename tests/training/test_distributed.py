"""One run on several devices, here processes of this machine: what it does is what one process does."""

import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from driver_process import net_plugin
from small import events, text_table, train, write_text

from flops_fit_core import RunResult
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed
from flops_fit_core.training.distributed import TorchDistributedContext


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"), files=10)


def table(text, devices, trainer=None, **changes):
    """About 50 steps of a batch of 5, which two processes cannot halve."""
    return text_table(
        text,
        device={"name": "cpu", "devices_per_run": devices},
        trainer=trainer or {},
        sweep={"budgets": [8e7], "sizes": [{"width": 8}], "batch_size": 5},
        **changes,
    )


@pytest.fixture(scope="module")
def alone(text):
    return train(table(text, 1, {"num_evals": 2}))[0]


@pytest.mark.parametrize(
    "trainer", [{"parallel": "ddp"}, {"parallel": "fsdp"}, {"parallel": "fsdp", "micro_batch": 1}], ids=str
)
def test_two_processes_reach_the_loss_of_one_within_rounding(text, alone, trainer, tmp_path):
    (both,) = train(table(text, 2, {"num_evals": 2, **trainer}), folder=tmp_path)
    assert both.status == "completed", both.error
    assert both.run.devices == 2
    assert (both.id, both.tokens, both.flops) == (alone.id, alone.tokens, alone.flops)
    assert both.loss == pytest.approx(alone.loss, rel=2e-5)
    assert [point.loss for point in both.curve] == pytest.approx([point.loss for point in alone.curve], rel=2e-5)
    assert both.eval_tokens == alone.eval_tokens


def test_held_out_batches_with_fewer_samples_than_processes_are_counted_once(text, alone, tmp_path):
    (both,) = train(table(text, 2, {"eval_batch_tokens": 1}), folder=tmp_path)
    assert both.status == "completed", both.error
    assert both.loss == pytest.approx(alone.loss, rel=2e-5)
    assert both.eval_tokens == alone.eval_tokens


def test_blocks_are_sharded_whole_and_not_what_is_in_them():
    from torch import nn

    from flops_fit_core.training.sharding import outermost_blocks

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([expert(), expert()])

        def forward(self, x):
            return self.experts[0](x)

    expert = lambda: nn.Linear(2, 2)  # noqa: E731
    block = Block()
    stages = nn.ModuleList([nn.ModuleList([expert()]), nn.ModuleList([expert()])])
    model = nn.ModuleDict({"body": nn.ModuleDict({"blocks": nn.ModuleList([block])}), "stages": stages})
    assert outermost_blocks(model) == [block, stages[0][0], stages[1][0]]


class Mixer(torch.nn.Module):
    """A block of a few layers."""

    def __init__(self):
        super().__init__()
        self.mlp = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 4))

    def forward(self, x):
        return x + self.mlp(x)


def test_blocks_are_found_in_every_container():
    from torch import nn

    from flops_fit_core.training.sharding import outermost_blocks

    blocks = [Mixer() for _ in range(6)]
    first, second, *others = blocks
    stack = nn.Sequential(nn.Linear(4, 4), first, nn.Dropout(), second, nn.LayerNorm(4))
    assert outermost_blocks(stack) == [first, second]
    stages = nn.Sequential(nn.Sequential(first, second), nn.Sequential(*others[:2]))
    assert outermost_blocks(stages) == [first, second, *others[:2]]
    convnext = nn.ModuleList([nn.Sequential(first, second), nn.Sequential(*others)])
    assert outermost_blocks(nn.ModuleDict({"stages": convnext})) == blocks
    named = nn.ModuleDict({"a": first, "b": second, "norm": nn.LayerNorm(4)})
    assert outermost_blocks(nn.ModuleDict({"named": named})) == [first, second]
    gpt = nn.ModuleDict(
        {"wte": nn.Embedding(9, 4), "wpe": nn.Embedding(9, 4), "h": nn.ModuleList([first, second])}
    )
    assert outermost_blocks(gpt) == [first, second]
    backbone = nn.Sequential(nn.Sequential(nn.Embedding(9, 4), nn.ModuleList([first])), nn.Linear(4, 9))
    assert outermost_blocks(backbone) == [first]
    small = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert outermost_blocks(nn.ModuleList([small])) == [small]
    perceptron = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    assert outermost_blocks(perceptron) == [perceptron[0], perceptron[2]]
    assert outermost_blocks(nn.ModuleList([first, first])) == [first], "each once, however often it is called"
    assert outermost_blocks(first) == [first.mlp[0], first.mlp[2]]


def test_a_block_with_a_weight_that_is_used_elsewhere_is_left_to_the_whole_model():
    from torch import nn

    from flops_fit_core.training.sharding import without_shared_weights

    embedding, hidden, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, hidden, head)
    assert without_shared_weights(model, [embedding, hidden, head]) == [hidden]
    assert without_shared_weights(model, [model]) == [model]


@pytest.mark.slow
def test_a_vision_transformers_blocks_are_sharded_one_by_one(tmp_path):
    def images(devices, **trainer):
        return {
            "sweep": {"budgets": [5_095_680], "sizes": [{"width": 8}], "batch_size": 6, "min_steps": 1},
            "model": {"name": "vit", "depth": 2, "head_dim": 4, "patch": 4},
            "dataset": {"name": "images"},
            "optimizer": "adamw",
            "trainer": {"eval_tokens": 60, **trainer},
            "counter": "model",
            "device": {"name": "cpu", "devices_per_run": devices},
        }

    (alone,) = train(images(1), folder=tmp_path / "1")
    (both,) = train(images(2, parallel="fsdp"), folder=tmp_path / "2")
    assert both.error is None
    assert both.id == alone.id
    assert both.loss == pytest.approx(alone.loss, rel=2e-5)
    from flops_fit_core.training.sharding import outermost_blocks

    model = make_experiment(images(1), installed()).model
    dataset = make_experiment(images(1), installed()).dataset
    task = dataset.spec.build(dataset.options, 0).task
    built = model.spec.build(model.with_options(width=8).options, task)
    assert outermost_blocks(built) == list(built.blocks)


def test_a_run_goes_on_from_its_checkpoint_on_another_number_of_devices(text, alone, tmp_path):
    asked = count(1)
    sharded = table(text, 2, {"num_evals": 2, "parallel": "fsdp"})
    stopped = events(sharded, folder=tmp_path, should_stop=lambda: next(asked) > 20)
    assert not [event for event in stopped if isinstance(event, RunResult)]
    (checkpoint,) = tmp_path.rglob("latest.pt")
    kept = torch.load(checkpoint, weights_only=True)
    assert 1 < kept["position"]["step"] < alone.run.steps
    assert all(
        weight.shape == like.shape for weight, like in zip(kept["model"].values(), weights(text), strict=True)
    )
    asked = count(1)
    events(table(text, 1, {"num_evals": 2}), folder=tmp_path, should_stop=lambda: next(asked) > 12)
    (both,) = train(sharded, folder=tmp_path)
    assert both.loss == pytest.approx(alone.loss, rel=2e-5)


def weights(text):
    experiment = make_experiment(table(text, 1), installed())
    run = make_plan(experiment).runs[0]
    model = experiment.model.with_options(**run.model.options)
    dataset = experiment.dataset.spec.build(experiment.dataset.options, 0)
    return list(model.spec.build(model.options, dataset.task).state_dict().values())


FAULTY = net_plugin(
    "faulty",
    """
    if options.fault == "skip":
        embedded = self.embedding(ids)
        return self.head(embedded.detach() if self.calls % 3 == 0 else embedded)
    if os.environ.get("LOCAL_RANK") == "1":
        exec(options.fault, {"self": self, "os": os})
    """,
)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("raise RuntimeError('the second device is broken')", "RuntimeError: the second device is broken"),
        ("os._exit(7)", "ended with status 7"),
    ],
)
def test_a_process_that_fails_ends_the_run_with_its_message(text, tmp_path, monkeypatch, fault, expected):
    from flops_fit_core.plugins.registry import Registry

    (tmp_path / "faulty_nets.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry({"faulty_nets": __import__("faulty_nets")})
    changes = {"model": {"name": "faulty", "fault": fault}, "counter": "chinchilla"}
    (failed,) = train(table(text, 2, **changes), registry, tmp_path / "study")
    assert failed.status == "failed"
    assert failed.error.message.startswith("process 1 of the run: ")
    assert expected in failed.error.message


@pytest.mark.slow
def test_a_process_that_fails_never_holds_up_the_first_one(text, tmp_path, monkeypatch):
    """It did about one time in ten."""
    from flops_fit_core.plugins.registry import Registry

    (tmp_path / "failing_nets.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry({"failing_nets": __import__("failing_nets")})
    changes = {"model": {"name": "faulty", "fault": "if self.training: raise RuntimeError('broken')"}}
    for number in range(14):
        began = time.monotonic()
        (failed,) = train(table(text, 2, counter="chinchilla", **changes), registry, tmp_path / str(number))
        assert failed.status == "failed"
        assert time.monotonic() - began < 60


def test_a_step_may_leave_a_parameter_out(text, tmp_path, monkeypatch):
    from flops_fit_core.plugins.registry import Registry

    (tmp_path / "skipping_nets.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry({"skipping_nets": __import__("skipping_nets")})
    changes = {"model": {"name": "faulty", "fault": "skip"}, "counter": "chinchilla"}
    single, parallel = (
        train(table(text, devices, **changes), registry, tmp_path / str(devices))[0] for devices in (1, 2)
    )
    assert parallel.status == "completed", parallel.error
    assert parallel.loss == pytest.approx(single.loss, rel=2e-5)


def test_no_process_is_left_when_the_first_one_is_killed(text, tmp_path):
    code = (
        "import sys, signal, os; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from small import events, text_table\n"
        "table = text_table(Path(sys.argv[2]), device={'name': 'cpu', 'devices_per_run': 2},\n"
        "    sweep={'budgets': [8e8], 'sizes': [{'width': 8}], 'batch_size': 4})\n"
        "def stop():\n"
        "    import subprocess\n"
        "    pgrep = ['pgrep', '-P', str(os.getpid()), '-f', 'training.worker']\n"
        "    others = subprocess.run(pgrep, capture_output=True)\n"
        "    print(others.stdout.decode().split()[0], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "events(table, folder=Path(sys.argv[3]), should_stop=stop)\n"
    )
    tests = str(Path(__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-c", code, tests, str(text), str(tmp_path)], capture_output=True, text=True
    )
    assert process.returncode == -9, process.stderr
    from flops_fit_core.testing.executors import is_running

    other = int(process.stdout.split()[-1])  # Gloo of torch 2.9 prints lines before it
    for _ in range(100):
        if not is_running(other):
            return
        time.sleep(0.05)
    pytest.fail("the other process outlived the first one")


def test_a_batch_is_divided_in_order_and_evenly_and_nothing_is_left_out():
    batch = {"ids": torch.arange(11), "more": [torch.arange(11) * 2]}
    contexts = [TorchDistributedContext(rank, 4) for rank in range(4)]
    shares = [context.local_batch(batch, 11) for context in contexts]
    assert torch.cat([share["ids"] for share in shares]).tolist() == list(range(11))
    assert torch.cat([share["more"][0] for share in shares]).tolist() == list(range(0, 22, 2))
    assert [len(share["ids"]) for share in shares] == [context.local_samples(11) for context in contexts]
    assert sorted(len(share["ids"]) for share in shares) == [2, 3, 3, 3]


def test_a_run_never_gets_more_devices_than_its_batch_has_samples(text):
    plan = make_plan(make_experiment(table(text, 8), installed()))
    assert plan.runs[0].devices == 5
    assert plan.jobs({plan.runs[0].id})[0].devices == 5


def test_the_number_of_devices_is_not_part_of_a_run(text):
    single, parallel = (
        make_plan(make_experiment(table(text, devices), installed())).runs[0] for devices in (1, 2)
    )
    assert single.id == parallel.id
    assert single.trajectory == parallel.trajectory
