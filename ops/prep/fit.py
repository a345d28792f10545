"""Fitting: the plan that finds what preparation steps want to know, in as few passes as they allow.

Numbers come from one Aggregate, whose single row has a column for each statistic. Value counts
come from counting each batch's values and adding the counts up: one row for each column and value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..aggregate import Aggregate, Aggregation
from ..expressions.expr import Column, Expr, Value
from ..map_batches import MapBatches
from ..node import Node
from ..project import Project
from ..scan import Scan
from ..source import Source, Split
from ..transform import Transform
from .step import Step, missing, numbers

#: value counts: the column, its kind of type, the value as text, how many rows have it
COUNTS = pa.schema(
    [("column", pa.string()), ("kind", pa.string()), ("value", pa.string()), ("count", pa.int64())]
)
#: the state of a step that needs none
NOTHING = pa.schema([("nothing", pa.int8())])


@dataclass(frozen=True)
class FittedNodes:
    """Steps, and for each the node that computes its state or holds it.

    Attributes:
        steps: in order.
        states: as many nodes; aggregates of the rows fitted on, or scans of saved states.
    """

    steps: tuple[Step, ...]
    states: tuple[Node, ...]

    def transform_node(self, input: Node) -> Node:
        """Apply the steps to rows.

        Raises:
            ColumnNotFoundError, TypeMismatchError: the rows lack a column, or have it in another type.
        """
        for step, state in zip(self.steps, self.states):
            input = Transform(input, state, step)
        return input


def fit_nodes(steps: Sequence[Step], input: Node) -> FittedNodes:
    """Plan the states of steps in a row; see `Chain.fit_nodes`."""
    schema = input.schema
    for step in steps:  # names every wrong column before anything is built
        schema = step.output_schema(schema)
    needs = _prerequisites(steps)
    states: list[Node] = []
    for index, step in enumerate(steps):
        rows = input
        for before in needs[index]:
            rows = Transform(rows, states[before], steps[before])
        together = [other for other, need in zip(steps, needs) if need == needs[index]]
        states.append(_state(step, together, rows))
    return FittedNodes(tuple(steps), tuple(states))


def state_schema(step: Step) -> pa.Schema:
    """The schema of a step's state."""
    if step.counted():
        return COUNTS
    statistics = [(a.name, pa.int64() if a.function == "count" else pa.float64()) for a in step.statistics()]
    return pa.schema(statistics) if statistics else NOTHING


def _prerequisites(steps: Sequence[Step]) -> list[tuple[int, ...]]:
    """For each step, the earlier ones that change what it is fitted on, in order."""
    needs: list[tuple[int, ...]] = []
    for index, step in enumerate(steps):
        direct = [i for i in range(index) if steps[i].writes() & set(step.columns)]
        needs.append(tuple(sorted({*direct, *(far for near in direct for far in needs[near])})))
    return needs


def _state(step: Step, together: Sequence[Step], rows: Node) -> Node:
    if step.counted():
        return _counts(rows, _unique(name for other in together for name in other.counted()))
    if not step.statistics():
        return Scan(_NoRows())
    shared = _unique(aggregation for other in together for aggregation in other.statistics())
    aggregate = _statistics(rows, shared)
    wanted = _unique(aggregation.name for aggregation in step.statistics())
    if wanted == tuple(aggregate.schema.names):
        return aggregate
    return Project(aggregate, tuple((name, Column(name)) for name in wanted))


def _statistics(rows: Node, aggregations: tuple[Aggregation, ...]) -> Node:
    columns = _unique(aggregation.column for aggregation in aggregations)
    return Aggregate(
        Project(rows, tuple((name, Present(Column(name))) for name in columns)), (), aggregations
    )


def _counts(rows: Node, columns: tuple[str, ...]) -> Node:
    narrow = Project(rows, tuple((name, Column(name)) for name in columns))
    counted = MapBatches(narrow, CountValues(columns), COUNTS, format="arrow")
    return Aggregate(counted, ("column", "kind", "value"), (Aggregation("count", "sum", "count"),))


def _unique(items: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(items))


class Present(Expr):
    """A number as float64, null where it is NaN: what scikit-learn fits on."""

    def __init__(self, child: Expr):
        self.children = (child,)

    def with_children(self, children: Sequence[Expr]) -> Expr:
        return Present(children[0])

    @property
    def token(self) -> str:  # type: ignore[override]
        return f"present({self.children[0].token})"

    def infer(self, schema: pa.Schema) -> pa.DataType:
        self.children[0].infer(schema)
        return pa.float64()

    def evaluate(self, table: pa.Table) -> Value:
        given = self.children[0].evaluate(table)
        values = numbers(given)
        if not pa.types.is_floating(given.type):
            return values
        return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)

    def __str__(self) -> str:
        return f"present({self.children[0]})"


@dataclass(frozen=True)
class CountValues:
    """Counts the values of each column of a batch; missing ones don't count."""

    columns: tuple[str, ...]

    def __call__(self, table: pa.Table) -> pa.Table:
        parts = [COUNTS.empty_table(), *(self._count(name, table.column(name)) for name in self.columns)]
        return pa.concat_tables(parts)

    def _count(self, name: str, column: pa.ChunkedArray) -> pa.Table:
        if column.null_count or pa.types.is_floating(column.type):
            column = column.filter(pc.invert(missing(column)))
        counts = column.combine_chunks().value_counts()
        values, rows = counts.field(0).cast(pa.string()), counts.field(1)
        labels = [pa.repeat(pa.scalar(text), len(values)) for text in (name, kind_of(column.type))]
        return pa.Table.from_arrays([*labels, values, rows], schema=COUNTS)


def kind_of(type: pa.DataType) -> str | None:
    """The kind of a type whose values can be counted, as "integer"; None if they can't be."""
    kinds = {
        "boolean": pa.types.is_boolean,
        "integer": pa.types.is_integer,
        "float": pa.types.is_floating,
        "decimal": pa.types.is_decimal,
        "string": pa.types.is_string,
        "date": pa.types.is_date,
    }
    return next((kind for kind, test in kinds.items() if test(type)), None)


class _NoRows(Source):
    """A source of no rows, for the state of a step that needs none."""

    kind = "nothing"
    schema = NOTHING

    def identity(self) -> Any:
        return ()

    def splits(self) -> Sequence[Split]:
        return (Split(0, 0, 0),)

    def read(
        self, split: Split, columns: Sequence[str], predicate: Expr | None = None, limit: int | None = None
    ) -> Iterator[pa.Table]:
        yield NOTHING.empty_table().select(list(columns))
