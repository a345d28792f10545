"""Scan: the rows of a source, with the columns, predicate and limit pushed into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from .expressions.expr import Expr
from .node import Node
from .source import Source


@dataclass(frozen=True, eq=False, repr=False)
class Scan(Node):
    """Read a source.

    Attributes:
        source: where from.
        columns: the columns to read, in order; None is all.
        predicate: only rows that satisfy it; filtered exactly by the scan.
        limit: at most this many rows from each partition (a hint that a Limit above makes exact).
    """

    source: Source
    columns: tuple[str, ...] | None = None
    predicate: Expr | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Scan:
        return self

    def derive_schema(self) -> pa.Schema:
        full = self.source.schema
        if self.predicate is not None:
            self.predicate.infer(full)
        return full if self.columns is None else pa.schema([full.field(name) for name in self.columns])

    def parameters(self) -> Any:
        predicate = None if self.predicate is None else self.predicate.token
        return (self.source.identity(), self.columns, predicate, self.limit)

    def describe(self) -> str:
        parts = [self.source.describe()]
        if self.columns is not None:
            parts.append(f"columns=[{', '.join(self.columns)}]")
        if self.predicate is not None:
            parts.append(f"where {self.predicate}")
        if self.limit is not None:
            parts.append(f"limit={self.limit}")
        return " ".join(parts)
