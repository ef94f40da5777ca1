"""The conformance kit for learning-rate schedules.

::

    from flops_fit_core.testing import ScheduleConformance

    class TestMySchedule(ScheduleConformance):
        name = "mine"
"""

from __future__ import annotations

import random
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar

import pytest

from flops_fit_core.config import PluginConfig
from flops_fit_core.plugins.protocols import RunInfo, Schedule
from flops_fit_core.testing.kit import Kit

Build = Callable[[int], Schedule]
MakeRun = Callable[[int], RunInfo]
LENGTHS = (1, 2, 7, 1000)


class ScheduleConformance(Kit):
    """Tests for every schedule. Inherit, set ``name``, and run pytest.

    Attributes:
        tokens_per_step: Tokens per step of the runs.
    """

    kind: ClassVar[str] = "schedule"
    tokens_per_step = 128

    @pytest.fixture
    def make_run(self) -> MakeRun:
        """``make_run(steps)`` returns a run with this many steps."""

        def make_run(steps: int) -> RunInfo:
            return RunInfo(
                steps=steps,
                tokens=steps * self.tokens_per_step,
                tokens_per_step=self.tokens_per_step,
                base_width=None,
                groups=lambda module: [],
                width_scaling="none",
            )

        return make_run

    @pytest.fixture
    def build(self, chosen: PluginConfig[Any], make_run: MakeRun) -> Build:
        """``build(steps)`` returns the schedule of a run with this many steps."""

        def build(steps: int) -> Schedule:
            schedule: Schedule = chosen.spec.build(chosen.options, make_run(steps))
            return schedule

        return build

    @pytest.mark.parametrize(("shorter", "longer"), [(2, 7), (7, 1000), (900, 1000)])
    def test_before_its_branch_a_run_does_as_every_longer_one(
        self, chosen: PluginConfig[Any], make_run: MakeRun, shorter: int, longer: int
    ) -> None:
        """If the spec has ``branch``, runs with different D train these steps once."""
        if chosen.spec.branch is None:
            return
        branch = chosen.spec.branch(chosen.options, make_run(shorter))
        assert 1 <= branch <= shorter, f"a run of {shorter} steps cannot branch off at step {branch}"
        longer_branch = chosen.spec.branch(chosen.options, make_run(longer))
        assert branch <= longer_branch, "a longer run branches off earlier"
        short, long = (chosen.spec.build(chosen.options, make_run(steps)) for steps in (shorter, longer))
        wrong = {step: (short(step), long(step)) for step in range(branch) if short(step) != long(step)}
        assert not wrong, f"before step {branch}, runs of {shorter} and {longer} steps differ at {wrong}"

    @pytest.mark.parametrize("steps", LENGTHS)
    def test_it_is_a_share_of_the_peak_at_every_step(self, build: Build, steps: int) -> None:
        """From 0 to 1, for runs of every length. A schedule returns a multiplier, not a learning rate."""
        schedule = build(steps)
        assert isinstance(first := schedule(0), Real), f"{first!r} is not a number"
        values = _values(schedule, steps)
        wrong = {step: value for step, value in enumerate(values) if not 0 <= value <= 1 + 1e-9}
        assert not wrong, f"not between 0 and 1: {dict(list(wrong.items())[:5])} of {steps} steps"

    @pytest.mark.parametrize("steps", LENGTHS)
    def test_no_run_stands_still(self, build: Build, steps: int) -> None:
        """The learning rate is not zero at all steps, not even in a run with a single step."""
        assert max(_values(build(steps), steps)) > 0, f"the learning rate is 0 at each of {steps} steps"

    def test_a_long_run_reaches_the_peak(self, build: Build) -> None:
        """Within 10%. The optimizer's ``lr`` is the peak."""
        largest = max(_values(build(1000), 1000))
        assert largest > 0.9, (
            f"at most {largest:.4g} of the peak, which is the optimizer's lr: return a multiplier"
        )

    def test_it_depends_on_the_step_alone(self, build: Build) -> None:
        """Not on earlier calls: a resumed run starts in the middle, with a new schedule."""
        expected = _values(build(50), 50)
        schedule = build(50)
        order = random.Random(0).sample(range(50), 50)
        values = {step: float(schedule(step)) for step in order}
        assert values == dict(enumerate(expected)), "values depend on the order of the calls"
        repeated = [float(schedule(step)) for step in (49, 49, 0)]
        assert repeated == [expected[49], expected[49], expected[0]], "a repeated call returns another value"

    def test_two_runs_do_not_disturb_each_other(self, build: Build) -> None:
        """Alternating calls of the schedules of two runs."""
        expected = _values(build(50), 50), _values(build(200), 200)
        short, long = build(50), build(200)
        values = [(float(short(step)), float(long(step))) for step in range(50)]
        assert values == list(zip(expected[0], expected[1][:50], strict=True)), (
            "the schedules of two runs share state: a worker trains several runs"
        )


def _values(schedule: Schedule, steps: int) -> list[float]:
    return [float(schedule(step)) for step in range(steps)]
