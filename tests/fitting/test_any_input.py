"""Whatever a table holds, a fit is a sound record or a message: never a traceback, a NaN or an empty interval."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flops_fit_core import FitError, LawFit
from flops_fit_core.fitting import (
    AverageFitter,
    EnvelopeFitter,
    IsoflopFitter,
    LawFitter,
    ParametricFitter,
    fit_table,
    optimum,
    read_table,
)

FITTERS = {
    "isoflop": IsoflopFitter(draws=20),
    "cubic": IsoflopFitter(draws=20, shape="cubic"),
    "akima": IsoflopFitter(draws=20, shape="akima"),
    "parametric": ParametricFitter(draws=20),
    "huber": ParametricFitter(draws=20, objective="huber"),
    "envelope": EnvelopeFitter(draws=20),
    "average": AverageFitter(draws=20),
    "kaplan": LawFitter(law="kaplan", draws=20),
    "muennighoff": LawFitter(law="muennighoff", draws=20),
    "skaling without its prior": LawFitter(law="skaling", prior=False, draws=20),
}

NUMBERS = st.one_of(
    st.floats(1e3, 1e13).map(str),
    st.sampled_from(
        ["1e6", "3e6", "1e7", "1e8", "2e9", "1e30", "1e-30", "0", "-5", "nan", "inf", "", "three", "1e400"]
    ),
)
LOSSES = st.one_of(
    st.floats(1.5, 8).map(str),
    st.sampled_from(["3", "3.0", "2.5", "nan", "inf", "-1", "0", "1e30", "1e-30", "x", ""]),
)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, st.one_of(st.just(""), NUMBERS), LOSSES), max_size=30)
GRIDS = st.builds(
    lambda sizes, budgets, losses: [
        (str(n), str(c / 6 / n), str(c), str(losses[(i * 7 + j * 3) % len(losses)]))
        for i, c in enumerate(budgets)
        for j, n in enumerate(sizes)
    ],
    st.lists(st.floats(1e5, 1e9), min_size=1, max_size=7),
    st.lists(st.sampled_from([1e15, 1e16, 1e17, 1e18]), min_size=1, max_size=4),
    st.lists(st.floats(1.5, 8), min_size=1, max_size=11),
)
RELAXED = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", FITTERS)
@given(rows=st.one_of(ROWS, GRIDS))
@RELAXED
def test_no_table_ends_in_a_traceback_or_in_silent_nonsense(tmp_path, name, rows):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["params,tokens,flops,loss", *(",".join(row) for row in rows)]) + "\n")
    try:
        table = read_table(path)
    except FitError as error:  # units that cannot be right
        assert "--units" in str(error)
        return
    assert len(table.observations) + len(table.excluded) == len(rows) - sum(not any(row) for row in rows)
    try:
        fit = fit_table(FITTERS[name], table)
        prediction = optimum(fit, 1e20)
    except FitError as error:
        assert str(error)
        return
    assert LawFit.model_validate_json(fit.model_dump_json()) == fit
    numbers = [*fit.law.parameters.values(), fit.objective, *fit.flops_range]
    for interval in (prediction.params, prediction.tokens, prediction.loss, *fit.exponents.values()):
        numbers.append(interval.value)
        assert (interval.low is None) == (interval.high is None)
        if interval.low is not None:
            assert interval.low <= interval.value <= interval.high
    assert all(math.isfinite(number) for number in numbers)
    assert fit.n_runs + len(fit.excluded) == len(table.observations) + len(table.excluded)


@given(text=st.text(max_size=200))
@RELAXED
def test_no_file_ends_in_a_traceback(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    try:
        table = read_table(path)
    except FitError as error:
        assert str(path) in str(error)
    else:
        assert all(run.loss > 0 for run in table.observations)
