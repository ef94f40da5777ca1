"""Training runs as runs of Weights & Biases, several of them open in one process."""

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
"""For a server to take a run, before the courier says that it does not answer; the library's own are 90."""


class WandbRuns:
    """Implements ``courier.Runs``.

    A run's id there is a hash of the study, the run and the attempt: one that goes on after an interruption does
    so there as well, and no attempt overwrites another.

    Args:
        flush_timeout: Seconds to wait for a run's data to be sent when it ends; what is late is on disk, for
            ``wandb sync``.

    Raises ConfigError where it would be online and nobody has logged in.
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
        if (mode or os.environ.get("WANDB_MODE") or "online") in ONLINE:
            _check_login()
        self._folder = folder
        self._about: dict[str, Any] = {
            "project": project or os.environ.get("WANDB_PROJECT") or "flops-fit",
            "entity": entity,
            "mode": mode,
            "tags": list(tags),
            "dir": str(folder),
            "reinit": "create_new",  # beside other active runs, and never the process's global one
            "resume": "allow",
        }
        self._patience = flush_timeout
        self._specs: dict[str, RunSpec] = {}
        self._open: dict[tuple[str, int], Any] = {}

    def open(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._specs = {run.id: run for run in plan.runs}
        self._study = values.study_token(self._folder)

    def progress(self, progress: Progress, when: float) -> None:
        spec, point = self._specs.get(progress.run), values.training(progress)
        if spec is not None:
            run = self._run(spec, progress.attempt)
            run.log({"tokens": progress.tokens, **point})

    def finished(self, result: RunResult) -> None:
        run = self._run(result.run, result.attempt)
        for tokens, point in values.eval_points(result):
            run.log({"tokens": tokens, **point})
        run.summary.update({**values.remarks(result), **values.measured(result)})
        run.finish(exit_code=1 if result.status == "failed" else 0)
        del self._open[result.id, result.attempt]

    def close(self) -> None:
        """Runs that were interrupted count as failed there until they go on."""
        while self._open:
            self._open.popitem()[1].finish(exit_code=1)
        _end_service()

    def _run(self, spec: RunSpec, attempt: int) -> Any:
        key = spec.id, attempt
        if key not in self._open:
            try:
                run = self._begun(spec, attempt)
            except wandb.Error:
                _end_service()  # it takes the id of a run that could not begin for used
                raise
            run.define_metric("tokens", hidden=True)
            run.define_metric("*", step_metric="tokens")
            self._open[key] = run
        return self._open[key]

    def _begun(self, spec: RunSpec, attempt: int) -> Any:
        return wandb.init(
            **self._about,
            id=content_hash({"study": self._study, "run": spec.id, "attempt": attempt}),
            name=values.run_name(spec, attempt),
            group=self._plan.name,
            config={**values.config(spec, self._plan), "attempt": attempt},
            allow_val_change=True,
            settings=self._settings(),
        )

    def _settings(self) -> wandb.Settings:
        """The driver passes on what workers measure: its own output, load and code are not the run's."""
        return wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=self._patience,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )


def _end_service() -> None:
    """The library's own process, unless some run in this one still uses it."""
    if wandb.setup().most_recent_active_run is None:
        wandb.teardown()


def _check_login() -> None:
    """Its library would ask for a key at the terminal, in the middle of a sweep."""
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    known = settings.api_key or settings.identity_token_file or os.environ.get("WANDB_API_KEY")
    _end_service()  # which asking for the settings has begun
    if not (known or get_netrc_auth(settings.base_url)):
        raise ConfigError(
            f"logger 'wandb': nobody has logged in to {settings.base_url}: run 'wandb login', or set "
            'WANDB_API_KEY, or write loggers = [{name = "wandb", mode = "offline"}]'
        )
