"""Every error that flops-fit raises on purpose.

    FlopsFitError
    ├── UserError            the input has to change; the command line prints the message and exits with 2
    │   ├── ConfigError      an experiment file, an option, a keyword argument
    │   │   └── PluginNotFound   no usable plugin has that name
    │   ├── PlanError        a sweep that cannot be built as asked
    │   ├── DataError        a dataset that is empty, too small or not what it says
    │   ├── StoreError       a result store that is not ours, damaged or in use
    │   └── FitError         runs from which no law can be fitted
    ├── PluginError          a plugin broke its contract; names the plugin; exit code 1
    └── RunFailed            a run cannot go on; becomes that run's result, the sweep goes on

A message says what happened, where, what exists, and what to type.
"""


class FlopsFitError(Exception):
    """Base of all of flops-fit's own errors."""


class UserError(FlopsFitError):
    """Something the user gave has to change. Shown without a traceback."""


class ConfigError(UserError):
    """An experiment file, an option or a keyword argument is wrong."""


class PluginNotFound(ConfigError, LookupError):
    """No usable plugin has the name that was asked for."""


class PlanError(UserError):
    """The sweep cannot be built as asked: sizes, budgets or batches do not fit together."""


class DataError(UserError):
    """A dataset is empty, too small, or not in the format it was said to be in."""


class StoreError(UserError):
    """A result store is not ours, damaged, or held by somebody else."""


class FitError(UserError):
    """No law can be fitted to these runs."""


class PluginError(FlopsFitError):
    """A plugin raised or returned something that its contract does not allow."""


class RunFailed(FlopsFitError):
    """A training run cannot go on. Recorded as that run's result; other runs go on."""
