"""Conformance and FLOPs of family ``rnn``.

First install it (``pip install -e ".[test]"``), because the kit looks it up by name.
"""

import pytest

from flops_fit_core import ConfigError
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.plugins import Registry
from flops_fit_core.testing import ModelConformance


class TestGRU(ModelConformance):
    name = "rnn/rnn"
    options = {"width": 24}


class TestLSTM(ModelConformance):
    name = "rnn/rnn"
    options = {"width": 24, "depth": 1, "cell": "lstm"}


def test_an_lstm_has_a_third_more_flops_in_its_layers():
    spec = Registry().find("model", "rnn/rnn").spec
    task = LanguageTask(vocab_size=1, context=8)
    gru, lstm = (spec.flops_per_token(spec.options(width=512, cell=cell), task) for cell in ("gru", "lstm"))
    assert lstm / gru == pytest.approx(4 / 3, rel=1e-3)


def test_an_image_task_is_refused_with_the_reason():
    spec = Registry().find("model", "rnn/rnn").spec
    with pytest.raises(ConfigError, match="the task of this dataset is a SupervisedTask"):
        spec.build(spec.options(), SupervisedTask(inputs=(8, 8), outputs_size=10))
