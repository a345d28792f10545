"""What failures cost a run, as text: a line of totals, and a table with a row for each loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .display import bytes_text, plural, seconds_text

#: heading and field of each column
_COLUMNS = {
    "cause": "cause",
    "what": "what",
    "at": "detected",
    "silent": "silent",
    "blocks": "lost",
    "tasks": "tasks",
    "minimum": "minimum",
    "returned": "returned",
    "made again": "rerun",
    "bytes": "rerun_bytes",
    "of tasks": "rerun_seconds",
    "whole at": "recovered",
}
_SECONDS = ("detected", "silent", "rerun_seconds", "recovered")


def recovery_lines(recovery: Mapping[str, Any], seconds: float) -> list[str]:
    """Describe what failures cost.

    Args:
        recovery: a report's ``recovery``, as plain values (see `runtime.report.RecoveryReport`).
        seconds: that the run took.

    Returns:
        Lines; none if nothing was lost and nothing was backed up.
    """
    losses: Sequence[Mapping[str, Any]] = recovery.get("losses", ())
    lines = []
    if losses:
        lost = (
            f"{plural(recovery['workers_lost'], 'worker')} and {plural(recovery['nodes_lost'], 'node')} "
            f"with {plural(recovery['blocks_lost'], 'block')}"
        )
        again = (
            f"{plural(recovery['rerun'], 'partition')} made again, of {recovery['minimum']} that had to be"
        )
        back = f", {recovery['returned']} came back" if recovery["returned"] else ""
        clean = recovery["clean_seconds"]
        over = f"; {seconds_text(seconds)} against about {seconds_text(clean)} without" if clean else ""
        lines.append(f"Lost {lost}: {again}{back}{over}.")
        lines += _aligned([list(_COLUMNS), *(_row(loss) for loss in losses)])
    if recovery.get("adopted"):
        lines.append(f"{plural(recovery['adopted'], 'partition')} found on nodes, and not computed.")
    if recovery.get("backups"):
        lines.append(
            f"{plural(recovery['backups'], 'backup task')}, {recovery['backups_won']} of them faster; "
            f"{seconds_text(recovery['backup_seconds_wasted'])} of tasks in vain."
        )
    return lines


def _row(loss: Mapping[str, Any]) -> list[str]:
    return [_cell(field, loss.get(field)) for field in _COLUMNS.values()]


def _cell(field: str, value: Any) -> str:
    if value is None:
        return "not yet"
    if field in _SECONDS:
        return seconds_text(value)
    return bytes_text(value) if field == "rerun_bytes" else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
