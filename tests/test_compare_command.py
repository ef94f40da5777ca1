"""``flops-fit compare``: studies and tables, exit statuses, refusals."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from flops_fit_core import FitError, Study
from flops_fit_core.cli.main import run

BUDGETS = (1e18, 4e18, 1.6e19)


def write_table(
    path, gain, *, noise=0.0005, seeds=(0, 1), header="params,tokens,flops,loss,seed", budgets=BUDGETS
):
    random = np.random.default_rng(len(path.name))
    lines = [header]
    for budget in budgets:
        for params in (0.6 * budget**0.45, budget**0.45, 1.7 * budget**0.45):
            tokens = budget / (6 * params)
            for seed in seeds:
                loss = 1.7 + 400 / (params * gain**0.5) ** 0.34 + 410 / (tokens * gain**0.5) ** 0.28
                loss *= np.exp(noise * random.standard_normal())
                lines.append(f"{params:.8g},{tokens:.8g},{budget:.8g},{loss:.8g},{seed}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def tables(tmp_path):
    return write_table(tmp_path / "base.csv", 1.0), write_table(tmp_path / "better.csv", 1.2)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Studies on a formula: the base, other seeds with another optimizer, and other data."""
    folder = tmp_path_factory.mktemp("studies")
    changes = {
        "base": {},
        "lion": {"optimizer": {"name": "lion", "lr": 0.001}, "seeds": [2, 3]},
        "data": {"B": 1500},
    }
    for name, change in changes.items():
        table = {
            "name": name,
            "sweep": {"budgets": [1e18, 4e18, 1.6e19], "sizes": 5, "seeds": change.pop("seeds", [0, 1])},
            "model": "surface/surface",
            "dataset": {
                "name": "surface/surface",
                "noise": 0.001,
                **({"B": change.pop("B")} if "B" in change else {}),
            },
            "executor": "local",
            **change,
        }
        (folder / f"{name}.json").write_text(json.dumps(table))
        assert run(["run", str(folder / f"{name}.json"), "--out", str(folder / name)]) == 0
    return folder


def test_a_gain_far_beyond_the_runs_comes_after_its_distance_and_interval_with_one_digit(tables, call):
    lines = call("compare", *tables, "--flops", "1.6e19", "--flops", "1.6e22")[1].splitlines()
    heading = next(line for line in lines if "P(B beats A)" in line)
    assert heading.index("90% interval") < heading.index(" gain ")
    row = next(line for line in lines if "1.6e22" in line)
    assert re.match(r" *1,000x beyond your data +1\.6e22 +\d\.?\d? to \d\.?\d? +~1 ", row), row
    assert re.search(r" 1\.6e19 +1\.\d+ to 1\.\d+ +1\.\d+ ", "\n".join(lines))


def test_two_tables_are_compared_with_their_assumptions(tables, call):
    status, output, error = call("compare", *tables)
    assert (status, error) == (0, "")
    for text in (
        "Compute-equivalent gain of B over A",
        "1.6e19",
        "18 + 18 runs",
        "a table has no record of its data",
    ):
        assert text in output
    assert "Gate" not in output


def test_the_json_answer_has_the_gain_at_each_budget(tables, call):
    status, output, _ = call("compare", *tables, "--flops", "4e18", "--flops", "1.6e19", "--json")
    answer = json.loads(output)
    assert status == 0
    assert [item["flops"] for item in answer["gains"]] == [4e18, 1.6e19]
    for item in answer["gains"]:
        assert item["gain"]["value"] == pytest.approx(1.2, rel=0.03)
        assert item["gain"]["low"] < item["gain"]["value"] < item["gain"]["high"]
        assert item["probability"] > 0.99
    assert answer["n_pairs"] == 18
    assert answer["answered"]


def test_the_gate_sets_the_exit_status(tables, call):
    base, better = tables
    status, output, _ = call("compare", base, better, "--gate", "1.02")
    assert status == 0
    assert "Gate 1.02: B is promoted" in output
    status, output, _ = call("compare", base, better, "--gate", "1.5")
    assert status == 3
    assert "Gate 1.5: B is not promoted" in output
    status, output, _ = call("compare", better, base, "--gate", "1", "--json")
    assert status == 3
    assert json.loads(output)["promoted"] is False


