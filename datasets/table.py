"""TableSource: rows in the driver's memory; each split carries its own rows, and only when it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from ..errors import ParameterError, TypeMismatchError
from ..lineage.fingerprint import Fingerprint
from ..ops.expressions.expr import Expr
from ..ops.morsels import slices
from ..ops.schema import canonical_schema, canonical_table
from ..ops.source import Source, Split
from .sizes import check_positive, even_cuts

#: how much of a partition, in bytes, is aimed at
PARTITION_BYTES = 64 << 20


class TableSlice:
    """Some rows; pickled as an IPC stream, so that no more than these rows travel."""

    def __init__(self, table: pa.Table):
        self.table = table

    def __reduce__(self) -> tuple[Callable[[bytes], TableSlice], tuple[bytes]]:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as writer:
            writer.write_table(self.table)
        return (_load, (sink.getvalue().to_pybytes(),))


def _load(data: bytes) -> TableSlice:
    return TableSlice(pa.ipc.open_stream(data).read_all())


class TableSource(Source):
    """A table in memory. Made by `table_source`. Pickles without the rows: the splits carry them."""

    kind = "table"

    def __init__(self, table: pa.Table, partitions: int):
        self._table: pa.Table | None = table
        self._schema = table.schema
        self.partitions = partitions
        self.shape = table.shape
        rows = max(1, table.num_rows)
        self.widths = {name: table.column(name).nbytes / rows for name in table.column_names}

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    @cached_property
    def digest(self) -> str:
        """Content digest of the rows; doesn't depend on chunks."""
        return Fingerprint(self._schema).update(self.table).hexdigest()

    @property
    def table(self) -> pa.Table:
        """All rows; only where the source was made."""
        if self._table is None:
            raise ParameterError("this source was unpickled, and so has no rows: only its splits have them.")
        return self._table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "digest": self.digest, "_table": None}

    def identity(self) -> Any:
        return (self.kind, self.digest, self._schema, self.partitions)

    def splits(self) -> Sequence[Split]:
        cuts = even_cuts(self.table.num_rows, self.partitions)
        pieces = [self.table.slice(start, stop - start) for start, stop in cuts]
        return [
            Split(i, piece.num_rows, piece.nbytes, detail=TableSlice(piece)) for i, piece in enumerate(pieces)
        ]

    def read(
        self, split: Split, columns: Sequence[str], predicate: Expr | None = None, limit: int | None = None
    ) -> Iterator[pa.Table]:
        table = split.detail.table
        table = table if limit is None else table.slice(0, limit)
        yield from slices(table.select(list(columns)))

    def column_bytes(self, columns: Sequence[str]) -> float:
        total = sum(self.widths.values())
        return min(1.0, sum(self.widths[name] for name in set(columns)) / total) if total else 1.0

    def describe(self) -> str:
        return f"table ({self.shape[0]} rows, {self.shape[1]} columns)"


def table_source(data: pa.Table, *, partitions: int | None = None) -> TableSource:
    """Make a source of a table in memory.

    Args:
        data: the rows; dictionary, large and view types become the plain ones.
        partitions: how many, of nearly equal length; None makes them of 64 MiB.

    Returns:
        The source; its identity is a digest of the rows, so an equal table gives the same lineage keys.

    Raises:
        TypeMismatchError: not an Arrow table.
        ParameterError: two columns of one name, or partitions below 1.

    Example:
        >>> source = table_source(pa.table({"x": [1, 2, 3]}), partitions=2)
        >>> [split.rows for split in source.splits()]
        [1, 2]
    """
    if not isinstance(data, pa.Table):
        raise TypeMismatchError(
            f"table_source() takes a pyarrow.Table, not {type(data).__name__}. Use pa.table(…)."
        )
    check_positive("table_source", partitions=partitions)
    names = data.column_names
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ParameterError(
            f"the table has {', '.join(map(repr, twice))} more than once. Rename the columns."
        )
    try:
        table = canonical_table(data, canonical_schema(data.schema))
    except pa.ArrowException as error:
        raise TypeMismatchError(f"the table can't be brought to plain Arrow types: {error}") from error
    if partitions is None:
        partitions = max(1, -(-table.nbytes // PARTITION_BYTES))
    return TableSource(table, partitions)
