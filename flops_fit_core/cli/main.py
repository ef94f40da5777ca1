"""The application, and how each kind of error ends it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import typer

from flops_fit_core.cli import (
    audit_command,
    doctor_command,
    export_command,
    fitting_commands,
    plugin_commands,
    store_command,
    study_commands,
    tune_command,
    watching_commands,
)
from flops_fit_core.cli.printing import answering, complain, keep_for_answers
from flops_fit_core.cli.renamed import refuse_old_names
from flops_fit_core.errors import FlopsFitError, UserError
from flops_fit_core.plugins.registry import PluginSetup

STOPPED = 130
PYDANTICS_SWITCH = "PYDANTIC_DISABLE_PLUGINS"

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
tune_command.register(app)
audit_command.register(app)
plugin_commands.register(app)
doctor_command.register(app)


def main() -> None:
    """Entry point of ``flops-fit``."""
    keep_for_answers()
    _load_pydantic_alone()
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def _load_pydantic_alone() -> None:
    """Pydantic looks for plugins of its own when the first model is used, and ends in a traceback where any
    distribution of this environment has entry points that cannot be read. What this process starts finds its
    plugins as ever."""
    given = os.environ.get(PYDANTICS_SWITCH)
    os.environ.setdefault(PYDANTICS_SWITCH, "__all__")
    PluginSetup()
    if given is None:
        del os.environ[PYDANTICS_SWITCH]


@cache
def _commands() -> Any:
    """The commands, each with standard output for its answer alone; help is printed outside of them."""
    whole = typer.main.get_command(app)
    for command in _every(whole):
        if command.callback is not None:
            command.callback = answering()(command.callback)
    return whole


def _every(command: Any) -> Iterator[Any]:
    yield command
    for one in getattr(command, "commands", {}).values():
        yield from _every(one)


def run(arguments: list[str]) -> int:
    """Run one command line. Returns the exit status; a user's mistake shows one message and no traceback."""
    try:
        refuse_old_names(arguments)
        status = _commands()(arguments, standalone_mode=False, prog_name="flops-fit")
        if status == STOPPED:  # typer makes this of Ctrl-C
            raise KeyboardInterrupt
        return status if isinstance(status, int) else 0
    except UserError as error:
        complain(str(error))
        return 2
    except FlopsFitError as error:
        complain(str(error))
        return 1
    except (KeyboardInterrupt, typer.Abort):
        complain("stopped. Finished results are kept; the same command goes on from there")
        return STOPPED
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough; nothing more can be flushed to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        complain(
            f"{error.filename or 'a file'}: {error.strerror}. Finished results are kept; free some space first"
        )
        return 2
    except typer.TyperException as error:
        # A mistake in the command line itself; it shows itself with the command's usage.
        error.show()  # type: ignore[attr-defined]
        return 2


def _terminate(number: int, frame: Any) -> None:
    """SIGTERM stops as Ctrl-C does: workers are stopped, results kept."""
    raise KeyboardInterrupt
