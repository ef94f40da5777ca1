"""Tables of runs."""

from __future__ import annotations

import math

import pytest

from flops_fit_core import FitError
from flops_fit_core.fitting import read_complete_table, read_table


def write(tmp_path, text, name="runs.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "header", ["params,tokens,flops,loss", "N,D,C,L", "Model_Size,train_tokens,FLOPs,final_loss"]
)
def test_common_column_names_are_recognised(tmp_path, header):
    (run,) = read_complete_table(write(tmp_path, f"{header}\n1e6,2e7,1.2e14,3.5\n")).observations
    assert (run.id, run.params, run.tokens, run.flops, run.loss) == ("row 2", 1e6, 2e7, 1.2e14, 3.5)


def test_other_names_are_mapped(tmp_path):
    path = write(tmp_path, "weights;D;ppl_nats\n1e6;2e7;3.5\n")
    with pytest.raises(FitError, match=r"no column for params, loss.*--column params=COLUMN"):
        read_complete_table(path)
    (run,) = read_complete_table(path, {"params": "weights", "loss": "ppl_nats"}).observations
    assert run.params == 1e6
    with pytest.raises(FitError, match="did you mean 'weights'"):
        read_complete_table(path, {"params": "weight"})


def test_missing_flops_become_6nd_with_a_note(tmp_path):
    table = read_table(write(tmp_path, "n,d,loss\n1e6,2e7,3.5\n"))
    assert table.observations[0].flops == pytest.approx(1.2e14)
    assert "flops-6nd" in [item.code for item in table.diagnostics]


def test_every_unusable_row_is_named_with_its_reason(tmp_path):
    rows = [
        "1e6,2e7,1.2e14,3.5",
        "1e6,2e7,1.2e14,nan",
        "-1,2e7,1.2e14,3",
        "x,2e7,1.2e14,3",
        "1e6,2e7,1.2e14,3.5",
        "1e6,,1,3",
        "1e6,1e308,1.2e14,3",
    ]
    table = read_table(write(tmp_path, "params,tokens,flops,loss\n" + "\n".join(rows)))
    assert len(table.observations) == 1
    assert table.excluded == {
        "row 3": "loss is nan",
        "row 4": "params is -1; it must be positive",
        "row 5": "params is not a number: 'x'",
        "row 6": "the same values as row 2",
        "row 7": "tokens is missing",
        "row 8": "tokens is 1e+308; it must be between 1e-60 and 1e+60",
    }
    with pytest.raises(FitError, match="6 rows cannot be used"):
        read_complete_table(write(tmp_path, "params,tokens,flops,loss\n" + "\n".join(rows)))


def test_a_table_of_a_study_keeps_ids_and_excludes_incomplete_runs(tmp_path):
    text = "id,status,params,tokens,flops,loss,seed,budget\na,completed,1e6,2e7,1.2e14,3.5,0,1e14\n"
    text += "b,failed,1e6,2e7,,,0,1e14\n"
    table = read_table(write(tmp_path, text))
    assert [(run.id, run.seed, run.budget) for run in table.observations] == [("a", 0, 1e14)]
    assert table.excluded == {"b": "its status is failed"}


def test_a_parquet_file_reads_like_a_csv_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"N": [1e6, 2e6], "D": [2e7, 1e7], "C": [1.2e14, 1.2e14], "L": [3.5, float("nan")]})
    frame.to_parquet(tmp_path / "runs.parquet")
    table = read_table(tmp_path / "runs.parquet")
    assert [run.params for run in table.observations] == [1e6]
    assert table.excluded == {"row 2": "loss is missing"}


@pytest.mark.parametrize("content", ["", "\n\n", "params,tokens,flops,loss", "\x00\x01", "a,b\n1,2\n"])
def test_a_file_without_a_table_of_runs_is_the_users_mistake(tmp_path, content):
    path = write(tmp_path, content)
    try:
        assert read_complete_table(path).observations == []
    except FitError as error:
        assert str(path) in str(error)
    with pytest.raises(FitError, match="no such file"):
        read_complete_table(tmp_path / "nowhere.csv")


def bits_found(tmp_path, text, **options):
    table = read_table(write(tmp_path, text), **options)
    return [diagnostic.message for diagnostic in table.diagnostics if diagnostic.code == "bits"]


LOSSES = (3.5, 3.1, 2.9, 2.75)


def columns(**named):
    rows = [
        [f"{1e6 * (row + 1)}", "2e7", *(f"{values[row]:.4f}" for values in named.values())] for row in range(4)
    ]
    return "\n".join(["params,tokens," + ",".join(named), *(",".join(row) for row in rows)]) + "\n"


@pytest.mark.parametrize("name", ["bits_per_byte", "val_bpb", "loss (bits)", "BPC", "loss_bits"])
def test_a_column_named_bits_is_treated_as_bits(tmp_path, name):
    (message,) = bits_found(tmp_path, columns(**{name: LOSSES}), columns={"loss": name})
    assert repr(name) in message
    assert "ln 2 = 0.6931" in message


@pytest.mark.parametrize("name", ["loss", "8bit_loss", "habits", "rabbit_loss"])
def test_other_names_do_not_indicate_bits(tmp_path, name):
    assert bits_found(tmp_path, columns(**{name: LOSSES}), columns={"loss": name}) == []


def test_a_loss_in_bits_is_detected_from_a_column_in_nats(tmp_path):
    nats = [loss * math.log(2) for loss in LOSSES]
    (message,) = bits_found(tmp_path, columns(loss=LOSSES, cross_entropy=nats), columns={"loss": "loss"})
    assert "--column loss=cross_entropy" in message
    assert bits_found(tmp_path, columns(loss=nats, other=LOSSES)) == []
    assert bits_found(tmp_path, columns(loss=LOSSES, train=[loss * 0.7 for loss in LOSSES])) == []


def test_a_loss_in_bits_is_detected_from_a_perplexity(tmp_path):
    (message,) = bits_found(tmp_path, columns(loss=LOSSES, ppl=[2**loss for loss in LOSSES]))
    assert "base-2 logarithm of column 'ppl'" in message
    assert bits_found(tmp_path, columns(loss=LOSSES, ppl=[math.exp(loss) for loss in LOSSES])) == []


def test_losses_above_a_uniform_guess_are_reported_by_row(tmp_path):
    losses = (5.9, 5.7, 5.4, 5.1)
    (message,) = bits_found(tmp_path, columns(loss=losses, vocab_size=(256,) * 4))
    assert message.startswith("row 2, row 3: ")
    assert bits_found(tmp_path, columns(loss=losses, vocab_size=(50257,) * 4)) == []
