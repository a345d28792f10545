"""Host runs: rows of a device that wait on the host, in its memory while there is room and in spill files beyond."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa

from ..kernel import Context
from ..morsels import drained, rechunk
from ..ordering import SortKey, key_names
from ..quantiles import SKETCH
from ..spill import SpillFile, new_spill
from .memory import retried
from .memory_bound import row_bytes
from .modules import on_device
from .operators import DeviceStream
from .table import DeviceTable, concat, to_arrow, to_device
from .transfer import UNIT_ROWS

#: rows that are sampled of each table of a run
_SAMPLE = 32


class HostRun:
    """Rows that were put aside in their order, and are read once.

    Args:
        store: where it belongs.
        keys: what the rows are sorted by; a sample of these columns is kept. None is not at all.

    Attributes:
        rows: how many there are.
        samples: rows of the key columns, at about equal distances.
        weights: for how many rows each of these stands; shape (sampled rows,).
    """

    def __init__(self, store: HostRuns, keys: Sequence[SortKey] = ()):
        self.rows = self._sketches = 0
        self.samples: list[pa.Table] = []
        self.weights: list[np.ndarray] = []
        self._names = key_names(keys)
        self._store = store
        self._schema: pa.Schema | None = None
        self._held: list[pa.Table] = []
        self._file: SpillFile | None = None

    @property
    def bytes(self) -> int:
        """What all rows take on the device, at most."""
        return 0 if self._schema is None else self.rows * row_bytes(self._schema) + self._sketches

    def put(self, table: DeviceTable) -> None:
        """Bring rows of the device here, behind those that are."""
        self.append(to_arrow(table))

    def append(self, table: pa.Table) -> None:
        """Add rows of the host."""
        if not table.num_rows:
            return
        self._schema = table.schema
        self.rows += table.num_rows
        self._sketches += sum(column.nbytes for column in table.columns if column.type == SKETCH)
        if self._names:
            step = -(-table.num_rows // _SAMPLE)
            places = np.arange(step // 2, table.num_rows, step)
            self.samples.append(table.select(self._names).take(pa.array(places)))
            self.weights.append(np.full(len(places), table.num_rows / len(places)))
        if self._file is None and self._store.takes(table.nbytes):
            self._held.append(table)
        else:
            if self._file is None:
                self._file = self._store.new_file(table.schema)
            self._file.append(table)

    def finish(self) -> HostRun:
        """End writing; reading comes after."""
        if self._file is not None:
            self._file.finish()
        return self

    def read(self) -> Iterator[pa.Table]:
        """Yield the rows, once; what was read is let go of."""
        yield from drained(self._held)
        file, self._file = self._file, None
        if file is not None:
            yield from file.read()
            file.delete()

    def tables(self, xp: ModuleType, rows: int = UNIT_ROWS) -> DeviceStream:
        """Yield the rows on the device, once, so many at a time."""
        for table in rechunk(self.read(), rows):
            yield retried(to_device, table, xp)

    def table(self, xp: ModuleType) -> DeviceTable:
        """Return all rows on the device, of which there is at least one."""
        return concat(list(self.tables(xp)), xp)


class HostRuns:
    """Makes runs, of which the first bytes stay in memory.

    Args:
        folder: for spill files.
        room: bytes that stay in memory, of all runs together.
        context: counts what is spilled.
    """

    def __init__(self, folder: Path, room: int, context: Context):
        self._folder, self._room, self._context = folder, room, context

    def new(self, keys: Sequence[SortKey] = ()) -> HostRun:
        """Begin a run; ``keys`` as `HostRun` has them."""
        return HostRun(self, keys)

    def takes(self, size: int) -> bool:
        """Whether so many bytes may stay in memory, which they then do."""
        if size > self._room:
            return False
        self._room -= size
        return True

    def new_file(self, schema: pa.Schema) -> SpillFile:
        """Begin a spill file."""
        return new_spill(self._folder, schema, self._context)


@contextmanager
def host_runs(context: Context, xp: ModuleType) -> Iterator[HostRuns]:
    """Make runs that are gone, files and all, when the ``with`` ends.

    Half of what the context allows stays in memory; a quarter where that is what stands for a device's, too.
    """
    with context.spill_folder() as folder:
        yield HostRuns(Path(folder), context.memory_bytes // (2 if on_device(xp) else 4), context)
