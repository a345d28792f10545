"""Tables, sizes and durations as text for people."""

from __future__ import annotations

import shutil
from typing import Any

import pyarrow as pa
from rich.cells import cell_len, set_cell_size

#: widest cell, in terminal columns; longer values end in an ellipsis
CELL_WIDTH = 32


def table_text(table: pa.Table, width: int | None = None) -> str:
    """Write a table as aligned text: names, types, one line a row.

    Args:
        table: the rows to show, all of them.
        width: of the terminal in columns; None asks it. Columns that don't fit are counted, not shown.

    Returns:
        Lines without a newline at the end.

    Example:
        >>> print(table_text(pa.table({"zone": ["a", None], "fare": [2.5, 10.0]}), width=80))
        zone    fare
        string  double
        ------  ------
        a          2.5
        null      10.0
    """
    room = width or shutil.get_terminal_size((120, 24)).columns
    columns: list[list[str]] = []
    for field, values in zip(table.schema, table.columns):
        cells = [_fit(field.name), _fit(str(field.type)), *(_fit(_cell(v)) for v in values.to_pylist())]
        size = max(map(cell_len, cells))
        if columns and room - size - 2 < 12 and len(columns) + 1 < table.num_columns:
            break
        right = not (pa.types.is_string(field.type) or pa.types.is_nested(field.type))
        columns.append([*(set_cell_size(c, size) for c in cells[:2]), "-" * size])
        columns[-1] += [_pad(c, size, right) for c in cells[2:]]
        room -= size + 2
    lines = ["  ".join(parts).rstrip() for parts in zip(*columns)]
    if hidden := table.num_columns - len(columns):
        lines[0] += f"  … {hidden} more"
    return "\n".join(lines)


def count_text(count: float) -> str:
    """Write a count in at most five characters or so, as ``12.3k``.

    Example:
        >>> count_text(950), count_text(12_345), count_text(7_000_000)
        ('950', '12.3k', '7.0M')
    """
    return _scaled(count, 1000.0, ("", "k", "M", "G", "T"))


def plural(count: int, noun: str) -> str:
    """Write how many of something there are.

    Example:
        >>> plural(1, "row"), plural(12_000, "row")
        ('1 row', '12,000 rows')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def bytes_text(count: float) -> str:
    """Write a number of bytes in binary units.

    Example:
        >>> bytes_text(950), bytes_text(3 << 20)
        ('950 B', '3.0 MiB')
    """
    return _scaled(count, 1024.0, (" B", " KiB", " MiB", " GiB", " TiB"))


def seconds_text(seconds: float) -> str:
    """Write a duration.

    Example:
        >>> seconds_text(0.84), seconds_text(75), seconds_text(7500)
        ('0.8 s', '1:15', '2:05:00')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    power = 0
    while value >= base and power < len(units) - 1:
        value /= base
        power += 1
    return f"{value:.1f}{units[power]}" if power else f"{value:.0f}{units[0]}"


def _cell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return _float(value)
    return str(value).replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _float(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e12:
        whole, _, digits = f"{value:.4f}".partition(".")
        return f"{whole}.{digits.rstrip('0') or '0'}"
    return f"{value:g}"


def _fit(text: str) -> str:
    return text if cell_len(text) <= CELL_WIDTH else set_cell_size(text, CELL_WIDTH - 1).rstrip() + "…"


def _pad(text: str, size: int, right: bool) -> str:
    return " " * (size - cell_len(text)) + text if right else set_cell_size(text, size)
