"""Whether the trained sizes hold the optimum, whatever law was fitted."""

import numpy as np
import pytest

from flops_fit_core import FitError, Observation, fit, numbers
from flops_fit_core.fitting import (
    IsoflopFitter,
    ParametricFitter,
    check_grid,
    flag_outside,
    grid_edges,
    optimum,
    profile_minima,
    read_table,
)
from flops_fit_core.report import minima_table, predictions_table

BUDGETS = (1e18, 1e19, 1e20)


def loss(params, tokens):
    return 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28


def best(budget):
    """N at the minimum of this surface where C = 6 N D, by a scan."""
    sizes = np.exp(np.linspace(np.log(1e5), np.log(1e12), 400_001))
    return float(sizes[np.argmin(loss(sizes, budget / 6 / sizes))])


def study(factors, budgets=BUDGETS, named=True):
    """Runs of N = the budget's best N times each factor."""
    return [
        Observation(
            id=f"{budget:g} {factor:g}",
            params=best(budget) * factor,
            tokens=budget / 6 / best(budget) / factor,
            flops=budget,
            loss=loss(best(budget) * factor, budget / 6 / best(budget) / factor),
            budget=budget if named else None,
        )
        for budget in budgets
        for factor in factors
    ]


ABOVE, BELOW, AROUND = (4, 8, 16, 32), (1 / 32, 1 / 16, 1 / 8, 1 / 4), (1 / 4, 1 / 2, 1, 2, 4)


@pytest.mark.parametrize(
    ("factors", "side", "end", "step"), [(ABOVE, "below", 4, 1 / 2), (BELOW, "above", 1 / 4, 2)]
)
@pytest.mark.parametrize("named", [True, False])
def test_an_edge_is_reported_with_sizes_to_add_for_every_fitter(factors, side, end, step, named):
    law = fit(study(factors, named=named))
    edges = [diagnostic.message for diagnostic in law.diagnostics if diagnostic.code == "minimum-at-edge"]
    assert len(edges) == 3
    size, first, second = (numbers.count(best(1e19) * end * step**power) for power in range(3))
    assert f"add sizes {side} N = {size}, such as N = {first} and {second}" in edges[1]


def test_a_grid_around_the_optimum_has_no_warning():
    law = fit(study(AROUND))
    assert {"minimum-at-edge", "outside-sizes"}.isdisjoint(diagnostic.code for diagnostic in law.diagnostics)
    assert law.params_range == (best(1e18) / 4, best(1e20) * 4)
    assert optimum(law, 1e19).outside is None


def test_every_optimum_outside_the_trained_sizes_is_marked():
    law = fit(study(ABOVE, budgets=(1e18, 1.5e18, 2e18)))
    low = best(1e18) * 4
    (outside,) = [diagnostic.message for diagnostic in law.diagnostics if diagnostic.code == "outside-sizes"]
    assert outside.startswith(f"N_opt lies below the trained sizes, N = {numbers.count(low)} to ")
    assert "C = 1e18 (N_opt = " in outside
    answer = optimum(law, 1e18)
    assert answer.params.value == pytest.approx(best(1e18), rel=0.02)
    assert answer.outside == "below"
    assert "lies below the trained sizes" in answer.notes[-1]
    table = predictions_table(law, [answer, optimum(law, 1e24)])
    assert [row["outside_sizes"] for row in table.json()] == ["below", "above"]
    assert [cells[-1] for cells in table.cells()] == ["N below the trained sizes", "500,000x beyond your data"]
    assert outside in str(table)
    assert "C = 1e24: N_opt lies above the trained sizes" in str(table)


def test_a_fitter_that_reports_no_sizes_is_checked_too():
    class Plugin(ParametricFitter):
        def fit(self, observations):
            return super().fit(observations).model_copy(update={"params_range": None})

        def optimum(self, law, flops):
            return super().optimum(law, flops).model_copy(update={"outside": None, "notes": ()})

    runs = study(ABOVE)
    plain = Plugin().fit(runs)
    assert flag_outside(plain, Plugin().optimum(plain, 1e18)).outside is None
    law = check_grid(plain, Plugin(), runs)
    assert flag_outside(law, Plugin().optimum(law, 1e18)).outside == "below"
    assert "outside-sizes" in {diagnostic.code for diagnostic in law.diagnostics}


def test_minima_need_no_law_and_carry_their_diagnostics():
    runs = study(ABOVE, budgets=(1e19,))
    with pytest.raises(FitError):
        IsoflopFitter().fit(runs)
    minima, diagnostics = profile_minima(runs)
    assert [minimum.at_edge for minimum in minima] == [True]
    assert [diagnostic.code for diagnostic in diagnostics] == ["minimum-at-edge"]
    inside, nothing = profile_minima(study(AROUND))
    assert [minimum.params for minimum in inside] == pytest.approx([best(budget) for budget in BUDGETS], rel=0.1)
    assert nothing == []
    table = minima_table(IsoflopFitter().fit(study(AROUND)))
    assert [diagnostic.code for diagnostic in table.diagnostics] == ["loss-law"]
    assert "- L_opt(C)" in str(table)


def test_scattered_runs_have_no_edges():
    random = np.random.default_rng(0)
    runs = [
        Observation(id=str(k), params=n, tokens=d, flops=6 * n * d, loss=loss(n, d))
        for k, (n, d) in enumerate(np.exp(random.uniform(np.log([1e7, 1e9]), np.log([1e9, 1e11]), (40, 2))))
    ]
    assert grid_edges(runs) == []


def test_a_table_of_runs_is_checked(tmp_path):
    lines = [f"{run.params!r},{run.tokens!r},{run.flops!r},{run.loss!r}" for run in study(ABOVE)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["params,tokens,flops,loss", *lines]))
    assert len(read_table(path).observations) == 12
    assert [diagnostic.code for diagnostic in fit(path).diagnostics].count("minimum-at-edge") == 3
