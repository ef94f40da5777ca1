"""Send training runs to Weights & Biases. Several of its runs are open at the same time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from flops_fit_core import ConfigError, Progress, RunResult, RunSpec, SweepPlan
from flops_fit_core.plugins import content_hash
from flops_fit_loggers import values

ONLINE = ("online", "shared", "run")
INIT_SECONDS = 20.0
"""Seconds for the server to accept a run before an error. The library's default is 90."""


class WandbRuns:
    """Implements :class:`~flops_fit_loggers.background.Runs`.

    The id of a W&B run is a hash of the study, the run and the attempt: a training run that resumes after an
    interruption continues its W&B run, and no attempt overwrites another.

    Args:
        flush_timeout: Seconds to wait at the end of a run until its data is sent. Later data stays on disk, for
            ``wandb sync``.

    Raises ConfigError if the mode is online and you are not logged in, and if the working directory is in the
    study's folder and has settings of W&B.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str | None,
        entity: str | None,
        mode: str | None,
        tags: Sequence[str],
        flush_timeout: float,
    ) -> None:
        _check_settings(folder)
        if (mode or os.environ.get("WANDB_MODE") or "online") in ONLINE:
            _check_login()
        self._folder = folder
        self._init_options: dict[str, Any] = {
            "project": project or os.environ.get("WANDB_PROJECT") or "flops-fit",
            "entity": entity,
            "mode": mode,
            "tags": list(tags),
            "dir": str(folder),
            "reinit": "create_new",  # allows several active runs, without a global run
            "resume": "allow",
        }
        self._flush_timeout = flush_timeout
        self._specs: dict[str, RunSpec] = {}
        self._open: dict[tuple[str, int], Any] = {}

    def open(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._specs = {run.id: run for run in plan.runs}
        self._study = values.study_token(self._folder)

    def progress(self, progress: Progress, timestamp: float) -> None:
        spec, point = self._specs.get(progress.run), values.training(progress)
        if spec is not None:
            run = self._run(spec, progress.attempt)
            run.log({"tokens": progress.tokens, **point})

    def finished(self, result: RunResult) -> None:
        run = self._run(result.run, result.attempt)
        for tokens, point in values.eval_points(result):
            run.log({"tokens": tokens, **point})
        run.summary.update({**values.texts(result), **values.measured(result)})
        run.finish(exit_code=1 if result.status == "failed" else 0)
        del self._open[result.id, result.attempt]

    def close(self) -> None:
        """Interrupted runs are failed in W&B until they resume."""
        while self._open:
            self._open.popitem()[1].finish(exit_code=1)
        _end_service()

    def _run(self, spec: RunSpec, attempt: int) -> Any:
        key = spec.id, attempt
        if key not in self._open:
            try:
                run = self._init(spec, attempt)
            except wandb.Error:
                _end_service()  # otherwise W&B's service treats the id as used, and a retry fails
                raise
            run.define_metric("tokens", hidden=True)
            run.define_metric("*", step_metric="tokens")
            self._open[key] = run
        return self._open[key]

    def _init(self, spec: RunSpec, attempt: int) -> Any:
        return wandb.init(
            **self._init_options,
            id=content_hash({"study": self._study, "run": spec.id, "attempt": attempt}),
            name=values.run_name(spec, attempt),
            group=self._plan.name,
            config={**values.config(spec, self._plan), "attempt": attempt},
            allow_val_change=True,
            settings=self._settings(),
        )

    def _settings(self) -> wandb.Settings:
        """Record no output, load or code of this process: the driver only forwards measurements of workers."""
        return wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=self._flush_timeout,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )


def _end_service() -> None:
    """End the library's service process, unless a run of this process uses it."""
    if wandb.setup().most_recent_active_run is None:
        wandb.teardown()


def _check_settings(folder: Path) -> None:
    """Raises ConfigError if W&B would read settings from the study's folder.

    W&B reads ``wandb/settings`` of the working directory. Another user may have written it, and its ``base_url``
    would get your API key.
    """
    cwd = Path.cwd()
    files = [cwd / name / "settings" for name in (".wandb", "wandb")]
    if cwd.is_relative_to(folder.resolve()) and (file := next(filter(Path.exists, files), None)):
        raise ConfigError(
            f"logger 'wandb': {file} in the study's folder may send your API key to another server. Delete it, or "
            f"start flops-fit in another directory"
        )


def _check_login() -> None:
    """Raise ConfigError without a login. Otherwise the library prompts for a key in the middle of a sweep."""
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    key = settings.api_key or settings.identity_token_file or os.environ.get("WANDB_API_KEY")
    _end_service()  # wandb.setup() has started it
    if not (key or get_netrc_auth(settings.base_url)):
        raise ConfigError(
            f"logger 'wandb': not logged in to {settings.base_url}: type 'wandb login', or set "
            'WANDB_API_KEY, or write loggers = [{name = "wandb", mode = "offline"}]'
        )
