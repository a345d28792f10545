"""Transform: rows changed by a preparation step that was fitted on other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from ..lineage.graph import Dependency
from .backend import array_namespace
from .kernel import Broadcast, Context, Kernel, Stream
from .node import Node


class TransformStep(Protocol):
    """What a preparation step does to rows, given its fitted state (see ops/prep).

    Attributes:
        columns: what it reads and changes; all other columns pass through.
    """

    columns: tuple[str, ...]

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema after the step."""

    def prepare(self, state: pa.Table) -> Any:
        """Turn the fitted state into what `apply` wants; once a process."""

    def apply(self, table: pa.Table, prepared: Any) -> pa.Table:
        """Change a table; row by row."""

    def parameters(self) -> Any:
        """For the lineage key."""

    def describe(self) -> str:
        """For plan texts."""


@dataclass(frozen=True, eq=False, repr=False)
class Transform(Node):
    """Apply a fitted preparation step; narrow in the rows, broadcast in the state.

    Attributes:
        input: the rows.
        state: the fitted state, usually one row: an Aggregate, or saved values.
        step: what to do.
    """

    input: Node
    state: Node
    step: TransformStep

    def __post_init__(self) -> None:
        self.check()

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.input, self.state)

    def with_inputs(self, inputs: Sequence[Node]) -> Transform:
        return Transform(inputs[0], inputs[1], self.step)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.NARROW, Dependency.BROADCAST)

    def derive_schema(self) -> pa.Schema:
        return self.step.output_schema(self.input.schema)

    def parameters(self) -> Any:
        return (type(self.step).__name__, self.step.parameters())

    def describe(self) -> str:
        return self.step.describe()


@dataclass(frozen=True)
class TransformKernel(Kernel):
    """Applies a step to each table; the state is prepared once a process."""

    step: TransformStep

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        rows, state = inputs
        where = array_namespace().__name__  # stages on the host and on a device may share a state
        name = f"prepared {type(self.step).__name__} {self.step.parameters()!r} {where}"
        prepared = state.once(name, lambda: self.step.prepare(state.table()))
        for table in rows:
            yield self.step.apply(table, prepared)
