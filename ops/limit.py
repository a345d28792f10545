"""Limit: the first rows, in the order of the partitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import ParameterError
from ..lineage.graph import Dependency
from .kernel import Broadcast, Context, Kernel, Stream
from .node import Node


@dataclass(frozen=True, eq=False, repr=False)
class Limit(Node):
    """Keep the first ``count`` rows."""

    input: Node
    count: int

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 0:
            raise ParameterError(f"limit({self.count!r}): give a whole number of rows, 0 or more.")
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Limit:
        return Limit(inputs[0], self.count)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE,)

    def derive_schema(self) -> pa.Schema:
        return self.input.schema

    def parameters(self) -> Any:
        return self.count

    def describe(self) -> str:
        return str(self.count)


@dataclass(frozen=True)
class LimitKernel(Kernel):
    """Passes the first rows of the stream on, then stops reading it."""

    count: int

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        left = self.count
        stream = iter(inputs[0])
        while left > 0 and (table := next(stream, None)) is not None:
            yield table.slice(0, left)
            left -= table.num_rows
