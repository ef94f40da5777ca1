"""Tables with several rows of one training run: the last row of each run counts."""

import json
import math

import pytest

from flops_fit_core import FitError, fit
from flops_fit_core.cli.main import run as command
from flops_fit_core.fitting import read_complete_table, read_table


def loss(params, tokens):
    return 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28


def write(tmp_path, header, rows, name="runs.csv"):
    path = tmp_path / name
    lines = [",".join(header), *(",".join("" if cell is None else str(cell) for cell in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def history(ends, points=5, lift=0.5):
    """(run, step, N, D, loss) of training runs: before its end a run's loss lies above the law."""
    for number, (params, tokens) in enumerate(ends):
        for point in range(1, points + 1):
            seen = tokens * (point / points)
            yield f"run{number}", point * 100, params, seen, loss(params, seen) + lift * (point < points)


BUDGETS = [1e18, 1e19, 1e20]
ENDS = [
    (params, budget / 6 / params)
    for budget in BUDGETS
    for params in (math.sqrt(budget / 120) * 2.0**k for k in range(-2, 3))
]
LAST = sorted((params, tokens, loss(params, tokens)) for params, tokens in ENDS)


def used_rows(table):
    return sorted((run.params, run.tokens, run.loss) for run in table.observations)


def note(table, code="histories"):
    (match,) = [diagnostic for diagnostic in table.diagnostics if diagnostic.code == code]
    return match.message


@pytest.mark.parametrize("column", ["run_id", "run", "id", "Run ID"])
def test_the_last_row_of_each_run_id_counts(tmp_path, column):
    rows = [(name, params, tokens, value) for name, _, params, tokens, value in history(ENDS)]
    table = read_table(write(tmp_path, [column, "params", "tokens", "loss"], rows))
    assert used_rows(table) == LAST
    assert [run.id for run in table.observations] == [f"run{number}" for number in range(15)]
    assert note(table).startswith(
        f"75 rows belong to 15 training runs (column '{column}'): the last row of each counts"
    )
    assert f"trajectory={column}" in note(table)
    assert table.excluded == {}


def test_the_law_fits_the_last_rows_and_the_fit_reports_excluded_rows(tmp_path, capsys):
    rows = [(name, params, tokens, value) for name, _, params, tokens, value in history(ENDS)]
    path = write(tmp_path, ["run_id", "params", "tokens", "loss"], rows)
    law = fit(path, fitter="parametric")
    assert law.law.parameters["alpha"] == pytest.approx(0.34, rel=1e-4)
    assert law.law.parameters["beta"] == pytest.approx(0.28, rel=1e-4)
    assert "histories" in {diagnostic.code for diagnostic in law.diagnostics}
    assert command(["fit", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["n_runs"] == 15
    assert command(["fit", str(path), "--explain"]) == 0
    assert "75 rows belong to 15 training runs" in " ".join(capsys.readouterr().out.split())


def test_a_trajectory_keeps_every_row(tmp_path):
    rows = [(name, params, tokens, value) for name, _, params, tokens, value in history(ENDS)]
    by_name = read_table(write(tmp_path, ["trajectory", "params", "tokens", "loss"], rows))
    mapped = read_table(
        write(tmp_path, ["run_id", "params", "tokens", "loss"], rows), columns={"trajectory": "run_id"}
    )
    for table in (by_name, mapped):
        assert len(table.observations) == 75
        assert len({run.trajectory for run in table.observations}) == 15
        assert note(table, "trajectories").startswith("75 rows are points of 15 training runs")
    with_trajectory = [(name, name, params, tokens, value) for name, params, tokens, value in rows]
    path = write(tmp_path, ["run_id", "trajectory", "params", "tokens", "loss"], with_trajectory)
    assert len(read_table(path).observations) == 75


def test_a_wandb_history_is_ordered_by_its_step_and_may_have_rows_without_a_loss(tmp_path):
    """As ``run.scan_history()`` of several runs in one frame: shuffled, with rows that log something else."""
    rows = []
    for name, step, params, tokens, value in history(ENDS):
        rows.append((name, step, params, tokens, value))
        rows.append((name, step + 1, params, tokens + 10, None))
    rows = rows[::2][::-1] + rows[1::2]
    table = read_table(write(tmp_path, ["Name", "_step", "params", "tokens", "eval_loss"], rows))
    assert used_rows(table) == LAST
    assert table.excluded == {}


def test_a_run_that_was_resumed_has_its_latest_step(tmp_path):
    rows = [("a", 100, 1e6, 1e8, 3.6), ("a", 200, 1e6, 2e8, 3.5), ("a", 201, 1e6, 2e8, 3.4)]
    (run,) = read_table(write(tmp_path, ["run_id", "_step", "params", "tokens", "loss"], rows)).observations
    assert run.loss == 3.4


def test_one_evaluated_row_of_many_is_the_run(tmp_path):
    rows = [("a", 1e6, 1e8, None), ("a", 1e6, 2e8, None), ("a", 1e6, 3e8, 3.3)]
    table = read_table(write(tmp_path, ["run_id", "params", "tokens", "loss"], rows))
    assert (used_rows(table), table.excluded) == ([(1e6, 3e8, 3.3)], {})


def test_a_run_that_diverged_after_its_last_finite_loss_is_left_out(tmp_path):
    rows = [("a", 1e6, 1e8, 3.6), ("a", 1e6, 2e8, "nan"), ("a", 1e6, 3e8, "NaN"), ("b", 2e6, 1e8, 3.5)]
    table = read_table(write(tmp_path, ["run_id", "params", "tokens", "loss"], rows))
    assert [run.params for run in table.observations] == [2e6]
    assert table.excluded == {"a": "its loss is not finite in row 3, after the last usable row, so it diverged"}
    sparse = [("a", 1e6, 1e8, 3.6), ("a", 1e6, 2e8, "nan"), ("a", 1e6, 3e8, 3.4), ("a", 1e6, 4e8, "nan")]
    table = read_table(write(tmp_path, ["run_id", "params", "tokens", "loss"], sparse))
    assert used_rows(table) == [(1e6, 3e8, 3.4)]


def test_a_repeated_name_without_a_step_is_refused(tmp_path):
    rows = [("70M", 7e7, 1e9, 3.6), ("70M", 7e7, 2e9, 3.5), ("160M", 1.6e8, 2e9, 3.3)]
    path = write(tmp_path, ["name", "params", "tokens", "loss"], rows)
    with pytest.raises(FitError, match=r"2 rows have name = '70M' and equal N.*--column id=row"):
        read_table(path)
    assert [run.tokens for run in read_table(path, {"id": "name"}).observations] == [2e9, 2e9]
    assert len(read_table(path, {"trajectory": "name"}).observations) == 3
    separate = read_table(path, {"id": "row"})
    assert [run.id for run in separate.observations] == ["row 2", "row 3", "row 4"]
    assert separate.observations[0].trajectory is None


def test_rows_of_a_run_with_equal_d_and_several_losses_are_refused(tmp_path):
    """As a table of several evaluation sets: which of the losses is the run's is open."""
    rows = [("a", "c4", 1e6, 1e8, 3.6), ("a", "pile", 1e6, 1e8, 3.1), ("b", "c4", 2e6, 1e8, 3.5)]
    path = write(tmp_path, ["run", "group", "params", "tokens", "loss"], rows)
    with pytest.raises(
        FitError, match=r"row 2, row 3 belong to the same run \(run = a\).*differ in group, loss.*--filter"
    ):
        read_table(path)
    assert [run.loss for run in read_table(path, where={"group": "c4"}).observations] == [3.6, 3.5]


def test_a_column_with_several_n_per_name_does_not_name_runs(tmp_path):
    rows = [("sweep", 1e6, 1e8, 3.6), ("sweep", 2e6, 1e8, 3.5), ("sweep", 4e6, 1e8, 3.4)]
    table = read_table(write(tmp_path, ["run", "params", "tokens", "loss"], rows))
    assert len(table.observations) == 3
    assert "every row counts as a separate run" in note(table)


def test_seeds_of_a_name_are_separate_runs(tmp_path):
    rows = [("a", 0, 1e6, 1e8, 3.61), ("a", 1, 1e6, 1e8, 3.6), ("a", 2, 1e6, 1e8, 3.62)]
    table = read_complete_table(write(tmp_path, ["run", "seed", "params", "tokens", "loss"], rows))
    assert len(table.observations) == 3


def test_a_row_number_beside_a_run_id_does_not_hide_the_history(tmp_path):
    rows = [
        (number, name, params, tokens, value)
        for number, (name, _, params, tokens, value) in enumerate(history(ENDS))
    ]
    table = read_table(write(tmp_path, ["id", "run_id", "params", "tokens", "loss"], rows))
    assert used_rows(table) == LAST


def test_a_table_with_one_row_per_run_is_read_unchanged(tmp_path):
    rows = [(f"run{number}", params, tokens, loss(params, tokens)) for number, (params, tokens) in enumerate(ENDS)]
    table = read_table(write(tmp_path, ["run_id", "params", "tokens", "loss"], rows))
    assert used_rows(table) == LAST
    assert {diagnostic.code for diagnostic in table.diagnostics} == {"columns", "flops-6nd"}


def test_a_parquet_history_reads_like_a_csv_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    names = ["run_id", "_step", "params", "tokens", "loss"]
    frame = pandas.DataFrame(list(history(ENDS)), columns=names)
    frame.loc[len(frame)] = ["run0", 10**6, ENDS[0][0], 10 * ENDS[0][1], float("nan")]
    frame.to_parquet(tmp_path / "runs.parquet")
    table = read_table(tmp_path / "runs.parquet")
    assert used_rows(table) == LAST


def test_an_error_of_the_fit_reports_excluded_rows(tmp_path):
    rows = [(name, params, tokens, value) for name, _, params, tokens, value in history(ENDS[:3])]
    with pytest.raises(FitError, match=r"(?s)3 runs cannot fit.*15 rows belong to 3 training runs"):
        fit(write(tmp_path, ["run_id", "params", "tokens", "loss"], rows))


def test_with_steps_each_n_and_seed_of_a_name_is_a_run(tmp_path):
    """As W&B runs of several seeds that share a display name."""
    rows = [
        (name, seed, step, params, tokens, value + seed / 1000)
        for name, step, params, tokens, value in history(ENDS)
        for seed in (0, 1)
    ]
    table = read_table(write(tmp_path, ["name", "seed", "_step", "params", "tokens", "loss"], rows))
    expected = sorted((params, tokens, value + seed / 1000) for params, tokens, value in LAST for seed in (0, 1))
    assert used_rows(table) == expected
    assert "150 rows belong to 30 training runs" in note(table)


def test_a_mix_of_names_with_one_and_several_n_is_refused_without_steps(tmp_path):
    rows = [("a", 1e6, 1e8, 3.6), ("a", 2e6, 1e8, 3.5), ("b", 4e6, 1e8, 3.4), ("b", 4e6, 2e8, 3.3)]
    path = write(tmp_path, ["run", "params", "tokens", "loss"], rows)
    with pytest.raises(FitError, match=r"some names in column 'run' have rows with several N or seeds \(a\)"):
        read_table(path)
    assert len(read_table(path, {"id": "row"}).observations) == 4


def test_a_finished_mlflow_run_can_be_used(tmp_path):
    rows = [("a", "FINISHED", 1e6, 1e8, 3.6), ("b", "FAILED", 1e6, 2e8, 3.5)]
    table = read_table(write(tmp_path, ["run_id", "status", "params", "tokens", "loss"], rows))
    assert ([run.id for run in table.observations], table.excluded) == (["a"], {"b": "its status is FAILED"})


def test_steps_that_differ_by_run_do_not_make_a_history_of_a_group_name(tmp_path):
    rows = [("sweep", 10, 1e6, 1e8, 3.6), ("sweep", 20, 2e6, 1e8, 3.5), ("sweep", 30, 4e6, 1e8, 3.4)]
    table = read_table(write(tmp_path, ["run", "step", "params", "tokens", "loss"], rows))
    assert len(table.observations) == 3
    assert "every row counts as a separate run" in note(table)
