"""The command line, ``flops-fit COMMAND``. A module per command or group of commands parses and prints only.

Exit status: 0 done; 1 a run or a plugin failed; 2 the user's mistake; 130 stopped by Ctrl-C.
"""

from flops_fit_core.cli.main import app, main

__all__ = ["app", "main"]