def test_a_gate_without_an_answer_has_another_exit_status(tables, tmp_path, call):
    noisy, noisier = (
        write_table(tmp_path / name, 1.0, noise=0.5, budgets=BUDGETS[-1:]) for name in ("noisy.csv", "noisier.csv")
    )
    status, output, _ = call("compare", noisy, noisier, "--gate", "1.02")
    assert status == 4, output
    few = write_table(tmp_path / "few.csv", 1.0)
    few.write_text("\n".join(few.read_text().splitlines()[:3]) + "\n")
    status, _, error = call("compare", tables[0], few, "--gate", "1.02")
    assert status == 4
    assert "has 2 completed runs" in error
    assert call("compare", tables[0], few)[0] == 2


def test_rows_of_one_table_are_compared(tables, tmp_path, call):
    lines = ["recipe,params,tokens,flops,loss,seed"]
    for name, path in zip(("a", "b"), tables, strict=True):
        lines += [f"{name},{line}" for line in path.read_text().splitlines()[1:]]
    joined = tmp_path / "joined.csv"
    joined.write_text("\n".join(lines) + "\n")
    filters = ("--filter-a", "recipe=a", "--filter-b", "recipe=b")
    expected = json.loads(call("compare", *tables, "--json")[1])["gains"]
    answer = json.loads(call("compare", joined, joined, *filters, "--json")[1])
    assert answer["gains"] == expected
    assert (answer["first"], answer["second"]) == (f"{joined} recipe=a", f"{joined} recipe=b")


def test_a_table_in_bits_is_not_compared_with_one_in_nats(tables, tmp_path, call):
    bits = write_table(tmp_path / "bits.csv", 1.1, header="params,tokens,flops,loss_bits,seed")
    columns = ("--column", "params=params")
    status, _, error = call("compare", tables[0], bits, *columns)
    assert status == 2
    assert "are in bits" in error


def test_a_figure_is_written(tables, tmp_path, call):
    figure = tmp_path / "gain.png"
    assert call("compare", *tables, "--gate", "1.02", "--plot", figure)[0] == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    status, _, error = call("compare", *tables, "--plot", tmp_path / "gain.txt")
    assert status == 2
    assert ".png" in error


@pytest.mark.parametrize("gate", ["0", "-1", "inf", "nan"])
def test_a_gate_must_be_positive(tables, call, gate):
    status, _, error = call("compare", *tables, "--gate", gate)
    assert status == 2
    assert "--gate 1.02" in error


# ---------------------------------------------------------------------------- studies


def test_two_studies_are_compared_and_their_differences_listed(studies, call):
    status, output, error = call("compare", studies / "base", studies / "lion", "--gate", "1.02")
    assert (status, error) == (3, "")
    assert "optimizer: " in output
    assert "-> " in output
    assert "30 + 30 runs" in output
    assert "a table has no record" not in output


def test_studies_with_other_data_are_refused(studies, call):
    status, _, error = call("compare", studies / "base", studies / "data")
    assert status == 2
    assert "the data or the tokenizers differ" in error
    assert "--allow-differences" in error


def test_differences_can_be_allowed(studies):
    first, second = Study.open(studies / "base"), Study.open(studies / "data")
    with pytest.raises(FitError, match="cannot be compared"):
        first.compare(second)
    comparison = first.compare(second, allow_differences=True)
    assert comparison.gains[0].gain.low > 1.5  # less data for the same loss
    assert "different" in {item.code for item in comparison.diagnostics}
    # The gain in D is (2085.43 / 1500)^(1 / beta), and N does not gain.
    assert comparison.gains[0].gain.value == pytest.approx((2085.43 / 1500) ** (1 / 0.3658), rel=0.1)


def test_other_counters_are_refused(studies):
    first, second = Study.open(studies / "base"), Study.open(studies / "base")
    second.plan = second.plan.model_copy(update={"flops_name": "counted by a trace"})
    with pytest.raises(FitError, match="C is counted differently"):
        first.compare(second)
