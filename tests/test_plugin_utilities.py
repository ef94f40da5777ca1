"""What plugins share: files that are whole at every moment, ends of logs, headers of fits."""

from __future__ import annotations

import math
import os
import signal
import stat
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from flops_fit_core import Interval, Law, LawFit
from flops_fit_core.plugins import (
    Options,
    bits_per_byte,
    fit_header,
    read_log_tail,
    replacing,
    write_atomically,
)

# ---------------------------------------------------------------------------- replacing a file


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize(
    ("content", "data"), [("Ünïcödé\r\n", "Ünïcödé\r\n".encode()), (b"\x00\xff\n", b"\x00\xff\n")]
)
def test_text_and_bytes_are_written_as_they_are(
    tmp_path: Path, content: str | bytes, data: bytes, durable: bool
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old", durable=durable)
    write_atomically(path, content, durable=durable)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"a part")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_content_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_writer_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = f"""
        import os, pathlib, signal
        from flops_fit_core.plugins import replacing
        with replacing(pathlib.Path({str(path)!r})) as file:
            file.write(b"new" * 100_000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    writer = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert writer.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    hidden = [file.name for file in tmp_path.iterdir() if file != path]
    assert len(hidden) == 1 and hidden[0].startswith(".file.")
    write_atomically(path, "newer")
    assert path.read_text() == "newer"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_replaced_file_has_the_permissions_of_a_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = tmp_path / "file"
        path.touch(0o600)
        write_atomically(path, "text")
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


def test_an_error_names_the_file_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        write_atomically(tmp_path / "missing" / "file", "text")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        write_atomically(tmp_path / "file" / "file", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without room")
def test_a_full_disk_is_reported_for_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as caught, replacing(path) as file:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, file.fileno())
        os.close(full)
        file.write(b"new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------------------- the end of a log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


def test_a_short_log_is_returned_whole_also_without_a_newline_at_its_end(log: Path) -> None:
    log.write_bytes(b"  first\nsecond\r\n\nlast without end")
    assert read_log_tail(log, 1000) == "  first\nsecond\r\n\nlast without end"


@pytest.mark.parametrize("end", [b"\n", b""])
def test_of_a_long_log_only_whole_lines_are_returned(log: Path, end: bytes) -> None:
    lines = [f"line {number:04d}".encode() for number in range(1000)]
    log.write_bytes(b"\n".join(lines) + end)
    for max_bytes in range(20, 60):
        tail = read_log_tail(log, max_bytes).encode()
        fitting = max(count for count in range(1, 10) if len(b"\n".join(lines[-count:]) + end) <= max_bytes)
        assert tail == b"\n".join(lines[-fitting:]) + end


def test_nothing_before_the_start_is_returned(log: Path) -> None:
    log.write_bytes(b"of an earlier attempt\n")
    start = log.stat().st_size
    assert read_log_tail(log, 1000, start) == ""
    with log.open("ab") as file:
        file.write(b"this attempt\nand its end\n")
    assert read_log_tail(log, 1000, start) == "this attempt\nand its end\n"
    assert read_log_tail(log, 25, start) == "this attempt\nand its end\n"
    assert read_log_tail(log, 24, start) == "and its end\n"


def test_a_character_that_is_cut_in_two_does_not_hide_the_rest(log: Path) -> None:
    log.write_bytes("größer\nPrüfung ☃ ".encode() + "☃".encode()[:2])
    assert read_log_tail(log, 1000) == "größer\nPrüfung ☃ \ufffd"
    size = log.stat().st_size
    for max_bytes in range(18, size):  # also where the first byte read is inside a character
        assert read_log_tail(log, max_bytes) == "Prüfung ☃ \ufffd"


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_last_line_that_is_too_long_is_cut_at_its_front(log: Path, end: str) -> None:
    log.write_text("before\n" + "x" * 500 + "the message" + end)
    assert read_log_tail(log, 40) == ("x" * 500 + "the message" + end)[-40:]


def test_a_log_that_is_missing_or_a_folder_has_no_end(tmp_path: Path) -> None:
    assert read_log_tail(tmp_path / "none", 100) == ""
    assert read_log_tail(tmp_path, 100) == ""


# ---------------------------------------------------------------------------- results and fits


def test_bits_per_byte_are_nats_per_token_over_ln_2_and_the_bytes_of_a_token() -> None:
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(2) * 3, 4.0) == pytest.approx(0.75)
    assert bits_per_byte(1.0, None) is None


@dataclass(frozen=True)
class Fitter:
    form: str
    level: float = 0.9
    seed: int = 0
    steps: int = 10
    name: str = "mine/fitter"


class FitterOptions(Options):
    level: float = 0.9
    steps: int = 10


def test_a_header_has_the_options_that_differ_from_their_defaults_and_the_ranges() -> None:
    header = fit_header(
        Fitter("any", level=0.5, steps=20),
        "mine/fitter",
        flops=np.array([3e18, 1e18, 2e18]),
        params=[30, 10],
        draws={"a": np.array([0.5, 0.25]), "b": np.empty(0)},
    )
    fit = LawFit(
        **header, law=Law(name="line", parameters={}), exponents={"a": Interval(value=0.5)}, objective=0, n_runs=3
    )
    assert fit.fitter.name == "mine/fitter"
    assert fit.fitter.options == {"level": 0.5, "steps": 20}
    assert (fit.level, fit.seed) == (0.5, 0)
    assert fit.flops_range == (1e18, 3e18)
    assert fit.params_range == (10.0, 30.0)
    assert fit.draws == {"a": (0.5, 0.25)}


def test_a_header_of_options_or_of_any_object_has_the_defaults() -> None:
    options = fit_header(FitterOptions(steps=3), "mine/fitter", flops=[1], params=[1])
    assert options["fitter"].options == {"steps": 3}
    assert (options["level"], options["seed"], options["draws"]) == (0.9, 0, {})
    plain = fit_header(object(), "mine/fitter", flops=[1], params=[1])
    assert plain["fitter"].options == {}
    assert (plain["level"], plain["seed"]) == (0.9, 0)
