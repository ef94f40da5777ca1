"""The conformance kit for stores detects stores that break their contract."""

from __future__ import annotations

import pytest
from conftest import Failures

from flops_fit_core import RunResult
from flops_fit_core.testing import example_result

STORE = '''
import json
import time

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore, StoreSpec, hookimpl
from flops_fit_core.testing import StoreConformance


def change_json(result, **options):
    return json.dumps(json.loads(result.model_dump_json(), **options))


class Store(BASE):
    """Keeps everything in one JSON file that each change writes again. For one process."""

    def __init__(self, folder):
        self.file = folder / "store.json"
        entries, self.claims = json.loads(self.file.read_text()) if self.file.exists() else ([], {})
        self.records = {tuple(key): record for key, record in entries}

    def save(self):
        entries, claims = list(self.records.items()), self.claims
        SAVE
        self.file.write_text(json.dumps([entries, claims]))

    def add(self, result):
        VALIDATE
        key, record = (result.id, result.attempt), RECORD
        ADD
        self.save()

    def all_attempts(self):
        attempts = [RunResult.model_validate_json(record) for record in self.records.values()]
        return ALL_ATTEMPTS

    OVERRIDES

    CLAIMS


class Plugin:
    @hookimpl
    def flops_fit_stores(self):
        yield StoreSpec(name="broken", build=lambda options, folder: Store(folder))


class TestBroken(StoreConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
    shared = False
    moment = 0.02
'''
CLAIMS = """def claim(self, run_id, owner, seconds):
        held = self.claims.get(run_id)
        if HELD:
            return False
        self.claims[run_id] = [owner, UNTIL]
        self.save()
        return True

    def renew(self, run_id, owner, seconds):
        held = self.claims.get(run_id)
        RENEW
        return held is not None and held[0] == owner and self.claim(run_id, owner, seconds)

    def release(self, run_id, owner):
        if RELEASE:
            self.claims.pop(run_id, None)
            self.save()"""
OVERRIDES = """def attempts(self, run_id):
        return super().attempts(run_id)

    def get(self, run_id):
        return super().get(run_id)

    def results(self):
        return super().results()"""
SOUND = {
    "BASE": "ResultStore",
    "SAVE": "pass",
    "VALIDATE": "RunResult.model_validate(result.model_dump())",
    "RECORD": "result.model_dump_json()",
    "ADD": "self.records[key] = record",
    "ALL_ATTEMPTS": "attempts",
    "OVERRIDES": "",
    "CLAIMS": CLAIMS,
    "HELD": "held and held[0] != owner and held[1] > time.time()",
    "UNTIL": "time.time() + seconds",
    "RENEW": "pass",
    "RELEASE": "self.claims.get(run_id, [None])[0] == owner",
}
SOUND_VARIANTS = {
    "sound": {},
    "sound, with only the two required methods": {"CLAIMS": ""},
    "sound, with every method overridden": {"OVERRIDES": OVERRIDES},
}

EVERY_ATTEMPT = "test_every_attempt_is_kept_and_the_latest_counts"
ORDER = "test_all_attempts_come_in_the_order_in_which_they_were_added"
ORDER_OF_RUNS = "test_results_come_in_the_order_in_which_runs_were_first_added"
REPLACED = "test_a_replaced_attempt_appears_once_in_its_first_place"
ADDED_TWICE = "test_adding_an_attempt_again_replaces_it"
REOPENED = "test_opening_again_finds_everything"
EQUAL = "test_what_was_added_comes_back_equal"
AWKWARD = "test_awkward_values_come_back_equal"
AGREE = "test_methods_that_are_overridden_agree_with_all_attempts"


def attempts(expression: str) -> dict[str, str]:
    return {"OVERRIDES": f"def attempts(self, run_id): return {expression}"}


def results(expression: str) -> dict[str, str]:
    return {"OVERRIDES": f"def results(self): return {expression}"}


