"""The memory of a device that an operator may hold before it puts rows aside on the host."""

from __future__ import annotations

from types import ModuleType

import pyarrow as pa

from ..kernel import Context
from .column import physical_type
from .modules import on_device

#: of the memory that this process may use of a device, what one operator holds of its input; it needs about three
#: times as much while it works
HELD_SHARE = 0.25


def held_bytes(context: Context, xp: ModuleType) -> int:
    """Return how many bytes of its input an operator may hold in the namespace's memory.

    On a device that is a share of what this process may use of it, which is less where several share one; on the
    host, half of what the context allows.
    """
    if not on_device(xp):
        return context.memory_bytes // 2
    limit = xp.get_default_memory_pool().get_limit() or xp.cuda.Device().mem_info[1]
    return int(limit * HELD_SHARE)


def row_bytes(schema: pa.Schema) -> int:
    """Return how many bytes a row takes on a device, at most: each value, and a mark of nulls.

    Example:
        >>> row_bytes(pa.schema([("x", pa.int64()), ("text", pa.string())]))
        14
    """
    dtypes = [physical_type(field.type) for field in schema]
    return sum(1 + (8 if dtype is None else dtype.itemsize) for dtype in dtypes)
