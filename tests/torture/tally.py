"""Counts of injected faults by kind, and the violations."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SHOWN = 300
"""Characters of a violation in the table; the JSON file has all."""


@dataclass
class Tally:
    """What a session has injected and observed."""

    injected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(part, kind of fault) -> number of faults that were injected."""
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(part, kind, outcome) -> number, for parts that classify: detected, harmless, silent."""
    violations: list[dict[str, str]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Part -> missing requirement."""
    seconds: dict[str, float] = field(default_factory=dict)
    acknowledged: int = 0
    """Acknowledged results that were compared with the stores."""

    def add(self, part: str, kind: str, violations: list[str], fault: str) -> None:
        """Count a fault, with the invariants that it violated."""
        self.injected[part, kind] += 1
        for text in violations:
            self.violations.append({"part": part, "kind": kind, "fault": fault, "violation": text})
            print(f"VIOLATION  {part}: {fault}: {text[:SHOWN]}", flush=True)

    def classify(self, part: str, kind: str, outcome: str) -> None:
        self.outcomes[part, kind, outcome] += 1

    def skip(self, part: str, reason: str) -> None:
        self.skipped[part] = reason
        print(f"skipped {part}: {reason}", flush=True)

    def time(self, part: str, started: float) -> None:
        self.seconds[part] = round(self.seconds.get(part, 0.0) + time.monotonic() - started, 1)

    def table(self) -> str:
        """Faults and violations by part and kind."""
        broken = Counter((item["part"], item["kind"]) for item in self.violations)
        rows = [("part", "fault", "injected", "violations", "")]
        for part, kind in sorted({*self.injected, *broken, *(key[:2] for key in self.outcomes)}):
            outcomes = [
                f"{count} {outcome}"
                for (name, other, outcome), count in sorted(self.outcomes.items())
                if (name, other) == (part, kind)
            ]
            rows.append((part, kind, str(self.injected[part, kind]), str(broken[part, kind]), ", ".join(outcomes)))
        rows.append(("total", "", str(self.injected.total()), str(len(self.violations)), ""))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

    def save(self, file: Path, settings: dict[str, object]) -> None:
        """Write the summary as JSON."""
        summary = {
            "settings": settings,
            "injected": [
                {"part": part, "kind": kind, "count": count} for (part, kind), count in self.injected.items()
            ],
            "outcomes": [
                {"part": part, "kind": kind, "outcome": outcome, "count": count}
                for (part, kind, outcome), count in self.outcomes.items()
            ],
            "total": self.injected.total(),
            "acknowledged": self.acknowledged,
            "violations": self.violations,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }
        file.write_text(json.dumps(summary, indent=1))
