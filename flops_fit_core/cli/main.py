"""The command-line application, and the exit status of each kind of error."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from functools import cache
from typing import Annotated, Any

import typer

from flops_fit_core import __version__
from flops_fit_core.cli.commands import CommandGroup
from flops_fit_core.cli.printing import (
    TRAINING_STOPPED,
    describe_interruption,
    escape_other_output,
    interruption,
    print_error,
    reserve_stdout,
)
from flops_fit_core.cli.renamed import refuse_old_names
from flops_fit_core.errors import FlopsFitError, UserError
from flops_fit_core.plugins.terminal_text import escape_controls

STOPPED = 130
TRAINING_COMMANDS = ("run", "retry", "tune")
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

app = typer.Typer(
    name="flops-fit",
    cls=CommandGroup,
    help="For a compute budget, how large should the model be, and on how much data?",
    epilog="flops-fit COMMAND --help has an example. Start with: flops-fit init",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"flops-fit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """For a compute budget, how large should the model be, and on how much data?"""


def main() -> None:
    """Entry point of ``flops-fit``."""
    reserve_stdout()
    escape_other_output()
    _handle_ends()
    sys.exit(run(sys.argv[1:]))


@cache
def _commands() -> Any:
    """The command group."""
    return typer.main.get_command(app)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit status. A user's mistake prints a message without traceback."""
    trains = bool(arguments) and arguments[0] in TRAINING_COMMANDS
    describe_interruption(TRAINING_STOPPED if trains else "stopped. Stored results are unchanged")
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
        with contextlib.suppress(OSError):  # the terminal may be closed
            print_error(interruption())
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


def _handle_ends() -> None:
    """Handle SIGTERM, and SIGHUP of a closed terminal, like Ctrl-C: stop the workers, keep results.

    A signal that is ignored stays ignored, as SIGHUP under ``nohup``.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)


def _terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
