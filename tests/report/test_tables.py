"""Tables for people and for programs."""

import csv
import io
import json

import made_up_fits
import pytest
from rich.console import Console

from flops_fit_core import RunError
from flops_fit_core.report import (
    exponents_line,
    minima_table,
    plan_table,
    predictions_table,
    runs_table,
    skipped_table,
)


def printed(table, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table.rich())
    return console.file.getvalue()


def read(table):
    return list(csv.DictReader(io.StringIO(table.csv())))


def test_a_table_of_minima_flags_a_minimum_at_the_edge():
    minima = (made_up_fits.minimum(1e18, at_edge=True), made_up_fits.minimum(1e19))
    table = minima_table(made_up_fits.law_fit(minima=minima))
    assert [cells[-1] for cells in table.cells()] == ["at the grid's edge", ""]
    assert [row["at_edge"] for row in read(table)] == ["true", "false"]
    assert "does not use it" in table.caption
    without = minima_table(made_up_fits.law_fit())
    assert "does not use it" not in without.caption
    assert "" not in [column.heading for column in without.columns]


def test_a_profile_that_does_not_curve_has_no_minimum_rather_than_one_at_the_edge():
    flat = made_up_fits.minimum(1e18, at_edge=True)
    flat = flat.model_copy(update={"curve": {**flat.curve, "c2": -0.1}})
    assert minima_table(made_up_fits.law_fit(minima=(flat,))).cells()[0][-1] == "no minimum"


def test_tokens_per_parameter_of_a_minimum_are_its_d_over_its_n():
    row = minima_table(made_up_fits.law_fit()).json()[1]
    params = made_up_fits.best_params(1e19)
    assert row["tokens_per_param"] == pytest.approx(1e19 / 6 / params**2)
    assert row["params"] == pytest.approx(params)


def test_predictions_keep_both_ends_of_every_interval_and_the_notes():
    optimum = made_up_fits.true_optimum(1e21).model_copy(update={"notes": ("10 times beyond.",)})
    (row,) = read(predictions_table(made_up_fits.law_fit(), [optimum]))
    params = made_up_fits.best_params(1e21)
    assert float(row["params_low"]) == pytest.approx(params / 1.2)
    assert float(row["params_high"]) == pytest.approx(params * 1.2)
    assert float(row["tokens"]) == pytest.approx(1e21 / 6 / params)
    assert row["notes"] == "10 times beyond."


def test_a_prediction_without_interval_has_empty_fields_and_no_column_for_it():
    optimum = made_up_fits.true_optimum(1e21)
    bare = optimum.params.model_copy(update={"low": None, "high": None})
    without = optimum.model_copy(update={"params": bare})
    table = predictions_table(made_up_fits.law_fit(), [without])
    assert [column.heading for column in table.columns].count("90%") == 2
    assert read(table)[0]["params_low"] == ""
    assert table.json()[0]["params_low"] is None
    assert predictions_table(made_up_fits.law_fit(), [optimum, without]).cells()[1][2] == "–"


@pytest.mark.parametrize("name", ["minima", "predictions", "plan", "runs"])
def test_every_table_states_n_c_and_d(name):
    results = [made_up_fits.result()]
    fit = made_up_fits.law_fit(unit="samples")
    table = {
        "minima": minima_table(fit),
        "predictions": predictions_table(fit, [made_up_fits.true_optimum(1e21)]),
        "plan": plan_table(made_up_fits.plan(results, unit="samples")),
        "runs": runs_table(results, made_up_fits.plan(results, unit="samples")),
    }[name]
    assert table.caption.startswith("N: matmul parameters. C: training FLOPs, 6 N D. D: samples.")
    assert "nats per sample." in table.caption


def test_a_narrow_terminal_cuts_no_number():
    predictions = predictions_table(made_up_fits.law_fit(), [made_up_fits.true_optimum(c) for c in (1e18, 2.5e21)])
    plan = made_up_fits.plan([made_up_fits.result(params=123_456, tokens=1_234_560)])
    for table in (predictions, minima_table(made_up_fits.law_fit()), plan_table(plan)):
        words = printed(table).split()
        missing = [
            cell for cells in table.cells() for cell in cells if cell.split()[:1] and cell.split()[0] not in words
        ]
        assert not missing


