"""The lineage of a partition as text for people."""

from __future__ import annotations

import re
from itertools import islice

import numpy as np

from ..lineage.history import History
from ..lineage.tree import Branch, Cost, ancestry, fingerprint_of, places, rebuild_cost
from .display import bytes_text, plural, seconds_text

_HEADER = ("partitions", "rows", "bytes", "task time", "where", "fingerprint", "made by")
_RIGHT = (1, 2, 3)
#: ranges and places that are written out; the rest is counted
_LISTED = 3


def lineage_text(history: History, stage: int, partition: int, observed: bool = False, most: int = 40) -> str:
    """Write what a partition is made from as a tree, where all of it is, and what making it again costs.

    Args:
        history: of the run.
        stage: of the partition.
        partition: its index.
        observed: whether the history's places are what the nodes told; else they are the journal's.
        most: lines of the tree.

    Returns:
        Lines without a newline at the end.
    """
    branches = list(islice(ancestry(history.graph, stage, partition), most + 1))
    rows = [_HEADER, *(_row(history, branch) for branch in branches[:most])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    table = [_line(row, widths) for row in rows]
    if len(branches) > most:
        table.append(f"... and more; --lines shows more than {most}")
    return "\n".join([_title(history, observed), "", *table, "", *_costs(history, stage, partition)])


def ranges_text(partitions: np.ndarray) -> str:
    """Write indices as ranges.

    Args:
        partitions: ascending; shape (n,).

    Example:
        >>> ranges_text(np.array([0, 1, 2, 5]))
        '0-2,5'
        >>> ranges_text(np.arange(0, 20, 2))
        '0,2,4,... (10)'
    """
    runs = np.split(partitions, np.flatnonzero(np.diff(partitions) > 1) + 1)
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs if len(run)]
    more = f",... ({len(partitions)})" if len(texts) > _LISTED else ""
    return ",".join(texts[:_LISTED]) + more


def _title(history: History, observed: bool) -> str:
    state = history.state or "not ended"
    source = "as the nodes say" if observed else "as journalled (--scheduler ADDRESS asks the nodes)"
    return f"Run {history.run}, {history.pipeline or 'unnamed'}, {state}. Places {source}."


def _row(history: History, branch: Branch) -> tuple[str, ...]:
    stage, chosen = history.stages[branch.stage], branch.partitions
    bars = "".join("   " if last else "│  " for last in branch.lasts[:-1])
    corner = ("└─ " if branch.lasts[-1] else "├─ ") if branch.lasts else ""
    how = f" {branch.dependency.value}" if branch.dependency is not None else ""
    known = " (see above)" if branch.known else ""
    fingerprint = fingerprint_of(stage, chosen)
    return (
        f"{bars}{corner}s{branch.stage}:{ranges_text(chosen)}{how}{known}",
        f"{int(stage.rows[chosen].sum()):,}",
        bytes_text(int(stage.bytes[chosen].sum())),
        seconds_text(float(stage.seconds[chosen].sum())),
        _places_text(places(history, branch)),
        "" if fingerprint is None else re.split("[-~]", fingerprint)[1][:8],
        stage.label,
    )


def _places_text(found: dict[str, int]) -> str:
    if len(found) == 1:
        return next(iter(found))
    texts = [f"{name} ({count})" for name, count in found.items()]
    more = f", +{len(texts) - _LISTED}" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more


def _costs(history: History, stage: int, partition: int) -> list[str]:
    now = rebuild_cost(history, stage, partition)
    whole = rebuild_cost(history, stage, partition, from_sources=True)
    lines = [f"To make it again: {_cost_text(now)}."]
    if whole.count != now.count:
        lines.append(f"From the sources: {_cost_text(whole)}.")
    return lines


def _cost_text(cost: Cost) -> str:
    which = [f"s{stage}:{ranges_text(chosen)}" for stage, chosen in cost.partitions.items()]
    shown = ", ".join(which[:_LISTED]) + (", ..." if len(which) > _LISTED else "")
    reads = f", reading {plural(cost.reads, 'other')} where they are" if cost.reads else ""
    unknown = f" and {plural(cost.unmeasured, 'partition')} that never ran" if cost.unmeasured else ""
    took = f"{bytes_text(cost.bytes)}, {seconds_text(cost.seconds)} of tasks{unknown}"
    return f"{plural(cost.count, 'partition')} ({shown}), {took}{reads}"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        cell.rjust(width) if column in _RIGHT else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths))
    ]
    return "  ".join(cells).rstrip()
