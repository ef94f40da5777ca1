"""``doctor``: diagnose this machine, its plugins and a study's executor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_json, print_text

if TYPE_CHECKING:
    from flops_fit_core.study.doctor import Finding


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(doctor)


def doctor(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="An experiment file or a study. Its folder, store and executor are tried, too.", metavar="SOURCE"
        ),
    ] = None,
    out: args.OutOption = None,
    overrides: args.SetOption = None,
    executor: args.ExecutorOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> int:
    """Check this machine, the plugins and the executors; with SOURCE, try its folder, store and executor."""
    from flops_fit_core.study import doctor as diagnosis

    registry = args.registry_to_train(source, plugin, disabled)
    findings = [*diagnosis.machine(), *diagnosis.plugins(registry), *diagnosis.executors(registry)]
    if source is not None:
        findings += diagnosis.study(args.plan_source(source, registry, out, overrides, {"executor": executor}))
    if json:
        print_json([{"about": item.subject, "text": item.text, "ok": item.ok} for item in findings])
    else:
        _print(findings)
    return 0 if all(finding.ok for finding in findings) else 1


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print_text(f"{'  ' if finding.ok else '! '}{finding.subject:<{width}}  {finding.text}")
