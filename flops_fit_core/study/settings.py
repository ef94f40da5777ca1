"""The experiment of a study, from Python or from the study's folder."""

from __future__ import annotations

from typing import Any

from flops_fit_core.config import Experiment, PluginConfig
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import SweepPlan
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.named_code import StudyContent
from flops_fit_core.study.trust import check_consent, recorded_store


class StudySettings:
    """An experiment and its single choices. The folder's experiment is read when it is first needed.

    Args:
        folder: The study's folder.
        registry: Where plugins are looked up.
        experiment: The experiment, or None to read it from the folder.
        plan: The plan that is trained.
        trust: Whether the user allows all code that the folder names.
    """

    def __init__(
        self,
        folder: StudyFolder,
        registry: Registry,
        experiment: Experiment | None,
        *,
        plan: SweepPlan,
        trust: bool = False,
    ) -> None:
        self.folder = folder
        self.registry = registry
        self.experiment = experiment
        self._plan = plan
        self._trust = trust

    @property
    def exist(self) -> bool:
        """Whether there is an experiment, in Python or in the folder."""
        return self.experiment is not None or self.folder.experiment_file.exists()

    def load(self) -> Experiment:
        """The complete experiment.

        Raises ConfigError if the folder has none, if a plugin of it is missing, or if it names code without the
        user's consent.
        """
        if self.experiment is None:
            content = self.consented_content()
            self.experiment = self.folder.experiment(self.registry, content.table)
        return self.experiment

    def consented_content(self) -> StudyContent:
        """The folder's content. Raises UntrustedCode if to train it would run code without the user's consent."""
        self.folder.check_can_train(self.registry)
        content = StudyContent.read(self.folder, self._plan)
        if not self._trust:
            check_consent(self.folder, self.registry, content)
        return content

    def choice(self, kind: str) -> PluginConfig[Any]:
        """The experiment's plugin of a kind; the plugins of other kinds may be missing. Raises ConfigError."""
        if self.experiment is None:
            if kind == "store" and not self._trust:
                return recorded_store(self.folder, self.registry)
            return self.folder.choice(kind, self.registry)
        chosen: PluginConfig[Any] = getattr(self.experiment, kind)
        return chosen
