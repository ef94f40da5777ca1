"""Every bundled trainer passes the conformance kit."""

from __future__ import annotations

import pytest
from optional_packages import needs

from flops_fit_core.testing import TrainerConformance


class TestTorch(TrainerConformance):
    name = "torch"


class TestCommand(TrainerConformance):
    name = "command"
    in_process = False
    size = {"params": 100}
    budget = 6.0 * 100 * 2000 * 8
    experiment = {
        "model": "declared",
        "dataset": {"name": "external", "label": "none", "vocab_size": 16, "context": 8},
        "optimizer": "sgd",
    }

    @pytest.fixture
    def given_options(self, tmp_path):
        (tmp_path / "train.py").write_text(
            "import json, sys\n"
            "seed, steps, result, progress = sys.argv[1:]\n"
            "open(progress, 'w').write(json.dumps({'step': int(steps) // 2}) + '\\n')\n"
            "json.dump({'loss': 2 + int(seed) + 1 / int(steps)}, open(result, 'w'))\n"
        )
        return {
            "command": ["{python}", "train.py", "{seed}", "{steps}", "{result}", "{progress}"],
            "directory": str(tmp_path),
        }


@needs("lightning")
class TestLightning(TrainerConformance):
    name = "lightning"
    experiment = {"optimizer": {"name": "sgd", "lr": 0.3}}
    # Lightning accepts only torch optimizers, and the kit's recording optimizer is none.
    uses_optimizer = False

    @pytest.fixture
    def given_options(self, tmp_path):
        (tmp_path / "train.py").write_text(
            "import lightning\n"
            "class Plain(lightning.LightningModule):\n"
            "    def __init__(self, model, task):\n"
            "        super().__init__()\n"
            "        self.model, self.task = model, task\n"
            "    def training_step(self, batch, batch_idx):\n"
            "        loss, count = self.task.loss(self.task.outputs(self.model, batch), batch)\n"
            "        return loss / count\n"
        )
        return {"module": f"{tmp_path}/train.py:Plain"}


class TestSurfaceTrainer(TrainerConformance):
    name = "surface"
    in_process = False
    size = {"params": 1_000_000}
    budget = 1e15
    experiment = {"model": "surface/surface", "dataset": {"name": "surface", "noise": 0.1}}
