"""The command-line application, and the exit status of each kind of error."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import typer

from flops_fit_core.cli import (
    budget_command,
    compare_command,
    count_flops_command,
    curve_command,
    doctor_command,
    export_command,
    fitting_commands,
    plugin_commands,
    store_command,
    study_commands,
    trust_command,
    tune_command,
    watching_commands,
)
from flops_fit_core.cli.printing import escape_other_output, print_error, redirect_prints, reserve_stdout
from flops_fit_core.cli.renamed import refuse_old_names
from flops_fit_core.errors import FlopsFitError, UserError
from flops_fit_core.plugins.registry import PluginSetup
from flops_fit_core.plugins.utilities import escape_controls

STOPPED = 130
_FREE_SPACE = "Finished results are kept. Free disk space and try again"
_READ_ONLY = (
    "The commands runs, show, status, fit, predict and export only read a study's folder, and 'report --out "
    "FOLDER' writes elsewhere. Other commands need the right to write to it"
)
ADVICE = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
}
"""Errors of the file system that are not a fault of the program -> advice."""
PYDANTIC_SWITCH = "PYDANTIC_DISABLE_PLUGINS"

app = typer.Typer(
    name="flops-fit",
    help="For a compute budget, how large should the model be, and on how much data?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
study_commands.register(app)
watching_commands.register(app)
export_command.register(app)
store_command.register(app)
fitting_commands.register(app)
budget_command.register(app)
compare_command.register(app)
curve_command.register(app)
tune_command.register(app)
count_flops_command.register(app)
trust_command.register(app)
plugin_commands.register(app)
doctor_command.register(app)


def main() -> None:
    """Entry point of ``flops-fit``."""
    reserve_stdout()
    escape_other_output()
    _load_pydantic_without_plugins()
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def _load_pydantic_without_plugins() -> None:
    """Build the first pydantic model with pydantic's plugins disabled. Child processes are not affected.

    The first model loads pydantic's plugins. That raises an exception if the entry points of any installed
    distribution cannot be read.
    """
    previous = os.environ.get(PYDANTIC_SWITCH)
    os.environ.setdefault(PYDANTIC_SWITCH, "__all__")
    PluginSetup()
    if previous is None:
        del os.environ[PYDANTIC_SWITCH]


@cache
def _commands() -> Any:
    """The command group. Only answers of a command go to standard output; help is printed outside commands."""
    group = typer.main.get_command(app)
    for command in _walk(group):
        if command.callback is not None:
            command.callback = redirect_prints()(command.callback)
    return group


def _walk(command: Any) -> Iterator[Any]:
    yield command
    for subcommand in getattr(command, "commands", {}).values():
        yield from _walk(subcommand)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit status. A user's mistake prints a message without traceback."""
    try:
        refuse_old_names(arguments)
        status = _commands()(arguments, standalone_mode=False, prog_name="flops-fit")
        if status == STOPPED:  # typer returns this status after Ctrl-C
            raise KeyboardInterrupt
        return status if isinstance(status, int) else 0
    except UserError as error:
        print_error(str(error))
        return 2
    except FlopsFitError as error:
        print_error(str(error))
        return 1
    except (KeyboardInterrupt, typer.Abort):
        print_error("stopped. Finished results are kept; run the same command to continue")
        return STOPPED
    except BrokenPipeError:
        # The reader of the output (head, less) has closed it: flushing to it would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in ADVICE:
            raise
        advice = ADVICE.get(error.errno or 0, "Finished results are kept")
        print_error(f"{error.filename or 'a file'}: {error.strerror}. {advice}")
        return 2
    except MemoryError:
        print_error("out of memory. Finished results are kept; close other programs, or use a larger machine")
        return 1
    except typer.TyperException as error:
        # A mistake in the command line: typer prints it with the usage of the command.
        text = io.StringIO()
        error.show(text)  # type: ignore[attr-defined]
        sys.stderr.write(escape_controls(text.getvalue()))
        return 2


def _terminate(number: int, frame: Any) -> None:
    """Handle SIGTERM like Ctrl-C: stop the workers, keep results."""
    raise KeyboardInterrupt
