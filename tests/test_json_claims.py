"""The file of claims of the ``json`` store."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from test_stores import open_store

from flops_fit_core.testing.examples import result_of
from flops_fit_stores import lease_clock
from flops_fit_stores.json_file import JsonStore
from flops_fit_stores.leases import UNKNOWN_SECONDS


def test_an_incomplete_claim_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    claims = tmp_path / "results.claims.jsonl"
    with closing(open_store("json", tmp_path)) as store:
        assert store.claim("run 1", "anna", 600)
        claims.write_bytes(claims.read_bytes() + b'{"run":"run 2","lease":{"owner":"anna","tok')
        assert store.claim("run 2", "bert", 600)
    with closing(open_store("json", tmp_path)) as store:
        assert not store.claim("run 1", "bert", 600)
        assert not store.claim("run 2", "anna", 600)
    assert len(claims.read_text().splitlines()) == 3


@pytest.mark.parametrize("rest", [b"", bytes(200), b"\xff\xff"])
def test_a_claim_that_a_power_failure_cut_off_blocks_no_other_run(rest: bytes, tmp_path: Path) -> None:
    claims = tmp_path / "results.claims.jsonl"
    with closing(open_store("json", tmp_path)) as store:
        assert store.claim("held", "anna", 600)
        before = len(claims.read_bytes())
        assert store.claim("torn", "anna", 600)
    content = claims.read_bytes()
    for length in (*range(before, len(content), 17), len(content) - 1):
        claims.write_bytes(content[:length] + rest)
        with closing(open_store("json", tmp_path)) as store:
            assert store.claim("torn", "bert", 600)
            assert not store.claim("held", "bert", 600)


def test_the_claims_file_is_compacted_after_many_releases(tmp_path: Path) -> None:
    with closing(open_store("json", tmp_path)) as store, closing(open_store("json", tmp_path)) as other:
        assert store.claim("held", "anna", 600)
        for number in range(1500):
            assert store.claim(f"run {number}", "anna", 600)
            store.release(f"run {number}", "anna")
        assert len((tmp_path / "results.claims.jsonl").read_text().splitlines()) < 1100
        assert not other.claim("held", "bert", 600)
        assert other.claim("run 3", "bert", 600)


def test_a_refused_claim_writes_nothing(tmp_path: Path) -> None:
    with closing(open_store("json", tmp_path)) as store:
        assert store.claim("run", "anna", 600)
        before = (tmp_path / "results.claims.jsonl").stat().st_mtime_ns
        assert not store.claim("run", "bert", 600)
        assert not store.renew("run", "bert", 600)
        store.release("run", "bert")
        assert (tmp_path / "results.claims.jsonl").stat().st_mtime_ns == before


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_the_header(path: Path) -> None:
    path.write_text(path.read_text().replace("flops-fit claims", "flops-fit blaims"))


def flip_a_claim(path: Path) -> None:
    path.write_text(path.read_text().replace('"run 2"', '"run 9"'))


def random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


@pytest.mark.parametrize("damage", [cut, flip_the_header, flip_a_claim, random_bytes])
def test_a_damaged_claims_file_is_rebuilt_after_the_duration_of_a_lease(
    damage: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    claims, now = tmp_path / "results.claims.jsonl", lease_clock.now()
    monkeypatch.setattr(lease_clock, "now", lambda: now)
    with closing(open_store("json", tmp_path)) as store, closing(open_store("json", tmp_path)) as other:
        for number in range(4):
            assert store.claim(f"run {number}", "anna", 600)
        if damage is cut:  # to another process, the file would look as it was before the last claims
            assert not other.claim("run 0", "bert", 600)
        damage(claims)
        content = claims.read_bytes()
        assert not other.claim("another run", "bert", 600)
        other.add(result_of(1))
        assert other.results() == [result_of(1)]
        now += UNKNOWN_SECONDS
        with caplog.at_level(logging.WARNING, "flops_fit"):
            assert other.claim("another run", "bert", 600)
        assert "results.claims.jsonl: damaged" in caplog.text
        assert claims.with_name("results.claims.jsonl.damaged").read_bytes() == content
        if damage is flip_a_claim:
            assert [store.renew(f"run {number}", "anna", 600) for number in range(4)] == [True, True, False, True]
        assert store.claim("third run", "anna", 600)


def test_no_flipped_bit_in_the_claims_grants_a_claim_twice_or_blocks_it_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "flops_fit")
    now = lease_clock.now()
    monkeypatch.setattr(lease_clock, "now", lambda: now)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    claims, generator = tmp_path / "results.claims.jsonl", random.Random(0)
    with closing(open_store("json", tmp_path)) as store:
        assert store.claim("run", "anna", 600)
        assert store.claim("ended", "anna", 1)
        assert store.claim("last", "anna", 1)
    content = claims.read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        claims.write_bytes(damaged)
        store = JsonStore(tmp_path / "results.json", 10)
        granted = store.claim("run", "bert", 600)
        # The flip of a newline at the end of the file looks like an incomplete line of a killed writer.
        assert not granted or not damaged.endswith(b"\n")
        now += UNKNOWN_SECONDS + 1
        assert store.claim("ended", "bert", 600)
        now += 600
        assert store.claim("run", "carl", 600)


def test_claims_of_the_first_version_are_observed_until_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = lease_clock.now()
    monkeypatch.setattr(lease_clock, "now", lambda: now)
    lines = [
        {"format": "flops-fit claims", "version": 1, "turn": 3},
        ["a", "anna", 9e9],
        ["b", "anna", 9e9],
        ["b", "anna", 0],
    ]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    (tmp_path / "results.claims.jsonl").write_text(text)
    with closing(open_store("json", tmp_path)) as store:
        assert not store.claim("a", "bert", 600)
        assert store.claim("b", "bert", 600)
        now += UNKNOWN_SECONDS
        assert store.claim("a", "bert", 600)
