"""All errors of flops-fit.

    FlopsFitError
    ├── UserError            the input must change; the command line prints the message and exits with 2
    │   ├── ConfigError      an experiment file, an option, a keyword argument
    │   │   ├── PluginNotFound   no usable plugin has this name
    │   │   └── DamagedFile      a file of a study differs from the file that flops-fit wrote
    │   ├── PlanError        a sweep that cannot be built
    │   ├── DataError        a dataset that is empty, too small or in another format
    │   ├── StoreError       a result store that is foreign, damaged or in use
    │   └── FitError         runs that determine no law
    ├── PluginError          a plugin broke its contract; names the plugin; exit code 1
    ├── SweepFailed          no run of a sweep completed, and some failed; exit code 1
    ├── ClaimLost            another driver trains these runs now; the worker ends its job without results
    └── RunFailed            a run cannot continue; becomes the result of the run, and the sweep continues

A message states the problem, its place, the valid choices and the command to type. ``StudyWarning`` is the only
warning.
"""

from __future__ import annotations

import contextlib
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path


class FlopsFitError(Exception):
    """Base class of all errors of flops-fit."""


class UserError(FlopsFitError):
    """The user's input must change. Shown without a traceback."""


class ConfigError(UserError):
    """An experiment file, an option or a keyword argument is wrong."""


class PluginNotFound(ConfigError, LookupError):
    """No usable plugin has the requested name."""


class DamagedFile(ConfigError):
    """A file of a study is damaged.

    Args:
        path: The file.
        reason: How the damage shows, as a clause: ``its content differs from its checksum``.
        advice: A sentence: the state of the rest of the study, and the command to type.
    """

    def __init__(self, path: Path, reason: str, advice: str = "") -> None:
        super().__init__(f"{path} is damaged: {reason}" + (f". {advice}" if advice else ""))
        self.path = path
        self.reason = reason
        self.advice = advice


class PlanError(UserError):
    """The sweep cannot be built: sizes, budgets or batches do not fit together."""


class DataError(UserError):
    """A dataset is empty, too small, or in another format than stated."""


class StoreError(UserError):
    """A result store is foreign, damaged, or in use."""


class FitError(UserError):
    """No law can be fitted to these runs."""


class PluginError(FlopsFitError):
    """A plugin raised or returned something that its contract does not allow."""


class RunFailed(FlopsFitError):
    """A training run cannot continue. Recorded as the result of the run; other runs continue."""


class ClaimLost(FlopsFitError):
    """Another driver has taken over the runs of a job. The worker ends the job, and no run fails."""


class SweepFailed(FlopsFitError):
    """Runs of a sweep failed, and none completed, so no law can be fitted. The study's results have the errors."""


class StudyWarning(UserWarning):
    """A warning about a study: failed runs, results of another experiment, or results in another store."""


@contextlib.contextmanager
def no_exit() -> Iterator[None]:
    """Raise PlanError if the user's code calls ``sys.exit``, which would end the program without a message."""
    try:
        yield
    except SystemExit as error:
        where = raised_at("".join(traceback.format_exception(error)))
        raise PlanError(
            f"code that planning calls ended with sys.exit({error.code!r})"
            + (f" ({where})" if where else "")
            + ": raise an exception with a message instead"
        ) from error


_FRAME = re.compile(r'^\s*File "(.+?)", line (\d+), in (.+)$', re.MULTILINE)


def raised_at(traceback: str) -> str:
    """``file.py, line 3, in forward``: the innermost frame of the user's code in the text of a traceback.

    Without one, the innermost frame of another installed package; empty if all frames are in Python, torch or
    flops-fit.
    """
    frames = [frame for frame in _FRAME.findall(traceback) if not _is_engine(frame[0])]
    own = [frame for frame in frames if not {"site-packages", "dist-packages"}.intersection(Path(frame[0]).parts)]
    return "{}, line {}, in {}".format(*(own or frames)[-1]) if frames else ""


def _is_engine(file: str) -> bool:
    """Whether a file belongs to Python, torch, flops-fit or its bundled plugins."""
    path = Path(file)
    if file.startswith("<") or path.is_relative_to(Path(__file__).parent):
        return True
    installed = {"site-packages", "dist-packages"}.intersection(path.parts)
    is_standard = path.is_relative_to(sysconfig.get_paths()["stdlib"]) and not installed
    return is_standard or any(part == "torch" or part.startswith("flops_fit_") for part in path.parts)
