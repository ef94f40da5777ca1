"""Tables that other people write: formats, numbers, names of columns, grids, groups and units."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from flops_fit_core import FitError
from flops_fit_core.cli import app
from flops_fit_core.fitting import ParametricFitter, fit_table, read_complete_table, read_table, table_groups

LAW = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
A = LAW["beta"] / (LAW["alpha"] + LAW["beta"])


def loss(params, tokens):
    return LAW["E"] + LAW["A"] / params ** LAW["alpha"] + LAW["B"] / tokens ** LAW["beta"]


def grid(sizes=6, budgets=(1e18, 1e19, 1e20)):
    """Rows (N, D, C, L) of the law itself."""
    rows = []
    for flops in budgets:
        for shift in np.linspace(-1.0, 1.0, sizes):
            params = 0.3 * (flops / 6) ** A * math.exp(shift)
            rows.append((params, flops / 6 / params, flops, loss(params, flops / 6 / params)))
    return rows


ROWS = grid()


def table(tmp_path, header, rows, name="runs.csv", mark=","):
    path = tmp_path / name
    path.write_text("\n".join(mark.join(map(str, row)) for row in [header, *rows]) + "\n", encoding="utf-8")
    return path


def notes(read, code):
    return [item.message for item in read.diagnostics if item.code == code]


def assert_is_the_law(read):
    fit = fit_table(ParametricFitter(draws=0), read)
    assert fit.exponents["a"].value == pytest.approx(A, abs=2e-3)


NAMES = ["params", "tokens", "flops", "loss"]
RECORDS = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
FILES = {
    "runs.tsv": "\n".join(["\t".join(NAMES), *("\t".join(map(str, row)) for row in ROWS)]).encode(),
    "runs.jsonl": "\n".join(map(json.dumps, RECORDS)).encode(),
    "runs.json": json.dumps(RECORDS).encode(),
    "columns.json": json.dumps({name: [row[name] for row in RECORDS] for name in NAMES}).encode(),
    "indexed.json": json.dumps(
        {name: {str(number): row[name] for number, row in enumerate(RECORDS)} for name in NAMES}
    ).encode(),
    "split.json": json.dumps({"columns": NAMES, "data": ROWS}).encode(),
    "nested.jsonl": "\n".join(
        json.dumps({"config": {"params": {"value": row["params"]}}, "tokens": row["tokens"], "loss": row["loss"]})
        for row in RECORDS
    ).encode(),
    "runs.csv.gz": gzip.compress(
        ("\n".join([",".join(NAMES), *(",".join(map(str, row)) for row in ROWS)])).encode()
    ),
    "excel.txt": "\n".join(["\t".join(NAMES), *("\t".join(map(str, row)) for row in ROWS)]).encode("utf-16"),
    "sep.csv": "\r\n".join(["sep=;", ";".join(NAMES), *(";".join(map(str, row)) for row in ROWS)]).encode(),
    "numpy.txt": "\n".join(["# " + ",".join(NAMES), *(",".join(map(str, row)) for row in ROWS)]).encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_format_gives_the_same_table(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    columns = {"params": "config.params"} if name.startswith("nested") else {}
    read = read_table(path, columns)
    assert [run.loss for run in read.observations] == pytest.approx([row[3] for row in ROWS])
    assert f"{len(ROWS)} of {len(ROWS)} rows used" in read.summary
    result = CliRunner().invoke(
        app, ["fit", str(path), "--fitter", "parametric", "--set", "draws=0", *_maps(columns)]
    )
    assert result.exit_code == 0, result.output


def _maps(columns):
    return [part for role, column in columns.items() for part in ("--column", f"{role}={column}")]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["3,81", "2"], [3.81, 2]),
        (["1.234.567", "0,5"], [1234567, 0.5]),
        (["1.234", "3,81"], [1234, 3.81]),
        (["1,234", "1,234,567"], [1234, 1234567]),
        (["1,234", "1.5"], [1234, 1.5]),
        (["1 234 567", "1'234", "1_000"], [1234567, 1234, 1000]),
        (["12,34,567"], [1234567]),
        (["1.2B", "300M", "7k", "1.5 trillion", "3 btokens"], [1.2e9, 3e8, 7e3, 1.5e12, 3e9]),
        (["10^9", "6 x 10^8", "2.5*10**9", "1.2E9"], [1e9, 6e8, 2.5e9, 1.2e9]),
        (["1,5e9"], [1.5e9]),
    ],
)
def test_common_number_notations_are_read(tmp_path, cells, numbers):
    rows = [(cell, "1e9", number % 7 + 2) for number, cell in enumerate(cells)]
    read = read_table(table(tmp_path, ["params", "tokens", "loss"], rows, mark=";"), units={"params": 1})
    assert [run.params for run in read.observations] == pytest.approx(numbers)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1,234", "500"], r"row 2, params = '1,234' is ambiguous.*--decimal"),
        (["3.81", "3,8"], "two decimal signs, a point in row 2.*and a comma in row 3"),
    ],
)
def test_ambiguous_numbers_are_refused(tmp_path, cells, message):
    path = table(tmp_path, ["params", "tokens", "loss"], [(cell, "1e9", 3) for cell in cells], mark=";")
    with pytest.raises(FitError, match=message):
        read_table(path)


def test_the_decimal_option_decides_the_meaning_of_commas(tmp_path):
    path = table(tmp_path, ["params", "tokens", "loss"], [("1,234", "1e9", 3)], mark=";")
    assert read_table(path, decimal=".").observations[0].params == 1234
    assert read_table(path, decimal=",", units={"params": 1}).observations[0].params == 1.234
    with pytest.raises(FitError, match=r"decimal = 'x': write '\.' or ','"):
        read_table(path, decimal="x")


def test_a_loss_in_thousands_is_a_comma_misread(tmp_path):
    rows = [("1,234,567", "2,345,678", "3,811")]
    with pytest.raises(FitError, match="loss = '3,811' would be a loss in thousands"):
        read_table(table(tmp_path, ["params", "tokens", "loss"], rows, mark=";"))


def test_an_unquoted_decimal_comma_moves_no_cell(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,flops,loss\n1000000,20000000,1.2e14,3,81\n")
    with pytest.raises(FitError, match="row 2: 5 cells, but the header has 4 names"):
        read_table(path)


@pytest.mark.parametrize("blank", ["", "nan", "NaN", "NA", "n/a", "null", "None", "-"])
@pytest.mark.parametrize("column", ["seed", "unique_tokens", "budget", "flops", "status", "trajectory"])
def test_a_blank_in_an_optional_column_is_missing(tmp_path, column, blank):
    rows = [(params, tokens, value, blank) for params, tokens, _, value in ROWS]
    read = read_table(table(tmp_path, ["params", "tokens", "loss", column], rows))
    assert len(read.observations) == len(ROWS)
    assert not read.excluded


@pytest.mark.parametrize("word", ["finished", "SUCCESS", "done", "Ok", "completed", "Succeeded", "complete"])
@pytest.mark.parametrize("column", ["status", "State"])
def test_common_words_for_a_finished_run_are_accepted(tmp_path, word, column):
    rows = [(*row, "crashed" if number == 0 else word) for number, row in enumerate(ROWS)]
    read = read_table(table(tmp_path, [*NAMES, column], rows))
    assert read.excluded == {"row 2": "its status is crashed"}
    assert "left out: 1 x its status is crashed" in read.summary
    assert len(read_complete_table(tmp_path / "runs.csv").observations) == len(ROWS) - 1
    assert len(read_table(tmp_path / "runs.csv", where={column: "crashed"}).observations) == 1


def test_without_a_usable_row_the_reasons_are_the_message(tmp_path):
    path = table(tmp_path, [*NAMES, "status"], [(*row, "weird") for row in ROWS])
    result = CliRunner().invoke(app, ["fit", str(path)])
    assert "no row can be fitted" in str(result.exception)
    assert f"{len(ROWS)} x its status is weird" in str(result.exception)


def test_seeds_may_be_texts(tmp_path):
    rows = [(*row, ("a", "b")[number % 2]) for number, row in enumerate(ROWS)]
    read = read_table(table(tmp_path, [*NAMES, "seed"], rows))
    assert [run.seed for run in read.observations[:3]] == [0, 1, 0]


@pytest.mark.parametrize(
    ("header", "extra", "role"),
    [
        (["params", "tokens", "loss", "smooth loss"], 2.0, "loss"),
        (["params", "tokens", "val_loss", "test_loss"], 2.0, "loss"),
        (["params", "tokens", "loss", "train_tokens"], 5e8, "tokens"),
        (["params", "tokens", "loss", "n_params"], 1e6, "params"),
        (["params", "tokens", "loss", "Loss"], 2.0, "loss"),
    ],
)
def test_two_columns_for_the_same_role_are_refused(tmp_path, header, extra, role):
    path = table(tmp_path, header, [(1e7, 1e9, 3.0, extra)])
    with pytest.raises(
        FitError, match=rf"{role} could be .* or .*, which hold different values: write --column {role}="
    ):
        read_table(path)
    assert read_table(path, {role: header[3]}).observations


def test_columns_that_agree_are_one(tmp_path):
    path = table(tmp_path, ["params", "tokens", "train_tokens", "loss"], [(1e7, 1e9, 1e9, 3.0)])
    assert read_table(path).observations[0].tokens == 1e9


def test_two_columns_with_the_same_name_are_refused(tmp_path):
    path = table(tmp_path, ["params", "tokens", "loss", "loss"], [(1e7, 1e9, 3.0, 2.0)])
    with pytest.raises(FitError, match="2 columns named 'loss' with different values"):
        read_table(path)
    assert read_table(
        table(tmp_path, ["params", "tokens", "loss", "x", "x"], [(1e7, 1e9, 3.0, 2, 1)])
    ).observations


def test_a_letter_is_read_without_a_full_name(tmp_path):
    read = read_table(table(tmp_path, ["d", "params", "train_tokens", "loss"], [(128, 1e7, 1e9, 3.0)]))
    assert read.observations[0].tokens == 1e9
    read = read_table(table(tmp_path, ["N", "D", "loss"], [(1e7, 1e9, 3.0)]))
    assert any("tokens = column 'D', by one letter" in text for text in notes(read, "columns"))


@pytest.mark.parametrize("name", ["val_loss", "eval/loss", "Validation Loss", "heldout_loss"])
def test_a_held_out_loss_is_used_rather_than_another(tmp_path, name):
    read = read_table(table(tmp_path, ["params", "tokens", "loss", name, "loss_se"], [(1e7, 1e9, 3.0, 3.1, 0.1)]))
    assert read.observations[0].loss == 3.1
    assert any("the held-out loss, rather than 'loss'" in text for text in notes(read, "columns"))


def test_perplexities_and_bits_are_named_without_a_loss(tmp_path):
    path = table(tmp_path, ["params", "tokens", "val_ppl", "val_bpb"], [(1e7, 1e9, 20, 1.1)])
    with pytest.raises(FitError, match=r"'val_ppl' is a perplexity.*--column loss=val_bpb"):
        read_table(path)


@pytest.mark.parametrize(
    ("header", "factors"),
    [
        (["params (M)", "tokens (B)", "loss"], (1e6, 1e9)),
        (["Params_M", "tokens_B", "loss"], (1e6, 1e9)),
        (["N [millions]", "D (billions)", "loss"], (1e6, 1e9)),
        (["n_params (1e6)", "tokens in_B", "loss"], (1e6, 1e9)),
    ],
)
def test_a_unit_in_the_header_is_applied(tmp_path, header, factors):
    (run,) = read_table(table(tmp_path, header, [(70, 1.4, 3.0)])).observations
    assert (run.params, run.tokens) == pytest.approx((70 * factors[0], 1.4 * factors[1]))


def test_millions_and_billions_are_refused_with_the_line_to_write(tmp_path):
    rows = [(params / 1e6, tokens / 1e9, value) for params, tokens, _, value in ROWS]
    path = table(tmp_path, ["params", "tokens", "loss"], rows)
    with pytest.raises(FitError, match="--units params=1e6 --units tokens=1e9"):
        read_table(path)
    result = CliRunner().invoke(app, ["fit", str(path), "--units", "params=M", "--units", "tokens=1e9"])
    assert result.exit_code == 0, result.output
    assert_is_the_law(read_table(path, units={"params": "M", "tokens": 1e9}))
    small = table(tmp_path, ["params", "tokens", "loss"], [(row[0] / 1e9, row[1] / 1e9, row[2]) for row in rows])
    with pytest.raises(FitError, match="a value below 1 is not a plain number"):
        read_table(small)
    with_flops = table(tmp_path, NAMES, [(params / 1e6, tokens / 1e9, c, y) for params, tokens, c, y in ROWS])
    with pytest.raises(FitError, match=r"C is 1e\+15 times 6 N D"):
        read_table(with_flops)
    days = table(tmp_path, NAMES, [(params, tokens, c / 8.64e19, y) for params, tokens, c, y in ROWS])
    with pytest.raises(FitError, match=r"--units flops=8\.64e19 for petaFLOP/s-days"):
        read_table(days)
    assert read_table(days, units={"flops": 8.64e19}).observations[0].flops == pytest.approx(ROWS[0][2])


@pytest.mark.parametrize("name", ["C (PF-days)", "compute_pfdays", "flops [PF/s-days]", "flops (petaflop/s-days)"])
def test_petaflop_days_in_a_name_are_applied(tmp_path, name):
    rows = [(params, tokens, flops / 8.64e19, value) for params, tokens, flops, value in ROWS]
    read = read_table(table(tmp_path, ["params", "tokens", name, "loss"], rows))
    assert [run.flops for run in read.observations] == pytest.approx([row[2] for row in ROWS])


@pytest.mark.parametrize("ratio", [0.4, 20, 40_000])
def test_rare_ratios_are_read_with_a_note_at_most(tmp_path, ratio):
    rows = [(params, ratio * params, loss(params, ratio * params)) for params in (1e6, 3e6, 1e7)]
    read = read_table(table(tmp_path, ["params", "tokens", "loss"], rows))
    assert len(read.observations) == 3
    assert bool(notes(read, "odd-units")) == (ratio != 20)


@pytest.mark.parametrize("unit", [{"loss": 2}, {"params": "x"}, {"params": -1}, {"flops": 2}])
def test_invalid_units_are_refused(tmp_path, unit):
    with pytest.raises(FitError, match="units "):
        read_table(table(tmp_path, ["params", "tokens", "loss"], [(1e7, 1e9, 3.0)]), units=unit)


def test_a_budget_unlike_6nd_is_not_c_unless_mapped(tmp_path):
    rows = [(params, tokens, flops / 2, value) for params, tokens, flops, value in ROWS]
    path = table(tmp_path, ["params", "tokens", "flops_budget", "loss"], rows)
    read = read_table(path)
    assert read.observations[0].flops == pytest.approx(ROWS[0][2])
    assert "0.5 to 0.5 times 6 N D" in notes(read, "budget")[0]
    told = read_table(path, {"flops": "flops_budget"})
    assert told.observations[0].flops == pytest.approx(ROWS[0][2] / 2)
    assert not notes(told, "budget")
    plain = table(
        tmp_path, ["params", "tokens", "budget", "loss"], [(row[0], row[1], row[2], row[3]) for row in ROWS]
    )
    assert not notes(read_table(plain), "budget")


def tuned(column="lr", values=(1e-4, 3e-4, 1e-3, 3e-3), best=1, seeds=(0,)):
    return [
        (params, tokens, value, seed, y * (1 + 0.01 * abs(place - best)) + 1e-4 * seed)
        for params, tokens, _, y in ROWS
        for place, value in enumerate(values)
        for seed in seeds
    ]


def test_a_grid_of_hyperparameters_is_refused_without_best_of(tmp_path):
    path = table(tmp_path, ["params", "tokens", "lr", "seed", "loss"], tuned(seeds=(0, 1)))
    with pytest.raises(FitError, match=r"differs in lr. This is a grid.*--best-of lr.*--best-of none"):
        read_table(path)
    best = read_table(path, best_of=["lr"])
    assert len(best.observations) == 2 * len(ROWS), "all seeds of the best setting"
    assert_is_the_law(best)
    assert not notes(best, "grid-edge")
    pooled = read_table(path, best_of=["none"])
    assert len(pooled.observations) == 8 * len(ROWS)
    assert notes(pooled, "grid") == ["rows that share N and D and differ in lr are fitted together"]
    result = CliRunner().invoke(app, ["fit", str(path), "--best-of", "lr", "--set", "draws=0"])
    assert result.exit_code == 0, result.output
    with pytest.raises(FitError, match="no column 'bs' for --best-of"):
        read_table(path, best_of=["lr", "bs"])


def test_a_best_value_at_the_edge_is_reported(tmp_path):
    path = table(tmp_path, ["params", "tokens", "batch_size", "seed", "loss"], tuned("batch_size", best=0))
    read = read_table(path, best_of=["batch_size"])
    assert "the best batch_size is the smallest or largest" in notes(read, "grid-edge")[0]


@pytest.mark.parametrize("column", ["seed", "runtime", "val_acc", "lr"])
def test_replicates_and_measurements_are_not_a_grid(tmp_path, column):
    values = {"seed": (0, 1), "runtime": (3.5, 7.25), "val_acc": (0.3, 0.4), "lr": (1e-3, 1e-3)}[column]
    rows = [(*row, value) for row in ROWS for value in values]
    rows = [
        (params, tokens, c, y * (1 + 1e-3 * number % 2), x)
        for number, (params, tokens, c, y, x) in enumerate(rows)
    ]
    assert len(read_table(table(tmp_path, [*NAMES, column], rows)).observations) == len(rows)


def test_groups_with_different_losses_are_reported_and_fitted_separately(tmp_path):
    rows = [(*row, "c4") for row in ROWS] + [(*row[:3], 0.8 * row[3], "code") for row in ROWS]
    path = table(tmp_path, [*NAMES, "dataset"], rows)
    (text,) = notes(read_table(path), "groups")
    assert "--filter dataset=c4" in text
    assert "--group-by dataset" in text
    assert not notes(read_table(path, where={"dataset": "c4"}), "groups")
    assert table_groups(path, "dataset") == ["c4", "code"]
    options = ["--fitter", "parametric", "--set", "draws=0"]
    result = CliRunner().invoke(app, ["fit", str(path), "--group-by", "dataset", *options, "--json"])
    assert result.exit_code == 0, result.output
    laws = json.loads(result.stdout)
    assert laws["code"]["law"]["parameters"]["E"] == pytest.approx(0.8 * LAW["E"], rel=1e-3)
    assert laws["c4"]["law"]["parameters"]["E"] == pytest.approx(LAW["E"], rel=1e-3)
    shown = CliRunner().invoke(app, ["fit", str(path), "--group-by", "dataset", "--set", "draws=0"])
    assert "dataset = code" in shown.stdout


def test_text_columns_without_effect_are_not_reported(tmp_path):
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(100):
        rows = [
            (*row[:3], row[3] * (1 + 0.005 * random.standard_normal()), random.choice(["x", "y"])) for row in ROWS
        ]
        alarms += bool(notes(read_table(table(tmp_path, [*NAMES, "host"], rows)), "groups"))
    assert alarms <= 1
    sizes = [(*row, f"model-{number % 6}") for number, row in enumerate(ROWS)]
    assert not notes(read_table(table(tmp_path, [*NAMES, "model"], sizes)), "groups")


def rounded_replicates(with_id):
    random = np.random.default_rng(1)
    runs = [(*row[:3], round(row[3] * (1 + 0.01 * random.standard_normal()), 2)) for row in ROWS for _ in range(3)]
    return [(f"run{number}", *row) for number, row in enumerate(runs)] if with_id else runs


@pytest.mark.parametrize("with_id", [True, False])
def test_replicates_that_agree_after_rounding_are_kept(tmp_path, with_id):
    rows = rounded_replicates(with_id)
    header = ["id", *NAMES] if with_id else NAMES
    assert len({row[-4:] for row in rows}) < len(rows)
    assert len(read_table(table(tmp_path, header, rows)).observations) == len(rows)


def test_a_table_written_twice_counts_once(tmp_path):
    read = read_table(table(tmp_path, NAMES, [*ROWS, *ROWS]))
    assert len(read.observations) == len(ROWS)
    assert set(read.excluded.values()) == {f"the same values as row {number + 2}" for number in range(len(ROWS))}


def test_predict_and_backtest_print_how_a_table_was_read(tmp_path):
    rows = [(*row, "c4") for row in ROWS] + [(*row[:3], 0.8 * row[3], "code") for row in ROWS]
    path = table(tmp_path, [*NAMES, "dataset"], rows)
    for command in (["predict", str(path), "--flops", "1e20", "--set", "draws=0"], ["backtest", str(path)]):
        result = CliRunner().invoke(app, command)
        assert "read runs.csv: params = 'params'" in result.stdout
        assert "groups of column 'dataset'" in result.stdout


def test_options_of_tables_are_refused_for_a_study(tmp_path):
    (tmp_path / "study").mkdir()
    for option in (["--units", "params=M"], ["--best-of", "lr"], ["--decimal", ","], ["--group-by", "x"]):
        result = CliRunner().invoke(app, ["fit", str(tmp_path / "study"), *option])
        assert str(result.exception).startswith(option[0])


@pytest.mark.parametrize(("name", "notes"), [("Notes", ("rerun", "rerun")), ("by", ("Ada", ""))])
def test_remarks_on_a_few_runs_make_no_groups(tmp_path, name, notes):
    lines = [f"params,tokens,loss,lr,{name}"]
    for k in range(12):
        params, tokens = 1e7 * 2.0 ** (k % 4), 1e9 * 3.0 ** (k // 4)
        loss = 1.7 + 400 / params**0.34 + 410 / tokens**0.28
        for lr, extra in ((1e-3, 0.0), (3e-3, 0.02)):
            remark = notes[k] if k < 2 and lr == 1e-3 else ""
            lines.append(f"{params:.6g},{tokens:.6g},{loss + extra:.5f},{lr},{remark}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    table = read_table(path, best_of=["lr"])
    assert len(table.observations) == 12
    assert any("12 pairs of N and D: 12 of 24 rows" in item.message for item in table.diagnostics)
