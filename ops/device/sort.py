"""Sort on a device: the stable order of words, and rows in the order of keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from types import ModuleType

import numpy as np
import pyarrow as pa

from ..backend import Array, array_namespace
from ..kernel import Broadcast, Context, Kernel
from ..key_words import order_of
from ..morsels import drained, rechunk
from ..ordering import SortKey
from ..sort import SortKernel
from .memory_bound import held_bytes
from .modules import kernel, launch, on_device
from .operators import DeviceKernel, DeviceStream, Lowered, lowers
from .sort_keys import EACH, sort_words
from .table import DeviceTable, concat, to_arrow, to_device
from .transfer import UNIT_ROWS, crosses


def sort_order(words: Sequence[Array], rows: int, xp: ModuleType) -> Array:
    """Return the rows in the order of their words, equal ones as they stand.

    One word that leaves bits to spare takes the row's number below it and is sorted by value. Otherwise, from the
    least significant word on, each orders what the words after it have ordered.

    Traffic, in bytes a row: numbered words take 16 to number, 16 for each of the 8 passes of a radix sort, and 16 for
    the numbers (with words and numbers of 32 bits together 12, 4 times 8, and 12); otherwise each word takes 8
    passes of 32, and 32 to be put in order.

    Args:
        words: most significant first, each of shape (rows,), dtype uint64; none says that all rows are equal.
        rows: how many rows, below 2**63.
        xp: NumPy or CuPy.

    Returns:
        Shape (rows,), dtype int64.

    Example:
        >>> sort_order([np.array([2, 1, 2, 0], np.uint64)], 4, np).tolist()
        [3, 1, 0, 2]
    """
    if not words or rows < 2:
        return xp.arange(rows, dtype=np.int64)
    if not on_device(xp):
        return order_of(words, rows).astype(np.int64, copy=False)
    bits = (rows - 1).bit_length()
    if len(words) == 1 and (width := bits + int(words[0].max()).bit_length()) <= 64:
        numbers = xp.empty(rows, dtype=np.uint64)
        number = kernel(xp, "sort_keys", "number_rows", VALUE="int64")
        launch(number, rows, [words[0], np.int64(rows), np.int32(bits), numbers], each=EACH)
        if width <= 32:
            numbers = numbers.astype(np.uint32)
        numbers.sort()
        numbers &= numbers.dtype.type((1 << bits) - 1)
        return numbers.view(np.int64) if width > 32 else numbers.astype(np.int64)
    order = xp.argsort(words[-1])
    for word in words[-2::-1]:
        order = order[xp.argsort(word[order])]
    return order.astype(np.int64, copy=False)


def row_order(table: DeviceTable, keys: Sequence[SortKey], xp: ModuleType) -> Array:
    """Return the rows of a table in the order of keys; shape (rows,), int64."""
    words = sort_words([table.column(key.column) for key in keys], keys, xp)
    return sort_order(words, table.rows, xp)


def unit_slices(table: DeviceTable, order: Array) -> DeviceStream:
    """Yield the rows of an order, `UNIT_ROWS` at a time."""
    for start in range(0, len(order), UNIT_ROWS):
        yield table.take(order[start : start + UNIT_ROWS])


@dataclass(frozen=True)
class DeviceSort(DeviceKernel):
    """Sorts a partition, stable. Beyond the device's memory, the host's kernel does, and merges runs from disk.

    Attributes:
        keys: most significant first.
        held: bytes of rows that may be held on the device; None takes `held_bytes`.
    """

    keys: tuple[SortKey, ...]
    held: int | None = None

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        xp = array_namespace()
        stream = device_tables(inputs[0], xp)
        held, whole = hold(stream, held_bytes(context, xp) if self.held is None else self.held)
        if not whole:
            yield from on_host(SortKernel(self.keys), [chain(drained(held), stream)], context, xp)
        elif held:
            table = concat(held, xp)
            held.clear()
            yield from unit_slices(table, row_order(table, self.keys, xp))


def device_tables(stream: DeviceStream | Broadcast, xp: ModuleType) -> DeviceStream:
    """Yield the tables of an input that have rows, on the device."""
    tables = (to_device(t, xp) for t in stream) if isinstance(stream, Broadcast) else stream
    return (table for table in tables if table.rows)


def hold(stream: DeviceStream, limit: int) -> tuple[list[DeviceTable], bool]:
    """Take tables from a stream until they are more than a limit of bytes.

    Returns:
        The tables, and whether these are all.
    """
    held: list[DeviceTable] = []
    size = 0
    for table in stream:
        held.append(table)
        size += table.nbytes
        if size > limit:
            return held, False
    return held, True


def on_host(
    host: Kernel, inputs: Sequence[DeviceStream | Broadcast], context: Context, xp: ModuleType
) -> DeviceStream:
    """Run a kernel of the host over device tables, brought there and back."""
    plain = [i if isinstance(i, Broadcast) else _on_host(i) for i in inputs]
    for table in rechunk(host.run(plain, context), UNIT_ROWS):
        yield to_device(table, xp)


def unordered(keys: Sequence[SortKey], schema: pa.Schema) -> str | None:
    """Return why a device can't sort rows of a schema; None if it can."""
    for key in keys:
        if pa.types.is_dictionary(schema.field(key.column).type):
            return f"{key.column!r} is {schema.field(key.column).type}, which isn't sorted"
    return crosses(schema)


@lowers(SortKernel)
def lower_sort(kernel: SortKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Sort on the device rows that have a place there."""
    return unordered(kernel.keys, schemas[0]) or DeviceSort(kernel.keys)


def _on_host(stream: DeviceStream) -> Iterator[pa.Table]:
    return (to_arrow(table) for table in stream)
