"""The tests of damage in the conformance kit for result stores: ``StoreSpec.check`` and ``StoreSpec.repair``."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flops_fit_core.config import PluginConfig
from flops_fit_core.errors import StoreError
from flops_fit_core.plugins.specs import StoreSpec
from flops_fit_core.records import RunResult
from flops_fit_core.testing.examples import result_of
from flops_fit_core.testing.store_claims import OpenStore

RESULTS = [result_of(seed) for seed in range(5)]


class DamageConformance:
    """Tests of check and repair. A part of ``StoreConformance``, which has the fixtures.

    A store without ``check`` is skipped: ``flops-fit store check`` cannot report damage of its files.
    """

    @pytest.fixture
    def checked(self, chosen: PluginConfig[Any], open_store: OpenStore) -> StoreSpec:
        """The spec of a store with ``check``. The study has a closed store with five results."""
        spec: StoreSpec = chosen.spec
        if spec.check is None:
            pytest.skip("this store has no check: damage is not reported")
        with closing(open_store()) as store:
            for result in RESULTS:
                store.add(result)
        return spec

    @pytest.fixture
    def repaired(self, checked: StoreSpec) -> StoreSpec:
        """The spec of a store with ``check`` and ``repair``."""
        if checked.repair is None:
            pytest.skip("this store has no repair")
        return checked

    @pytest.fixture
    def main_file(self, checked: StoreSpec, folder: Path) -> Path:
        """The file that holds the results, or the largest file of the folder that does."""
        if checked.file is None:
            pytest.skip("the results are not in a file of the study")
        path = folder / checked.file
        return max(files_in(path), key=lambda file: file.stat().st_size) if path.is_dir() else path

    def test_an_intact_store_passes_its_check(
        self, checked: StoreSpec, chosen: PluginConfig[Any], folder: Path
    ) -> None:
        """Each file is intact, and the check changes none."""
        before = content_of(folder)
        assert {state for _, state in states(chosen, folder)} == {"intact"}
        assert content_of(folder) == before

    def test_a_folder_without_a_store_has_no_findings(
        self, checked: StoreSpec, chosen: PluginConfig[Any], tmp_path: Path
    ) -> None:
        """The check creates no file there."""
        folder = tmp_path / "without a store"
        folder.mkdir()
        assert states(chosen, folder) == []
        assert content_of(folder) == {}

    def test_a_repair_of_an_intact_store_changes_nothing(
        self, repaired: StoreSpec, chosen: PluginConfig[Any], folder: Path
    ) -> None:
        """It may create the empty file of a lock."""
        before = content_of(folder)
        outcome = repaired.repair(chosen.options, folder)  # type: ignore[misc]
        assert (outcome.kept, outcome.lost, outcome.moved) == (len(RESULTS), (), ())
        assert {
            name: content for name, content in content_of(folder).items() if name in before or content
        } == before

    @pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9])
    def test_a_truncated_file_is_reported_and_never_read_silently(
        self, main_file: Path, chosen: PluginConfig[Any], folder: Path, open_store: OpenStore, part: float
    ) -> None:
        """The check reports damage and changes nothing. The store raises StoreError, or has every result."""
        truncate(main_file, part)
        before = content_of(folder)
        findings = states(chosen, folder)
        assert content_of(folder) == before
        try:
            with closing(open_store()) as store:
                results = list(store.all_attempts())
        except StoreError:
            assert "damaged" in [state for _, state in findings]
        else:
            assert results == RESULTS, f"{RESULTS} were added"

    def test_a_repair_keeps_intact_results_and_the_damaged_file(
        self,
        repaired: StoreSpec,
        main_file: Path,
        chosen: PluginConfig[Any],
        folder: Path,
        open_store: OpenStore,
    ) -> None:
        """Afterwards, the store is intact, and accepts the lost results again."""
        truncate(main_file, 0.6)
        damaged = main_file.read_bytes()
        outcome = repaired.repair(chosen.options, folder)  # type: ignore[misc]
        assert {state for _, state in states(chosen, folder)} == {"intact"}
        assert damaged in content_of(folder).values(), "the damaged file is gone"
        assert all((folder / name).exists() for name in outcome.moved)
        with closing(open_store()) as store:
            kept = list(store.all_attempts())
            assert len(kept) == outcome.kept
            assert [result for result in RESULTS if result in kept] == kept
            for result in RESULTS:
                store.add(result)
        with closing(open_store()) as store:
            assert sorted(store.results(), key=_seed) == RESULTS


def states(chosen: PluginConfig[Any], folder: Path) -> list[tuple[str, str]]:
    """File and state of each finding of the store's check."""
    check = chosen.spec.check
    return [(finding.file, finding.state) for finding in check(chosen.options, folder)]


def truncate(path: Path, part: float) -> None:
    """Cut a file off after this part of its bytes."""
    os.truncate(path, int(part * path.stat().st_size))


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def content_of(folder: Path) -> dict[str, bytes]:
    """The content of each file, by its path in the folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_in(folder)}


def _seed(result: RunResult) -> int:
    return result.run.seed
