"""One of the two studies, tables or fits of an overlay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flops_fit_core.records import Diagnostic, LawFit, Observation, Optimum, RunResult, SweepPlan


@dataclass(frozen=True)
class Side:
    """A study, a table of runs, or a saved fit. Everything but the name is optional."""

    name: str
    source: str = ""
    """The study, table or fit as the reader types it in a command; empty if it is not a file."""
    fit: LawFit | None = None
    """The law; None if the runs allow none yet."""
    optimum: Callable[[float], Optimum] | None = None
    """The optimum of a budget in FLOPs, by the law; None without a law."""
    observations: Sequence[Observation] = ()
    """The runs; empty for a saved fit."""
    plan: SweepPlan | None = None
    """The plan of a study, which records the data and how N, C and D are counted. None for a table and a fit."""
    results: Sequence[RunResult] = ()
    eval_set: str | None = None
    """Name of the held-out set with the losses; None for the main set."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role -> column of a table; empty for a study and for a fit."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """``dataset``, ``held-out set`` or ``tokenizer`` -> texts of a table's column, by :func:`read_labels`."""
    diagnostics: Sequence[Diagnostic] = ()
    """Diagnostics of reading a table."""
    missing: str = ""
    """Why there is no law."""

    @property
    def synthetic(self) -> bool:
        """Whether any loss was computed from a formula."""
        return any(result.synthetic for result in self.results)

    @property
    def unit(self) -> str:
        """The unit of D."""
        if self.plan is not None:
            return self.plan.unit
        return self.fit.unit if self.fit is not None else "tokens"


_LABELS = {
    "dataset": ("dataset", "corpus", "train_set", "train_dataset", "training_data", "training_set"),
    "held-out set": ("eval_set", "eval_dataset", "val_set", "validation_set", "heldout_set"),
    "tokenizer": ("tokenizer",),
}
"""Label -> names of columns."""
_MOST_TEXTS = 4


def read_labels(cells: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The data that a table names: label -> the different texts in the column, joined by commas.

    Args:
        cells: The cells of each row, by column.
    """
    rows = list(cells)
    by_name = {
        name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in (rows[0] if rows else ())
    }
    labels = {}
    for label, names in _LABELS.items():
        columns = [by_name[name] for name in names if name in by_name]
        texts = sorted({str(row[columns[0]]).strip() for row in rows if row.get(columns[0])} if columns else ())
        if texts:
            more = f" and {len(texts) - _MOST_TEXTS} more" if len(texts) > _MOST_TEXTS else ""
            labels[label] = ", ".join(texts[:_MOST_TEXTS]) + more
    return labels
