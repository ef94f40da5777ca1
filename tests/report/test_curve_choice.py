"""The choice of training curves for a figure."""

from flops_fit_core.report.curve_choice import choose_curves


def test_few_curves_are_all_shown():
    choice = choose_curves([(1e18, 3.0), (1e18, 2.9), (None, 4.0)])
    assert choice.shown == [0, 1, 2]
    assert choice.best == [1, 2]


def test_of_many_curves_each_budget_shows_its_best_its_worst_and_others_between():
    ends = [(budget, 3 + place / 100) for budget in (1e18, 1e19) for place in reversed(range(100))]
    choice = choose_curves(ends, most=10)
    assert [ends[place] for place in choice.best] == [(1e18, 3.0), (1e19, 3.0)]
    losses = sorted(round(100 * (ends[place][1] - 3)) for place in choice.shown if ends[place][0] == 1e18)
    assert losses == [0, 25, 50, 74, 99]
    assert len(choice.shown) == 10


def test_with_more_budgets_than_curves_the_best_of_some_budgets_are_shown():
    ends = [(float(budget), loss) for budget in range(1, 101) for loss in (3.0, 2.0)]
    choice = choose_curves(ends, most=5)
    assert choice.shown == choice.best
    assert [ends[place] for place in choice.shown] == [(budget, 2.0) for budget in (1.0, 26.0, 51.0, 75.0, 100.0)]
