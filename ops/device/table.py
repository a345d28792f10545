"""DeviceTable: rows as columns on a device, and the transfers that bring them there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import numpy as np
import pyarrow as pa

from ..backend import Array, array_namespace
from . import column as columns_of
from .arrays.concatenation import joined_columns
from .arrays.gather import take_columns
from .column import DeviceColumn


@dataclass(frozen=True)
class DeviceTable:
    """Rows on a device.

    Attributes:
        columns: in the schema's order.
        schema: as on the host.
        rows: how many; told apart, as a table may have no columns.
    """

    columns: tuple[DeviceColumn, ...]
    schema: pa.Schema
    rows: int

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(column.nbytes for column in self.columns)

    @property
    def num_rows(self) -> int:
        """How many rows; the name that tables of Arrow have for it."""
        return self.rows

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.schema.names)}

    def column(self, name: str) -> DeviceColumn:
        """Return a column by its name."""
        return self.columns[self._places[name]]

    def select(self, names: Sequence[str]) -> DeviceTable:
        """Return some of the columns, in the order of ``names``."""
        schema = pa.schema([self.schema.field(name) for name in names])
        return DeviceTable(tuple(self.column(name) for name in names), schema, self.rows)

    def slice(self, start: int, stop: int) -> DeviceTable:
        """Return rows from ``start`` up to ``stop``, without a copy."""
        stop = min(stop, self.rows)
        cut = tuple(column.slice(start, stop) for column in self.columns)
        return DeviceTable(cut, self.schema, max(0, stop - start))

    def take(self, rows: Array) -> DeviceTable:
        """Return the rows of an index, shape (n,), any integer dtype."""
        xp = np if isinstance(rows, np.ndarray) else array_namespace()
        return DeviceTable(tuple(take_columns(self.columns, rows, xp)), self.schema, int(rows.shape[0]))


def to_device(table: pa.Table, xp: ModuleType) -> DeviceTable:
    """Bring a table to the device; strings become codes.

    Example:
        >>> import numpy as np
        >>> to_device(pa.table({"x": [1, 2]}), np).column("x").values.tolist()
        [1, 2]
    """
    there = tuple(columns_of.to_device(column, xp) for column in table.columns)
    return DeviceTable(there, table.schema, table.num_rows)


def to_arrow(table: DeviceTable) -> pa.Table:
    """Bring a table back to the host."""
    if not table.columns:
        return pa.table({"": pa.nulls(table.rows)}).select([])
    return pa.Table.from_arrays([columns_of.to_arrow(c) for c in table.columns], schema=table.schema)


def concat(tables: Sequence[DeviceTable], xp: ModuleType) -> DeviceTable:
    """Put the rows of tables of one schema behind each other; at least one table."""
    if len(tables) == 1:
        return tables[0]
    whole = tuple(joined_columns([table.columns for table in tables], xp))
    return DeviceTable(whole, tables[0].schema, sum(table.rows for table in tables))
