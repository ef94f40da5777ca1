"""The trainer ``lightning``: a LightningModule of the user's own around the run's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

from small import Bench, events, stopped_after, text_table, train, write_text

from flops_fit_core import ClaimLost, ConfigError, Progress, RunResult
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.training import TrajectoryFolder, checkpoint_files, work

PLAIN = """
import lightning

class Plain(lightning.LightningModule):
    def __init__(self, model, task):
        super().__init__()
        self.model, self.task = model, task

    def training_step(self, batch, batch_idx):
        loss, count = self.task.loss(self.task.outputs(self.model, batch), batch)
        self.log("loss", loss / count)
        return loss / count
"""
OWN = (
    PLAIN
    + """
import time
import torch
from lightning.pytorch.callbacks import LearningRateMonitor

class OwnOptimizer(Plain):
    def __init__(self, model, task, lr, momentum=0.0):
        super().__init__(model, task)
        self.lr, self.momentum = lr, momentum

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=self.momentum)

class Scheduled(OwnOptimizer):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

class Averaging(Scheduled):
    # Keeps what Lightning cannot know of, by its own hooks.

    def on_train_start(self):
        self.mean = getattr(self, "mean", 0.0)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.mean = 0.9 * self.mean + 0.1 * float(loss.detach())
        return loss * (1 + self.mean)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mean"] = self.mean

    def on_load_checkpoint(self, checkpoint):
        self.mean = checkpoint["mean"]

class ByHand(OwnOptimizer):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

class WithoutTheModel(Plain):
    def __init__(self, model, task):
        super().__init__(torch.nn.Linear(2, 2), task)

def a_list(model):
    return [model]

def no_model(task):
    return None

class Broken(Plain):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("this module raises")

class StopsEarly(Plain):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.trainer.should_stop = batch_idx == 19

class Logs(Plain):
    def configure_callbacks(self):
        return [LearningRateMonitor()]

    def on_train_start(self):
        self.logger.experiment.add_text("note", "text")

class Slow(Plain):
    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)

