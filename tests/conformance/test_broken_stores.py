"""The conformance kit for stores finds those that break their contract."""

from __future__ import annotations

import pytest
from conftest import Failures

from flops_fit_core import RunResult
from flops_fit_core.testing import example_result

STORE = '''
import json
import pathlib
import time

from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore, StoreSpec, hookimpl
from flops_fit_core.testing import StoreConformance


def changed(result, **parse):
    return json.dumps(json.loads(result.model_dump_json(), **parse))


class Store(ResultStore):
    """All in one file, written anew at each change. For one process."""

    def __init__(self, folder):
        self.file = folder / "kept.json"
        self.kept, self.claims = json.loads(self.file.read_text()) if self.file.exists() else ([], {})

    def save(self):
        kept, claims = self.kept, self.claims
        SAVE
        self.file.write_text(json.dumps([kept, claims]))

    def add(self, result):
        CHECK
        entry = [result.id, result.attempt, RECORD]
        KEYS = [one[:2] for one in self.kept]
        ADD
        self.save()

    def read(self, entries):
        return [RunResult.model_validate_json(record) for _, _, record in entries]

    def all_attempts(self):
        return self.read(ALL)

    def attempts(self, run_id):
        return self.read(sorted((one for one in self.kept if one[0] == run_id), key=lambda one: ATTEMPTS))

    def get(self, run_id):
        found = self.attempts(run_id)
        return GET

    def results(self):
        ids = list(dict.fromkeys(run_id for run_id, _, _ in self.kept))
        return RESULTS

    def claim(self, run_id, owner, seconds):
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
            self.save()

    def close(self):
        pass


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
REPLACE_OR_APPEND = """if entry[:2] in KEYS:
            self.kept[KEYS.index(entry[:2])] = entry
        else:
            self.kept.append(entry)"""
SOUND = {
    "SAVE": "pass",
    "CHECK": "type(result).model_validate(result.model_dump())",
    "RECORD": "result.model_dump_json()",
    "ADD": REPLACE_OR_APPEND,
    "KEYS": "keys",
    "ALL": "self.kept",
    "ATTEMPTS": "one[1]",
    "GET": "found[-1] if found else None",
    "RESULTS": "[self.get(run_id) for run_id in ids]",
    "HELD": "held and held[0] != owner and held[1] > time.time()",
    "UNTIL": "time.time() + seconds",
    "RENEW": "pass",
    "RELEASE": "self.claims.get(run_id, [None])[0] == owner",
}
BROKEN = {
    "loses the last result when it is opened again": (
        {"SAVE": "kept = kept[:-1]"},
        "test_opening_again_finds_everything",
    ),
    "loses claims when it is opened again": ({"SAVE": "claims = {}"}, "test_opening_again_finds_everything"),
    "keeps the latest attempt only": (
        {"ADD": "self.kept = [one for one in self.kept if one[0] != result.id] + [entry]"},
        "test_every_attempt_is_kept_and_the_latest_counts",
    ),
    "lets an earlier attempt that comes later count": (
        {"ATTEMPTS": "0"},
        "test_every_attempt_is_kept_and_the_latest_counts",
    ),
    "does not replace an attempt": (
        {"ADD": "if entry[:2] not in KEYS: self.kept.append(entry)"},
        "test_adding_an_attempt_again_replaces_it",
    ),
    "keeps an attempt twice": ({"ADD": "self.kept.append(entry)"}, "test_adding_an_attempt_again_replaces_it"),
    "puts a run that is tried again last": (
        {"RESULTS": "[self.get(one) for one in dict.fromkeys(one[0] for one in self.kept[::-1])][::-1]"},
        "test_results_come_in_the_order_in_which_runs_were_first_added",
    ),
    "sorts attempts as text": ({"ATTEMPTS": "str(one[1])"}, "test_every_attempt_is_kept_and_the_latest_counts"),
    "goes by the clock of whoever trained": (
        {"RESULTS": "sorted((self.get(run_id) for run_id in ids), key=lambda one: str(one.finished))"},
        "test_results_come_in_the_order_in_which_runs_were_first_added",
    ),
    "has one file for all studies": (
        {'folder / "kept.json"': 'folder.parent / "kept.json"'},
        "test_two_studies_are_kept_apart",
    ),
    "forgets the time zone": (
        {"RECORD": "result.model_dump_json().replace('Z\"', '\"')"},
        "test_what_was_added_comes_back_equal",
    ),
    "sorts by id": (
        {"RESULTS": "[self.get(run_id) for run_id in sorted(ids)]"},
        "test_results_come_in_the_order_in_which_runs_were_first_added",
    ),
    "keeps six digits": (
        {"RECORD": "changed(result, parse_float=lambda text: f'{float(text):.6g}')"},
        "test_what_was_added_comes_back_equal",
    ),
    "keeps integers of 64 bits": (
        {"RECORD": "changed(result, parse_int=lambda text: min(int(text), 2**63))"},
        "test_awkward_values_come_back_equal",
    ),
    "drops the character 0": (
        {"RECORD": "result.model_dump_json().replace('\\\\u0000', '')"},
        "test_awkward_values_come_back_equal",
    ),
    "lets NaN in": ({"CHECK": "pass"}, "test_a_number_that_is_not_finite_does_not_get_in"),
    "keeps no failures": (
        {"ADD": f"if result.status == 'failed': return\n        {REPLACE_OR_APPEND}"},
        "test_every_status_can_be_kept",
    ),
    "does not know what to say of an unknown run": ({"GET": "found[-1]"}, "test_an_unknown_run_has_no_result"),
    "shares its memory with callers": (
        {"RESULTS": "self.__dict__.setdefault('given', [self.get(run_id) for run_id in ids])"},
        "test_what_a_caller_does_to_a_list_changes_nothing",
    ),
    "grants a claim twice": ({"HELD": "False"}, "test_a_claim_excludes_others"),
    "does not let a holder claim again": (
        {"HELD": "held and held[1] > time.time()"},
        "test_a_claim_excludes_others",
    ),
    "never lets go of a claim": ({"HELD": "held and held[0] != owner"}, "test_a_claim_ends_by_itself"),
    "renews from the old end": (
        {"UNTIL": "(held[1] if held and held[0] == owner else time.time()) + seconds"},
        "test_a_renewed_claim_lasts_longer",
    ),
    "renews what somebody else holds": ({"RENEW": "if held: return True"}, "test_only_the_holder_can_renew"),
    "renews what nobody holds": (
        {"RENEW": "if not held: return self.claim(run_id, owner, seconds)"},
        "test_only_the_holder_can_renew",
    ),
    "lets anybody release": ({"RELEASE": "True"}, "test_only_the_holder_can_release"),
    "releases nothing": ({"RELEASE": "False"}, "test_a_released_claim_can_be_taken"),
    "frees a run by its result": (
        {"CHECK": "type(result).model_validate(result.model_dump()); self.claims.pop(result.id, None)"},
        "test_claims_are_no_results",
    ),
}


def test_broken_stores_are_caught(failures: Failures) -> None:
    found = failures(STORE, SOUND, {"sound": {}, **{name: changes for name, (changes, _) in BROKEN.items()}})
    assert found.pop("sound") == set()
    assert {name: check for name, (_, check) in BROKEN.items() if check not in found[name]} == {}


# ---------------------------------------------------------------------------- the two methods

MINIMAL = '''
from flops_fit_core import RunResult
from flops_fit_core.plugins import ResultStore, StoreSpec, hookimpl
from flops_fit_core.testing import StoreConformance


