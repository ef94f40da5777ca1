"""Tables for laws with further inputs, without D, and with a loss that may be negative."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from flops_fit_core.cli.main import app


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output, result.exception


def write(path, names, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
    return path


@pytest.fixture
def normalised(tmp_path):
    """Losses less that of a unigram model: -5 + 200 / N^.4 + 3 / N_v^.3 + 4000 / D^.4."""
    rows = [
        (n, v, d, -5 + 200 * n**-0.4 + 3 * v**-0.3 + 4000 * d**-0.4)
        for n, v, d in itertools.product(
            np.geomspace(3e7, 1e9, 5), np.geomspace(2e6, 1e8, 4), np.geomspace(1e8, 6e10, 5)
        )
    ]
    return write(tmp_path / "vocabulary.csv", ("params", "vocabulary_params", "tokens", "loss"), rows)


@pytest.fixture
def streams(tmp_path):
    """Losses of parallel streams, without a column of tokens: 1.2 + (1e8 / (N (.3 ln S + 1)))^.2."""
    rows = [
        (n, s, 1.2 + (1e8 / (n * (0.3 * np.log(s) + 1))) ** 0.2)
        for n, s in itertools.product(np.geomspace(5e8, 4e9, 6), (1, 2, 4))
    ]
    return write(tmp_path / "streams.csv", ("params", "n_streams", "loss"), rows)


def test_a_law_of_the_loss_itself_fits_negative_losses(normalised, tmp_path):
    saved = tmp_path / "fit.json"
    code, output, _ = run("fit", normalised, "--law", "vocabulary", "--set", "draws=0", "--out", saved, "--json")
    assert code == 0, output
    law = json.loads(output)["law"]["parameters"]
    assert law["E"] == pytest.approx(5, rel=1e-4)
    assert (law["alpha"], law["gamma"]) == (pytest.approx(0.4, rel=1e-3), pytest.approx(0.3, rel=1e-2))
    point = ("--params", "1e9", "--tokens", "1e11", "--input", "vocabulary_params=5e7")
    code, output, _ = run("predict", saved, *point, "--json")
    truth = -5 + 200 * 1e9**-0.4 + 3 * 5e7**-0.3 + 4000 * 1e11**-0.4
    assert code == 0, output
    assert json.loads(output)["loss"]["value"] == pytest.approx(truth, rel=1e-4)
    _, _, error = run("predict", saved, "--flops", "1e20", "--input", "vocabulary_params=5e7")
    assert "may be negative" in str(error)


def test_other_laws_refuse_negative_losses(normalised):
    _, _, error = run("fit", normalised)
    assert "loss is" in str(error)
    assert "must be positive" in str(error)


def test_a_law_without_d_needs_no_tokens_and_has_no_optimum(streams, tmp_path):
    saved = tmp_path / "fit.json"
    columns = ("--column", "streams=n_streams")
    code, output, _ = run("fit", streams, "--law", "parallel", *columns, "--set", "draws=50", "--out", saved)
    assert code == 0, output
    assert "no exponents: the law has no D" in output
    assert "D / N" not in output
    code, output, _ = run("predict", saved, "--params", "3e9", "--tokens", "1", "--input", "streams=8", "--json")
    assert code == 0, output
    truth = 1.2 + (1e8 / (3e9 * (0.3 * np.log(8) + 1))) ** 0.2
    assert json.loads(output)["loss"]["value"] == pytest.approx(truth, rel=1e-4)
    _, _, error = run("predict", saved, "--flops", "1e20", "--input", "streams=8")
    assert "has no D, so a budget has no optimum" in str(error)


def test_a_missing_input_is_named_with_the_option_to_write(streams):
    _, _, error = run("fit", streams, "--law", "parallel")
    assert "--column streams=COLUMN" in str(error)
    _, _, error = run("fit", streams, "--law", "chinchilla")
    assert "tokens" in str(error)


def test_the_loss_at_n_and_d_has_both_intervals(tmp_path):
    random = np.random.default_rng(0)
    rows = [
        (n, d, (1.7 + 400 * n**-0.34 + 410 * d**-0.28) * np.exp(0.005 * random.standard_normal()))
        for n, d in itertools.product(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5))
    ]
    table = write(tmp_path / "runs.csv", ("params", "tokens", "loss"), rows)
    code, output, _ = run("predict", table, "--params", "2e9", "--tokens", "2e11", "--json")
    assert code == 0, output
    shown = json.loads(output)
    assert shown["new_run"]["low"] <= shown["loss"]["low"] < shown["loss"]["high"] <= shown["new_run"]["high"]
    _, _, error = run("predict", table, "--tokens", "2e11")
    assert "--tokens D needs --params N" in str(error)
