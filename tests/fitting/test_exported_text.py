"""Text of spreadsheets, trackers and editors: line ends, byte order marks, quotations, invisible signs."""

import gzip
import json

import pytest

from flops_fit_core import FitError
from flops_fit_core.fitting import is_table, read_table

NAMES = ("name", "params", "tokens", "loss")
SIGNS = {
    "U+2028": "\u2028",
    "U+2029": "\u2029",
    "U+0085": "\x85",
    "vertical tab": "\v",
    "form feed": "\f",
    "U+001C": "\x1c",
}
"""``str.splitlines`` takes each for the end of a line. CSV and JSON lines do not."""


def rows(*names):
    return [(name, 1e8 * number, 2e9, 3.1 - number / 10) for number, name in enumerate(names, 1)]


def csv_text(*names, end="\n", quote=False):
    mark = '"' if quote else ""
    return end.join(",".join(f"{mark}{cell}{mark}" for cell in row) for row in [NAMES, *rows(*names)]) + end


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_table(path)
    assert table.excluded == {}
    return table.observations


def ids(tmp_path, name, content):
    return [run.id for run in read(tmp_path, name, content)]


@pytest.mark.parametrize("sign", SIGNS.values(), ids=SIGNS)
@pytest.mark.parametrize("quote", [False, True])
def test_a_cell_of_a_csv_file_ends_at_no_other_sign_than_a_line_end(tmp_path, sign, quote):
    names = [f"a{sign}b", "c"]
    assert ids(tmp_path, "runs.csv", csv_text(*names, quote=quote)) == names


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"], ids=["U+2028", "U+2029", "U+0085"])
def test_a_record_of_json_lines_ends_at_no_other_sign_than_a_line_end(tmp_path, sign):
    records = [dict(zip(NAMES, row, strict=True)) for row in rows(f"a{sign}b", "c")]
    text = "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    assert ids(tmp_path, "runs.jsonl", text) == [f"a{sign}b", "c"]


@pytest.mark.parametrize("inside", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_a_line_end_in_quotation_marks_stays_in_its_cell(tmp_path, inside, end):
    names = [f"a{inside}b", "ab"]
    assert ids(tmp_path, "runs.csv", csv_text(*names, end=end, quote=True)) == names


@pytest.mark.parametrize("marks", [0, 1, 2])
def test_byte_order_marks_belong_to_no_name(tmp_path, marks):
    assert ids(tmp_path, "runs.csv", "\ufeff" * marks + csv_text("a", "b")) == ["a", "b"]


def test_invisible_signs_around_a_name_are_ignored(tmp_path):
    text = csv_text("a", "b").replace("params", "\u200bparams").replace("loss", "\u00a0loss\u2060")
    assert [run.params for run in read(tmp_path, "runs.csv", text)] == [1e8, 2e8]


@pytest.mark.parametrize("number", [0, 2])
def test_a_quotation_without_an_end_is_an_error_because_it_swallows_all_later_rows(tmp_path, number):
    lines = csv_text("a", "b", "c").splitlines()
    lines[number] = f'"{lines[number]}'
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    with pytest.raises(FitError, match=rf"row {number + 1}: a quotation mark has no end"):
        read_table(tmp_path / "runs.csv")


JSON = json.dumps([dict(zip(NAMES, row, strict=True)) for row in rows("é", "b")], ensure_ascii=False)
FORMS = {
    "mark.json": JSON.encode("utf-8-sig"),
    "utf16.json": JSON.encode("utf-16"),
    "windows.json": JSON.encode("cp1252"),
    "packed.json.gz": gzip.compress(JSON.encode()),
    "packed.json": gzip.compress(JSON.encode()),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_json_table_is_a_table_in_every_encoding_that_can_be_read(tmp_path, call, name):
    assert ids(tmp_path, name, FORMS[name]) == ["é", "b"]
    assert is_table(tmp_path / name)
    status, _, error = call("fit", tmp_path / name)
    assert status == 2
    assert "2 of 2 rows used" in error


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32"])
def test_a_text_with_nul_characters_is_named_as_such(tmp_path, encoding):
    (tmp_path / "runs.csv").write_bytes(csv_text("a", "b").encode(encoding))
    with pytest.raises(FitError, match=r"has NUL characters, so it is not a text table or not UTF-8"):
        read_table(tmp_path / "runs.csv")


@pytest.mark.parametrize("cell", ["10^400", "10^" + "9" * 5000, "6 x 10^9999"])
def test_a_power_above_every_number_excludes_its_row(tmp_path, cell):
    (tmp_path / "runs.csv").write_text(csv_text("a", "b") + f"c,{cell},2e9,3.0\nd,1e9,2e9,2.9\n")
    assert read_table(tmp_path / "runs.csv").excluded == {"c": "params is inf"}
    (tmp_path / "runs.json").write_text(json.dumps([{"seed": cell, **dict(zip(NAMES, *rows("a"), strict=True))}]))
    assert len(read_table(tmp_path / "runs.json").observations) == 1


WRONG = {
    "cells without a name": '[["params", "tokens", "loss"], [1e8, 2e9, 3.1, 3.0]]',
    "equal names": '{"columns": ["params", "tokens", "loss", "loss"], "data": [[1e8, 2e9, 3.1, 3.0]]}',
    "equal names in a list": '[["params", "tokens", "loss", "loss"], [1e8, 2e9, 3.1, 3.0]]',
    "equal keys": '[{"params": 1e8, "tokens": 2e9, "loss": 3.1, "loss": 3.0}]',
    "no cells": '{"columns": ["params", "tokens", "loss"], "data": 1}',
    "no rows": '{"columns": ["params", "tokens", "loss"], "data": [1]}',
    "no names": '{"columns": null, "data": [[1e8, 2e9, 3.1]]}',
    "lists as names": '{"columns": [["params"], ["params"]], "data": [[1e8, 2e9]]}',
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_json_table_that_would_lose_values_is_an_error(tmp_path, call, text):
    path = tmp_path / "runs.json"
    path.write_text(text)
    with pytest.raises(FitError, match=r"holds no table|has the key 'loss' twice"):
        read_table(path)
    assert call("fit", path)[0] == 2


def test_a_json_column_that_is_too_short_excludes_rows_with_a_reason(tmp_path):
    columns = {"params": [1e8, 2e8], "tokens": [2e9, 2e9], "loss": [3.1]}
    (tmp_path / "runs.json").write_text(json.dumps(columns))
    assert read_table(tmp_path / "runs.json").excluded == {"row 2": "loss is missing"}
