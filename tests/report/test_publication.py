"""Markdown, LaTeX and BibTeX of a law."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import made_up_fits
import pytest

from flops_fit_core.report.answer import Answer
from flops_fit_core.report.publication import bibtex, latex_table, markdown, size_rows
from flops_fit_core.report.tables import predictions_table

FIT = made_up_fits.law_fit()


def test_the_budget_of_a_size_is_that_at_which_the_size_is_optimal() -> None:
    rows = size_rows(FIT, made_up_fits.true_optimum)
    assert [row.params for row in rows] == [1e8, 2e8, 5e8, 1e9, 2e9, 5e9]
    for row in rows:
        assert made_up_fits.best_params(row.optimum.flops) == pytest.approx(row.params, rel=2e-4)
        assert row.factor == pytest.approx(row.optimum.flops / 1e20)


def test_the_latex_table_has_a_row_per_size_and_escapes_names() -> None:
    text = latex_table(FIT, size_rows(FIT, made_up_fits.true_optimum), "my_study 50% & more")
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and line[4].isdigit()]
    assert len(rows) == 6
    assert r"my\_study 50\% \& more" in text
    assert all(line.count(" & ") == 4 for line in rows)
    assert rows[0].split(" & ")[2] == "", "inside the runs"
    assert float(rows[-1].split(" & ")[2]) > 10
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_typesets_the_table(tmp_path: Path) -> None:
    table = latex_table(FIT, size_rows(FIT, made_up_fits.true_optimum), "my_study")
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + table + "\\end{document}\n"
    (tmp_path / "a.tex").write_text(document)
    subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_markdown_has_the_answer_and_a_table_of_equal_width() -> None:
    optima = [made_up_fits.true_optimum(flops) for flops in (1e19, 1e20)]
    text = markdown(Answer("a | b   21 runs", FIT, optima[0]), predictions_table(FIT, optima))
    assert text.startswith("# a \\| b   21 runs\n")
    assert "* For 1e19 FLOPs train 262M parameters" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_bibtex_entries_are_closed_and_name_the_version() -> None:
    text = bibtex("1.2.3")
    assert text.count("{") == text.count("}")
    assert re.findall(r"^@\w+\{(\w+),", text, re.M) == ["flopsfit", "hoffmann2022training"]
    assert "{1.2.3}" in text
