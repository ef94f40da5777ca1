"""The conformance kit for stores detects stores that promise fencing and break the promise."""

from __future__ import annotations

import pytest
from conftest import Failures

STORE = '''
import secrets
import time

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore, StoreSpec, hookimpl, settle_result
from flops_fit_core.testing import StoreConformance


class Store(ResultStore):
    """Keeps results and claims in this object."""

    fenced = True
    shared_between_machines = False

    def __init__(self):
        self.records, self.held, self.tokens = {}, {}, set()

    def add(self, result, token=None):
        VALIDATE
        if token is None:
            self.records[result.id, result.attempt] = result
            return result
        attempts = self.attempts(result.id)
        holds_claim = HOLDS
        stored = settle_result(result, attempts, holds_claim=holds_claim)
        SETTLED
        if EQUAL:
            return stored
        self.records[stored.id, stored.attempt] = stored
        if ENDS:
            self.held.pop(stored.id, None)
        return RETURNED

    def all_attempts(self):
        return list(self.records.values())

    OVERRIDES

    CLAIMS


class Plugin:
    @hookimpl
    def flops_fit_stores(self):
        yield StoreSpec(name="broken", build=lambda options, folder: Store())


class TestBroken(StoreConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
    persistent = shared = False
    moment = 0.02
'''
CLAIMS = """def claim(self, run_id, owner, seconds):
        holder, _, end = self.held.get(run_id, (owner, "", 0.0))
        if holder != owner and time.monotonic() < end:
            return False
        token = TOKEN
        self.held[run_id] = owner, token, time.monotonic() + seconds
        self.tokens.add(token)
        return token

    def renew(self, run_id, owner, seconds):
        holder, token, _ = self.held.get(run_id, (None, "", 0.0))
        if holder == owner:
            self.held[run_id] = owner, token, time.monotonic() + seconds
        return holder == owner

    def release(self, run_id, owner):
        if self.held.get(run_id, [None])[0] == owner:
            del self.held[run_id]"""
SOUND = {
    "VALIDATE": "RunResult.model_validate(result.model_dump())",
    "HOLDS": "self.held.get(result.id, ['', ''])[1] == token",
    "SETTLED": "pass",
    "EQUAL": "stored in attempts",
    "ENDS": "stored.is_finished and not holds_claim and not stored.superseded",
    "RETURNED": "stored",
    "OVERRIDES": "",
    "CLAIMS": CLAIMS,
    "TOKEN": "secrets.token_hex(16)",
}
TOKENS = "test_every_claim_has_another_token"
STALE = "test_a_stale_result_replaces_nothing"
NEVER = "test_a_superseded_attempt_never_counts"
FIRST = "test_a_stale_result_counts_if_nothing_has_finished"
FAILURE = "test_a_stale_failure_ends_no_claim"
EARLIER = "test_a_token_of_an_earlier_claim_is_stale"
ONCE = "test_an_equal_result_is_stored_once"
HOLDER = "test_a_result_of_the_holder_counts_and_its_claim_stays"
BROKEN = {
    "replaces an attempt of the same number": ({"SETTLED": "stored = result"}, {STALE, FIRST, EARLIER}),
    "accepts every token": ({"HOLDS": "True"}, {STALE, NEVER, EARLIER}),
    "accepts every token that a claim ever had": ({"HOLDS": "token in self.tokens"}, {STALE, EARLIER}),
    "compares the token with the claims of all runs": (
        {"HOLDS": "token in [claim[1] for claim in self.held.values()]"},
        {EARLIER},
    ),
    "accepts no token": ({"HOLDS": "False"}, {HOLDER}),
    "supersedes every stale result": (
        {"SETTLED": "stored = stored.model_copy(update={'superseded': not holds_claim})"},
        {FIRST, FAILURE},
    ),
    "drops the number of a superseded attempt": (
        {"SETTLED": "stored = stored.model_copy(update={'attempt': result.attempt})"},
        {STALE},
    ),
    "drops superseded results": ({"EQUAL": "stored in attempts or stored.superseded"}, {STALE, NEVER}),
    "stores an equal result again": (
        {"EQUAL": "False", "SETTLED": "stored = stored.model_copy(update={'attempt': len(attempts) + 1})"},
        {ONCE},
    ),
    "leaves the claim of the other driver": ({"ENDS": "False"}, {FIRST}),
    "ends every claim": ({"ENDS": "True"}, {HOLDER, STALE}),
    "ends the claim of the other driver after a failure": (
        {"ENDS": "not holds_claim and not stored.superseded"},
        {FAILURE},
    ),
    "returns the result that it received": ({"RETURNED": "result"}, {STALE, FIRST}),
    "chooses the highest number": (
        {"OVERRIDES": "def get(self, run_id): return (self.attempts(run_id) or [None])[-1]"},
        {STALE, NEVER},
    ),
    "lists the highest numbers": (
        {"OVERRIDES": "def results(self): return list({one.id: one for one in self.records.values()}.values())"},
        {STALE, NEVER},
    ),
    "returns True for a claim": ({"TOKEN": "True"}, {TOKENS, HOLDER}),
    "uses the owner as token": ({"TOKEN": "owner"}, {TOKENS}),
    "counts the claims of the present": ({"TOKEN": "str(len(self.held))"}, {TOKENS}),
    "accepts NaN under a claim": (
        {"VALIDATE": "token or RunResult.model_validate(result.model_dump())"},
        {"test_a_fenced_store_refuses_a_number_that_is_not_finite"},
    ),
    "is shared between machines with the claims of the base class": (
        {"CLAIMS": "", "shared_between_machines = False": "shared_between_machines = True"},
        {"test_a_store_for_several_machines_has_shared_claims"},
    ),
    "overrides claim only": (
        {"CLAIMS": "def claim(self, run_id, owner, seconds): return super().claim(run_id, owner, seconds)"},
        {"test_a_store_for_several_machines_has_shared_claims"},
    ),
}
"""Name -> (changes of SOUND, checks that must fail)."""


