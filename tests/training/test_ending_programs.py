"""The trainer ``command`` ends programs, and all that they have started."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from own_programs import alive, say, script, table, wait_for
from small import events, train

from flops_fit_trainers.program import Program

STUBBORN = """
def note(number, frame):
    pathlib.Path(os.environ['FLOPS_FIT_CHECKPOINT'], 'saved').write_text('at step 7')
    if len(sys.argv) < 2:
        sys.exit(0)
signal.signal(signal.SIGTERM, note)
child = os.fork() if hasattr(os, 'fork') else 0
pathlib.Path(os.environ['FLOPS_FIT_CHECKPOINT'], f'pid-{os.getpid()}').touch()
while True:
    time.sleep(0.05)
"""


def pids(study: Path) -> list[int]:
    return [int(file.name.partition("-")[2]) for file in study.glob("checkpoints/*/pid-*")]


def test_a_program_that_is_stopped_gets_sigterm_and_finds_its_checkpoint_again(tmp_path):
    study = tmp_path / "study"
    saved = (
        "saved = pathlib.Path(os.environ['FLOPS_FIT_CHECKPOINT'], 'saved')\nif saved.exists():\n    "
        + say(loss=1.5, metrics={"resumed": 1}).replace("\n", "\n    ")
        + "\n    sys.exit()\n"
    )
    its = table(script(tmp_path, saved + STUBBORN), tmp_path)
    assert events(its, folder=study, should_stop=lambda: len(pids(study)) == 2) == []
    assert not any(alive(pid) for pid in pids(study))
    (result,) = train(its, folder=study)
    assert result.metrics == {"resumed": 1}


def test_one_that_does_not_listen_is_killed_with_all_that_it_started(tmp_path):
    study = tmp_path / "study"
    its = table(script(tmp_path, STUBBORN) + " on", tmp_path, trainer={"grace_period": 0.3})
    assert events(its, folder=study, should_stop=lambda: len(pids(study)) == 2) == []
    assert len(pids(study)) == 2
    assert not any(alive(pid) for pid in pids(study))


def test_a_run_that_takes_too_long_has_failed(tmp_path):
    trainer = {"timeout_minutes": 0.02, "grace_period": 0.2}
    (result,) = train(table(script(tmp_path, STUBBORN), tmp_path, trainer=trainer), folder=tmp_path / "study")
    assert "took longer than trainer.timeout_minutes = 0.02" in result.error.message
    assert not any(alive(pid) for pid in pids(tmp_path / "study"))


def test_what_a_program_leaves_behind_is_ended_with_it(tmp_path):
    text = """
import subprocess
child = subprocess.Popen(['sleep', '600'])
pathlib.Path('pid').write_text(str(child.pid))
"""
    (result,) = train(table(script(tmp_path, text + say(loss=1.5)), tmp_path))
    assert result.loss == 1.5
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())), 5)


def test_no_program_outlives_a_driver_that_was_killed(tmp_path):
    its = table(script(tmp_path, STUBBORN), tmp_path, executor={"name": "processes", "workers": 1})
    (tmp_path / "own.json").write_text(json.dumps(its))
    command = [
        sys.executable,
        "-c",
        "from flops_fit_core.cli import main; main()",
        "run",
        "own.json",
        "--out",
        "study",
    ]
    driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        found = wait_for(lambda: pids(tmp_path / "study") if len(pids(tmp_path / "study")) == 2 else None, 60)
        assert all(alive(pid) for pid in found)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_for(lambda: not any(alive(pid) for pid in found))


SAVES = """
def save(number, frame):
    time.sleep(0.5)
    pathlib.Path(os.environ['FLOPS_FIT_CHECKPOINT'], 'saved').write_text('at step 7')
    sys.exit()
signal.signal(signal.SIGTERM, save)
pathlib.Path(os.environ['FLOPS_FIT_CHECKPOINT'], f'pid-{os.getpid()}').touch()
time.sleep(60)
"""


def test_a_program_in_a_shell_script_has_its_grace_though_the_shell_ends_at_once(tmp_path):
    study = tmp_path / "study"
    script(tmp_path, SAVES)
    (tmp_path / "train.sh").write_text("$FLOPS_FIT_PYTHON program.py\necho done\n")
    assert events(table("sh train.sh", tmp_path), folder=study, should_stop=lambda: pids(study) != []) == []
    assert [file.read_text() for file in study.glob("checkpoints/*/saved")] == ["at step 7"]


def test_workers_in_sessions_of_their_own_are_killed_with_it(tmp_path):
    """As those of torchrun are, which are not in its group."""
    study = tmp_path / "study"
    text = """
import subprocess
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, 'worker'], start_new_session=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(os.environ['FLOPS_FIT_CHECKPOINT'], f'pid-{os.getpid()}').touch()
time.sleep(60)
"""
    its = table(script(tmp_path, text), tmp_path, trainer={"grace_period": 0.3})
    assert events(its, folder=study, should_stop=lambda: pids(study) != []) == []
    assert not any(alive(pid) for pid in pids(study))


def test_a_program_waits_for_that_of_an_earlier_attempt_which_still_saves(tmp_path):
    def start(name: str, seconds: float) -> Program:
        code = f"""
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep({seconds})
    pathlib.Path('{name}-saved').write_text(str(time.time()))
    sys.exit()
signal.signal(signal.SIGTERM, save)
pathlib.Path('{name}-started').write_text(str(time.time()))
time.sleep({60 if seconds else 0})
"""
        command = [sys.executable, "-c", code]
        return Program(command, env={}, directory=tmp_path, log=tmp_path / "log.txt", grace_period=20.0)

    def when(what: str) -> float:
        return float((tmp_path / what).read_text())

    first = start("first", seconds=1.0)
    wait_for((tmp_path / "first-started").exists)
    first._supervisor.stdin.close()  # as when the process that has started it is killed
    with start("second", seconds=0) as second:
        assert wait_for(lambda: second.wait(0.1) is not None)
    assert when("second-started") > when("first-saved")
    assert "waiting for the program of an earlier attempt" in (tmp_path / "log.txt").read_text()
    first.stop()
