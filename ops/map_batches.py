"""MapBatches: a user function over batches of rows, as NumPy or CuPy arrays or an Arrow table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from .node import Node


@dataclass(frozen=True, eq=False, repr=False)
class MapBatches(Node):
    """Apply a function to batches of each partition.

    Attributes:
        input: the rows.
        function: takes and returns a dict of arrays, or an Arrow table; may return another number of rows.
        format: "numpy" (a dict of arrays, CuPy on a GPU worker) or "arrow".
        output: the declared or inferred output schema, canonical.
        batch_rows: most rows in a batch; None gives the stream's own batches; the cut never depends on workers.
        same_length: the function must return as many rows as it got.
        deterministic: False says that the same rows may give other results (see lineage recovery).
    """

    input: Node
    function: Callable[[Any], Any]
    output: pa.Schema
    format: Literal["numpy", "arrow"] = "numpy"
    batch_rows: int | None = None
    same_length: bool = False
    deterministic: bool = True

    def __post_init__(self) -> None:
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> MapBatches:
        return MapBatches(
            inputs[0],
            self.function,
            self.output,
            self.format,
            self.batch_rows,
            self.same_length,
            self.deterministic,
        )

    def derive_schema(self) -> pa.Schema:
        return self.output

    def parameters(self) -> Any:
        return (self.function, self.output, self.format, self.batch_rows, self.same_length)

    @property
    def name(self) -> str:
        """The user function's name."""
        return getattr(self.function, "__qualname__", type(self.function).__name__)

    def describe(self) -> str:
        return self.name
