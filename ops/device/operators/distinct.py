"""Distinct on a device: the first row of each set of equal keys, in the order of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import ModuleType

import pyarrow as pa

from ...backend import array_namespace
from ...distinct import DistinctKernel
from ...kernel import Broadcast, Context
from ...morsels import drained
from ...ordering import SortKey
from ..arrays.grouping import group
from ..device_kernel import DeviceKernel, DeviceStream, Lowered, lowers
from ..memory import DeviceMemoryError, retried
from ..memory_bound import held_bytes
from ..streams import rechunk
from ..table import DeviceTable, concat, to_arrow
from ..transfer import UNIT_ROWS, crosses
from .hash_split import MAX_DEPTH, PLACE, deeper, hash_split, numbered
from .host_runs import HostRun, HostRuns, host_runs
from .merge import merge_runs
from .sort import device_tables


@dataclass(frozen=True)
class DeviceDistinct(DeviceKernel):
    """Passes the first row of each key on, streaming.

    Rows wait until they are as many as the keys so far, so that all comparisons together cost a few passes.
    Keys beyond the device's memory are split by their hash, and so are the rows that come after. Each part is
    gone through here; its rows carry their numbers, by which a merge puts those of all parts back in order.

    Attributes:
        keys: the columns that must differ; None is all of them.
        held: bytes that may be held on the device, of which half are for keys; None takes `held_bytes`.
    """

    keys: tuple[str, ...] | None
    held: int | None = None

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        xp = array_namespace()
        limit = held_bytes(context, xp) if self.held is None else self.held
        stream = rechunk(device_tables(inputs[0], xp), UNIT_ROWS, xp)
        seen: list[DeviceTable] = []
        waiting: list[DeviceTable] = []
        yield from self._new_rows(stream, seen, waiting, limit, xp)
        if seen or waiting:
            names = self.keys or (seen or waiting)[0].schema.names
            by_name = DeviceDistinct(tuple(names), limit)
            with host_runs(context, xp) as store:
                rest = numbered(chain(drained(waiting), stream), xp)
                for table in by_name._split(rest, drained(seen), 0, store, context, xp):
                    columns = [name for name in table.schema.names if name != PLACE]
                    yield table.select(columns)

    def _new_rows(
        self,
        stream: DeviceStream,
        seen: list[DeviceTable],
        waiting: list[DeviceTable],
        limit: int,
        xp: ModuleType,
    ) -> DeviceStream:
        """Yield rows whose keys are new, until all are, or the device has no room for more keys.

        Args:
            stream: of rows.
            seen: at most one table, of the keys that came before; at the end, of all keys so far.
            waiting: empty; at the end, rows that weren't compared. If both are empty then, all rows were.
            limit: bytes, of which half are for keys, and a quarter for rows that wait.
            xp: NumPy or CuPy.
        """
        while True:
            table = next(stream, None)
            if table is not None:
                waiting.append(table)
                rows, size = sum(t.rows for t in waiting), sum(t.nbytes for t in waiting)
                if seen and rows < seen[0].rows and size < limit // 4:
                    continue
            if waiting:
                try:
                    new, seen[:] = retried(self._compare, seen, waiting, xp)
                except DeviceMemoryError:
                    return
                waiting.clear()
                if new.rows:
                    yield new
            if table is None:
                seen.clear()
                return
            if seen[0].nbytes > limit // 2:
                return

    def _compare(
        self, seen: Sequence[DeviceTable], tables: Sequence[DeviceTable], xp: ModuleType
    ) -> tuple[DeviceTable, list[DeviceTable]]:
        """The rows whose keys are new, and all keys so far."""
        rows = concat(tables, xp)
        keys = rows if self.keys is None else rows.select(self.keys)
        known = sum(table.rows for table in seen)
        both = concat([*seen, keys], xp)
        firsts = group(both.columns, both.rows, xp).first_rows
        return rows.take(firsts[known:] - known), [
            both.take(firsts)
        ]  # the known keys are the first ``known``

    def _split(
        self,
        stream: DeviceStream,
        seen: DeviceStream,
        depth: int,
        store: HostRuns,
        context: Context,
        xp: ModuleType,
    ) -> DeviceStream:
        """Pass on rows that carry their numbers, in order of these, if their keys are new."""
        names, limit = self.keys or (), self.held or 0
        half = replace(context, memory_bytes=context.memory_bytes // 2)  # runs have the other one
        seens, rests = hash_split(seen, names, depth, store, xp), hash_split(stream, names, depth, store, xp)
        rows = sum(part.rows for part in seens)
        runs: list[HostRun] = []
        while rests:
            known, rest = seens.pop(0), rests.pop(0)
            if not rest.rows:
                continue
            runs.append(store.new([SortKey(PLACE)]))
            below = deeper(depth, known.rows, rows)
            part = rest.tables(xp)
            keys = [known.table(xp)] if known.rows else []
            waiting: list[DeviceTable] = []
            for table in self._new_rows(part, keys, waiting, limit, xp):
                runs[-1].put(table)
            left = chain(drained(waiting), part)
            if below < MAX_DEPTH and (keys or waiting):
                for table in self._split(left, drained(keys), below, store, context, xp):
                    runs[-1].put(table)
            elif keys:
                host = DistinctKernel(self.keys)
                for plain in host.after(to_arrow(keys.pop()), map(to_arrow, left), half):
                    runs[-1].append(plain, plain.schema)
            elif waiting:
                for plain in DistinctKernel(self.keys).run([map(to_arrow, left)], half):
                    runs[-1].append(plain, plain.schema)
            runs[-1].finish()
        yield from merge_runs(runs, [SortKey(PLACE)], limit, xp)


@lowers(DistinctKernel)
def lower_distinct(kernel: DistinctKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Compare keys on the device, where the rows have a place there."""
    return crosses(schemas[0]) or DeviceDistinct(kernel.keys)
