"""Planning: an Experiment becomes a SweepPlan, with sizes around each budget's expected optimum.

D of each run is solved so that its counted FLOPs meet the budget.
"""

from flops_fit_core.planning.cells import CellResolver, solve_batches
from flops_fit_core.planning.counter import resolve_counter
from flops_fit_core.planning.plain_sgd import WARNING
from flops_fit_core.planning.plan import make_plan, open_dataset, runtime_of

__all__ = [
    "WARNING",
    "CellResolver",
    "make_plan",
    "open_dataset",
    "resolve_counter",
    "runtime_of",
    "solve_batches",
]
