"""Tables in the forms of public repositories: columns that are missing, doubled, nested, or in other units."""

from __future__ import annotations

import json
import math

import pandas
import pytest
from typer.testing import CliRunner

from flops_fit_core import FitError
from flops_fit_core.cli import app
from flops_fit_core.fitting import IsoflopFitter, ParametricFitter, fit_table, is_table, read_table

A, ALPHA, BETA = 0.28 / 0.62, 0.34, 0.28
SIZES = (44e6, 90e6, 251e6, 425e6, 1e9, 2.98e9, 6.8e9, 16.183e9)
TOKENS = (5e9, 20e9, 100e9, 400e9)


def loss(params, tokens):
    return 1.69 + 406.4 / params**ALPHA + 410.7 / tokens**BETA


ROWS = [(params, tokens, 6 * params * tokens, loss(params, tokens)) for params in SIZES for tokens in TOKENS]
NAMES = ["params", "tokens", "flops", "loss"]


def table(tmp_path, header, rows, mark=",", name="runs.csv"):
    path = tmp_path / name
    path.write_text("\n".join(mark.join(map(str, row)) for row in [header, *rows]) + "\n", encoding="utf-8")
    return path


def assert_is_the_law(read):
    assert [run.params for run in read.observations] == pytest.approx([row[0] for row in ROWS], rel=1e-6)
    assert [run.tokens for run in read.observations] == pytest.approx([row[1] for row in ROWS], rel=1e-6)
    assert fit_table(ParametricFitter(draws=0), read).exponents["a"].value == pytest.approx(A, abs=2e-3)


def messages(read):
    return "\n".join(item.message for item in read.diagnostics)


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (["parameters", "compute_budget", "final_loss"], (0, 2, 3)),
        (["Model Size", "Training FLOP", "loss"], (0, 2, 3)),
        (["N", "C", "loss"], (0, 2, 3)),
        (["tokens", "flops", "loss"], (1, 2, 3)),
    ],
)
def test_the_missing_one_of_n_d_and_c_follows_from_the_others(tmp_path, header, columns):
    read = read_table(table(tmp_path, header, [tuple(row[place] for place in columns) for row in ROWS]))
    assert_is_the_law(read)
    assert "C / 6" in read.summary
    assert "the table has no" in messages(read)


@pytest.mark.parametrize("column", ["total_steps", "data/token_sum", "tokens_per_param", "samples/step"])
def test_d_is_not_computed_from_c_if_a_column_may_hold_it(tmp_path, column):
    path = table(tmp_path, ["params", "flops", "loss", column], [(row[0], row[2], row[3], 7) for row in ROWS])
    with pytest.raises(FitError, match="has no column for tokens"):
        read_table(path)


def test_c_in_another_unit_gives_no_d(tmp_path):
    path = table(tmp_path, ["params", "flops", "loss"], [(row[0], row[2] / 8.64e19, row[3]) for row in ROWS])
    with pytest.raises(FitError, match=r"a value below 1 is not a plain number.*--units flops=1e18"):
        read_table(path)
    assert_is_the_law(read_table(path, units={"flops": 8.64e19}))


@pytest.mark.parametrize(
    "header",
    [
        ["N", "N_no_emb", "D", "loss"],
        ["total_params", "active_params", "tokens", "loss"],
        ["params", "active_params", "tokens", "loss"],
        ["samples", "D", "params", "loss"],
    ],
)
def test_two_counts_of_one_quantity_are_refused(tmp_path, header):
    path = table(tmp_path, header, [(8 * row[0], row[0], row[1], row[3]) for row in ROWS])
    with pytest.raises(FitError, match=r"could be .* which hold different values: write --column"):
        read_table(path)


def test_mixtures_of_experts_without_c_are_reported(tmp_path):
    rows = [(row[0], row[1], row[3], 64) for row in ROWS]
    path = table(tmp_path, ["N", "D", "loss", "num_experts"], rows)
    assert "'num_experts' suggests a mixture of experts" in messages(read_table(path))
    path = table(tmp_path, ["active_params", "D", "loss", "num_experts"], rows)
    assert "mixture" not in messages(read_table(path))


def test_another_count_next_to_the_chosen_one_is_named(tmp_path):
    header = ["params", "non_embedding_params", "tokens", "loss"]
    read = read_table(table(tmp_path, header, [(row[0], 0.9 * row[0], row[1], row[3]) for row in ROWS]))
    assert_is_the_law(read)
    assert "params = column 'params', rather than 'non_embedding_params'" in messages(read)


