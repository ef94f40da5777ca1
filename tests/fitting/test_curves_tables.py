"""Curve tables in the forms of loggers: W&B and Lightning exports, HF logs, resumed runs, orders and units."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from curve_samples import PEAK, rates, true_losses

from flops_fit_core import FitError
from flops_fit_core.fitting import parse_schedule, read_curves

STEPS = np.arange(100, 3001, 100)
RATES = rates("cosine", 3001)
LOSSES = true_losses(RATES, STEPS)
ROWS = [(int(step), float(RATES[step]), float(loss)) for step, loss in zip(STEPS, LOSSES, strict=True)]


def write(tmp_path, header, rows, name="curve.csv"):
    path = tmp_path / name
    lines = [header, *(",".join("" if cell is None else str(cell) for cell in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_one(path, **options):
    (curve,) = read_curves(path, **options).curves
    return curve


def assert_is_the_curve(curve, scale=1.0):
    assert curve.steps.tolist() == STEPS.tolist()
    assert curve.losses == pytest.approx(LOSSES)
    after_warmup = np.arange(200, 3000)
    assert curve.rates.values[after_warmup] * scale == pytest.approx(RATES[after_warmup], rel=1e-2)


@pytest.mark.parametrize(
    "header",
    [
        "step,lr,loss",
        "Step,train/learning_rate,eval/loss",
        "trainer/global_step,lr-AdamW,val_loss",
        "global_step,learning_rate,train_loss",
        "iter,lr,train/loss",
        "_step,optim/learning_rate_group0,validation loss",
    ],
)
def test_columns_are_found_under_the_names_of_loggers(tmp_path, header):
    assert_is_the_curve(read_one(write(tmp_path, header, ROWS)))


def test_global_step_is_preferred_to_a_step_within_an_epoch(tmp_path):
    rows = [(step % 700, step, rate, loss) for step, rate, loss in ROWS]
    assert_is_the_curve(read_one(write(tmp_path, "step,global_step,lr,loss", rows)))


def test_rows_in_any_order_give_the_same_curve(tmp_path):
    assert_is_the_curve(read_one(write(tmp_path, "step,lr,loss", ROWS[::-1])))
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    assert_is_the_curve(read_one(write(tmp_path, "step,lr,loss", shuffled)))


def test_rows_without_a_loss_or_a_rate_are_joined_as_lightning_and_hf_write_them(tmp_path):
    rows = [row for step, rate, loss in ROWS for row in ((step, rate, None), (step, None, loss))]
    assert_is_the_curve(read_one(write(tmp_path, "step,lr-AdamW,val_loss", rows)))
    pairs = [
        ({"step": step, "learning_rate": rate}, {"step": step, "eval_loss": loss}) for step, rate, loss in ROWS
    ]
    records = [record for pair in pairs for record in pair]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    assert_is_the_curve(read_one(path))


def test_all_rates_may_come_before_all_losses(tmp_path):
    rows = [(step, rate, None) for step, rate, _ in ROWS] + [(step, None, loss) for step, _, loss in ROWS]
    assert_is_the_curve(read_one(write(tmp_path, "step,lr,val_loss", rows)))


def test_losses_before_the_first_update_with_a_rate_are_left_out(tmp_path):
    rows = [(0, 0.0, 11.0), (1, 1e-8, 11.0), *ROWS]
    curve = read_one(write(tmp_path, "step,lr,loss", rows))
    assert curve.steps.tolist() == STEPS.tolist()


def test_rows_that_are_not_numbers_are_left_out(tmp_path):
    rows = [*ROWS[:5], (550, "", "nan"), (560, "nan", "NaN"), *ROWS[5:], ("total", "", "")]
    table = read_curves(write(tmp_path, "step,lr,loss", rows))
    assert_is_the_curve(table.curves[0])
    assert "2 rows have neither a rate nor a loss" in [item.message for item in table.diagnostics]


def test_a_resumed_run_replaces_the_rows_after_its_checkpoint(tmp_path):
    lost = [(step, rate, loss + 1) for step, rate, loss in ROWS[10:14]]
    table = read_curves(write(tmp_path, "step,lr,loss", [*ROWS[:10], *lost, *ROWS[10:]]))
    assert_is_the_curve(table.curves[0])
    assert "4 losses are left out: the run was resumed before them" in [item.message for item in table.diagnostics]


def test_a_resume_that_repeats_its_last_step_keeps_the_later_row(tmp_path):
    step, rate, loss = ROWS[9]
    rows = [*ROWS[:9], (step, rate, loss + 1), *ROWS[9:]]
    assert_is_the_curve(read_one(write(tmp_path, "step,lr,loss", rows)))


def test_steps_that_begin_again_in_every_epoch_are_refused(tmp_path):
    rows = [(step % 1500, rate, loss) for step, rate, loss in ROWS]
    with pytest.raises(FitError, match=r"begin again at 0.*counts all updates"):
        read_curves(write(tmp_path, "step,lr,loss", rows))


def test_rates_in_percent_are_read(tmp_path):
    rows = [(step, f"{100 * rate / PEAK}%", loss) for step, rate, loss in ROWS]
    assert_is_the_curve(read_one(write(tmp_path, "step,lr,loss", rows)), scale=PEAK / 100)
    rows[3] = ROWS[3]
    with pytest.raises(FitError, match="percentages and others are not"):
        read_curves(write(tmp_path, "step,lr,loss", rows))


def test_planned_rows_without_a_loss_continue_the_schedule(tmp_path):
    rows = [(step, rate, loss if step <= 1500 else None) for step, rate, loss in ROWS]
    curve = read_one(write(tmp_path, "step,lr,loss", rows))
    assert (curve.last_step, curve.rates.steps) == (1500, 3000)
    assert not curve.is_finished


def test_a_schedule_continues_the_logged_rates(tmp_path):
    rows = [row for row in ROWS if row[0] <= 1500]
    path = write(tmp_path, "step,lr,loss", rows)
    assert read_one(path).rates.steps == 1500
    planned = parse_schedule("cosine:steps=3000,final=0.1,warmup=0,peak=3e-4")
    curve = read_one(path, schedule=planned)
    assert curve.rates.values[1600:2900] == pytest.approx(RATES[1600:2900], rel=0.01)
    with pytest.raises(FitError, match="schedule does not match the logged rates: at step 1500"):
        read_curves(path, schedule=parse_schedule("cosine:steps=6000,final=0.1,warmup=0"))


def test_a_missing_column_of_rates_needs_a_schedule(tmp_path):
    rows = [(step, loss) for step, _, loss in ROWS]
    path = write(tmp_path, "step,loss", rows)
    with pytest.raises(FitError, match=r"no column of learning rates.*--schedule NAME:key=value"):
        read_curves(path)
    curve = read_one(path, schedule=parse_schedule("cosine:steps=3000,final=0.1,peak=3e-4"))
    assert curve.rates.values[1500] == pytest.approx(0.55 * PEAK)


def test_the_held_out_loss_is_preferred_and_other_doubts_are_refused(tmp_path):
    rows = [(step, rate, loss + 0.1, loss) for step, rate, loss in ROWS]
    path = write(tmp_path, "step,lr,train_loss,val_loss", rows)
    assert_is_the_curve(read_one(path))
    assert read_one(path, columns={"loss": "train_loss"}).losses == pytest.approx(LOSSES + 0.1)
    path = write(tmp_path, "step,lr,train_loss,loss", rows)
    with pytest.raises(FitError, match=r"train_loss, loss. Choose with --column loss='loss'"):
        read_curves(path)


def test_parameter_groups_with_equal_rates_count_as_one_column(tmp_path):
    rows = [(step, rate, rate, loss) for step, rate, loss in ROWS]
    assert_is_the_curve(read_one(write(tmp_path, "step,lr-AdamW/pg1,lr-AdamW/pg2,loss", rows)))
    rows = [(step, rate, 2 * rate, loss) for step, rate, loss in ROWS]
    with pytest.raises(FitError, match="several columns that may be the lr"):
        read_curves(write(tmp_path, "step,lr-AdamW/pg1,lr-AdamW/pg2,loss", rows))


def test_runs_and_sizes_are_separate(tmp_path):
    rows = [(run, size, *row) for run, size in (("a", "25M"), ("b", "100M")) for row in ROWS]
    table = read_curves(write(tmp_path, "run,model_size,step,lr,loss", rows))
    assert [(curve.name, curve.group) for curve in table.curves] == [("a", "25M"), ("b", "100M")]


def test_a_run_without_a_usable_row_is_named_and_others_are_read(tmp_path):
    rows = [("a", *row) for row in ROWS] + [("b", 100, 3e-4, None), ("c", 100, 3e-4, -1)]
    table = read_curves(write(tmp_path, "run,step,lr,loss", rows))
    assert [curve.name for curve in table.curves] == ["a"]
    assert set(table.excluded) == {"b", "c"}


@pytest.mark.parametrize(
    ("header", "cells", "part"),
    [
        ("tokens,lr,loss", (1e6, 3e-4, 3.0), "no column of steps.*divide tokens"),
        ("step,lr", (100, 3e-4), "no column of loss"),
        ("step,lr,loss", (0.5, 3e-4, 3.0), "epochs and tokens are not steps"),
        ("step,lr,loss", (100, 0, 3.0), "not all 0"),
        ("step,lr,loss", (100, 3e-4, "nan"), "no row has a loss"),
    ],
)
def test_an_unusable_table_is_refused_with_the_reason(tmp_path, header, cells, part):
    with pytest.raises(FitError, match=part):
        read_curves(write(tmp_path, header, [cells]))


def test_an_unknown_column_or_role_is_refused(tmp_path):
    path = write(tmp_path, "step,lr,loss", ROWS)
    with pytest.raises(FitError, match="did you mean 'loss'"):
        read_curves(path, columns={"loss": "lost"})
    with pytest.raises(FitError, match="valid roles of a curve: step, lr, loss, run, size"):
        read_curves(path, columns={"params": "loss"})


def test_decimal_commas_are_read(tmp_path):
    path = tmp_path / "curve.csv"
    lines = [f"{step};{rate:.9f};{loss:.5f}".replace(".", ",") for step, rate, loss in ROWS]
    path.write_text("\n".join(["step;lr;loss", *lines]))
    assert read_one(path).losses == pytest.approx(LOSSES, rel=1e-5)
