"""Distinct on a device: the first row of each set of equal keys, in the order of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import pyarrow as pa

from ..backend import array_namespace
from ..distinct import DistinctKernel
from ..kernel import Broadcast, Context
from ..morsels import rechunk as rechunk_on_host
from .grouping import group
from .memory import retried
from .memory_bound import held_bytes
from .operators import DeviceKernel, DeviceStream, Lowered, lowers
from .sort import device_tables
from .streams import rechunk
from .table import DeviceTable, concat, to_arrow, to_device
from .transfer import UNIT_ROWS, crosses


@dataclass(frozen=True)
class DeviceDistinct(DeviceKernel):
    """Passes the first row of each key on, streaming. Keys beyond the device's memory go on on the host.

    Rows wait until they are as many as the keys so far, so that all comparisons together cost a few passes.

    Attributes:
        keys: the columns that must differ; None is all of them.
        held: bytes of keys that may be held on the device; None takes `held_bytes`.
    """

    keys: tuple[str, ...] | None
    held: int | None = None

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        xp = array_namespace()
        limit = held_bytes(context, xp) if self.held is None else self.held
        stream = rechunk(device_tables(inputs[0], xp), UNIT_ROWS, xp)
        seen: DeviceTable | None = None
        waiting: list[DeviceTable] = []
        for table in stream:
            waiting.append(table)
            rows, size = sum(t.rows for t in waiting), sum(t.nbytes for t in waiting)
            if seen is not None and rows < seen.rows and size < limit:
                continue
            new, seen = retried(self._compare, seen, waiting, xp)
            waiting = []
            if new.rows:
                yield new
            if seen.nbytes > limit:
                yield from self._on_host(seen, stream, context, xp)
                return
        if waiting:
            new, _ = retried(self._compare, seen, waiting, xp)
            if new.rows:
                yield new

    def _compare(
        self, seen: DeviceTable | None, tables: list[DeviceTable], xp: ModuleType
    ) -> tuple[DeviceTable, DeviceTable]:
        """The rows whose keys are new, and all keys so far."""
        rows = concat(tables, xp)
        keys = rows if self.keys is None else rows.select(self.keys)
        known = 0 if seen is None else seen.rows
        both = keys if seen is None else concat([seen, keys], xp)
        firsts = group(both.columns, both.rows, xp).first_rows
        return rows.take(firsts[known:] - known), both.take(firsts)  # the known keys are the first ``known``

    def _on_host(
        self, seen: DeviceTable, stream: DeviceStream, context: Context, xp: ModuleType
    ) -> Iterator[DeviceTable]:
        rest = (to_arrow(table) for table in stream)
        found = DistinctKernel(self.keys).after(to_arrow(seen), rest, context)
        for table in rechunk_on_host(found, UNIT_ROWS):
            yield to_device(table, xp)


@lowers(DistinctKernel)
def lower_distinct(kernel: DistinctKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Compare keys on the device, where the rows have a place there."""
    return crosses(schemas[0]) or DeviceDistinct(kernel.keys)
