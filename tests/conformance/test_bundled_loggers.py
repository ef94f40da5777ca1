"""Every bundled logger keeps the contract of loggers."""

from __future__ import annotations

import pytest
import reading_loggers as reading

from flops_fit_core.testing import LoggerConformance

EVERYTHING = ("attempt", "status", "loss", "params", "tokens", "flops", "heldout", "error")


class TestTerminal(LoggerConformance):
    name = "terminal"
    options = {"every": 0.0}


class TestTensorboard(LoggerConformance):
    name = "tensorboard"
    keeps = EVERYTHING
    keeps_training = True

    def shown(self, folder):
        return reading.tensorboard_rows(folder)


class TestWandbOffline(LoggerConformance):
    name = "wandb"
    options = {"mode": "offline"}
    keeps = EVERYTHING
    keeps_training = True
    library_threads = ("Otel",)  # its library's own reports of errors; WANDB_ERROR_REPORTING=false forbids them

    def shown(self, folder):
        return reading.wandb_rows(folder)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own use of SQLAlchemy
class TestMlflowInTheStudy(LoggerConformance):
    name = "mlflow"
    keeps = EVERYTHING
    keeps_training = True

    @pytest.fixture(autouse=True)
    def _no_server(self, monkeypatch):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def shown(self, folder):
        return reading.mlflow_rows(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
