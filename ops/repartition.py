"""Repartition: the same rows in other partitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from ..errors import ParameterError, column_not_found
from ..lineage.graph import Dependency
from .node import Node
from .sort import SortKey, check_sort_keys


@dataclass(frozen=True, eq=False, repr=False)
class Repartition(Node):
    """Move rows between partitions.

    Attributes:
        input: the rows.
        kind: "hash" (equal keys together), "range" (ordered between partitions, not within), "count"
            (evenly, round robin; 1 keeps the order of the rows).
        count: how many partitions; None lets the planner choose.
        keys: for hash, columns; for range, sort keys' columns (with ``sort_keys``).
    """

    input: Node
    kind: Literal["hash", "range", "count"]
    count: int | None = None
    keys: tuple[str, ...] = ()
    sort_keys: tuple[SortKey, ...] = ()

    def __post_init__(self) -> None:
        if self.count is not None and (not isinstance(self.count, int) or self.count < 1):
            raise ParameterError(f"repartition(count={self.count!r}): give a whole number, 1 or more.")
        if self.kind == "count" and self.count is None:
            raise ParameterError("repartition(): give a count, or by=[...] columns to hash or range by.")
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Repartition:
        return Repartition(inputs[0], self.kind, self.count, self.keys, self.sort_keys)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE,)

    def derive_schema(self) -> pa.Schema:
        for name in self.keys:
            if name not in self.input.schema.names:
                raise column_not_found(name, self.input.schema.names, "repartition")
        check_sort_keys(self.sort_keys, self.input.schema)
        return self.input.schema

    def parameters(self) -> Any:
        sort = tuple((k.column, k.descending, k.nulls_first) for k in self.sort_keys)
        return (self.kind, self.count, self.keys, sort)

    def describe(self) -> str:
        by = [*self.keys, *(str(key) for key in self.sort_keys)]
        return (
            f"{self.kind}"
            + (f" by [{', '.join(by)}]" if by else "")
            + (f" into {self.count}" if self.count is not None else "")
        )
