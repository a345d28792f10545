"""Distinct: the first row of each set of equal keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import column_not_found
from ..lineage.graph import Dependency
from .node import Node


@dataclass(frozen=True, eq=False, repr=False)
class Distinct(Node):
    """Keep the first row, in partition order, for each combination of key values.

    Attributes:
        input: the rows.
        keys: the columns that must differ; None is all of them.
    """

    input: Node
    keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Distinct:
        return Distinct(inputs[0], self.keys)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE,)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that must differ."""
        return tuple(self.input.schema.names) if self.keys is None else self.keys

    def derive_schema(self) -> pa.Schema:
        for name in self.keys or ():
            if name not in self.input.schema.names:
                raise column_not_found(name, self.input.schema.names, "distinct")
        return self.input.schema

    def parameters(self) -> Any:
        return self.keys

    def describe(self) -> str:
        return "" if self.keys is None else f"by [{', '.join(self.keys)}]"