@pytest.mark.slow
def test_stores_that_break_fencing_fail_the_kit_and_a_sound_store_passes(failures: Failures) -> None:
    failed = failures(STORE, SOUND, {"sound": {}, **{name: changes for name, (changes, _) in BROKEN.items()}})
    assert failed["sound"] == set()
    assert {name: checks - failed[name] for name, (_, checks) in BROKEN.items()} == {
        name: set() for name in BROKEN
    }


BETWEEN_PROCESSES = '''
import json
import secrets

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore, StoreSpec, hookimpl, settle_result


class Careless(ResultStore):
    """Reads the attempts when it opens and before a claim, but not in the transaction of add."""

    fenced = True

    def __init__(self, folder):
        self.path, self.claims = folder / "results.jsonl", folder / "claims.json"
        self.path.touch()
        self.read()

    def read(self):
        self.records = {}
        for line in self.path.read_text().splitlines():
            result = RunResult.model_validate_json(line)
            self.records[result.id, result.attempt] = result

    def add(self, result, token=None):
        attempts = [attempt for attempt in self.records.values() if attempt.id == result.id]
        stored = settle_result(result, attempts, holds_claim=token is None) if token else result
        with self.path.open("a") as file:
            file.write(stored.model_dump_json() + "\\n")
        self.records[stored.id, stored.attempt] = stored
        return stored

    def all_attempts(self):
        self.read()
        return list(self.records.values())

    def claim(self, run_id, owner, seconds):
        self.read()
        return secrets.token_hex(16)

    def renew(self, run_id, owner, seconds):
        return True

    def release(self, run_id, owner):
        pass


@hookimpl
def flops_fit_stores():
    yield StoreSpec(name="careless", build=lambda options, folder: Careless(folder))
'''
KIT = """
import careless

from flops_fit_core.testing import StoreConformance


class TestIt(StoreConformance):
    name = "careless"
    plugins = {"careless": careless}
    kills = 1
"""


def test_the_kit_detects_a_store_that_checks_tokens_outside_the_transaction(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(careless=BETWEEN_PROCESSES, test_it=KIT)
    name = "test_two_drivers_of_one_run_keep_the_first_finished_result"
    _, skipped, failed = pytester.inline_run("-p", "no:cacheprovider", "-k", name).listoutcomes()
    assert not skipped
    assert [report.nodeid.split("::")[-1] for report in failed] == [name]


def test_the_kit_reports_a_store_that_is_not_fenced(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        careless=BETWEEN_PROCESSES.replace("fenced = True", "fenced = False"),
        test_it=KIT.replace("kills = 1", "shared = False"),
    )
    _, skipped, failed = pytester.inline_run("-p", "no:cacheprovider", "-k", STALE).listoutcomes()
    assert not failed
    assert "not fenced: a driver that lost its claim may replace" in str(skipped[0].longrepr)