class Explodes(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (float("nan") if batch_idx == 20 else 1.0)
"""
)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own_train.py").write_text(OWN)
    return tmp_path / "own_train.py"


def lightning(own: Path, name: str = "Plain", **more) -> dict:
    return {"name": "lightning", "module": f"{own}:{name}", "eval_tokens": 400, **more}


def only(results: list[RunResult]) -> RunResult:
    (result,) = results
    return result


@pytest.mark.parametrize("grad_clip", [1.0, 0.05, None])
def test_a_plain_module_ends_like_the_torch_trainer(own, grad_clip):
    bench = Bench()
    model = {"name": "bench/net", "dropout": 0.2}
    ours = only(train(bench.table(model=model, trainer={"grad_clip": grad_clip}), bench.registry()))
    theirs = only(train(bench.table(model=model, trainer=lightning(own, grad_clip=grad_clip)), bench.registry()))
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert theirs.loss < 2.0  # a uniform guess has ln 12 = 2.48
    for same in ("tokens", "unique_tokens", "eval_tokens", "flops", "bits_per_byte", "precision"):
        assert getattr(ours, same) == pytest.approx(getattr(theirs, same))


def test_questions_are_evaluated_as_by_the_torch_trainer(own, tmp_path):
    question = {"context": "the river ", "choices": ["falls", "grows", "stone"], "answer": 1}
    (tmp_path / "quiz.jsonl").write_text(json.dumps(question))
    text = write_text(tmp_path / "text")
    dataset = {"multiple_choice": {"quiz": str(tmp_path / "quiz.jsonl")}}
    table = text_table(text, sweep={"sizes": [{"width": 8}]}, dataset=dataset)
    ours, theirs = only(train(table)), only(train({**table, "trainer": lightning(own, eval_tokens=512)}))
    assert set(theirs.metrics) == {f"quiz/{name}" for name in ("acc", "acc_per_token", "acc_per_byte", "bpb")}
    assert theirs.metrics == pytest.approx(ours.metrics, rel=1e-4)


def test_it_sees_the_batches_of_the_plan_in_their_order(own):
    bench = Bench()
    train(bench.table(), bench.registry())
    expected, bench.served = bench.served, []
    train(bench.table(trainer=lightning(own)), bench.registry())
    assert len(bench.served) == 60
    assert all(batch.equal(other) for batch, other in zip(bench.served, expected, strict=True))


def test_a_module_may_bring_its_own_optimizer(own):
    bench = Bench()
    table = bench.table(trainer=lightning(own, "OwnOptimizer", arguments={"momentum": 0.9}), optimizer={"lr": 0.5})
    result = only(train(table, bench.registry()))
    sgd = {"name": "sgd", "lr": 0.5, "momentum": 0.9}
    expected = only(train(bench.table(optimizer=sgd, schedule="constant", recipe="constant"), bench.registry()))
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)


def test_a_module_may_optimize_by_hand(own):
    bench = Bench()
    table = bench.table(trainer=lightning(own, "ByHand"), optimizer={"lr": 0.5})
    by_hand = only(train(table, bench.registry()))
    table = bench.table(trainer=lightning(own, "OwnOptimizer", grad_clip=None), optimizer={"lr": 0.5})
    assert by_hand.loss == pytest.approx(only(train(table, bench.registry())).loss, rel=1e-6)


def test_nothing_is_printed_and_nothing_is_written(own, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    bench = Bench()
    table = bench.table(trainer=lightning(own))
    assert train(table, bench.registry(), tmp_path / "study", should_stop=stopped_after(20)) == []
    assert only(train(table, bench.registry(), tmp_path / "study")).status == "completed"
    assert list(folder.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_module_that_asks_for_its_logger_has_one_that_keeps_nothing(own):
    bench = Bench()
    assert only(train(bench.table(trainer=lightning(own, "Logs")), bench.registry())).error is None


def test_progress_is_told_while_it_trains(own):
    bench = Bench()
    outcomes = events(bench.table(trainer=lightning(own, "Slow")), bench.registry())
    steps = [event.step for event in outcomes if isinstance(event, Progress)]
    assert steps == sorted(steps)
    assert steps


def test_a_loss_that_is_not_finite_has_diverged(own):
    bench = Bench()
    result = only(train(bench.table(trainer=lightning(own, "Explodes")), bench.registry()))
    assert (result.status, result.loss) == ("diverged", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_list", "made a list, not a LightningModule"),
        ("WithoutTheModel", "without the run's model"),
        ("Broken", "this module raises"),
        ("StopsEarly", "ended its training after 20 of 60 steps"),
    ],
)
def test_a_mistake_is_the_error_of_its_run(own, name, message):
    bench = Bench()
    result = only(train(bench.table(trainer=lightning(own, name)), bench.registry()))
    assert result.status == "failed"
    assert message in result.error.message


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Plane", {}, "has no 'Plane'; it has"),
        ("no_model", {}, "must take the run's model by the name 'model'"),
        ("Plain", {"arguments": {"depth": 2}}, "unexpected keyword argument 'depth'; its parameters: model, task"),
    ],
)
def test_a_module_that_cannot_be_called_so_is_an_error_of_the_plan(own, name, options, message):
    bench = Bench()
    experiment = make_experiment(bench.table(trainer=lightning(own, name, **options)), bench.registry())
    with pytest.raises(ConfigError, match=message):
        make_plan(experiment)


def test_an_edit_of_the_module_makes_another_run(own):
    bench = Bench()

    def run() -> str:
        return make_plan(make_experiment(bench.table(trainer=lightning(own)), bench.registry())).runs[0].id

    first = run()
    own.write_text("# a comment\n" + OWN)
    assert run() == first
    own.write_text(OWN.replace("loss / count", "2 * loss / count"))
    assert run() != first


@pytest.mark.parametrize(
    ("name", "more"),
    [("Plain", {}), ("Averaging", {"arguments": {"momentum": 0.9}}), ("ByHand", {"arguments": {"momentum": 0.9}})],
)
def test_a_run_that_is_stopped_again_and_again_ends_like_one_that_nobody_stopped(own, tmp_path, name, more):
    bench, model = Bench(), {"name": "bench/net", "dropout": 0.2}
    table = bench.table(model=model, trainer=lightning(own, name, **more), optimizer={"name": "adamw", "lr": 0.01})
    (uninterrupted,) = train(table, bench.registry())
    assert uninterrupted.status == "completed", uninterrupted.error
    trained = len(bench.served)
    stops = [train(table, bench.registry(), tmp_path, should_stop=stopped_after(20)) for _ in range(2)]
    assert stops == [[], []]
    (result,) = train(table, bench.registry(), tmp_path)
    assert len(bench.served) == 2 * trained, "each step once"
    assert (result.loss, result.tokens) == (uninterrupted.loss, uninterrupted.tokens)


def test_a_checkpoint_is_written_every_so_many_minutes(own, tmp_path, monkeypatch):
    from flops_fit_trainers.lightning_watch import Latest

    bench = Bench()
    kept = tmp_path / "often" / "checkpoints"

    def table(minutes: float) -> dict:
        return bench.table(trainer=lightning(own, checkpoint_minutes=minutes))

    saved = []
    save = Latest.save
    monkeypatch.setattr(
        Latest, "save", lambda self, trainer: (saved.append(trainer.global_step), save(self, trainer))
    )
    train(table(60.0), bench.registry(), tmp_path / "seldom")
    assert saved == [60], "before the evaluation"
    train(table(1e-9), bench.registry(), tmp_path / "often")
    assert saved[1:] == list(range(1, 61))
    assert [file.name for file in kept.rglob("*") if file.is_file()] == ["latest.pt"]


def cut_off(content: bytes) -> bytes:
    return content[:500]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit])
def test_a_damaged_checkpoint_is_not_used_and_the_log_says_so(own, tmp_path, caplog, damage):
    bench = Bench()
    table = bench.table(trainer=lightning(own))
    (uninterrupted,) = train(table, bench.registry())
    train(table, bench.registry(), tmp_path, should_stop=stopped_after(20))
    (file,) = tmp_path.glob("checkpoints/*/latest.pt")
    file.write_bytes(damage(file.read_bytes()))
    (result,) = train(table, bench.registry(), tmp_path)
    assert result.loss == uninterrupted.loss
    assert f"checkpoint {file} is damaged and is not used" in caplog.text


def test_a_run_that_another_driver_has_taken_over_ends_without_a_result(own, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "TAKE_OVER_SECONDS", 0.2)
    bench = Bench()
    plan = make_plan(make_experiment(bench.table(trainer=lightning(own)), bench.registry()))
    (job,) = plan.jobs({run.id for run in plan.runs}, {})
    job = job.model_copy(update={"claim_tokens": dict.fromkeys([job.trajectories[0].id], "first")})
    TrajectoryFolder(tmp_path, job.trajectories[0].id, "second").take()
    setup, objects = bench.registry().setup.model_dump_json(), bench.registry().objects
    results = []
    with pytest.raises(ClaimLost):
        for event in work(job.model_dump_json(), setup, objects=objects, folder=tmp_path):
            results += [event] if isinstance(event, RunResult) else []
    assert results == []
    assert list(tmp_path.rglob("*.pt")) == []


def test_a_checkpoint_that_would_run_code_is_not_loaded(own, tmp_path):
    bench = Bench()
    table = bench.table(trainer=lightning(own))
    train(table, bench.registry(), tmp_path, should_stop=stopped_after(20))
    (file,) = tmp_path.glob("checkpoints/*/latest.pt")
    trace = tmp_path / "executed"
    content = torch.load(file, weights_only=True)
    torch.save({**content, "planted": Opener(str(trace))}, file)
    (result,) = train(table, bench.registry(), tmp_path)
    assert result.status == "failed"
    assert "not loaded because they could run any code" in result.error.message
    assert "add_safe_globals" in result.error.message
    assert not trace.exists()


class Opener:
    """Unpickling it creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def test_a_checkpoint_of_other_code_fails_the_run_and_says_what_to_delete(own, tmp_path):
    bench = Bench()
    table = bench.table(trainer=lightning(own, fingerprint="the same"))
    train(table, bench.registry(), tmp_path, should_stop=stopped_after(20))
    other = tmp_path / "other_train.py"
    other.write_text(
        OWN
        + """
class Wider(Plain):
    def __init__(self, model, task):
        super().__init__(model, task)
        self.register_buffer("mean", torch.zeros(1))
"""
    )
    table = bench.table(trainer=lightning(other, "Wider", fingerprint="the same"))
    (result,) = train(table, bench.registry(), tmp_path)
    assert result.status == "failed"
    assert "mean" in result.error.message
    assert f"delete {next(tmp_path.glob('checkpoints/*'))}" in result.error.message


ALLOCATIONS = {
    "slurm": {
        "SLURM_NTASKS": "4",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "sweep",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "3",
        "SLURM_NODEID": "1",
        "SLURM_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
    },
    "slurm, tasks per node": {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "sweep"},
    "lsf": {
        "LSB_JOBID": "7",
        "LSB_DJOB_RANKFILE": "nowhere",
        "JSM_NAMESPACE_LOCAL_RANK": "1",
        "JSM_NAMESPACE_RANK": "1",
        "JSM_NAMESPACE_SIZE": "2",
    },
    "pbs": {"PBS_JOBID": "7", "PBS_NODEFILE": "nowhere", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    "torchrun": {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    },
}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_run_is_trained_alone_whatever_allocation_surrounds_it(own, monkeypatch, tmp_path, allocation):
    plain = train(Bench().table(8, trainer=lightning(own)), Bench().registry())[0]
    for name, value in ALLOCATIONS[allocation].items():
        monkeypatch.setenv(name, value)
    bench = Bench()
    (inside,) = train(bench.table(8, trainer=lightning(own)), bench.registry(), tmp_path)
    assert inside.error is None
    assert inside.loss == plain.loss
    assert (tmp_path / "checkpoints" / inside.run.trajectory / "latest.pt").exists()


def test_an_evaluation_that_fails_does_not_cost_the_steps(own, tmp_path):
    def fail_in_evaluation(model):
        def check(module, inputs):
            if not module.training:
                raise ValueError("in the evaluation")

        model.register_forward_pre_hook(check)

    uninterrupted = train(Bench().table(8, trainer=lightning(own)), Bench().registry())[0]
    failing = Bench()
    failing.built.append(fail_in_evaluation)
    (failed,) = train(failing.table(8, trainer=lightning(own)), failing.registry(), tmp_path)
    assert (failed.status, failed.error.message) == ("failed", "in the evaluation")
    again = Bench()
    (result,) = train(again.table(8, trainer=lightning(own)), again.registry(), tmp_path)
    assert result.error is None
    assert result.loss == uninterrupted.loss
    assert again.served == []
