"""Aggregate: one row for each group, in two steps joined by mergeable states.

An aggregation is one declared record (prepare, partial state, merge, finish), as in flox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import ParameterError, column_not_found
from ..lineage.graph import Dependency
from .node import Node


@dataclass(frozen=True)
class Aggregation:
    """One output column of an Aggregate.

    Attributes:
        name: output column.
        function: name of a record in AGGREGATIONS: sum, mean, var, std, min, max, count, n_unique, first, last.
        column: input column; None for ``count`` of rows.
        options: as (("ddof", 1),).
    """

    name: str
    function: str
    column: str | None
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}={self.function}({self.column or ''})"


def aggregation_type(function: str, type: pa.DataType | None, options: dict[str, Any]) -> pa.DataType:
    """Return the output type of an aggregation over a column type, or raise TypeMismatchError."""
    raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class Aggregate(Node):
    """Aggregate over groups of equal keys (null is a key like any other), or over all rows.

    Without keys the output is exactly one row, also for no rows.

    Attributes:
        input: the rows.
        keys: grouping columns; empty for a global aggregation.
        aggregations: output columns, after the keys.
    """

    input: Node
    keys: tuple[str, ...]
    aggregations: tuple[Aggregation, ...]

    def __post_init__(self) -> None:
        names = [*self.keys, *(aggregation.name for aggregation in self.aggregations)]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ParameterError(
                f"agg(...) would give the column {duplicates[0]!r} more than once. Name it by "
                "keyword, as agg(total=col('x').sum()), or with .alias(name)."
            )
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Aggregate:
        return Aggregate(inputs[0], self.keys, self.aggregations)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE,)

    def derive_schema(self) -> pa.Schema:
        source = self.input.schema
        fields = []
        for name in self.keys:
            if name not in source.names:
                raise column_not_found(name, source.names, "group_by")
            fields.append(pa.field(name, source.field(name).type))
        for a in self.aggregations:
            if a.column is not None and a.column not in source.names:
                raise column_not_found(a.column, source.names, f"agg({a})")
            type = None if a.column is None else source.field(a.column).type
            fields.append(pa.field(a.name, aggregation_type(a.function, type, dict(a.options))))
        return pa.schema(fields)

    def parameters(self) -> Any:
        return (self.keys, tuple((a.name, a.function, a.column, a.options) for a in self.aggregations))

    def describe(self) -> str:
        by = f"by [{', '.join(self.keys)}] " if self.keys else ""
        return f"{by}{', '.join(str(a) for a in self.aggregations)}"
