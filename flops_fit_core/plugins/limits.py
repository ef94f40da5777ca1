"""The largest inputs that flops-fit reads and plans. docs/reference/limits.md lists them.

A limit turns a hostile or mistaken file into a message, before it takes the machine's memory or hours of planning.
Each is far above real use.
"""

from __future__ import annotations

EXPERIMENT_BYTES = 1_000_000
"""Size of an experiment file."""
EXPERIMENT_DEPTH = 30
"""Tables and lists inside each other in an experiment file. Real ones have 4."""
EXPERIMENT_VALUES = 100_000
"""Values of an experiment file, with each YAML alias expanded."""

SIZES_PER_BUDGET = 1_000
"""``sweep.sizes``, as a number. The N of such a ladder spans 200 orders of magnitude at the default ratio."""
PLANNED_RUNS = 100_000
"""Budgets x sizes x seeds of one experiment. The largest plan in the benchmarks has 10,000 runs."""

TABLE_BYTES = 256_000_000
"""Size of a table's text, decompressed."""
TABLE_ROWS = 1_000_000
"""Rows of a table. Reading takes 3.1 KB of memory per row of 5 columns, so a table of this length takes 3 GB."""
TABLE_COLUMNS = 10_000
"""Columns of a table."""
TABLE_NAME_CHARACTERS = 1_000
"""Length of a column's name."""
TABLE_CELLS = 20_000_000
"""Cells of a table. A cell takes 180 bytes of memory while a wide table is read."""

READER_ENTRIES = 100_000
"""Files and folders below a folder with logs of runs."""
READER_RUNS = 10_000
"""Runs that a reader returns from one source."""