@pytest.mark.parametrize(
    ("header", "scales"),
    [
        (["params_m", "tokens_b", "loss"], (1e6, 1e9)),
        (["Parameters (Mn)", "Tokens (bn)", "loss"], (1e6, 1e9)),
        (["Params(M)", "# tokens (B)", "loss"], (1e6, 1e9)),
    ],
)
def test_further_units_in_names(tmp_path, header, scales):
    rows = [(row[0] / scales[0], row[1] / scales[1], row[3]) for row in ROWS]
    assert_is_the_law(read_table(table(tmp_path, header, rows)))


@pytest.mark.parametrize(
    ("name", "factor"), [("train_tflops", 1e12), ("total_gflops", 1e9), ("compute (PF-days)", 8.64e19)]
)
def test_flops_in_the_unit_of_their_name(tmp_path, name, factor):
    rows = [(params, tokens, 1.1 * flops / factor, y) for params, tokens, flops, y in ROWS]
    read = read_table(table(tmp_path, ["params", "tokens", name, "loss"], rows))
    assert read.observations[0].flops == pytest.approx(1.1 * ROWS[0][2])


@pytest.mark.parametrize("name", ["gflops", "flops_per_token", "compute (GPU-hours)"])
def test_costs_other_than_c_are_not_read(tmp_path, name):
    rows = [(params, tokens, 7, y) for params, tokens, _, y in ROWS]
    read = read_table(table(tmp_path, ["params", "tokens", name, "loss"], rows))
    assert "flops = 6 N D" in read.summary
    assert_is_the_law(read)


def test_flops_per_token_are_reported_and_can_be_ignored(tmp_path):
    path = table(tmp_path, NAMES, [(params, tokens, 6 * params, y) for params, tokens, _, y in ROWS])
    with pytest.raises(FitError, match="--column flops=none for C = 6 N D"):
        read_table(path)
    assert_is_the_law(read_table(path, {"flops": "none"}))


def test_rows_without_flops_do_not_hide_a_unit(tmp_path):
    rows = [
        (params, tokens, "" if number % 2 else flops / 8.64e19, y)
        for number, (params, tokens, flops, y) in enumerate(ROWS)
    ]
    with pytest.raises(FitError, match="for petaFLOP/s-days"):
        read_table(table(tmp_path, NAMES, rows))
    plain = [(*row[:2], "" if row[2] == "" else row[2] * 8.64e19, row[3]) for row in rows]
    assert "16 rows have no FLOPs" in messages(read_table(table(tmp_path, NAMES, plain)))


@pytest.mark.parametrize(
    ("params", "tokens", "message"),
    [
        (1e6, 1e9, "--units params=1e6 --units tokens=1e9"),
        (1, 1e9, "'tokens' does not count tokens"),
        (1, 1e6, "'tokens' does not count tokens"),
        (1e6, 1, "N is not in plain numbers"),
    ],
)
def test_chinchillas_sizes_in_other_units_are_refused(tmp_path, params, tokens, message):
    path = table(tmp_path, ["params", "tokens", "loss"], [(r[0] / params, r[1] / tokens, r[3]) for r in ROWS])
    with pytest.raises(FitError, match=message):
        read_table(path)
    assert_is_the_law(read_table(path, units={"params": params, "tokens": tokens}))


def test_the_unit_of_n_below_1_is_that_of_n(tmp_path):
    for scale, text in ((1e6, "params=1e6"), (1e9, "params=1e9")):
        rows = [(row[0] / scale, row[1] / 1e13, row[3]) for row in ROWS]
        with pytest.raises(FitError, match=f"--units {text} --units tokens"):
            read_table(table(tmp_path, ["params", "tokens", "loss"], rows))


def test_a_cell_with_its_unit_is_not_multiplied_again(tmp_path):
    rows = [(f"{row[0] / 1e6}M", f"{row[1] / 1e9} B tok", row[3]) for row in ROWS]
    path = table(tmp_path, ["params (M)", "tokens (B)", "loss"], rows)
    assert_is_the_law(read_table(path))
    assert "would apply twice" in read_table(path, units={"params": "M"}).summary


