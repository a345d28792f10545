"""Device streams: cut anew at fixed row numbers, so that what is computed a batch at a time depends on rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType

from .memory import retried
from .table import DeviceTable, concat


def rechunk(stream: Iterable[DeviceTable], rows: int, xp: ModuleType) -> Iterator[DeviceTable]:
    """Cut a stream at every ``rows`` rows counted from its start; only the last table is shorter.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from headwater.ops.device.table import to_device
        >>> stream = [to_device(pa.table({"a": part}), np) for part in ([1, 2, 3], [4, 5])]
        >>> [table.rows for table in rechunk(stream, 2, np)]
        [2, 2, 1]
    """
    pending: list[DeviceTable] = []
    held = 0
    for table in stream:
        start = 0
        while held + table.rows - start >= rows:
            pending.append(table.slice(start, start + rows - held))
            start += rows - held
            yield retried(concat, pending, xp)
            pending, held = [], 0
        if start < table.rows:
            pending.append(table.slice(start, table.rows))
            held += table.rows - start
    if held:
        yield retried(concat, pending, xp)
