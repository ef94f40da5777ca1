"""``--help``, ``--version`` and completion."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from driver_process import COMMAND

from flops_fit_core import __version__
from flops_fit_core.cli.commands import COMMANDS, GROUPS, LoadedCommands
from flops_fit_core.cli.main import run as flops_fit


def printed(*arguments: str, **environment: str) -> str:
    process = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_help_has_a_full_line_per_command_under_a_heading() -> None:
    lines = printed("--help", COLUMNS="80").splitlines()
    for heading, group in GROUPS.items():
        start = lines.index(f"{heading}:")
        shown = [line.split(maxsplit=1) for line in lines[start + 1 : start + 1 + len(group)]]
        assert shown == [[name, command.summary] for name, command in group.items()]
    assert max(map(len, lines)) <= 80
    assert not any(line.startswith("  ") and line.endswith("...") for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_that_it_accepts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert flops_fit([name, "--help"]) == 0
    example = re.search(r"Example: flops-fit (.+)", capsys.readouterr().out)
    assert example is not None
    first, *words = shlex.split(example[1].partition(" > ")[0])
    assert first == name
    command = LoadedCommands()[name]
    if words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    context = command.make_context(name, words, resilient_parsing=True)
    assert context.args == []


def test_the_version_is_that_of_the_package() -> None:
    assert printed("--version") == f"flops-fit {__version__}\n"


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from flops_fit_core.cli.main import run; run(['--help']); "
        "print([name for name in sys.modules if name.startswith('flops_fit_core.cli.') and '_command' in name], "
        "'pydantic' in sys.modules, 'numpy' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "[] False False"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered_for_a_shell(shell: str) -> None:
    script = printed("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_FLOPS_FIT_COMPLETE" in script


def test_completion_lists_the_commands_that_start_with_the_text() -> None:
    names = printed(_FLOPS_FIT_COMPLETE="complete_bash", COMP_WORDS="flops-fit p", COMP_CWORD="1").split()
    assert set(names) == {"plan", "predict", "prune-checkpoints", "plugins"}


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert flops_fit(["predikt"]) == 2
    assert "predict" in capsys.readouterr().err
