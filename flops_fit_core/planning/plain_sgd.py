"""A note on language models that plain SGD would train."""

from __future__ import annotations

from flops_fit_core.config import Experiment, PluginConfig
from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.plugins.protocols import Dataset, LossSurface, ParameterGroup, RunInfo
from flops_fit_core.plugins.specs import OptimizerSpec

WARNING = "WARNING:"
"""How a note begins that Python callers see as a log message, too."""


def plain_sgd_notes(experiment: Experiment, dataset: Dataset) -> list[str]:
    """Whether a language task is about to be trained by SGD without momentum, and the line that changes it."""
    task = dataset.task
    # Such data has a trainer of its own, which need not use the experiment's optimizer.
    trained_elsewhere = isinstance(dataset, LossSurface) or experiment.dataset.spec.trainer is not None
    if trained_elsewhere or not (isinstance(task, LanguageTask) or task.unit == "tokens"):
        return []
    if not _is_plain_sgd(experiment.optimizer):
        return []
    note = (
        f"{WARNING} optimizer {experiment.optimizer.name!r} is plain SGD, which trains language models far worse "
        f'than AdamW (a gpt of width 16 to 3.64 nats instead of 2.12). In Python, write optimizer="adamw"; in an '
        f'experiment file, write optimizer = "adamw" above the first table, in place of [optimizer]'
    )
    return [note]


def _is_plain_sgd(chosen: PluginConfig[OptimizerSpec]) -> bool:
    """Whether it builds torch's SGD without momentum, for a small module; False if it cannot be built for one."""
    import torch

    with torch.random.fork_rng(devices=()):  # planning leaves the caller's generators alone
        module = torch.nn.Linear(2, 2)
        group = ParameterGroup(list(module.parameters()))
        view = RunInfo(
            steps=1,
            tokens=1,
            tokens_per_step=1,
            base_width=None,
            groups=lambda _: [group],
            width_scaling=chosen.spec.width_scaling,
        )
        try:
            optimizer = chosen.spec.build(chosen.options, module, view)
        except Exception:
            return False  # Only a note is lost: the run itself reports what the optimizer needs.
    return isinstance(optimizer, torch.optim.SGD) and not any(
        group.get("momentum") for group in optimizer.param_groups
    )
