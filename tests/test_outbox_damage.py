"""Damaged files of the outbox and of queued jobs are named, skipped and kept, and block no command."""

import json
import logging
import random

import pytest
from sweep_setting import Setting

from flops_fit_core import RunResult
from flops_fit_core.plugins import Outbox, QueuedJobs
from flops_fit_core.testing import example_result

BYTES = [b"\xff\xfe\x00", b"", b"{", b"null", b"[" * 100_000, b'{"a": ' * 100_000, b'{"token": null}']


@pytest.mark.parametrize("content", BYTES)
def test_a_damaged_file_in_the_outbox_is_named_once_skipped_and_kept(tmp_path, content, caplog):
    setting = Setting(tmp_path, sizes=(4,))
    outbox = Outbox(tmp_path)
    outbox.path.mkdir()
    run = setting.plan.runs[0]
    file = outbox.path / f"{run.id}.abc.json"
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        (result,) = setting.driver(setting.store(), folder=tmp_path).run()
    assert result.status == "completed"
    assert caplog.text.count(f"{file} is damaged") == 1
    assert "its run is trained again; you can delete the file" in caplog.text
    assert file.read_bytes() == content
    assert (len(outbox), outbox.results(), outbox.get(run.id)) == (0, [], None)
    (entry,) = outbox.entries()
    assert entry.file == file
    assert str(file) in entry.damage


def test_no_flipped_bit_of_a_result_in_the_outbox_is_used(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL, "flops_fit")
    result = example_result()
    Outbox(tmp_path).put(result, "token")
    (file,) = Outbox(tmp_path).path.iterdir()
    content, numbers = file.read_bytes(), random.Random(1)
    for _ in range(1000):
        damaged = bytearray(content)
        damaged[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
        file.write_bytes(damaged)
        (entry,) = Outbox(tmp_path).entries()
        assert entry.result in (None, result)
        assert entry.result is None or entry.token == "token"
    for _ in range(200):
        file.write_bytes(content[: numbers.randrange(len(content) - 2)])
        assert Outbox(tmp_path).results() == []


def test_a_result_that_an_earlier_version_wrote_is_read(tmp_path):
    result = example_result()
    outbox = Outbox(tmp_path)
    outbox.path.mkdir()
    (outbox.path / f"{result.id}.json").write_text(result.model_dump_json())
    assert outbox.results() == [result]
    assert outbox.entries()[0].token is None
    outbox.remove_result(result)
    assert outbox.entries() == []


def job(folder):
    setting = Setting(folder, sizes=(4,))
    (job,) = setting.plan.jobs({run.id for run in setting.plan.runs}, {})
    return job


@pytest.mark.parametrize("content", BYTES)
@pytest.mark.parametrize("suffix", [".json", ".state.json"])
def test_a_damaged_file_of_a_queued_job_is_named_once_and_counts_as_missing(tmp_path, content, suffix, caplog):
    jobs, queued = QueuedJobs(tmp_path), None
    queued = jobs.add(job(tmp_path), "{}")
    state = jobs.state(queued)
    state.done = ["a run"]
    jobs.write_state(queued, state)
    file = jobs.path / f"{queued.job.id}{suffix}"
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        for _ in range(2):
            assert len(jobs.all()) == (suffix == ".state.json")
            assert jobs.state(queued).done == ([] if suffix == ".state.json" else ["a run"])
    assert caplog.text.count(f"{file} is damaged") == 1
    assert file.exists()


def test_a_changed_digit_in_a_queued_job_is_not_trained(tmp_path):
    jobs = QueuedJobs(tmp_path)
    queued = jobs.add(job(tmp_path), "{}")
    file = jobs.path / f"{queued.job.id}.json"
    values = json.loads(file.read_text())
    values["job"]["trajectories"][0]["runs"][0]["seed"] += 1
    file.write_text(json.dumps(values, indent=1))
    assert jobs.get(queued.job.id) is None


def test_a_failed_result_in_the_outbox_is_collected_like_any_other(tmp_path):
    setting = Setting(tmp_path, sizes=(4,))
    run = setting.plan.runs[0]
    Outbox(tmp_path).put(RunResult(run=run, status="failed"), "token")
    store = setting.store()
    setting.driver(store, folder=tmp_path).run()
    assert [attempt.status for attempt in store.attempts(run.id)] == ["failed", "completed"]
