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
View = Callable[[int], RunInfo]
LENGTHS = (1, 2, 7, 1000)


class ScheduleConformance(Kit):
    """What every schedule must do. Inherit, set ``name``, and run pytest.

    Attributes:
        tokens_per_step: Of the runs it is built for.
    """

    kind: ClassVar[str] = "schedule"
    tokens_per_step = 128

    @pytest.fixture
    def view(self) -> View:
        """``view(steps)``: a run of that many steps."""

        def view(steps: int) -> RunInfo:
            return RunInfo(
                steps=steps,
                tokens=steps * self.tokens_per_step,
                tokens_per_step=self.tokens_per_step,
                base_width=None,
                groups=lambda module: [],
                width_scaling="none",
            )

        return view

    @pytest.fixture
    def build(self, chosen: PluginConfig[Any], view: View) -> Build:
        """``build(steps)``: the schedule of a run of that many steps."""

        def build(steps: int) -> Schedule:
            schedule: Schedule = chosen.spec.build(chosen.options, view(steps))
            return schedule

        return build

    @pytest.mark.parametrize(("shorter", "longer"), [(2, 7), (7, 1000), (900, 1000)])
    def test_before_its_branch_a_run_does_as_every_longer_one(
        self, chosen: PluginConfig[Any], view: View, shorter: int, longer: int
    ) -> None:
        """Where the spec has ``branch``, runs of different D train these steps once, for all of them."""
        if chosen.spec.branch is None:
            return
        step = chosen.spec.branch(chosen.options, view(shorter))
        assert 1 <= step <= shorter, f"a run of {shorter} steps cannot branch off at step {step}"
        assert step <= chosen.spec.branch(chosen.options, view(longer)), "a longer run branches off earlier"
        short, long = (chosen.spec.build(chosen.options, view(steps)) for steps in (shorter, longer))
        wrong = {one: (short(one), long(one)) for one in range(step) if short(one) != long(one)}
        assert not wrong, f"before step {step}, runs of {shorter} and {longer} steps differ at {wrong}"

    @pytest.mark.parametrize("steps", LENGTHS)
    def test_it_is_a_share_of_the_peak_at_every_step(self, build: Build, steps: int) -> None:
        """From 0 to 1, for runs of every length: not a learning rate, nor above the peak."""
        schedule = build(steps)
        assert isinstance(first := schedule(0), Real), (
            f"{first!r} is no number that a learning rate is multiplied by"
        )
        values = _values(schedule, steps)
        wrong = {step: value for step, value in enumerate(values) if not 0 <= value <= 1 + 1e-9}
        assert not wrong, f"not between 0 and 1: {dict(list(wrong.items())[:5])} of {steps} steps"

    @pytest.mark.parametrize("steps", LENGTHS)
    def test_no_run_stands_still(self, build: Build, steps: int) -> None:
        """A run of one step learns too."""
        assert max(_values(build(steps), steps)) > 0, f"the learning rate is 0 at each of {steps} steps"

    def test_a_long_run_reaches_the_peak(self, build: Build) -> None:
        """To within a tenth; the peak is what the optimizer's ``lr`` says."""
        most = max(_values(build(1000), 1000))
        assert most > 0.9, (
            f"at most {most:.4g} of the peak: the optimizer's lr is the peak, this is its multiplier"
        )

    def test_it_depends_on_the_step_alone(self, build: Build) -> None:
        """A run that is resumed asks for the middle first; another process asks a new one."""
        expected = _values(build(50), 50)
        schedule = build(50)
        order = random.Random(0).sample(range(50), 50)
        asked = {step: float(schedule(step)) for step in order}
        assert asked == dict(enumerate(expected)), "asked in another order, it gives other values"
        again = [float(schedule(step)) for step in (49, 49, 0)]
        assert again == [expected[49], expected[49], expected[0]], "asked again, it gives other values"

    def test_two_runs_do_not_disturb_each_other(self, build: Build) -> None:
        """Schedules of two runs, asked in turn."""
        expected = _values(build(50), 50), _values(build(200), 200)
        short, long = build(50), build(200)
        asked = [(float(short(step)), float(long(step))) for step in range(50)]
        assert asked == list(zip(expected[0], expected[1][:50], strict=True)), (
            "built for two runs, one changes what the other gives: workers train one run after another"
        )


def _values(schedule: Schedule, steps: int) -> list[float]:
    return [float(schedule(step)) for step in range(steps)]
