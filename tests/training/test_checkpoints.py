"""An interrupted run continues from its checkpoint and gives the result of an uninterrupted run."""

import logging

import pytest
import torch
from small import Bench, events, stopped_after, train

from flops_fit_core import RunResult
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.training.checkpoint_files import TrajectoryFolder

SCHEDULES = {"cosine": {"name": "cosine", "warmup_tokens": 640}, "wsd": {"name": "wsd", "decay": 0.25}}


def table(bench, schedule, **changes):
    one_step = bench.table(1)["sweep"]["budgets"][0]
    return bench.table(
        sweep={"budgets": [one_step * steps for steps in (40, 90)]},
        model={"name": "bench/net", "dropout": 0.2},
        schedule=SCHEDULES[schedule],
        **{"trainer": {"num_evals": 3}, **changes},
    )


def outcome(result):
    return (
        result.id,
        result.status,
        result.loss,
        result.curve,
        result.tokens,
        result.trained_tokens,
        result.metrics,
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("after", [3, 31, 75])
def test_a_stopped_pass_ends_bit_identical_to_one_that_was_never_stopped(schedule, after, tmp_path):
    uninterrupted = train(table(Bench(), schedule), Bench().registry())
    first = events(table(Bench(), schedule), Bench().registry(), tmp_path, should_stop=stopped_after(after))
    before = [result for result in first if isinstance(result, RunResult)]
    done = {result.id for result in before}
    rest = train(table(Bench(), schedule), Bench().registry(), tmp_path, done=done)
    assert sorted(map(outcome, before + rest)) == sorted(map(outcome, uninterrupted))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_pass_that_is_stopped_again_and_again_still_ends_the_same(schedule, tmp_path):
    uninterrupted = train(table(Bench(), schedule), Bench().registry())
    done = {}
    for attempt in range(60):
        stop = stopped_after(7 + attempt % 5)
        done |= {
            result.id: result
            for result in train(
                table(Bench(), schedule), Bench().registry(), tmp_path, done=done, should_stop=stop
            )
        }
        if len(done) == len(uninterrupted):
            break
    assert sorted(map(outcome, done.values())) == sorted(map(outcome, uninterrupted))


def test_what_was_trained_before_is_not_trained_again(tmp_path):
    bench = Bench()
    experiment = bench.table(60, schedule=SCHEDULES["cosine"])
    assert not train(experiment, bench.registry(), tmp_path, should_stop=stopped_after(41))
    assert 30 < len(bench.served) < 45
    (result,) = train(experiment, bench.registry(), tmp_path)
    assert len(bench.served) == 60
    assert result.trained_tokens == result.tokens


def test_checkpoints_are_written_every_so_many_minutes(tmp_path, monkeypatch):
    from flops_fit_core.training.checkpoints import Checkpoints

    steps = []
    write = Checkpoints.save_latest

    def save(self, parts, position):
        steps.append(position.step)
        write(self, parts, position)

    monkeypatch.setattr(Checkpoints, "save_latest", save)
    bench = Bench()
    experiment = bench.table(50, trainer={"checkpoint_minutes": 1e-9}, schedule=SCHEDULES["cosine"])
    (often,) = train(experiment, bench.registry(), tmp_path)
    assert steps == list(range(1, 51)), "after every step, and before the evaluation"
    (never,) = train(bench.table(50, schedule=SCHEDULES["cosine"]), Bench().registry())
    assert often.loss == never.loss
    assert steps[50:] == [50]


def test_a_damaged_checkpoint_is_not_used_and_the_log_says_so(tmp_path, caplog):
    bench = Bench()
    experiment = bench.table(40, schedule=SCHEDULES["cosine"])
    (uninterrupted,) = train(experiment, bench.registry())
    train(experiment, bench.registry(), tmp_path, should_stop=stopped_after(20))
    (file,) = tmp_path.glob("checkpoints/*/latest.pt")
    file.write_bytes(file.read_bytes()[:500])
    with caplog.at_level(logging.WARNING, "flops_fit"):
        (result,) = train(experiment, bench.registry(), tmp_path)
    assert result.loss == uninterrupted.loss
    assert "is damaged and is not used" in caplog.text


def test_a_checkpoint_that_holds_code_is_not_run(tmp_path, caplog):
    bench = Bench()
    experiment = bench.table(40, schedule=SCHEDULES["cosine"])
    train(experiment, bench.registry(), tmp_path, should_stop=stopped_after(20))
    (file,) = tmp_path.glob("checkpoints/*/latest.pt")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"format": 1, "model": Evil()}, file)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        (result,) = train(experiment, bench.registry(), tmp_path)
    assert result.status == "completed"
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_other_code_fails_the_run_and_says_what_to_delete(tmp_path):
    bench = Bench()
    experiment = bench.table(40, schedule=SCHEDULES["cosine"])
    train(experiment, bench.registry(), tmp_path, should_stop=stopped_after(20))

    def rename(model):
        model.renamed = torch.nn.Identity()
        model.register_buffer("extra", torch.zeros(1))

    bench.built.append(rename)
    (result,) = train(experiment, bench.registry(), tmp_path)
    assert result.status == "failed"
    assert result.error.type == "RunFailed"
    assert "extra" in result.error.message
    assert f"delete {next(tmp_path.glob('checkpoints/*'))}" in result.error.message


