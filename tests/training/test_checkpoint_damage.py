"""A damaged checkpoint never restores another state: each flipped bit and each truncation is noticed."""

import logging
import random
import shutil
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from small import Bench, stopped_after, train

from flops_fit_core.training import TorchDistributedContext, TrajectoryFolder, verify_checkpoint
from flops_fit_core.training.checkpoints import Checkpoints, TrainPosition

RUN = SimpleNamespace(id="run", branch_step=None, steps=10)
POSITION = TrainPosition(step=5, run="run", first_loss=3.0, curve=[(2, 2.5)])


def parts():
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    return SimpleNamespace(model=model, optimizer=torch.optim.AdamW(model.parameters()))


def state(built):
    moments = [value for group in built.optimizer.state_dict()["state"].values() for value in group.values()]
    return [value.tolist() for value in (*built.model.state_dict().values(), *moments)]


@pytest.fixture
def saved(tmp_path):
    built = parts()
    for _ in range(3):
        built.model(torch.randn(4, 16)).sum().backward()
        built.optimizer.step()
    folder = TrajectoryFolder(tmp_path, "abc")
    Checkpoints(folder, "cpu", TorchDistributedContext()).save_latest(built, POSITION)
    return folder, state(built)


def restore(folder):
    built = parts()
    position = Checkpoints(folder, "cpu", TorchDistributedContext()).restore(RUN, built)
    return position, state(built)


def outcome(folder, expected):
    position, restored = restore(folder)
    if position.step == 0:
        return "not used"
    return "same" if (position, restored) == (POSITION, expected) else "ANOTHER STATE"


@pytest.mark.parametrize("flips", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_flipped_bit_or_a_truncation_restores_no_other_state(saved, flips, caplog):
    folder, expected = saved
    content = folder.latest.read_bytes()
    numbers, outcomes = random.Random(1), Counter()
    with caplog.at_level(logging.CRITICAL, "flops_fit"):
        for _ in range(flips):
            damaged = bytearray(content)
            damaged[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
            folder.latest.write_bytes(damaged)
            outcomes[outcome(folder, expected)] += 1
        for _ in range(flips // 5):
            folder.latest.write_bytes(content[: numbers.randrange(len(content))])
            outcomes[outcome(folder, expected)] += 1
    assert outcomes["ANOTHER STATE"] == 0
    assert outcomes["not used"] == flips + flips // 5, "the checksum also covers itself"


def test_an_intact_checkpoint_restores_its_state_and_ends_with_its_checksum(saved):
    folder, expected = saved
    assert restore(folder) == (POSITION, expected)
    assert verify_checkpoint(folder.latest) is None
    assert folder.latest.read_bytes()[-83:-65] == b"\nflops-fit sha256 "


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
            "does not match its checksum",
        ),
        (lambda content: content[:-90], "not a complete archive"),
        (lambda content: content[:-82], "the end of the file was cut off or changed"),
        (lambda content: b"", "it is empty"),
        (lambda content: b"\xff" * 100, "not a complete archive"),
    ],
)
def test_the_warning_names_the_file_and_the_reason(saved, damage, reason, caplog):
    folder, _ = saved
    folder.latest.write_bytes(damage(folder.latest.read_bytes()))
    assert reason in verify_checkpoint(folder.latest)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        assert restore(folder)[0].step == 0
    assert f"checkpoint {folder.latest} is damaged and is not used" in caplog.text
    assert reason in caplog.text


def test_a_checkpoint_of_an_earlier_version_has_no_checksum_and_is_used(saved):
    folder, expected = saved
    content = torch.load(folder.latest, weights_only=True)
    del content["flops-fit checksum"]
    torch.save(content, folder.latest)
    assert verify_checkpoint(folder.latest) is None
    assert restore(folder) == (POSITION, expected)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert verify_checkpoint(tmp_path / "missing.pt") == "No such file or directory"
    assert verify_checkpoint(tmp_path) == "Is a directory"


def test_a_damaged_branch_is_not_used_and_the_run_ends_with_the_same_loss(tmp_path, caplog):
    bench = Bench()
    one_step = bench.table(1)["sweep"]["budgets"][0]
    table = bench.table(sweep={"budgets": [one_step * 40, one_step * 90]}, schedule={"name": "wsd", "decay": 0.25})
    uninterrupted = train(table, bench.registry())
    first = train(table, bench.registry(), tmp_path, should_stop=stopped_after(50))
    (branch,) = tmp_path.glob("checkpoints/*/step-*.pt")
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    for file in branch.parent.glob("*.pt"):
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
    done = {result.id for result in first if hasattr(result, "loss")}
    with caplog.at_level(logging.WARNING, "flops_fit"):
        rest = train(table, bench.registry(), tmp_path, done=done)
    assert [result.loss for result in rest] == [result.loss for result in uninterrupted if result.id not in done]
    assert caplog.text.count("is damaged and is not used") == 2


def test_a_checkpoint_is_verified_without_torch(saved):
    folder, _ = saved
    code = (
        "import sys; from pathlib import Path; from flops_fit_core.training import verify_checkpoint; "
        f"assert verify_checkpoint(Path({str(folder.latest)!r})) is None; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
