"""Outputs of the study's smallest model, stored in its folder, to detect changes that the model's identity misses.

The same seed, weights and batch give the same outputs until the model's code or a library changes. The outputs are
not part of run ids. If they differ, the plan has a note; training continues.
"""

from __future__ import annotations

import contextlib
import logging
import math
import platform
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import Experiment, PluginConfig
from flops_fit_core.data.custom_task import CustomTask
from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.errors import ConfigError, DamagedFile
from flops_fit_core.flops.build_model import build_model
from flops_fit_core.flops.model_stats import build_on_meta
from flops_fit_core.planning import open_dataset
from flops_fit_core.plugins.checked_json import read_record, write_checked
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.protocols import Batch, LossSurface, Task
from flops_fit_core.plugins.specs import ModelSpec
from flops_fit_core.records import Record, RunSpec, SweepPlan, content_hash

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FILE = "model_check.json"
MOST_PARAMETERS = 50_000_000
TOLERANCE = 1e-3
"""Relative difference of the outputs that counts as a change: far above the rounding of float32."""
_VALUES = 64
_NOISE = 0.02
"""Standard deviation of noise added to all weights: a head initialised to zero hides the rest of the model."""


class ModelCheck(Record):
    """The outputs of the smallest model of a study."""

    identity: str
    """Hash of the model's and the dataset's records. Checks with different hashes are not compared."""
    size: int | float | str
    outputs: tuple[float, ...]
    """Evenly spaced values of the outputs on a batch of 2."""
    versions: dict[str, str] = {}
    """Of Python and torch."""


def record_model_check(experiment: Experiment, plan: SweepPlan, folder: Path) -> None:
    """Write the outputs of the study's smallest model, unless the folder has them.

    Nothing is written for a model of 50M parameters or more, for a model that another program trains, or for a
    model that fails. A damaged file is replaced or deleted.
    """
    with contextlib.suppress(ConfigError):
        _delete_if_damaged(folder / FILE)
    run = _smallest(plan)
    before = _load(folder)
    if run is None or (before is not None and before.identity == _identity(run)):
        return
    check = _check(experiment, run)
    if check is not None:
        write_checked(folder / FILE, check)


def with_model_check(experiment: Experiment, plan: SweepPlan, folder: Path) -> SweepPlan:
    """The plan, with a note if the outputs of its smallest model differ from those in the folder."""
    note = compare_model_check(experiment, plan, folder)
    return plan if note is None else plan.with_notes([note])


def compare_model_check(experiment: Experiment, plan: SweepPlan, folder: Path) -> str | None:
    """A note if the smallest model's outputs differ by over 0.1% from those in the folder, at equal identity."""
    run = _smallest(plan)
    before = _load(folder)
    if run is None or before is None or before.identity != _identity(run):
        return None
    now = _check(experiment, run)
    if now is None or (difference := relative_difference(before.outputs, now.outputs)) <= TOLERANCE:
        return None
    versions = [
        f"{name} {before.versions.get(name)} -> {version}"
        for name, version in now.versions.items()
        if before.versions.get(name) != version
    ]
    changed = f": {', '.join(versions)}" if versions else ""
    return (
        f"the outputs of the model of size {run.size} have changed since this study began (relative difference "
        f"{difference:.2g} on the same weights and batch), but its runs have the same ids: code outside its "
        f"identity has changed{changed}. Finished runs are kept; to train them again, use another folder"
    )


def relative_difference(before: tuple[float, ...], now: tuple[float, ...]) -> float:
    """Norm of the difference over the larger norm; infinity if the numbers of values differ."""
    if len(before) != len(now):
        return math.inf
    scale = max(math.hypot(*before), math.hypot(*now))
    return math.dist(before, now) / scale if scale else 0.0


def _smallest(plan: SweepPlan) -> RunSpec | None:
    run = min(plan.runs, key=lambda run: run.params, default=None)
    return run if run is not None and run.params < MOST_PARAMETERS else None


def _identity(run: RunSpec) -> str:
    chosen = {"model": run.model, "dataset": run.dataset}
    return content_hash(
        {kind: choice.model_dump(mode="json") for kind, choice in chosen.items()} | {"data": run.fingerprint}
    )


def _load(folder: Path) -> ModelCheck | None:
    try:
        return read_record(ModelCheck, folder / FILE)
    except ConfigError:  # missing or damaged: the next training writes it, and check_folder reports damage
        return None


def _delete_if_damaged(file: Path) -> None:
    """Raises ConfigError if the file is missing or cannot be read."""
    try:
        read_record(ModelCheck, file)
    except DamagedFile:
        file.unlink(missing_ok=True)


def _check(experiment: Experiment, run: RunSpec) -> ModelCheck | None:
    import torch

    if "launch" in experiment.trainer.spec.can:  # another program trains the model
        return None
    model = experiment.model
    try:
        options = model.with_options(**{model.spec.size: run.size}).options
        dataset = open_dataset(experiment, experiment.sweep.seeds[0])
        outputs = None if isinstance(dataset, LossSurface) else _outputs(model, options, dataset.task)
    except (Exception, SystemExit) as error:  # the model's own code may raise anything; training reports it
        logger.debug("no check of the model: %s: %s", type(error).__name__, error)
        return None
    if not outputs or not any(outputs) or not all(map(math.isfinite, outputs)):
        return None
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return ModelCheck(identity=_identity(run), size=run.size, outputs=tuple(outputs), versions=versions)


def _outputs(model: PluginConfig[ModelSpec], options: Options, task: Task) -> list[float] | None:
    """Outputs of the model in float32 on the CPU in evaluation mode; None if the model is too large."""
    import torch

    from flops_fit_core.training.rng import fixed_randomness

    shapes = build_on_meta(model, options, task)
    if sum(parameter.numel() for parameter in shapes.parameters()) >= MOST_PARAMETERS:
        return None
    with fixed_randomness(), torch.device("cpu"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = build_model(model, options, task).float().eval()
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape), alpha=_NOISE)
        tensors = list(_tensors(task.outputs(module, _batch(task))))
    return [value for tensor in tensors for value in _spaced(tensor)]


def _batch(task: Task) -> Batch:
    """Two random samples; for a custom task, real samples."""
    import torch

    if isinstance(task, LanguageTask):
        return torch.randint(task.vocab_size, (2, task.context + 1))
    if isinstance(task, CustomTask):
        return task.sample
    return _randomized(task.example(2))


def _randomized(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return torch.randn(value.shape) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _randomized(part) for name, part in value.items()}
    return type(value)(map(_randomized, value)) if isinstance(value, list | tuple) else value


def _tensors(outputs: Any) -> Iterator[Tensor]:
    import torch

    outputs = getattr(outputs, "logits", outputs)
    if isinstance(outputs, torch.Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping | list | tuple):
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(part)


def _spaced(tensor: Tensor) -> list[float]:
    flat = tensor.detach().float().flatten()
    indices = range(0, len(flat), max(1, len(flat) // _VALUES))
    values: list[float] = flat[list(indices)[:_VALUES]].tolist()
    return values
