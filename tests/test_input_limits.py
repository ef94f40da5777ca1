"""Hostile and mistaken inputs end in a message within seconds: experiment files, plans, tables."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from flops_fit_core import ConfigError, FitError, PlanError, plan
from flops_fit_core.config import override_value, read_table
from flops_fit_core.fitting import is_table
from flops_fit_core.fitting import read_table as read_runs
from flops_fit_core.plugins import limits

TEN = ",".join(["*{0}"] * 10)
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{name}: &{name} [{TEN.format(before)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "\n".join(
    f"{name}: &{name} {{<<: [{TEN.format(before)}]}}" for before, name in zip("abcdef", "bcdefg", strict=True)
)
FILES = {
    "aliases.yaml": (ALIASES.encode(), r"at most 100,000 keys and values, each alias \(\*name\) expanded"),
    "merges.yaml": (MERGES.encode(), r"at most 100,000 keys and values, each alias \(\*name\) expanded"),
    "cycle.yaml": (b"a: &a [*a]\n", "the alias in line 1 contains itself"),
    "tag.yaml": (b"name: !!python/object/apply:os.system ['touch pwned']\n", "could not determine a constructor"),
    "deep.yaml": (b"[" * 20_000, "nested too deeply"),
    "deep.json": (b"[" * 100_000, "nested too deeply"),
    "deep-objects.json": (b'{"a":' * 100_000, "nested too deeply"),
    "31-levels.json": (b"[" * 32 + b"]" * 32, "nested too deeply"),
    "deep.toml": (b"a = " + b"[" * 100_000, "nested too deeply"),
    "dots.toml": (b"a." * 300_000 + b"b = 1", "nested too deeply"),
    "many.json": (b"[" + b"[]," * 200_000 + b"[]]", "at most 100,000 values"),
    "large.toml": (b"#" * 1_000_001, "at most 1,000,000 bytes"),
    "nul.toml": (b'name = "x\x00"\n', "Illegal character"),
    "nul.yaml": (b"name: x\x00\n", "special characters are not allowed"),
    "utf16.toml": ("name = 'x'".encode("utf-16"), "the text is UTF-16 instead of utf-8: save"),
    "bytes.toml": (b"a = 1\nname = 'x\xff'\n", "line 2 has a byte that is not UTF-8"),
    "bytes.json": (b'{"name": "\xff"}', "line 1 has a byte that is not UTF-8"),
    "bytes.yaml": (b"\n\nname: \xff\n", "line 3 has a byte that is not UTF-8"),
    "digits.toml": (b"a = " + b"9" * 5000, "4300 digits"),
    "digits.json": (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
    "twice.json": (b'{"name": "a", "name": "b"}', "the key 'name' twice"),
    "twice.yaml": (
        b"sweep: {budgets: [1e17], budgets: [1e18]}\n",
        "'budgets' is in line 1 and again in line 1",
    ),
    "two.yaml": (b"---\na: 1\n---\nb: 1\n", "expected a single document"),
    "date.yaml": (b"a: 2001-99-99\n", "line 1: '2001-99-99' is not a valid timestamp"),
    "int.yaml": (b"a: !!int ''\n", "line 1: '' is not a valid int"),
    "float.yaml": (b"\na: !!float _\n", "line 2: '_' is not a valid float"),
    "bool.yaml": (b"a: !!bool maybe\n", "line 1: 'maybe' is not a valid bool"),
    "timestamp.yaml": (b"a: !!timestamp x\n", "line 1: 'x' is not a valid timestamp"),
    "base-60.yaml": (b"a: 1:" + b":".join([b"59"] * 3000) + b".0\n", "line 1: .* is not a valid float"),
    "digits-60.yaml": (b"a: 1:" + b":".join([b"59"] * 3000) + b"\n", "an integer has more than 400 digits"),
    "character.yaml": (b'\na: "\\UFFFFFFFF"\n', r"line 2: a character is above \\U0010FFFF"),
    "hexadecimal.toml": (b"a = 0x" + b"f" * 5000, "an integer has more than 400 digits"),
    "nothing.yaml": (b"", "expected tables"),
    "list.json": (b"[1]", "expected tables"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_experiment_file_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call, name: str
) -> None:
    content, message = FILES[name]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_table(Path(name))
    status, _, error = call("plan", name)
    assert status == 2
    assert error.startswith(f"error: {name}: ")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_byte_order_mark_and_shared_yaml_values_are_read(tmp_path: Path) -> None:
    (tmp_path / "mark.toml").write_bytes(b"\xef\xbb\xbfname = 'x'\n")
    assert read_table(tmp_path / "mark.toml") == {"name": "x"}
    (tmp_path / "shared.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert read_table(tmp_path / "shared.yaml") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }


def test_a_deep_value_on_the_command_line_is_a_message() -> None:
    with pytest.raises(ConfigError, match=r"--set: the value .* is nested too deeply"):
        override_value({}, "a.b=" + "[" * 100_000)


def test_a_file_of_many_mistakes_lists_twenty(tmp_path: Path, call) -> None:
    table = {"sweep": {"budgets": ["a"] * 1000}, "model": "surface", "dataset": "surface"}
    (tmp_path / "wrong.json").write_text(json.dumps(table))
    status, _, error = call("plan", tmp_path / "wrong.json")
    assert status == 2
    assert error.count("Input should be a valid number") == 20
    assert "and 980 more mistakes" in error


def surface(**sweep: object) -> dict[str, object]:
    return {"sweep": sweep, "model": "surface", "dataset": {"name": "surface"}}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"budgets": [1e17], "sizes": 1_000_000}, r"sweep\.sizes = 1,000,000: at most 1,000 sizes per budget"),
        (
            {"budgets": [1e17 + 1e12 * number for number in range(20_000)]},
            "20,000 budgets x 6 sizes x 1 seeds are 120,000 runs, and a plan has at most 100,000",
        ),
        ({"budgets": [1e17], "seeds": list(range(20_000))}, "20,000 seeds are 120,000 runs"),
        (
            {"budgets": [1e17], "seeds": list(range(60_000)), "sizes": [{"params": 8}, {"params": 9}]},
            "120,000 runs",
        ),
        ({"budgets": [1e308]}, "more parameters than torch can count"),
    ],
)
def test_a_sweep_that_is_too_large_is_refused_before_it_is_planned(tmp_path: Path, sweep, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(surface(**sweep), out=tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_every_limit_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "limits.md").read_text()
    constants = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert len(constants) == 12
    for name, value in constants.items():
        (line,) = [line for line in page.splitlines() if f"`{name}`" in line]
        assert f" {value:,} " in line


# ---------------------------------------------------------------------------- tables

ROW = "1e8,2e9,3.1"
NAMES, VALUES = ("params", "tokens", "loss"), (1e8, 2e9, 3.1)


def parquet(path: Path, rows: int) -> None:
    arrays = {name: pyarrow.repeat(value, rows) for name, value in zip(NAMES, VALUES, strict=True)}
    pyarrow.parquet.write_table(pyarrow.table(arrays), path, compression="zstd")


def refuse(path: Path, message: str, most_bytes: float) -> None:
    """Reading is refused, with less memory than the table would take."""
    tracemalloc.start()
    try:
        with pytest.raises(FitError, match=message):
            read_runs(path)
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


def test_a_small_parquet_file_of_30_million_rows_is_refused_by_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    parquet(path, 30_000_000)
    assert path.stat().st_size < 600_000
    refuse(path, r"runs\.parquet has 30,000,000 rows, and a table has at most 1,000,000\. Keep", 50e6)


def test_parquet_lists_that_expand_are_refused_by_their_values(tmp_path: Path) -> None:
    values = pyarrow.repeat(1.0, 25_000_000)
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, 25_000_000], pyarrow.int32()), values)
    table = pyarrow.table({"params": [1e8], "tokens": [2e9], "loss": [3.1], "history": lists})
    pyarrow.parquet.write_table(table, tmp_path / "runs.parquet", compression="zstd")
    refuse(tmp_path / "runs.parquet", "25,000,003 cells, and a table has at most 20,000,000", 50e6)


@pytest.mark.parametrize("text", ["text", "list", "delta"])
def test_parquet_texts_that_expand_to_gigabytes_are_refused_before_they_do(tmp_path: Path, text: str) -> None:
    rows, path = 100_000, tmp_path / "runs.parquet"
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.repeat(0, rows).cast("int32"), ["x" * 100_000])
    options: dict[str, object] = {"compression": "zstd", "store_schema": False}
    if text == "list":
        repeated = pyarrow.ListArray.from_arrays(pyarrow.array(range(rows + 1), pyarrow.int32()), repeated)
    if text == "delta":  # each value is written as the number of characters that it shares with the one before
        rows = 3000
        repeated = pyarrow.array([f"{'x' * 100_000}{number}" for number in range(rows)])
        options |= {"use_dictionary": False, "column_encoding": {"notes": "DELTA_BYTE_ARRAY"}}
    columns = {name: pyarrow.repeat(value, rows) for name, value in zip(NAMES, VALUES, strict=True)}
    pyarrow.parquet.write_table(pyarrow.table({**columns, "notes": repeated}), path, **options)
    assert path.stat().st_size < 1_000_000
    del repeated
    before = pyarrow.total_allocated_bytes()
    refuse(path, "its text has more than 256,000,000 bytes, the limit of a table", 50e6)
    assert pyarrow.total_allocated_bytes() - before < 50e6


def test_a_long_name_of_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(f"params,tokens,loss,{'(' * 100_000}\n{ROW},1\n")
    refuse(tmp_path / "runs.csv", "a name of 100,000 characters, and a name has at most 1,000", 10e6)


def test_a_long_cell_of_spaces_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text(
        json.dumps([{"params": f"1{' ' * 1_000_000}x", "tokens": 2e9, "loss": 3.1}])
    )
    assert list(read_runs(tmp_path / "runs.json").excluded) == ["row 1"]


def test_a_table_of_a_million_columns_is_refused(tmp_path: Path) -> None:
    names = ",".join(f"c{number}" for number in range(1_000_000))
    (tmp_path / "wide.csv").write_text(f"params,tokens,loss,{names}\n{ROW}\n")
    refuse(tmp_path / "wide.csv", "1,000,003 columns, and a table has at most 10,000", 300e6)


@pytest.mark.parametrize("name", ["long.csv", "long.jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=["lf", "cr", "crlf"])
def test_a_table_of_two_million_lines_is_refused_before_it_is_parsed(tmp_path: Path, name: str, end: str) -> None:
    (tmp_path / name).write_bytes(("params,tokens,loss" + end * 2_000_000).encode())
    refuse(tmp_path / name, "2,000,000 rows, and a table has at most 1,000,000", 60e6)


def test_a_gzip_bomb_is_refused_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TABLE_BYTES", 1_000_000)
    (tmp_path / "runs.csv.gz").write_bytes(gzip.compress(b"0" * 100_000_000))
    assert (tmp_path / "runs.csv.gz").stat().st_size < 1_000_000
    refuse(tmp_path / "runs.csv.gz", "its text has more than 1,000,000 bytes, the limit of a table", 20e6)
    (tmp_path / "runs.json").write_bytes(b"[" + b" " * 1_000_000 + b"]")
    assert is_table(tmp_path / "runs.json")
    refuse(tmp_path / "runs.json", "its text has more than 1,000,000 bytes", 20e6)


@pytest.mark.parametrize("name", ["deep.json", "deep.jsonl"])
@pytest.mark.parametrize("start", ["[", '{"a":', '[{"a":'])
def test_a_deeply_nested_table_is_a_message(tmp_path: Path, call, name: str, start: str) -> None:
    (tmp_path / name).write_text(start * 100_000)
    status, _, error = call("fit", tmp_path / name)
    assert status == 2
    assert name in error


TABLE = gzip.compress(b"a,b\n1,2\n", mtime=0)


@pytest.mark.parametrize(
    "content", [b"\x1f\x8b\x08\x00garbage", TABLE[:-6] + b"\xff" * 6, TABLE[:-9]], ids=["header", "sum", "cut"]
)
def test_a_damaged_gzip_table_is_a_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "runs.csv.gz").write_bytes(content)
    with pytest.raises(FitError, match=r"runs\.csv\.gz"):
        read_runs(tmp_path / "runs.csv.gz")


def test_a_json_file_with_bytes_that_are_not_utf8_is_a_message(tmp_path: Path, call) -> None:
    (tmp_path / "runs.json").write_bytes(b'{"exponents": "\xff"}')
    for command in (["fit"], ["predict", "--flops", "1e20"]):
        status, _, error = call(command[0], tmp_path / "runs.json", *command[1:])
        assert (status, "runs.json" in error) == (2, True)


def test_a_table_within_the_limits_is_read_completely(tmp_path: Path) -> None:
    lines = [f"{1e6 * (1 + number % 50)},{2e9 + number},3.{number:05}" for number in range(20_000)]
    (tmp_path / "runs.csv").write_text("\n".join(["params,tokens,loss", *lines]))
    assert len(read_runs(tmp_path / "runs.csv").observations) == 20_000


_FLIP_THE_FOOTER = """
import sys
from pathlib import Path
from flops_fit_core import FitError
from flops_fit_core.fitting import read_table
path = Path(sys.argv[1])
content = path.read_bytes()
footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
for position in range(footer, len(content) - 8):
    for bit in (1, 2):
        damaged = bytearray(content)
        damaged[position] ^= bit
        path.write_bytes(damaged)
        try:
            read_table(path)
        except FitError:
            pass
print("read all")
"""


def test_no_flipped_bit_of_a_parquet_footer_ends_the_process(tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    table = pyarrow.table({"params": [1e6, 2e6], "loss": [3.0, 2.9]}).replace_schema_metadata()
    pyarrow.parquet.write_table(table, path, store_schema=False)
    done = subprocess.run(
        [sys.executable, "-c", _FLIP_THE_FOOTER, str(path)], capture_output=True, text=True, timeout=100
    )
    assert (done.stdout, done.stderr) == ("read all\n", "")