BROKEN_RESULTS = {
    "loses the last result when it is reopened": ({"SAVE": "entries = entries[:-1]"}, {REOPENED}),
    "has one file for all studies": (
        {'folder / "store.json"': 'folder.parent / "store.json"'},
        {"test_two_studies_are_kept_apart"},
    ),
    "drops the time zone": ({"RECORD": "result.model_dump_json().replace('Z\"', '\"')"}, {EQUAL}),
    "keeps six digits": (
        {"RECORD": "change_json(result, parse_float=lambda text: f'{float(text):.6g}')"},
        {EQUAL},
    ),
    "keeps integers of 64 bits": (
        {"RECORD": "change_json(result, parse_int=lambda text: min(int(text), 2**63))"},
        {AWKWARD},
    ),
    "drops the character 0": ({"RECORD": "result.model_dump_json().replace('\\\\u0000', '')"}, {AWKWARD}),
    "accepts NaN": ({"VALIDATE": "pass"}, {"test_a_number_that_is_not_finite_does_not_get_in"}),
    "drops failed results": (
        {"ADD": "if result.status != 'failed': self.records[key] = record"},
        {"test_every_status_can_be_kept"},
    ),
    "raises for an unknown run": (
        {"OVERRIDES": "def get(self, run_id): return self.attempts(run_id)[-1]"},
        {"test_an_unknown_run_has_no_result"},
    ),
    "shares a list with its callers": (
        results("self.__dict__.setdefault('cached', super().results())"),
        {"test_what_a_caller_does_to_a_list_changes_nothing"},
    ),
    # Which attempts it keeps
    "keeps the latest attempt only": ({"ADD": "self.records[result.id,] = record"}, {EVERY_ATTEMPT, ORDER}),
    "keeps the first content of an attempt": (
        {"ADD": "self.records.setdefault(key, record)"},
        {REPLACED, ADDED_TWICE},
    ),
    "keeps a replaced attempt twice": (
        {"ADD": "self.records[*key, len(self.records)] = record"},
        {REPLACED, ADDED_TWICE},
    ),
    "moves a replaced attempt to the end": (
        {"ADD": "self.records.pop(key, None); self.records[key] = record"},
        {REPLACED, ADDED_TWICE},
    ),
    # The order of attempts
    "groups attempts by run": (
        {"ALL_ATTEMPTS": "sorted(attempts, key=lambda one: [key[0] for key in self.records].index(one.id))"},
        {ORDER, REPLACED, REOPENED},
    ),
    "sorts all attempts by number": (
        {"ALL_ATTEMPTS": "sorted(attempts, key=lambda attempt: attempt.attempt)"},
        {ORDER, REOPENED},
    ),
    "returns the newest attempt first": ({"ALL_ATTEMPTS": "attempts[::-1]"}, {ORDER, REPLACED}),
    "sorts all attempts by time": (
        {"ALL_ATTEMPTS": "sorted(attempts, key=lambda attempt: attempt.finished)"},
        {ORDER},
    ),
    "returns the same iterator to every caller": (
        {"ALL_ATTEMPTS": "self.__dict__.setdefault('cached', iter(attempts))"},
        {ORDER},
    ),
    "does not sort the attempts at a run": (
        attempts("[attempt for attempt in self.all_attempts() if attempt.id == run_id]"),
        {EVERY_ATTEMPT},
    ),
    "sorts the attempts at a run as text": (
        attempts("sorted(super().attempts(run_id), key=lambda attempt: str(attempt.attempt))"),
        {EVERY_ATTEMPT},
    ),
    "reverses the attempts at a run": (attempts("super().attempts(run_id)[::-1]"), {AGREE}),
    # The order of runs
    "moves a retried run to the end": (
        results("[self.get(id) for id in dict.fromkeys(key[0] for key in reversed(self.records))][::-1]"),
        {ORDER_OF_RUNS},
    ),
    "sorts runs by the clock of their workers": (
        results("sorted(super().results(), key=lambda result: str(result.finished))"),
        {ORDER_OF_RUNS},
    ),
    "sorts runs by id": (
        results("sorted(super().results(), key=lambda result: result.id)"),
        {ORDER_OF_RUNS, AGREE},
    ),
}
"""Name -> (changes of SOUND, checks that must fail)."""
BROKEN_CLAIMS = {
    "loses claims when it is reopened": ({"SAVE": "claims = {}"}, {REOPENED}),
    "grants a claim twice": ({"HELD": "False"}, {"test_a_claim_excludes_others"}),
    "does not let an owner claim again": (
        {"HELD": "held and held[1] > time.time()"},
        {"test_a_claim_excludes_others"},
    ),
    "never ends a claim": ({"HELD": "held and held[0] != owner"}, {"test_a_claim_ends_by_itself"}),
    "renews from the previous end": (
        {"UNTIL": "(held[1] if held and held[0] == owner else time.time()) + seconds"},
        {"test_a_renewed_claim_lasts_longer"},
    ),
    "renews a claim of another owner": ({"RENEW": "if held: return True"}, {"test_only_the_holder_can_renew"}),
    "renews a claim without an owner": (
        {"RENEW": "if not held: return self.claim(run_id, owner, seconds)"},
        {"test_only_the_holder_can_renew"},
    ),
    "releases a claim of another owner": ({"RELEASE": "True"}, {"test_only_the_holder_can_release"}),
    "releases nothing": ({"RELEASE": "False"}, {"test_a_released_claim_can_be_taken"}),
    "releases a claim when a result is added": (
        {"VALIDATE": "RunResult.model_validate(result.model_dump()); self.claims.pop(result.id, None)"},
        {"test_claims_are_no_results"},
    ),
}
BROKEN = {**BROKEN_RESULTS, **BROKEN_CLAIMS}


