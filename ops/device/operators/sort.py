"""Sort on a device: rows in the order of keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from types import ModuleType

import pyarrow as pa

from ...backend import array_namespace
from ...kernel import Broadcast, Context, Kernel
from ...morsels import drained, rechunk
from ...ordering import SortKey
from ...sort import SortKernel
from ..device_kernel import DeviceKernel, DeviceStream, Lowered, lowers
from ..memory import DeviceMemoryError, retried
from ..memory_bound import held_bytes
from ..table import DeviceTable, to_arrow, to_device
from ..transfer import UNIT_ROWS, crosses
from .host_runs import host_runs
from .merge import in_order, merge_runs, ordered, sorted_tables


@dataclass(frozen=True)
class DeviceSort(DeviceKernel):
    """Sorts a partition, stable. Beyond the device's memory, sorted runs wait on the host and are merged here.

    Attributes:
        keys: most significant first.
        held: bytes of rows that may be held on the device; None takes `held_bytes`.
    """

    keys: tuple[SortKey, ...]
    held: int | None = None

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        xp = array_namespace()
        limit = held_bytes(context, xp) if self.held is None else self.held
        stream = device_tables(inputs[0], xp)
        held, whole = hold(stream, limit)
        if whole and held:
            try:
                table, order = retried(ordered, held, self.keys, xp)
            except DeviceMemoryError:
                limit //= 4  # what was to fit doesn't: a smaller part will
            else:
                held.clear()
                yield from in_order(table, order)
        if held:
            yield from self._by_runs(chain(drained(held), stream), limit, context, xp)

    def _by_runs(self, stream: DeviceStream, limit: int, context: Context, xp: ModuleType) -> DeviceStream:
        with host_runs(context, xp) as store:
            runs = []
            whole = False
            while not whole:
                held, whole = hold(stream, limit)
                if held:
                    runs.append(store.new(self.keys))
                    for table in sorted_tables(held, self.keys, xp):
                        runs[-1].put(table)
                    runs[-1].finish()
            yield from merge_runs(runs, self.keys, limit, xp)


def device_tables(stream: DeviceStream | Broadcast, xp: ModuleType) -> DeviceStream:
    """Yield the tables of an input that have rows, on the device."""
    tables = (retried(to_device, t, xp) for t in stream) if isinstance(stream, Broadcast) else stream
    return (table for table in tables if table.rows)


def hold(
    stream: DeviceStream, limit: int, size_of: Callable[[DeviceTable], int] = attrgetter("nbytes")
) -> tuple[list[DeviceTable], bool]:
    """Take tables from a stream until they are more than a limit of bytes.

    Args:
        stream: of tables.
        limit: bytes.
        size_of: what a table counts.

    Returns:
        The tables, and whether these are all.
    """
    held: list[DeviceTable] = []
    size = 0
    for table in stream:
        held.append(table)
        size += size_of(table)
        if size > limit:
            return held, False
    return held, True


def on_host(
    host: Kernel, inputs: Sequence[DeviceStream | Broadcast], context: Context, xp: ModuleType
) -> DeviceStream:
    """Run a kernel of the host over device tables, brought there and back."""
    plain = [i if isinstance(i, Broadcast) else _on_host(i) for i in inputs]
    for table in rechunk(host.run(plain, context), UNIT_ROWS):
        yield retried(to_device, table, xp)


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
