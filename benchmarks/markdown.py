"""Markdown tables of figures, to be pasted into the documentation."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a table; numbers go to the right.

    Example:
        >>> print(table(["what", "s"], [["clean", 1.5]]))
        | what  |    s |
        |-------|-----:|
        | clean | 1.50 |
    """
    cells = [[_text(cell) for cell in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right))
    return "\n".join([line(head), f"|{rule}|", *map(line, cells)])


def spread(values: Sequence[float]) -> str:
    """Write the median of values, with the least and the most if there are several; "-" for none."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def load() -> str:
    """Tell how busy the machine is."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _text(cell: Any) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else "-" if cell is None else str(cell)