@pytest.mark.slow
def test_broken_stores_fail_the_kit_and_sound_stores_pass(failures: Failures) -> None:
    failed = failures(STORE, SOUND, {**SOUND_VARIANTS, **{name: changes for name, (changes, _) in BROKEN.items()}})
    assert {name: failed[name] for name in SOUND_VARIANTS} == {name: set() for name in SOUND_VARIANTS}
    assert {name: checks - failed[name] for name, (_, checks) in BROKEN.items()} == {
        name: set() for name in BROKEN
    }


def test_a_store_without_the_base_class_or_without_all_attempts_fails_every_check(failures: Failures) -> None:
    cases = {
        "no base class": {"CLAIMS": "", "BASE": "object"},
        "no all_attempts": {"CLAIMS": "", "def all_attempts": "def every_attempt"},
    }
    failed = failures(STORE, SOUND, cases)
    for name in cases:
        assert {"test_a_new_store_is_empty", "test_a_claim_excludes_others", ORDER} <= failed[name]


# ---------------------------------------------------------------------------- between processes

BUFFERED = '''
import pickle

from flops_fit_core.plugins import ResultStore, StoreSpec, hookimpl


class Buffered(ResultStore):
    """Keeps results in memory until it is closed, and claims in this process."""

    def __init__(self, folder):
        self.path, self.results_by_key = folder / "results.pickle", {}
        if self.path.exists():
            self.results_by_key = pickle.loads(self.path.read_bytes())

    def add(self, result):
        type(result).model_validate(result.model_dump())
        self.results_by_key[result.id, result.attempt] = result

    def all_attempts(self):
        return self.results_by_key.values()

    def claim(self, run_id, owner, seconds):
        return super().claim(run_id, owner, seconds)  # overridden, so that the kit expects shared claims

    def close(self):
        self.path.write_bytes(pickle.dumps(self.results_by_key))


@hookimpl
def flops_fit_stores():
    yield StoreSpec(name="buffered", build=lambda options, folder: Buffered(folder))
'''

KIT = """
import broken

from flops_fit_core.testing import StoreConformance


class TestIt(StoreConformance):
    name = "buffered"
    plugins = {"broken": broken}
    kills = 1
"""


def test_the_kit_detects_a_store_that_works_only_within_one_process(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(broken=BUFFERED, test_it=KIT)
    _, skipped, failed = pytester.inline_run("-p", "no:cacheprovider").listoutcomes()
    reasons = {str(report.longrepr).partition("Skipped: ")[2].split(":")[0] for report in skipped}
    assert reasons == {"not fenced", "this store has no check"}
    assert {report.nodeid.split("::")[-1].split("[")[0] for report in failed} == {
        "test_opening_again_finds_everything",
        "test_a_store_for_several_machines_has_shared_claims",
        "test_another_object_in_the_driver_renews_its_claim",
        "test_two_processes_never_hold_one_claim",
        "test_two_processes_adding_at_once_lose_nothing",
        "test_a_killed_process_loses_nothing_that_was_added",
    }


def test_the_results_that_the_kit_adds_are_valid() -> None:
    assert RunResult.model_validate_json(example_result().model_dump_json()) == example_result()
    assert {example_result(status=status).status for status in ("completed", "diverged", "failed")}
