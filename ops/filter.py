"""Filter: the rows that satisfy a predicate (null counts as false)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import TypeMismatchError
from .expressions.expr import Expr, evaluate_column
from .kernel import Broadcast, Context, Kernel, Stream
from .node import Node


@dataclass(frozen=True, eq=False, repr=False)
class Filter(Node):
    """Keep the rows for which a boolean expression is true."""

    input: Node
    predicate: Expr

    def __post_init__(self) -> None:
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Filter:
        return Filter(inputs[0], self.predicate)

    def derive_schema(self) -> pa.Schema:
        type = self.predicate.infer(self.input.schema)
        if not pa.types.is_boolean(type):
            raise TypeMismatchError(
                f"filter({self.predicate}) needs a boolean, and this is {type}. "
                "Write a comparison, as col('x') > 0."
            )
        return self.input.schema

    def parameters(self) -> Any:
        return self.predicate.token

    def describe(self) -> str:
        return str(self.predicate)


@dataclass(frozen=True)
class FilterKernel(Kernel):
    """Keeps the rows for which the predicate is true; a table of which all are kept isn't copied."""

    predicate: Expr

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        for table in inputs[0]:
            mask = evaluate_column(self.predicate, table)
            kept = pc.sum(mask).as_py() or 0
            if kept == table.num_rows:
                yield table
            elif kept:
                yield table.filter(mask)
