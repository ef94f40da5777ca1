"""Every reader accepts an input or refuses it with a message. ``python tests/fuzz/run.py`` tries many more."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from mutations import mutate_bytes, mutate_json
from targets import Target, accepts_or_refuses, all_targets


@pytest.fixture(scope="module")
def targets():
    return all_targets()


def outcomes(target, inputs):
    """Of this many inputs, always the same: whether each is accepted, or the exception."""
    results = []

    @given(data=target.inputs)
    @settings(
        max_examples=inputs,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def read(data):
        try:
            results.append(accepts_or_refuses(target, data))
        except Exception as error:
            results.append(error)

    read()
    return results


def test_no_input_ends_in_another_exception_than_an_error_with_a_message(targets, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    crashes, never_accepted = [], []
    for target in targets:
        results = outcomes(target, max(15, round(60 * target.share)))
        crashes += [(target.name, result) for result in results if isinstance(result, Exception)]
        never_accepted += [] if True in results else [target.name]
    assert crashes == []
    assert never_accepted == []


def test_edits_follow_from_the_seed():
    data = json.dumps({"a": [1, 2, {"b": "text"}], "c": None}).encode()
    for mutate in (mutate_bytes, mutate_json):
        assert mutate(data, 7, 5) == mutate(data, 7, 5)
        assert len({mutate(data, seed, 5) for seed in range(20)}) > 10


def test_a_reader_that_raises_another_exception_is_a_crash(targets):
    target = Target("decode", targets[0].inputs, lambda data: data.decode())
    with pytest.raises(UnicodeDecodeError):
        accepts_or_refuses(target, b"\xff")
