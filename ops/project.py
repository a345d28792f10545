"""Project: columns computed from columns, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import ParameterError
from .expressions.expr import Column, Expr, evaluate_column
from .kernel import Broadcast, Context, Kernel, Stream
from .node import Node, listed


@dataclass(frozen=True, eq=False, repr=False)
class Project(Node):
    """Compute named expressions; what isn't named is dropped.

    Attributes:
        input: the rows.
        exprs: (output name, expression), in output order.
    """

    input: Node
    exprs: tuple[tuple[str, Expr], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.exprs]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ParameterError(
                f"the output would have the column {duplicates[0]!r} more than once. "
                "Give each expression its own name with .alias(name)."
            )
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Project:
        return Project(inputs[0], self.exprs)

    def derive_schema(self) -> pa.Schema:
        source = self.input.schema
        return pa.schema([pa.field(name, expr.infer(source)) for name, expr in self.exprs])

    def parameters(self) -> Any:
        return tuple((name, expr.token) for name, expr in self.exprs)

    def describe(self) -> str:
        computed = [f"{name}={expr}" for name, expr in self.exprs if not _is_kept(name, expr)]
        kept = len(self.exprs) - len(computed)
        if computed and kept > 20:
            return f"{listed(computed)}, and {kept} columns as they are"
        return listed([name if _is_kept(name, expr) else f"{name}={expr}" for name, expr in self.exprs])


def _is_kept(name: str, expr: Expr) -> bool:
    return isinstance(expr, Column) and expr.name == name


@dataclass(frozen=True)
class ProjectKernel(Kernel):
    """Evaluates expressions on each table.

    Arrow keeps the number of rows of a table without columns through slices, but not through
    concatenation, so a projection to nothing is for the planner to avoid.

    Attributes:
        exprs: (output name, expression), in output order.
        schema: of the output.
    """

    exprs: tuple[tuple[str, Expr], ...]
    schema: pa.Schema

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        for table in inputs[0]:
            if not self.exprs:
                yield table.select([])
                continue
            columns = [
                evaluate_column(expr, table, field.type) for (_, expr), field in zip(self.exprs, self.schema)
            ]
            yield pa.Table.from_arrays(columns, schema=self.schema)
