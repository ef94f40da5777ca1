"""Every bundled law passes the conformance kit."""

from __future__ import annotations

import numpy as np

from flops_fit_core.testing import LawConformance


class TestChinchilla(LawConformance):
    name = "chinchilla"


class TestTied(LawConformance):
    name = "tied"


class TestSkaling(LawConformance):
    name = "skaling"


class TestKaplan(LawConformance):
    name = "kaplan"


class TestFarseer(LawConformance):
    name = "farseer"


class TestMuennighoff(LawConformance):
    name = "muennighoff"


class TestBounded(LawConformance):
    name = "bounded"


class TestVocabulary(LawConformance):
    name = "vocabulary"
    levels = {"vocabulary_params": tuple(np.geomspace(3e6, 1e9, 5))}


class TestClarkMoe(LawConformance):
    name = "clark-moe"


class TestJointMoe(LawConformance):
    name = "joint-moe"


class TestParallel(LawConformance):
    name = "parallel"
