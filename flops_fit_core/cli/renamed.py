"""Renamed commands and options: an old name is an error that names the new one."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_core.errors import ConfigError

COMMANDS = {
    "audit": "flops-fit count-flops SOURCE",
    "clean": "flops-fit prune-checkpoints SOURCE",
}
OPTIONS = {
    "--heldout": "--eval-set",
    "--map": "--column",
    "--where": "--filter",
    "--without": "--disable-plugin",
}
OPTIONS_OF = {
    ("run", "--flops"): "--counter",
    ("plan", "--flops"): "--counter",
    ("runs", "--run"): "flops-fit show SOURCE ID",
}


def refuse_old_names(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an old command or option."""
    command = arguments[0] if arguments else ""
    if command in COMMANDS:
        raise ConfigError(f"'{command}' was renamed: {COMMANDS[command]}")
    for argument in arguments[1:]:
        option = argument.partition("=")[0]
        if option in OPTIONS:
            raise ConfigError(f"{option} was renamed: {OPTIONS[option]}")
        if (command, option) in OPTIONS_OF:
            raise ConfigError(f"{command} {option} was renamed: {OPTIONS_OF[command, option]}")