class Store(BASE):
    """The two methods that a store has to have. One JSON line per call of add."""

    def __init__(self, folder):
        self.file = folder / "kept.jsonl"

    def add(self, result):
        RunResult.model_validate(result.model_dump())
        with self.file.open("a", encoding="utf-8") as file:
            file.write(result.model_dump_json() + "\\n")

    METHOD
        attempts = {}
        if self.file.exists():
            with self.file.open(encoding="utf-8") as file:
                for line in file:
                    result = RunResult.model_validate_json(line)
                    KEEP
        return RETURN
    REST


class Plugin:
    @hookimpl
    def flops_fit_stores(self):
        yield StoreSpec(name="minimal", build=lambda options, folder: Store(folder))


class TestMinimal(StoreConformance):
    name = "minimal"
    plugins = {"mine": Plugin()}
    shared = False
    moment = 0.02
'''
SOUND_MINIMAL = {
    "BASE": "ResultStore",
    "METHOD": "def all_attempts(self):",
    "KEEP": "attempts[result.id, result.attempt] = result",
    "RETURN": "attempts.values()",
    "REST": "",
}
ORDER = "test_all_attempts_come_in_the_order_in_which_they_were_added"
REPLACED = "test_a_replaced_attempt_appears_once_in_its_first_place"
BROKEN_MINIMAL = {
    "groups attempts by run": (
        {"RETURN": "sorted(attempts.values(), key=lambda one: [key[0] for key in attempts].index(one.id))"},
        {ORDER, REPLACED, "test_opening_again_finds_everything"},
    ),
    "orders attempts by number": (
        {"RETURN": "sorted(attempts.values(), key=lambda one: one.attempt)"},
        {ORDER, "test_opening_again_finds_everything"},
    ),
    "gives the newest first": ({"RETURN": "[*attempts.values()][::-1]"}, {ORDER, REPLACED}),
    "orders attempts by time": ({"RETURN": "sorted(attempts.values(), key=lambda one: one.finished)"}, {ORDER}),
    "moves a replaced attempt to the end": (
        {"KEEP": "attempts.pop((result.id, result.attempt), None); attempts[result.id, result.attempt] = result"},
        {REPLACED, "test_adding_an_attempt_again_replaces_it"},
    ),
    "keeps the first content of an attempt": (
        {"KEEP": "attempts.setdefault((result.id, result.attempt), result)"},
        {REPLACED, "test_adding_an_attempt_again_replaces_it"},
    ),
    "gives a replaced attempt twice": (
        {"KEEP": "attempts[len(attempts)] = result"},
        {REPLACED, "test_adding_an_attempt_again_replaces_it"},
    ),
    "gives the latest attempts only": (
        {"KEEP": "attempts[result.id] = result"},
        {ORDER, "test_every_attempt_is_kept_and_the_latest_counts"},
    ),
    "gives one iterator to every caller": (
        {"RETURN": "self.__dict__.setdefault('given', iter(attempts.values()))"},
        {ORDER},
    ),
    "has attempts of another order than all_attempts": (
        {"REST": "def attempts(self, run_id): return super().attempts(run_id)[::-1]"},
        {"test_methods_that_are_overridden_agree_with_all_attempts"},
    ),
    "has results of another order than all_attempts": (
        {"REST": "def results(self): return sorted(super().results(), key=lambda one: one.id)"},
        {"test_methods_that_are_overridden_agree_with_all_attempts"},
    ),
}


def test_a_store_of_two_methods_keeps_the_contract_and_broken_forms_of_it_are_caught(failures: Failures) -> None:
    changes = {name: change for name, (change, _) in BROKEN_MINIMAL.items()}
    broken = failures(MINIMAL, SOUND_MINIMAL, {"sound": {}, **changes})
    assert broken.pop("sound") == set()
    assert {name: checks - broken[name] for name, (_, checks) in BROKEN_MINIMAL.items()} == {
        name: set() for name in BROKEN_MINIMAL
    }


def test_a_store_without_the_base_class_or_without_all_attempts_fails_every_check(failures: Failures) -> None:
    broken = failures(
        MINIMAL, SOUND_MINIMAL, {"sound": {}, "duck": {"BASE": "object"}, "half": {"METHOD": "def every(self):"}}
    )
    assert broken["sound"] == set()
    for name in ("duck", "half"):
        assert {"test_a_new_store_is_empty", "test_a_claim_excludes_others", ORDER} <= broken[name]


# ---------------------------------------------------------------------------- between processes

BUFFERED = '''
import pickle