def test_a_writer_that_is_killed_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    bench = Bench()
    experiment = bench.table(40, schedule=SCHEDULES["cosine"])
    train(experiment, bench.registry(), tmp_path, should_stop=stopped_after(20))
    (file,) = tmp_path.glob("checkpoints/*/latest.pt")
    before = file.read_bytes()

    def die(content, stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, bench.registry(), tmp_path, should_stop=stopped_after(10))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["latest.pt"]


def test_every_generator_goes_on_where_it_was():
    import random

    import numpy as np

    from flops_fit_core.training.rng import random_state, seed_everything, set_random_state

    seed_everything(5)
    state = random_state("cpu")
    drawn = [torch.rand(3).tolist(), random.random(), np.random.standard_normal(3).tolist()]
    set_random_state(state, "cpu")
    assert drawn == [torch.rand(3).tolist(), random.random(), np.random.standard_normal(3).tolist()]


def test_a_model_that_draws_while_it_is_evaluated_does_not_disturb_its_training():
    def draw(model):
        def hook(module, inputs, output):
            if not module.training:
                torch.rand(7)

        model.register_forward_hook(hook)

    def losses(evaluations):
        bench = Bench()
        bench.built.append(draw)
        changes = {"trainer": {"num_evals": evaluations}, "model": {"name": "bench/net", "dropout": 0.3}}
        return train(bench.table(60, **changes), bench.registry())[0]

    assert losses(0).loss == losses(5).loss
    assert len(losses(5).curve) == 6


def test_a_trajectorys_folder_says_what_it_freed(tmp_path):
    folder = TrajectoryFolder(tmp_path, "abc")
    folder.path.mkdir(parents=True)
    folder.latest.write_bytes(b"x" * 10)
    folder.branch(7).write_bytes(b"x" * 5)
    assert list(folder.branches()) == [7]
    folder.forget_latest()
    assert list(folder.path.iterdir()) == [folder.branch(7)]
    assert folder.remove() == 5
    assert not folder.path.exists()


def test_a_plan_of_the_same_runs_finds_their_checkpoints(tmp_path):
    bench = Bench()
    plans = [make_plan(make_experiment(table(bench, "wsd"), bench.registry())) for _ in range(2)]
    assert [run.trajectory for run in plans[0].runs] == [run.trajectory for run in plans[1].runs]


def test_a_checkpoint_that_cannot_be_written_costs_a_warning_and_not_the_run(tmp_path, caplog):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    bench = Bench()
    with caplog.at_level(logging.WARNING, "flops_fit"):
        results = train(table(bench, "wsd"), bench.registry(), tmp_path)
    assert [result.status for result in results] == ["completed", "completed"]
    assert "could not be written" in caplog.text
