"""Leases of runs, for stores in a file: the decision whether a lease has ended, without comparing two clocks.

On the holder's machine, the monotonic clock decides. Other machines observe: the holder increments a counter with
each renewal, and a lease has ended if the counter did not change for the duration of the lease by the observer's
monotonic clock. A clock that is set by hours therefore neither frees nor blocks a run. After a restart, a machine
is another machine.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from flops_fit_stores import lease_clock

UNKNOWN_SECONDS = 60.0
"""Assumed duration of a lease that an earlier version wrote, or that is unreadable."""


@dataclass(frozen=True)
class Lease:
    """The right of a driver to train a run."""

    owner: str
    token: str
    """Identifies this lease. It is random and never reused."""
    seconds: float
    beat: int
    """Number of renewals."""
    machine: str
    """Where ``end`` is valid: ``lease_clock.machine()`` of the holder."""
    end: float
    """End of the lease by the holder's ``lease_clock.now()``."""

    @classmethod
    def new(cls, owner: str, seconds: float) -> Lease:
        end = lease_clock.now() + seconds
        return cls(owner, secrets.token_hex(16), seconds, 0, lease_clock.machine(), end)

    @classmethod
    def unknown(cls, owner: str) -> Lease:
        """A lease without a known end: every process observes it."""
        return cls(owner, "", UNKNOWN_SECONDS, 0, "", 0.0)

    def renewed(self, seconds: float) -> Lease:
        """The lease with an end this many seconds from now."""
        end = lease_clock.now() + seconds
        return replace(self, seconds=seconds, beat=self.beat + 1, machine=lease_clock.machine(), end=end)


class LeaseObserver:
    """Decides whether leases have ended. Remembers when this process first saw the lease of another machine."""

    def __init__(self) -> None:
        self._first_seen: dict[str, tuple[str, int, float]] = {}

    def has_ended(self, run_id: str, lease: Lease) -> bool:
        """Whether another driver may take over the run."""
        now = lease_clock.now()
        if lease.machine == lease_clock.machine() and lease.end - now <= lease.seconds + 1:
            return lease.end <= now
        # Another machine, or an end further away than any holder sets: damage.
        token, beat, since = self._first_seen.get(run_id, ("", -1, now))
        if (token, beat) != (lease.token, lease.beat):
            since = now
            self._first_seen[run_id] = lease.token, lease.beat, since
        return now - since >= lease.seconds