from flops_fit_core.plugins import ResultStore, StoreSpec, hookimpl


class Buffered(ResultStore):
    """Says that a result is safe while it is only in memory; claims are this process's own business."""

    def __init__(self, folder):
        self.path, self.kept = folder / "results.pickle", {}
        if self.path.exists():
            self.kept = pickle.loads(self.path.read_bytes())

    def add(self, result):
        type(result).model_validate(result.model_dump())
        self.kept[result.id, result.attempt] = result

    def all_attempts(self):
        return self.kept.values()

    def claim(self, run_id, owner, seconds):
        return super().claim(run_id, owner, seconds)  # so that the kit takes claims for shared

    def close(self):
        self.path.write_bytes(pickle.dumps(self.kept))


@hookimpl
def flops_fit_stores():
    yield StoreSpec(name="buffered", build=lambda options, folder: Buffered(folder))
'''

TRY = """
import broken

from flops_fit_core.testing import StoreConformance


class TestIt(StoreConformance):
    name = "buffered"
    plugins = {"broken": broken}
    kills = 1
"""


def test_the_kit_catches_a_store_that_keeps_its_promises_only_within_a_process(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(broken=BUFFERED, test_it=TRY)
    _, skipped, failed = pytester.inline_run("-p", "no:cacheprovider").listoutcomes()
    assert not skipped
    assert {report.nodeid.split("::")[-1].split("[")[0] for report in failed} == {
        "test_opening_again_finds_everything",
        "test_two_processes_never_hold_one_claim",
        "test_two_processes_adding_at_once_lose_nothing",
        "test_a_killed_process_loses_nothing_that_was_added",
    }


def test_what_the_kit_adds_is_a_valid_result() -> None:
    assert RunResult.model_validate_json(example_result().model_dump_json()) == example_result()
    assert {example_result(status=status).status for status in ("completed", "diverged", "failed")}
