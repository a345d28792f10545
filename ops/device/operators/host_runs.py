"""Host runs: rows of a device that wait on the host, in its memory while there is room and in spill files beyond.

In memory, strings wait as the codes that they are on the device, if their dictionary is small beside the rows: so most
strings are neither written out nor encoded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa

from ...kernel import Context
from ...morsels import drained, slices
from ...ordering import SortKey, key_names
from ...quantiles import SKETCH
from ...spill import SpillFile, cast, new_spill
from ..device_kernel import DeviceStream
from ..memory import retried
from ..memory_bound import row_bytes
from ..modules import on_device
from ..streams import rechunk
from ..table import DeviceTable, concat, to_arrow, to_device
from ..transfer import UNIT_ROWS

#: rows that are sampled of each table of a run
_SAMPLE = 32
#: strings wait as codes if their dictionary is at most this share of the rows
_SMALL = 1 / 64


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
        self.append(to_host_form(table), table.schema)

    def append(self, table: pa.Table, schema: pa.Schema) -> None:
        """Add rows of the host.

        Args:
            table: in this schema, or as `to_host_form` has it.
            schema: of the rows when they are read.
        """
        if not table.num_rows:
            return
        self._schema = schema
        self.rows += table.num_rows
        self._sketches += sum(column.nbytes for column in table.columns if column.type == SKETCH)
        if self._names:
            step = -(-table.num_rows // _SAMPLE)
            places = np.arange(step // 2, table.num_rows, step)
            sample = table.select(self._names).take(pa.array(places))
            self.samples.append(cast(sample, pa.schema([schema.field(name) for name in self._names])))
            self.weights.append(np.full(len(places), table.num_rows / len(places)))
        if self._file is None and self._store.takes(table.nbytes):
            self._held.append(table)
        else:
            if self._file is None:
                self._file = self._store.new_file(schema)
            self._file.append(cast(table, schema))

    def finish(self) -> HostRun:
        """End writing; reading comes after."""
        if self._file is not None:
            self._file.finish()
        return self

    def read(self) -> Iterator[pa.Table]:
        """Yield the rows, once; what was read is let go of."""
        for table in self._waiting():
            yield table if self._schema is None else cast(table, self._schema)

    def _waiting(self) -> Iterator[pa.Table]:
        yield from drained(self._held)
        file, self._file = self._file, None
        if file is not None:
            yield from file.read()
            file.delete()

    def tables(self, xp: ModuleType, rows: int = UNIT_ROWS) -> DeviceStream:
        """Yield the rows on the device, once, so many at a time."""
        there = (
            retried(from_host_form, piece, self._schema, xp)
            for table in self._waiting()
            for piece in slices(table, rows)
        )
        return rechunk(there, rows, xp)

    def table(self, xp: ModuleType) -> DeviceTable:
        """Return all rows on the device, of which there is at least one."""
        return retried(concat, list(self.tables(xp)), xp)


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


def to_host_form(table: DeviceTable) -> pa.Table:
    """Bring rows to the host, strings as codes if their dictionary is short.

    Example:
        >>> strings = to_device(pa.table({"x": ["a", "b"] * 64}), np)
        >>> to_host_form(strings).schema.field("x").type
        DictionaryType(dictionary<values=string, indices=int32, ordered=0>)
    """
    columns = []
    for column in table.columns:
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if text and column.dictionary is not None and len(column.dictionary) <= _SMALL * table.rows:
            column = replace(column, type=pa.dictionary(pa.int32(), column.type))
        columns.append(column)
    schema = pa.schema([field.with_type(column.type) for field, column in zip(table.schema, columns)])
    return to_arrow(DeviceTable(tuple(columns), schema, table.rows))


def from_host_form(table: pa.Table, schema: pa.Schema, xp: ModuleType) -> DeviceTable:
    """Bring rows back to the device; ``schema`` is what they had there."""
    there = to_device(table, xp)
    columns = tuple(replace(column, type=field.type) for column, field in zip(there.columns, schema))
    return DeviceTable(columns, schema, there.rows)


@contextmanager
def host_runs(context: Context, xp: ModuleType) -> Iterator[HostRuns]:
    """Make runs that are gone, files and all, when the ``with`` ends.

    Half of what the context allows stays in memory; a quarter where that is what stands for a device's, too.
    """
    with context.spill_folder() as folder:
        yield HostRuns(Path(folder), context.memory_bytes // (2 if on_device(xp) else 4), context)
