"""Union: the rows of several inputs, one input after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import ParameterError, SchemaMismatchError
from .node import Node


@dataclass(frozen=True, eq=False, repr=False)
class Union(Node):
    """Append inputs of equal schemas; duplicates stay.

    Partition i of the output is one whole partition of one input: a narrow dependency.
    """

    sources: tuple[Node, ...]

    def __post_init__(self) -> None:
        if not self.sources:
            raise ParameterError("union() needs at least one dataset.")
        self.check()

    @property
    def inputs(self) -> tuple[Node, ...]:
        return self.sources

    def with_inputs(self, inputs: Sequence[Node]) -> Union:
        return Union(tuple(inputs))

    def derive_schema(self) -> pa.Schema:
        first = self.sources[0].schema
        for position, node in enumerate(self.sources[1:], start=1):
            if node.schema != first:
                raise SchemaMismatchError(_difference(position, first, node.schema))
        return first

    def parameters(self) -> Any:
        return ()

    def describe(self) -> str:
        return f"of {len(self.sources)}"


def _difference(position: int, first: pa.Schema, other: pa.Schema) -> str:
    missing = [name for name in first.names if name not in other.names]
    extra = [name for name in other.names if name not in first.names]
    if missing or extra:
        what = f"it lacks {missing} and adds {extra}"
    else:
        differing = [f.name for f in first if other.field(f.name).type != f.type]
        what = "; ".join(
            f"column {name!r} is {other.field(name).type}, not {first.field(name).type}" for name in differing
        )
        what = what or f"its columns stand in another order: {other.names}, not {first.names}"
    return (
        f"union: input {position} doesn't fit input 0: {what}. "
        "Bring them in line with select(...) and cast(...)."
    )
