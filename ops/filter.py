"""Filter: the rows that satisfy a predicate (null counts as false)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import TypeMismatchError
from .expressions.expr import Expr
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
