"""Source and Split: the protocol between scans and whatever data is read from.

The planner pushes columns, predicates and limits through this protocol without knowing formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from .expressions.expr import Expr


@dataclass(frozen=True)
class Split:
    """What one partition of a scan reads. Splits never depend on columns, predicates or workers.

    Attributes:
        index: position in the source's full list of splits, kept when others are pruned.
        rows: exact number of rows, or None where the format doesn't tell.
        bytes: size in memory, in bytes, of all columns: exact or estimated.
        hosts: host names where the bytes are local, best first; empty if none is known.
        detail: picklable; only the source that made it reads it.
    """

    index: int
    rows: int | None
    bytes: int
    hosts: tuple[str, ...] = ()
    detail: Any = None


class Source:
    """Something that can be scanned. Picklable; holds no open files.

    Schemas are canonical (see `ops.schema.canonical_schema`): no dictionary, view or large types.
    """

    #: short name for plan texts, as "parquet"
    kind: str = "source"

    @property
    def schema(self) -> pa.Schema:
        """The schema of all columns, hive partition columns last."""
        raise NotImplementedError

    def identity(self) -> Any:
        """What decides the content: for each file path, size and mtime or etag, and the read options."""
        raise NotImplementedError

    def splits(self) -> Sequence[Split]:
        """All splits, in the order of the rows."""
        raise NotImplementedError

    def prune(self, splits: Sequence[Split], predicate: Expr) -> Sequence[Split]:
        """Drop splits in which no row can satisfy the predicate (statistics, hive values)."""
        return splits

    def read(
        self, split: Split, columns: Sequence[str], predicate: Expr | None = None, limit: int | None = None
    ) -> Iterator[pa.Table]:
        """Read a split as tables of at most `ops.kernel.MORSEL_ROWS` rows or so.

        Args:
            split: one of `splits()`.
            columns: the columns to read, in this order; may be empty (then tables carry only a row count).
            predicate: rows that don't satisfy it may be left out; the caller filters exactly. Its
                columns are all in ``columns``.
            limit: with no predicate, stop after this many rows.

        Yields:
            Tables with exactly ``columns``, in the source's types.
        """
        raise NotImplementedError

    def reading_as(self, types: Mapping[str, pa.DataType]) -> Source:
        """A source of the same rows that yields some columns in other types.

        Args:
            types: the type wanted of a column: a dictionary of a text column, or float64 for a decimal one, which
                then is what casting it gives.

        Returns:
            A source whose schema tells which of the wishes are fulfilled; by default none is. Identity,
            splits and predicates are this source's.
        """
        return self

    def column_bytes(self, columns: Sequence[str]) -> float:
        """The share, 0 to 1, of a split's bytes that these columns take; by default from type widths."""
        return min(1.0, len(columns) / max(1, len(self.schema)))

    def describe(self) -> str:
        """The source in one line, for plan texts."""
        return self.kind


def read_exactly(
    source: Source, split: Split, columns: Sequence[str], predicate: Expr | None, limit: int | None
) -> Iterator[pa.Table]:
    """Read a split, filter it exactly, keep ``columns``, stop after ``limit`` rows.

    Args:
        source: where from.
        split: which part.
        columns: columns of the result, in order.
        predicate: boolean expression over the source's columns, or None.
        limit: most rows to yield, or None.

    Yields:
        Tables with exactly ``columns``.
    """
    wanted = list(columns)
    if predicate is not None:
        wanted += sorted(predicate.columns() - set(columns))
    left = limit
    for table in source.read(split, wanted, predicate, limit if predicate is None else None):
        if predicate is not None:
            mask = predicate.evaluate(table)
            if isinstance(mask, pa.Scalar):
                if not mask.as_py():
                    continue
            elif columns:
                table = table.select(list(columns)).filter(mask)
            else:
                table = table.filter(mask)
            table = table.select(list(columns))
        if left is not None:
            # Arrow doesn't bound a slice of no columns by the table's rows
            table = table.slice(0, min(left, table.num_rows))
            left -= table.num_rows
        if table.num_rows:
            yield table
        if left == 0:
            return
