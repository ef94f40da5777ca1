"""The command line: ``flops-fit plan|run|runs|status|fit|predict|report|plugins``. Parsing and printing only.

Exit status: 0 done; 1 something failed (a run, a plugin); 2 the user's mistake; 130 stopped by Ctrl-C.
"""

from flops_fit_core.cli.main import app, main

__all__ = ["app", "main"]
