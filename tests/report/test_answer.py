"""The answer of a fit in at most 16 lines, and its guard rails on extrapolation."""

from __future__ import annotations

from dataclasses import replace

import made_up_fits
import pytest

from flops_fit_core import Diagnostic, RunError, numbers
from flops_fit_core.report.answer import MAX_LINES, Answer, order_diagnostics, shorten, show_factor
from flops_fit_core.report.run_errors import LINE_LENGTH, group_errors
from flops_fit_core.report.tables import predictions_table, runs_table

BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20)
POINTERS = {"report": "runs/s/report/index.html", "next": "flops-fit predict runs/s", "explain": "--explain"}


def warning(code: str, message: str) -> Diagnostic:
    return Diagnostic(code=code, message=message)


def answer(**changes: object) -> Answer:
    fit = made_up_fits.law_fit()
    rows = tuple(made_up_fits.true_optimum(flops) for flops in (*BUDGETS, 1e21, 1e22))
    values = {"optimum": rows[-2], "rows": rows, "isoflop": fit, "pointers": POINTERS}
    return replace(Answer("study   21 of 21 runs", fit), **{**values, **changes})


def test_an_answer_has_at_most_16_lines_even_with_many_warnings_and_budgets() -> None:
    many = tuple(warning(f"code-{n}", f"problem {n} of the fit: look at the runs; " * 4) for n in range(9))
    lines = answer(diagnostics=many).lines(80)
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  ! ") for line in lines) == 2
    assert lines[-1].endswith("(7 more warnings)")
    assert any(line.split()[:2] == ["100x", "1e22"] for line in lines), "the largest budget stays"


def test_the_conventions_are_always_one_line() -> None:
    line = "  N matmul parameters, C 6 N D, D tokens, L nats/token, 90% intervals"
    assert line in answer().lines(80)
    assert line in answer(optimum=None, rows=()).lines(80)
    images = made_up_fits.law_fit(unit="images", flops_name="counted by model gpt/gpt", eval_set="poems")
    shown = str(answer(fit=images))
    assert "  N matmul parameters, C counted by gpt, D images, L on poems nats/image, 90% intervals\n" in shown
    traced = made_up_fits.law_fit(flops_name="matrix products, forward and backward, as torch counts them")
    assert "  N matmul parameters, C matrix products, D tokens, L nats/token, 90% intervals\n" in str(
        answer(fit=traced)
    )


def test_an_extrapolated_row_carries_its_factor_before_its_budget() -> None:
    rows = [line.split() for line in answer().lines() if "e2" in line or "e1" in line]
    rows = [row for row in rows if row[0].endswith(("x", "8", "9", "20"))]
    assert [row[:2] for row in rows if row[0].endswith("x")] == [["10x", "1e21"], ["100x", "1e22"]]
    assert all(not row[0].endswith("x") for row in rows if row[0] in ("1e18", "1e20"))


def test_output_without_a_width_has_a_line_per_statement() -> None:
    long = answer(further=("word " * 100,))
    assert f"  {'word ' * 100}" in long.lines()
    assert max(map(len, long.lines(60))) <= 60


def test_beyond_a_hundred_times_the_budget_numbers_have_one_digit_after_their_interval() -> None:
    far = made_up_fits.true_optimum(1e24, spread=4.0)
    shown = answer(optimum=far, rows=(far,), requested=True).lines()
    assert shown[1] == "  ! 10,000x beyond your data: orders of magnitude only"
    assert shown[2] == (
        "  For 1e24 FLOPs train 20B–400B (about 100B) parameters on 400B–7T (about 2T) tokens, 20 per parameter"
    )
    assert shown[3] == "  loss 1.9–2.0 (about 2.0)   90%"


def test_a_prediction_warns_before_its_number() -> None:
    for flops in (3e20, 1e24):
        optimum = made_up_fits.true_optimum(flops)
        lines = answer(optimum=optimum, rows=(optimum,), requested=True).lines()
        assert "beyond your data" in lines[1]
        assert "FLOPs train" in lines[2]
    inside = made_up_fits.true_optimum(1e19)
    assert "beyond" not in str(answer(optimum=inside, rows=(inside,), requested=True))
    small = made_up_fits.true_optimum(1e16)
    assert "1/100 of your smallest budget" in str(answer(optimum=small, rows=(small,), requested=True))


def test_a_table_marks_rows_far_beyond_the_runs() -> None:
    near, far = made_up_fits.true_optimum(1e21), made_up_fits.true_optimum(1e24, spread=4.0)
    table = predictions_table(made_up_fits.law_fit(), [near, far])
    headings = [column.heading for column in table.columns]
    assert headings == ["C", "90%", "N_opt", "90%", "D_opt", "D/N", "90%", "loss", ""]
    assert table.cells()[0][:3] == ["1e21", "2.32B–3.33B", "2.78B"]
    assert table.cells()[1][:3] == ["1e24", "20B–400B", "~100B"]
    assert table.cells()[1][-1] == "10,000x beyond your data"
    headings = [column.heading for column in predictions_table(made_up_fits.law_fit(), [near]).columns]
    assert headings[:3] == ["C", "N_opt", "90%"]


def test_the_most_important_warnings_come_first_and_once() -> None:
    note = Diagnostic(code="objective", message="least squares", severity="note")
    first = warning("disagreement", "the fits disagree")
    other = warning("mixed-seeds", "seeds differ")
    assert order_diagnostics([note, other], [first, other]) == (first, other, note)


@pytest.mark.parametrize(("value", "text"), [(0.034, "3.4%"), (0.5, "50%"), (1.0, "100%"), (369.664, "371 times")])
def test_an_excess_above_a_factor_of_two_is_a_factor(value: float, text: str) -> None:
    assert numbers.excess(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.25, "1.2x"), (10, "10x"), (2500, "2,500x"), (3e7, "3e7x")])
def test_a_factor_has_two_digits(value: float, text: str) -> None:
    assert show_factor(value) == text


def test_a_long_warning_is_cut_after_a_clause() -> None:
    text = "the law misses the losses near the optimum: the 60 runs nearest to it lie 0.1% above the law"
    assert shorten(text) == "the law misses the losses near the optimum"
    assert shorten("x" * 30 + " " + "y" * 60) == "x" * 30 + " ..."
    assert shorten("short: text") == "short: text"


def test_errors_of_runs_are_grouped_and_short() -> None:
    message = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which " * 9
    )
    failed = [
        made_up_fits.result(status="failed", loss=None, seed=seed, error=RunError(type="Error", message=text))
        for seed, text in enumerate([message, message, "another"])
    ]
    groups = group_errors([*failed, made_up_fits.result(seed=7)])
    assert [len(group.ids) for group in groups] == [2, 1]
    assert len(groups[0].line) <= LINE_LENGTH
    assert str(groups[0]) == f"2 runs failed: {groups[0].line} (first: {failed[0].id[:6]})"
    table = runs_table(failed)
    assert [item.message for item in table.diagnostics] == [str(group) for group in groups]
    assert table.json()[0]["error"].startswith("Error: CUDA out of memory")
    assert max(len(line) for line in str(table).splitlines()) <= 120