def test_plain_numbers_below_a_unit_are_refused(tmp_path):
    path = table(tmp_path, ["params (M)", "tokens (B)", "loss"], [(row[0], row[1], row[3]) for row in ROWS])
    with pytest.raises(
        FitError, match="if the column holds plain numbers, write --units params=1 --units tokens=1"
    ):
        read_table(path)
    assert_is_the_law(read_table(path, units={"params": 1, "tokens": 1}))


@pytest.mark.parametrize("name", ["tokens (per param)", "tokens (log10)", "tokens_per_param", "D/N", "steps"])
def test_ratios_logarithms_and_steps_are_not_tokens(tmp_path, name):
    path = table(tmp_path, ["params", name, "loss"], [(row[0], 20, row[3]) for row in ROWS])
    with pytest.raises(FitError, match="no column for tokens"):
        read_table(path)


def test_layers_and_logarithms_are_not_losses(tmp_path):
    for name, value in (("L", 12), ("log_loss", 1.1)):
        with pytest.raises(FitError, match="no column for loss"):
            read_table(table(tmp_path, ["N", "D", name], [(*row[:2], value) for row in ROWS]))


def test_a_missing_column_is_looked_for_among_the_names(tmp_path):
    header = ["parameter_count", "data/token_sum", "eval/macro_loss"]
    path = table(tmp_path, header, [(row[0], row[1], row[3]) for row in ROWS])
    with pytest.raises(FitError, match="tokens may be --column tokens=data/token_sum"):
        read_table(path)
    wide = table(tmp_path, ["params", "tokens", *(f"task{number}" for number in range(90))], [range(92)])
    with pytest.raises(FitError, match=r"task37 and 52 more\. Name each"):
        read_table(wide)


NESTED = [
    {"name": f"run{number}", "config": {"n_params": row[0]}, "summary": {"tokens": row[1], "val/loss": row[3]}}
    for number, row in enumerate(ROWS)
]


def test_exports_of_wandb_are_read(tmp_path):
    frame = pandas.DataFrame(NESTED)
    frame.loc[0, "config"]["dropout"] = math.nan
    frame.to_csv(tmp_path / "project.csv")
    assert_is_the_law(read_table(tmp_path / "project.csv"))
    (tmp_path / "project.json").write_text(json.dumps(NESTED))
    read = read_table(tmp_path / "project.json")
    assert_is_the_law(read)
    assert "params = 'config.n_params'" in read.summary


@pytest.mark.parametrize("shape", ["by name", "under a key", "lists"])
def test_further_shapes_of_json(tmp_path, shape):
    records = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
    value = {
        "by name": {f"{number}M": record for number, record in enumerate(records)},
        "under a key": {"version": 1, "experiments": records},
        "lists": [NAMES, *ROWS],
    }[shape]
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(value))
    assert is_table(path)
    assert_is_the_law(read_table(path))


@pytest.mark.parametrize("text", ['{"name": "x", "axes": [{"width": 3}]}', '{"sweep": {"budgets": [1e9]}}', "{}"])
def test_other_json_is_not_a_table(tmp_path, text):
    (tmp_path / "experiment.json").write_text(text)
    assert not is_table(tmp_path / "experiment.json")


@pytest.mark.parametrize(("cell", "reason"), [(True, "not a number"), (10**400, "is inf")])
def test_values_that_are_not_numbers_are_excluded(tmp_path, cell, reason):
    (tmp_path / "runs.json").write_text(json.dumps([{"params": cell, "tokens": 1e9, "loss": 2.0}]))
    assert reason in read_table(tmp_path / "runs.json").excluded["row 1"]
    (tmp_path / "long.json").write_text('[{"params": 1' + "0" * 5000 + "}]")
    with pytest.raises(FitError, match="digits"):
        read_table(tmp_path / "long.json")


def test_an_index_of_parquet_is_a_column(tmp_path):
    pandas.DataFrame(ROWS, columns=NAMES).set_index(["params", "tokens"]).to_parquet(tmp_path / "runs.parquet")
    assert_is_the_law(read_table(tmp_path / "runs.parquet"))


