"""Every bundled logger keeps the contract of loggers."""

from __future__ import annotations

import shutil
import warnings

import pytest
import reading_loggers as reading
from optional_packages import needs

from flops_fit_core.testing import LoggerConformance

EVERYTHING = ("attempt", "status", "loss", "params", "tokens", "flops", "eval", "error")


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


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database of MLflow without runs, which takes it seconds to make."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with warnings.catch_warnings(action="ignore"):  # a module's fixture is not under a class's mark
        MlflowClient(tracking_uri=f"sqlite:///{file}")
    return file


# MLflow's use of SQLAlchemy is deprecated
@needs("mlflow", pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"))
class TestMlflowInTheStudy(LoggerConformance):
    name = "mlflow"
    keeps = EVERYTHING
    keeps_training = True

    @pytest.fixture(autouse=True)
    def _no_server(self, monkeypatch):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    @pytest.fixture
    def folder(self, tmp_path, request, empty):
        """With a database, which takes MLflow seconds to make; for one test it makes its own."""
        folder = tmp_path / "study"
        (folder / "mlflow").mkdir(parents=True)
        if "from_its_start_to_its_end" not in request.node.name:
            shutil.copy(empty, folder / "mlflow" / "mlflow.db")
        return folder

    def shown(self, folder):
        return reading.mlflow_rows(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