def test_a_table_of_runs_begins_with_the_columns_that_a_fit_reads():
    table = runs_table([made_up_fits.result(bits_per_byte=1.5)])
    assert table.csv().splitlines()[0].startswith("id,status,params,tokens,flops,loss,seed,")
    (row,) = read(table)
    assert (row["params"], row["tokens"], row["loss"], row["status"]) == ("1000", "2000", "3.0", "completed")
    assert float(row["flops"]) == 6 * 1000 * 2000
    assert row["bits_per_byte"] == "1.5"


def test_a_failed_run_shows_its_error_and_has_no_loss():
    error = RunError(type="OutOfMemoryError", message="tried to allocate [red]2 GiB[/red]")
    failed = made_up_fits.result(status="failed", loss=None, seen=0, flops=0.0, error=error)
    table = runs_table([failed])
    assert read(table)[0]["loss"] == ""
    assert "[red]2 GiB[/red]" in str(table), "what looks like markup is text"
    assert "error" not in " ".join(column.heading for column in runs_table([made_up_fits.result()]).columns)


def test_seeds_are_shown_where_there_are_several():
    once, twice = [made_up_fits.result()], [made_up_fits.result(), made_up_fits.result(seed=1)]
    assert "seed" not in [column.heading for column in runs_table(once).columns]
    assert "seed" in [column.heading for column in runs_table(twice).columns]
    assert runs_table(once).json()[0]["seed"] == 0


def test_a_narrow_terminal_shows_whole_ids():
    table = runs_table([made_up_fits.result(), made_up_fits.result(seed=1, bits_per_byte=1.0)])
    assert "…" not in printed(table, width=60)


def test_runs_that_are_only_planned_are_listed_with_their_planned_tokens():
    done, waiting = made_up_fits.result(seed=0), made_up_fits.result(seed=1)
    first, second = runs_table([done], made_up_fits.plan([done, waiting])).json()
    assert (first["status"], first["tokens"]) == ("completed", 2000)
    assert (second["status"], second["loss"], second["seconds"]) == ("planned", None, None)
    assert (second["tokens"], second["flops"]) == (waiting.run.tokens, waiting.run.flops)


def test_many_different_errors_take_a_few_lines():
    results = [
        made_up_fits.result(
            seed=seed, status="failed", loss=None, error=RunError(type=f"Error{chr(65 + seed)}", message="no")
        )
        for seed in range(40)
    ]
    lines = [item.message for item in runs_table(results).diagnostics]
    assert len(lines) == 6
    assert lines[-1] == "and 35 other errors"


def test_a_table_with_a_synthetic_run_is_marked():
    assert "synthetic" in runs_table([made_up_fits.result(synthetic=True)]).title
    assert "synthetic" not in runs_table([made_up_fits.result()]).title


def test_runs_with_different_conventions_are_captioned():
    mixed = [made_up_fits.result(), made_up_fits.result(seed=1, flops_name="model's own")]
    assert "6 N D or model's own" in runs_table(mixed).caption


def test_a_plan_shows_every_run_and_its_state():
    results = [made_up_fits.result(seed=seed) for seed in (0, 1)]
    table = plan_table(made_up_fits.plan(results), {results[0].id: "completed"})
    assert [row["state"] for row in table.json()] == ["completed", "to do"]
    assert table.json()[0]["tokens_per_param"] == 2.0
    assert "2 runs, 2.4e7 FLOPs" in table.title


def test_sizes_left_out_of_a_plan_have_a_reason():
    cell = {"budget": 1e18, "size": 64, "params": 1000, "reason": "D is 3 epochs"}
    plan = made_up_fits.plan([made_up_fits.result()], skipped=(cell,))
    assert skipped_table(plan).cells() == [["1e18", "64", "1.00K", "D is 3 epochs"]]


def test_rows_are_json():
    assert json.loads(json.dumps(runs_table([made_up_fits.result()]).json()))[0]["loss"] == 3.0


def test_exponents_have_intervals_if_the_fit_has():
    line = exponents_line(made_up_fits.law_fit())
    assert "a = 0.513 (0.503 to 0.533)" in line
    assert "b = 0.487 (90%" in line, "b has no interval"
    assert "21 runs" in line
    assert "6 N D" in line
