"""The tests of claims and fencing in the conformance kit for result stores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest

from flops_fit_core.errors import StoreError
from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.testing.examples import result_of

OpenStore = Callable[[], ResultStore]


class ClaimConformance:
    """Tests of claims and fencing. A part of ``StoreConformance``, which has the fixtures."""

    persistent: bool
    shared: bool
    moment: float

    # ------------------------------------------------------------------ claims

    def test_a_claim_excludes_others(self, store: ResultStore) -> None:
        """For a single run. The owner may claim it again."""
        assert store.claim("run", "anna", 600)
        assert not store.claim("run", "bert", 600)
        assert store.claim("run", "anna", 600)
        assert not store.claim("run", "bert", 600)
        assert store.claim("another run", "bert", 600)

    def test_a_released_claim_can_be_taken(self, store: ResultStore) -> None:
        """A second release is not an error."""
        assert store.claim("run", "anna", 600)
        store.release("run", "anna")
        store.release("run", "anna")
        assert store.claim("run", "bert", 600)
        assert not store.claim("run", "anna", 600)

    def test_only_the_holder_can_release(self, store: ResultStore) -> None:
        """A release by another owner does nothing."""
        store.release("run", "bert")
        assert store.claim("run", "anna", 600)
        store.release("run", "bert")
        assert not store.claim("run", "bert", 600)

    def test_a_claim_ends_by_itself(self, store: ResultStore) -> None:
        """A killed driver blocks a run only until its claim ends."""
        assert store.claim("run", "anna", self.moment)
        time.sleep(2 * self.moment)
        assert store.claim("run", "bert", 600), f"still held after twice its {self.moment} seconds"
        assert not store.renew("run", "anna", 600)
        store.release("run", "anna")
        assert not store.claim("run", "anna", 600)

    def test_a_renewed_claim_lasts_longer(self, store: ResultStore) -> None:
        """From the time of the call, not from the end of the claim."""
        assert store.claim("run", "anna", 10 * self.moment)
        assert store.renew("run", "anna", 600)
        time.sleep(12 * self.moment)
        assert not store.claim("run", "bert", 600), "a renewed claim ended at its original time"
        assert store.renew("run", "anna", self.moment)
        time.sleep(2 * self.moment)
        assert store.claim("run", "bert", 600), "a claim renewed for a shorter time is still held after this time"

    def test_another_object_in_the_driver_renews_its_claim(self, open_store: OpenStore) -> None:
        """The driver renews claims in a thread, which opens the store again. Tokens stay valid."""
        if not (self.persistent and self.shared):
            pytest.skip("this store does not claim that several processes may share it")
        store, thread, other = open_store(), open_store(), open_store()
        result = result_of(1)
        token = store.claim(result.id, "anna", 10 * self.moment)
        assert thread.renew(result.id, "anna", 600)
        time.sleep(12 * self.moment)
        assert not other.claim(result.id, "bert", 600), "a claim renewed by another object ended at its first time"
        if store.fenced and isinstance(token, str):
            store.add(result)
            again = store.add(result_of(1, attempt=2), token)
            assert again is not None
            assert not again.superseded
        thread.release(result.id, "anna")
        assert other.claim(result.id, "bert", 600)

    def test_only_the_holder_can_renew(self, store: ResultStore) -> None:
        """Renewing a run that is unclaimed, or claimed by another owner, does not claim it."""
        assert not store.renew("run", "bert", 600)
        assert store.claim("run", "anna", 600)
        assert not store.renew("run", "bert", 600)
        assert store.renew("run", "anna", 600)
        store.release("run", "anna")
        assert not store.renew("run", "anna", 600)

    def test_claims_are_no_results(self, store: ResultStore) -> None:
        """A result neither requires nor ends a claim."""
        result = result_of(1)
        assert store.claim(result.id, "anna", 600)
        assert store.get(result.id) is None
        assert store.results() == []
        store.add(result)
        assert not store.claim(result.id, "bert", 600)

    def test_a_store_for_several_machines_has_shared_claims(self, store: ResultStore) -> None:
        """A store with ``shared_between_machines`` implements ``claim``, ``renew`` and ``release``."""
        inherited = [
            name
            for name in ("claim", "renew", "release")
            if getattr(type(store), name) is getattr(ResultStore, name)
        ]
        if store.shared_between_machines or store.shares_claims:
            assert inherited == []

    # ------------------------------------------------------------------ fencing

    @pytest.fixture
    def fenced(self, store: ResultStore) -> ResultStore:
        """The store, which checks the tokens of claims."""
        if not store.fenced:
            pytest.skip("not fenced: a driver that lost its claim may replace a result of another driver")
        return store

    def test_every_claim_has_another_token(self, fenced: ResultStore) -> None:
        """Also a repeated claim of the same owner, and a claim after a release."""
        tokens = [claim_token(fenced, "run", "anna"), claim_token(fenced, "run", "anna")]
        fenced.release("run", "anna")
        tokens += [claim_token(fenced, "run", "bert"), claim_token(fenced, "another run", "bert")]
        fenced.release("run", "bert")
        tokens.append(claim_token(fenced, "run", "anna"))
        assert len(set(tokens)) == len(tokens)
        assert fenced.claim("run", "bert", 600) is False

    def test_a_result_of_the_holder_counts_and_its_claim_stays(self, fenced: ResultStore) -> None:
        """Also as a further attempt at a finished run, after ``renew``."""
        first = result_of(1, loss=1.25)
        token = claim_token(fenced, first.id, "anna")
        assert fenced.add(first, token) == first
        assert fenced.renew(first.id, "anna", 600)
        again = result_of(1, attempt=2, loss=1.5)
        assert fenced.add(again, token) == again
        assert fenced.attempts(first.id) == [first, again]
        assert fenced.get(first.id) == again
        assert not fenced.claim(first.id, "bert", 600)

    def test_a_stale_result_replaces_nothing(self, fenced: ResultStore) -> None:
        """It is stored as a superseded attempt with another number. The claim of the other driver stays."""
        accepted, late = result_of(1, loss=1.25), result_of(1, loss=1.5)
        stale = claim_token(fenced, late.id, "anna", self.moment)
        time.sleep(2 * self.moment)
        fenced.add(accepted, claim_token(fenced, late.id, "bert"))
        stored = fenced.add(late, stale)
        assert stored == late.model_copy(update={"attempt": 2, "superseded": True})
        assert fenced.attempts(late.id) == [accepted, stored]
        assert list(fenced.all_attempts()) == [accepted, stored]
        assert fenced.get(late.id) == accepted
        assert fenced.results() == [accepted]
        assert fenced.renew(late.id, "bert", 600)

    def test_a_superseded_attempt_never_counts(self, fenced: ResultStore) -> None:
        """Whatever its number, whether it was added with a token, and also if no other attempt is stored."""
        accepted = result_of(1, loss=1.25)
        fenced.add(accepted)
        late = fenced.add(result_of(1, attempt=7, loss=1.5), "no token")
        assert late is not None
        assert late.superseded
        copied = result_of(2, superseded=True)
        fenced.add(copied)
        assert fenced.get(accepted.id) == accepted
        assert fenced.get(copied.id) is None
        assert fenced.results() == [accepted]
        assert fenced.attempts(copied.id) == [copied]
        assert list(fenced.all_attempts()) == [accepted, late, copied]

    @pytest.mark.parametrize("status", ["completed", "diverged"])
    def test_a_stale_result_counts_if_nothing_has_finished(self, fenced: ResultStore, status: str) -> None:
        """The other driver's claim ends, so that its next ``renew`` returns False. Its result is superseded."""
        late, second = result_of(1, status=status), result_of(1, loss=1.5)
        stale = claim_token(fenced, late.id, "anna", self.moment)
        fenced.add(result_of(1, status="failed"), stale)
        time.sleep(2 * self.moment)
        token = claim_token(fenced, late.id, "bert")
        stored = fenced.add(late, stale)
        assert stored == late.model_copy(update={"attempt": 2})
        assert fenced.get(late.id) == stored
        assert not fenced.renew(late.id, "bert", 600)
        last = fenced.add(second, token)
        assert last == second.model_copy(update={"attempt": 3, "superseded": True})
        assert fenced.get(late.id) == stored

    def test_a_stale_failure_ends_no_claim(self, fenced: ResultStore) -> None:
        """The other driver continues, and its result counts."""
        failed, result = result_of(1, status="failed"), result_of(1)
        stale = claim_token(fenced, failed.id, "anna", self.moment)
        time.sleep(2 * self.moment)
        token = claim_token(fenced, failed.id, "bert")
        assert fenced.add(failed, stale) == failed
        assert fenced.renew(failed.id, "bert", 600)
        stored = fenced.add(result, token)
        assert stored == result.model_copy(update={"attempt": 2})
        assert fenced.results() == [stored]

    def test_a_token_of_an_earlier_claim_is_stale(self, fenced: ResultStore) -> None:
        """Also of the same owner, after a release, and the token of another run."""
        accepted = result_of(1, loss=1.25)
        earlier = claim_token(fenced, accepted.id, "anna")
        token = claim_token(fenced, accepted.id, "anna")
        other = claim_token(fenced, result_of(2).id, "anna")
        fenced.add(accepted, token)
        fenced.release(accepted.id, "anna")
        for attempt, stale in enumerate((earlier, token, other, "no token"), 2):
            stored = fenced.add(result_of(1, attempt=attempt, loss=1.5 + attempt), stale)
            assert stored is not None
            assert stored.superseded
        assert fenced.results() == [accepted]

    def test_an_equal_result_is_stored_once(self, fenced: ResultStore) -> None:
        """A driver repeats ``add`` after a lost connection. Later attempts and claims change nothing."""
        result, late = result_of(1, loss=1.25), result_of(1, loss=1.5)
        token = claim_token(fenced, result.id, "anna")
        assert fenced.add(result, token) == fenced.add(result, token) == result
        fenced.release(result.id, "anna")
        assert fenced.add(result, token) == result
        superseded = fenced.add(late, token)
        claim_token(fenced, result.id, "bert")
        assert fenced.add(late, token) == superseded
        assert fenced.add(result, token) == result
        assert fenced.attempts(result.id) == [result, superseded]

    def test_a_fenced_store_refuses_a_number_that_is_not_finite(self, fenced: ResultStore) -> None:
        """Under a claim, too."""
        invalid = result_of(1).model_copy(update={"loss": math.nan})
        token = claim_token(fenced, invalid.id, "anna")
        with pytest.raises((ValueError, StoreError)):
            fenced.add(invalid, token)
        assert fenced.attempts(invalid.id) == []


def claim_token(store: ResultStore, run_id: str, owner: str, seconds: float = 600) -> str:
    """The token of a new claim."""
    token = store.claim(run_id, owner, seconds)
    assert isinstance(token, str), f"claim returned {token!r}; a fenced store returns a token, as text"
    return token
