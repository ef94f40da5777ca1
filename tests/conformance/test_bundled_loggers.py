"""Every bundled logger passes the conformance kit."""

from __future__ import annotations

import shutil
import warnings

import pytest
import reading_loggers as reading
from optional_packages import needs

from flops_fit_core.testing import LoggerConformance

ALL_VALUES = ("attempt", "status", "loss", "params", "tokens", "flops", "eval", "error")


class TestTerminal(LoggerConformance):
    name = "terminal"
    options = {"every": 0.0}


class TestTensorboard(LoggerConformance):
    name = "tensorboard"
    keeps = ALL_VALUES
    keeps_training = True

    def shown(self, folder):
        return reading.tensorboard_rows(folder)


class TestWandbOffline(LoggerConformance):
    name = "wandb"
    options = {"mode": "offline"}
    keeps = ALL_VALUES
    keeps_training = True
    library_threads = ("Otel",)  # the library's error reports, which WANDB_ERROR_REPORTING=false turns off

    def shown(self, folder):
        return reading.wandb_rows(folder)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An MLflow database without runs. MLflow needs seconds to create it."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with warnings.catch_warnings(action="ignore"):  # a mark of a class does not apply to a fixture of the module
        MlflowClient(tracking_uri=f"sqlite:///{file}")
    return file


# MLflow's use of SQLAlchemy is deprecated
@needs("mlflow", pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"))
class TestMlflowInTheStudy(LoggerConformance):
    name = "mlflow"
    keeps = ALL_VALUES
    keeps_training = True

    @pytest.fixture(autouse=True)
    def _no_server(self, monkeypatch):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    @pytest.fixture
    def folder(self, tmp_path, request, empty):
        """A study with a copy of the empty database; one test lets MLflow create the database."""
        folder = tmp_path / "study"
        (folder / "mlflow").mkdir(parents=True)
        if "from_its_start_to_its_end" not in request.node.name:
            shutil.copy(empty, folder / "mlflow" / "mlflow.db")
        return folder

    def shown(self, folder):
        return reading.mlflow_rows(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
