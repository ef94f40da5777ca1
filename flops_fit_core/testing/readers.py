"""The conformance kit for readers of logs.

::

    from flops_fit_core.testing import ReaderConformance

    class TestMyReader(ReaderConformance):
        name = "mine"

        def write(self, folder):
            ...  # write the logs of two runs
            return {"small": (1e7, 2e8, 3.9), "large": (4e7, 2e8, 3.6)}
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flops_fit_core.config import PluginConfig
from flops_fit_core.errors import UserError
from flops_fit_core.fitting import read_table
from flops_fit_core.plugins.protocols import LoggedRun
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.testing.kit import Kit

Expected = Mapping[str, tuple[float, float, float]]


class ReaderConformance(Kit, ABC):
    """Tests for every reader. Inherit, set ``name``, implement :meth:`write`, and run pytest.

    Attributes:
        columns: Role -> column, if the names in the log leave it open, as for ``read_table``.
    """

    kind: ClassVar[str] = "reader"
    columns: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def write(self, folder: Path) -> Expected:
        """Write the logs of at least two runs into an empty folder, below a folder for each run or in files of it.

        Returns N, D and the last held-out loss of each run, by its id. The logs should also have training losses
        and earlier evaluations, with other values.
        """

    @pytest.fixture
    def logs(self, tmp_path: Path) -> tuple[Path, Expected]:
        """A folder with logs, and N, D and the loss of each run."""
        folder = tmp_path / "logs"
        folder.mkdir()
        expected = self.write(folder)
        assert len(expected) > 1, "write the logs of at least two runs"
        return folder, expected

    def numbers(self, folder: Path, registry: Registry) -> dict[str, tuple[float, float, float]]:
        """N, D and the loss of each run, as a fit reads them."""
        table = read_table(folder, self.columns, reader=self.name, registry=registry)
        assert table.excluded == {}, f"runs that cannot be fitted: {table.excluded}"
        return {run.id: (run.params, run.tokens, run.loss) for run in table.observations}

    # ------------------------------------------------------------------ recognition

    def test_it_recognises_its_logs(self, chosen: PluginConfig[Any], logs: tuple[Path, Expected]) -> None:
        """In the folder of the runs."""
        assert chosen.spec.recognises(logs[0]) is True

    def test_it_recognises_nothing_else(self, chosen: PluginConfig[Any], tmp_path: Path) -> None:
        """A missing path, an empty folder, tables of runs and other files."""
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "notes.txt").write_text("not a log\n")
        (tmp_path / "runs.csv").write_text("params,tokens,loss\n1e8,2e9,3.1\n")
        (tmp_path / "runs.json").write_text('[{"params": 1e8, "tokens": 2e9, "loss": 3.1}]')
        (tmp_path / "runs.jsonl").write_text('{"params": 1e8, "tokens": 2e9, "loss": 3.1}\n')
        (tmp_path / "binary").write_bytes(bytes(range(256)))
        for path in (tmp_path / "missing", tmp_path / "notes", tmp_path, *tmp_path.glob("*")):
            assert chosen.spec.recognises(path) is False, f"it recognises {path.name}"

    # ------------------------------------------------------------------ content

    def test_a_fit_reads_the_right_numbers(self, registry: Registry, logs: tuple[Path, Expected]) -> None:
        """N, D and the last held-out loss of every run."""
        folder, expected = logs
        numbers = self.numbers(folder, registry)
        assert numbers.keys() == expected.keys()
        for run_id, values in expected.items():
            assert numbers[run_id] == pytest.approx(values, rel=1e-6), run_id

    def test_reading_again_returns_the_same(self, chosen: PluginConfig[Any], logs: tuple[Path, Expected]) -> None:
        """The same runs in the same order, with unique ids."""
        first, second = (_content(_read(chosen, logs[0])) for _ in range(2))
        assert first == second
        ids = [run[0] for run in first]
        assert all(ids)
        assert len(set(ids)) == len(ids)

    # ------------------------------------------------------------------ files of another person

    def test_it_writes_nothing(self, chosen: PluginConfig[Any], logs: tuple[Path, Expected]) -> None:
        """Logs stay as they were, without new files."""
        before = _hashes(logs[0])
        _content(_read(chosen, logs[0]))
        assert _hashes(logs[0]) == before

    def test_it_unpickles_nothing(self, chosen: PluginConfig[Any], logs: tuple[Path, Expected]) -> None:
        """A pickle can execute any code, so files such as training_args.bin are not loaded."""
        folder = logs[0]
        marker = folder.parent / "executed"
        bomb = pickle.dumps(_Bomb(str(marker)))
        for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            for name in ("training_args.bin", "hparams.pkl", "optimizer.pt", "pytorch_model.bin"):
                (place / name).write_bytes(bomb)
        _content(_read(chosen, folder))
        assert not marker.exists(), "it executed the content of a pickle"

    def test_damage_is_a_message(self, chosen: PluginConfig[Any], logs: tuple[Path, Expected]) -> None:
        """Truncated files, changed bytes and binary content: the runs, or a UserError."""
        folder, _ = logs
        for file in [path for path in sorted(folder.rglob("*")) if path.is_file()]:
            content = file.read_bytes()
            middle = len(content) // 2
            changed = (
                content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :] if content else b"\xff"
            )
            for damage in (content[:middle], changed, b"\x00" * len(content), b"[" * 100_000, b""):
                file.write_bytes(damage)
                with contextlib.suppress(UserError):
                    _content(_read(chosen, folder))
                file.write_bytes(content)

    def test_links_to_folders_are_not_followed(
        self, chosen: PluginConfig[Any], logs: tuple[Path, Expected]
    ) -> None:
        """A link may lead to any folder, also to a folder above it."""
        folder, _ = logs
        before = [run[0] for run in _content(_read(chosen, folder))]
        elsewhere = folder.parent / "elsewhere"
        shutil.copytree(folder, elsewhere)
        (folder / "copy").symlink_to(elsewhere, target_is_directory=True)
        (folder / "loop").symlink_to(folder, target_is_directory=True)
        assert [run[0] for run in _content(_read(chosen, folder))] == before


class _Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def _read(chosen: PluginConfig[Any], folder: Path) -> Iterable[LoggedRun]:
    runs: Iterable[LoggedRun] = chosen.spec.build(chosen.options).read(folder)
    return runs


def _content(runs: Iterable[LoggedRun]) -> list[tuple[str, str, str, str]]:
    """Id, status, settings and history of each run, as text: NaN equals no other number."""
    return [
        (run.id, run.status, repr(dict(run.config)), repr([dict(point) for point in run.history])) for run in runs
    ]


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