def test_columns_with_spaces_or_bars_between_them(tmp_path):
    assert_is_the_law(read_table(table(tmp_path, NAMES, ROWS, mark="   ", name="runs.txt")))
    lines = [NAMES, ["---"] * 4, *ROWS]
    (tmp_path / "runs.csv").write_text("\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines))
    assert_is_the_law(read_table(tmp_path / "runs.csv"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("runs.xlsx", "PK", "save a workbook or a pickle as CSV"),
        ("flops.json", '{"51m": 1.8e11, "65m": 2.3e11}', "has neither a table of runs nor an experiment"),
    ],
)
def test_unknown_files_are_not_reported_as_missing_studies(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    assert message in str(CliRunner().invoke(app, ["fit", str(tmp_path / name)]).exception)


def test_a_workbook_is_named(tmp_path):
    (tmp_path / "runs.csv").write_bytes(b"PK\x03\x04\x14\x00")
    with pytest.raises(FitError, match="save the sheet as CSV"):
        read_table(tmp_path / "runs.csv")


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        *(("3\u00d710\u2079", 3e9), (r"$3 \times 10^{9}$", 3e9), ("10BT", 1e10)),
        *(("25.2 B tok", 25.2e9), ("3e9 \u00b1 1e7", 3e9)),
    ],
)
def test_further_ways_to_write_a_number(tmp_path, cell, number):
    read = read_table(table(tmp_path, ["params", "tokens", "loss"], [(1e8, cell, 2.5)]))
    assert read.observations[0].tokens == pytest.approx(number)


def test_a_comma_in_a_loss_is_a_decimal_comma(tmp_path):
    rows = [(int(row[0]), int(row[1]), f"{row[3]:.3f}".replace(".", ",")) for row in ROWS]
    read = read_table(table(tmp_path, ["params", "tokens", "loss"], rows, mark=";"))
    assert read.observations[0].loss == pytest.approx(ROWS[0][3], abs=1e-3)


@pytest.mark.parametrize("label", ["mean", "Total", "std"])
def test_a_summary_row_is_excluded(tmp_path, label):
    rows = [*((f"run{number}", *row) for number, row in enumerate(ROWS)), (label, *ROWS[3])]
    read = read_table(table(tmp_path, ["name", *NAMES], rows))
    assert list(read.excluded.values()) == [f"{label.lower()!r} is a summary of other rows"]


def test_flags_of_a_run_are_followed(tmp_path):
    rows = [(*row, number != 3) for number, row in enumerate(ROWS)]
    assert len(read_table(table(tmp_path, [*NAMES, "finished"], rows)).observations) == len(ROWS) - 1
    read = read_table(table(tmp_path, [*NAMES, "diverged"], [(*row[:4], not row[4]) for row in rows]))
    assert read.excluded == {"row 5": "diverged is True"}
    dates = table(tmp_path, [*NAMES, "finished"], [(*row[:4], "2026-01-02 03:04") for row in rows])
    assert len(read_table(dates).observations) == len(ROWS)


@pytest.mark.parametrize(("column", "role"), [("state", "status"), ("budget", "budget")])
def test_a_misread_column_can_be_ignored(tmp_path, column, role):
    path = table(tmp_path, [*NAMES, column], [(*row, "NY") for row in ROWS])
    result = CliRunner().invoke(app, ["fit", str(path)])
    assert f"--column {role}=none reads the rows without {column!r}" in str(result.exception)
    assert_is_the_law(read_table(path, {role: "none"}))


@pytest.mark.parametrize("column", ["optimizer.learning_rate", "mup_base_lr", "Peak LR"])
def test_learning_rates_are_recognised_by_suffix(tmp_path, column):
    rows = [(*row[:3], row[3] * (1 + 0.01 * rate), rate) for row in ROWS for rate in (0, 1, 2)]
    with pytest.raises(FitError, match="a grid of hyperparameters"):
        read_table(table(tmp_path, [*NAMES, column], rows))


def test_checkpoints_without_a_run_are_reported(tmp_path):
    rows = [(*row, 1000 * (number % 4)) for number, row in enumerate(ROWS)]
    assert "if they are checkpoints" in messages(read_table(table(tmp_path, [*NAMES, "step"], rows)))
    named = table(tmp_path, ["runId", *NAMES, "step"], [(f"r{row[0]}", *row) for row in rows])
    assert len(read_table(named).observations) == len(SIZES)


def test_groups_are_reported_if_no_law_can_be_fitted(tmp_path):
    rows = [(*row[:3], row[3] * factor, name) for row in ROWS for factor, name in ((1, "raw"), (4, "exp"))]
    read = read_table(table(tmp_path, [*NAMES, "condition"], rows))
    with pytest.raises(FitError, match=r"(?s)read runs.csv.*groups of column 'condition'"):
        fit_table(IsoflopFitter(draws=0), read)
