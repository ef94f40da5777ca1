"""The experiment of a study, from Python or from the study's folder."""

from __future__ import annotations

from typing import Any

from flops_fit_core.config import Experiment, PluginConfig
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.study.directory import StudyFolder


class StudySettings:
    """An experiment and its single choices. The folder's experiment is read when it is first needed.

    Args:
        folder: The study's folder.
        registry: Where plugins are looked up.
        experiment: The experiment, or None to read it from the folder.
    """

    def __init__(self, folder: StudyFolder, registry: Registry, experiment: Experiment | None) -> None:
        self.folder = folder
        self.registry = registry
        self.experiment = experiment

    @property
    def exist(self) -> bool:
        """Whether there is an experiment, in Python or in the folder."""
        return self.experiment is not None or self.folder.experiment_file.exists()

    def load(self) -> Experiment:
        """The complete experiment. Raises ConfigError if the folder has none, or if a plugin of it is missing."""
        if self.experiment is None:
            self.experiment = self.folder.experiment(self.registry)
        return self.experiment

    def choice(self, kind: str) -> PluginConfig[Any]:
        """The experiment's plugin of a kind; the plugins of other kinds may be missing. Raises ConfigError."""
        if self.experiment is None:
            return self.folder.choice(kind, self.registry)
        chosen: PluginConfig[Any] = getattr(self.experiment, kind)
        return chosen
