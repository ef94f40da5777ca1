"""``fit --profile`` prints each interval when it is computed, and Ctrl-C keeps the earlier ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import made_up_fits

from flops_fit_core.cli.printing import interruption
from flops_fit_core.fitting import ParametricFitter, profile_intervals
from flops_fit_core.records import Interval

RUNS = made_up_fits.runs((1e18, 3e18, 1e19, 3e19), noise=0.004)


def test_an_interruption_leaves_the_intervals_computed_so_far() -> None:
    fit = ParametricFitter(draws=0).fit(RUNS)
    complete = profile_intervals(fit, RUNS)
    computed: dict[str, Interval] = {}

    def report(number: int, total: int, name: str, interval: Interval | None) -> None:
        assert total == len(complete)
        assert number == len(computed) + 1
        if interval is not None:
            computed[name] = interval
        elif number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_intervals(fit, RUNS, report=report)
    assert computed == dict(list(complete.items())[:2])


def test_fit_prints_the_profile_and_states_how_many_intervals_an_interruption_keeps(tmp_path: Path, call) -> None:
    table = tmp_path / "runs.json"
    rows = [{"params": r.params, "tokens": r.tokens, "flops": r.flops, "loss": r.loss} for r in RUNS]
    table.write_text(json.dumps(rows))
    status, output, _ = call("fit", table, "--fitter", "parametric", "--set", "draws=0", "--profile")
    assert status == 0
    lines = output.partition("By profile likelihood")[2].splitlines()[1:]
    assert [line.split(" = ")[0].strip() for line in lines][:4] == ["E", "alpha", "beta", "a"]
    assert interruption() == "stopped: 5 of 6 profile-likelihood intervals are printed. The fit is complete"
