"""The family keeps its contract. Type ``pip install -e ".[test]"`` first: the kit finds the plugin by name."""

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


def test_a_lstm_has_a_third_more_flops_in_its_layers():
    spec = Registry().find("model", "rnn/rnn").spec
    task = LanguageTask(vocab_size=1, context=8)
    gru, lstm = (spec.flops_per_token(spec.options(width=512, cell=cell), task) for cell in ("gru", "lstm"))
    assert lstm / gru == pytest.approx(4 / 3, rel=1e-3)


def test_images_are_refused_in_words():
    spec = Registry().find("model", "rnn/rnn").spec
    with pytest.raises(ConfigError, match="predicts the next token, and this dataset poses a SupervisedTask"):
        spec.build(spec.options(), SupervisedTask(inputs=(8, 8), outputs_size=10))
