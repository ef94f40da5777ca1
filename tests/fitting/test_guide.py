"""The guide to fitting: its code runs, and it knows every fitter and diagnostic."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from surfaces import CHINCHILLA, study

from flops_fit_core.plugins import Registry

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "fitting.md").read_text(encoding="utf-8")


def test_the_guides_code_runs(tmp_path, monkeypatch, capsys):
    runs = study(CHINCHILLA, 10.0 ** np.arange(17, 22), np.geomspace(1 / 6, 6, 7), sigma=0.005)
    lines = [f"{run.params},{run.tokens},{run.flops},{run.loss}" for run in runs]
    (tmp_path / "runs.csv").write_text("\n".join(["params,tokens,flops,loss", *lines]))
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", GUIDE, re.S):
        exec(compile(code, "docs/fitting.md", "exec"), {})
    assert "skaling" in capsys.readouterr().out


def test_the_guide_lists_every_bundled_fitter():
    names = {offer.spec.name for offer in Registry().offers("fitter")}
    assert {"average", "law", "isoflop", "parametric", "envelope"} <= names
    assert all(f"`{name}`" in GUIDE for name in names)


def test_the_guide_lists_every_diagnostic_code():
    sources = "".join(path.read_text() for path in (ROOT / "flops_fit_core" / "fitting").glob("*.py"))
    codes = set(re.findall(r'code="([a-z0-9-]+)"', sources)) - {"objective", "envelope", "loss-law"}
    missing = sorted(code for code in codes if f"`{code}`" not in GUIDE)
    assert not missing
