"""Sort: rows in the order of keys, stable; and TopK, the first rows of that order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import TypeMismatchError, column_not_found
from ..lineage.graph import Dependency
from .node import Node


@dataclass(frozen=True)
class SortKey:
    """A column to sort by. NaN sorts above every number; nulls go where ``nulls_first`` says."""

    column: str
    descending: bool = False
    nulls_first: bool = False

    def __str__(self) -> str:
        return (
            self.column + (" desc" if self.descending else "") + (" nulls first" if self.nulls_first else "")
        )


def check_sort_keys(keys: Sequence[SortKey], schema: pa.Schema) -> None:
    """Raise ColumnNotFoundError or TypeMismatchError for keys that the schema can't be sorted by."""
    for key in keys:
        if key.column not in schema.names:
            raise column_not_found(key.column, schema.names, "sort")
        type = schema.field(key.column).type
        if pa.types.is_nested(type):
            raise TypeMismatchError(f"sort: {key.column!r} is {type}, which has no order. Sort by one of its fields.")


@dataclass(frozen=True, eq=False, repr=False)
class Sort(Node):
    """Order all rows: partition i holds rows that come before those of partition i + 1."""

    input: Node
    keys: tuple[SortKey, ...]

    def __post_init__(self) -> None:
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Sort:
        return Sort(inputs[0], self.keys)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE,)

    def derive_schema(self) -> pa.Schema:
        check_sort_keys(self.keys, self.input.schema)
        return self.input.schema

    def parameters(self) -> Any:
        return tuple((k.column, k.descending, k.nulls_first) for k in self.keys)

    def describe(self) -> str:
        return f"by [{', '.join(str(key) for key in self.keys)}]"


@dataclass(frozen=True, eq=False, repr=False)
class TopK(Node):
    """The first ``count`` rows of the sorted order; what a Limit over a Sort becomes."""

    input: Node
    keys: tuple[SortKey, ...]
    count: int

    def __post_init__(self) -> None:
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> TopK:
        return TopK(inputs[0], self.keys, self.count)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE,)

    def derive_schema(self) -> pa.Schema:
        check_sort_keys(self.keys, self.input.schema)
        return self.input.schema

    def parameters(self) -> Any:
        return (tuple((k.column, k.descending, k.nulls_first) for k in self.keys), self.count)

    def describe(self) -> str:
        return f"{self.count} by [{', '.join(str(key) for key in self.keys)}]"
