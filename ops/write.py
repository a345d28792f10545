"""Write: rows into a sink; its own rows are the list of files written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from .node import Node
from .sink import Sink

#: what a Write node yields: one row a file, paths relative to the destination
WRITTEN = pa.schema([("path", pa.string()), ("rows", pa.int64()), ("bytes", pa.int64())])


@dataclass(frozen=True, eq=False, repr=False)
class Write(Node):
    """Write every partition to a sink; the root of a plan only."""

    input: Node
    sink: Sink

    def __post_init__(self) -> None:
        self.sink.check(self.input.schema)
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Write:
        return Write(inputs[0], self.sink)

    def derive_schema(self) -> pa.Schema:
        return WRITTEN

    def parameters(self) -> Any:
        return self.sink.identity()

    def describe(self) -> str:
        return self.sink.describe()
