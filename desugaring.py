"""Desugaring: what users write in select, group_by, agg, join and sort, as nodes over plain columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from .errors import ParameterError, SchemaMismatchError, TypeMismatchError, column_not_found
from .ops.aggregate import Aggregate, Aggregation
from .ops.expressions import Expr, col, lit
from .ops.expressions.expr import AggregateCall, Alias, Column
from .ops.node import Node
from .ops.persist import Persist
from .ops.project import Project

Named = tuple[tuple[str, Expr], ...]


def named_expressions(columns: Sequence[str | Expr], named: Mapping[str, Any], where: str) -> Named:
    """Give every expression its output name.

    Args:
        columns: names, or expressions that carry a name.
        named: expressions, or constants, by name.
        where: the method, for errors.

    Returns:
        (output name, expression without alias), in order.

    Raises:
        ParameterError: an expression without a name.
        TypeMismatchError: something that is neither a name nor an expression.
    """
    result = []
    for item in columns:
        if isinstance(item, str):
            result.append((item, col(item)))
        elif isinstance(item, Expr):
            if item.output_name is None:
                raise ParameterError(
                    f"{where}({item}): the expression has no name. Write .alias('name'), or name={item}."
                )
            result.append((item.output_name, _bare(item)))
        else:
            raise TypeMismatchError(
                f"{where}({item!r}) takes column names and expressions, not {type(item).__name__}."
                + (" Unpack a list with *." if isinstance(item, list | tuple) else "")
            )
    for name, value in named.items():
        result.append((name, _bare(value) if isinstance(value, Expr) else lit(value)))
    return tuple(result)


def _bare(expr: Expr) -> Expr:
    return _bare(expr.children[0]) if isinstance(expr, Alias) else expr


def aggregate_node(source: Node, keys: Named, outputs: Named) -> Node:
    """Build the nodes of ``group_by(keys).agg(outputs)``.

    Computed keys and inputs are projected first, and arithmetic on aggregations afterwards, so that
    the Aggregate itself sees plain columns.

    Args:
        source: the rows.
        keys: (name, expression); empty for one row over everything.
        outputs: (name, expression with aggregations in it).

    Returns:
        An Aggregate, perhaps between two Projects.

    Raises:
        ParameterError: an output without any aggregation.
    """
    if not outputs and not keys:
        raise ParameterError("agg() needs an aggregation, as agg(total=col('x').sum()).")
    before = dict(keys)
    calls: dict[str, Aggregation] = {}
    plain = {name for name, expr in outputs if isinstance(expr, AggregateCall)}
    after: list[tuple[str, Expr]] = []

    def lower(call: AggregateCall, wanted: str | None) -> Column:
        known = calls.get(call.token)
        if known is None:
            column = _input_column(call, source, before)
            taken = {a.name for a in calls.values()} | plain | set(before)
            name = wanted if wanted is not None else _fresh("_agg", taken)
            known = calls[call.token] = Aggregation(name, call.function, column, call.options)
        return Column(known.name)

    for name, expr in outputs:
        if isinstance(expr, AggregateCall):
            lower(expr, name)
    for name, expr in outputs:
        if not any(isinstance(part, AggregateCall) for part in expr.walk()):
            raise ParameterError(
                f"agg({name}={expr}): there is no aggregation in it. Write .sum(), .mean(), .first() … on it."
            )
        after.append((name, expr.transform(lambda e: lower(e, None) if isinstance(e, AggregateCall) else e)))
    for _, expr in outputs:  # types are checked against the rows, where the user's names still stand
        for part in expr.walk():
            for child in part.children if isinstance(part, AggregateCall) else ():
                child.infer(source.schema)
    needed = {a.column for a in calls.values() if a.column is not None} - set(before)
    rows = source
    if any(not isinstance(e, Column) or e.name != name for name, e in before.items()):
        rows = Project(source, (*before.items(), *((n, col(n)) for n in source.schema.names if n in needed)))
    aggregate = Aggregate(rows, tuple(name for name, _ in keys), tuple(calls.values()))
    final = (*((name, col(name)) for name, _ in keys), *after)
    if [name for name, _ in final] == aggregate.schema.names and all(
        isinstance(e, Column) and e.name == name for name, e in final
    ):
        return aggregate
    return Project(aggregate, final)


def _input_column(call: AggregateCall, source: Node, before: dict[str, Expr]) -> str | None:
    if not call.children:
        return None
    expr = _bare(call.children[0])
    if isinstance(expr, Column) and before.get(expr.name, expr).token == expr.token:
        return expr.name
    for name, known in before.items():
        if known.token == expr.token:
            return name
    name = _fresh("_in", set(before) | set(source.schema.names))
    before[name] = expr
    return name


def _fresh(prefix: str, taken: set[str]) -> str:
    number = 0
    while f"{prefix}{number}" in taken:
        number += 1
    return f"{prefix}{number}"


def with_sort_columns(source: Node, keys: Sequence[str | Expr]) -> tuple[Node, tuple[str, ...]]:
    """Give sort keys that are expressions a column of their own.

    Args:
        source: the rows.
        keys: names or expressions.

    Returns:
        The rows, with added columns where a key is computed, and the key columns' names.
    """
    names: list[str] = []
    added: dict[str, Expr] = {}
    for key in keys:
        if not isinstance(key, str | Expr):
            hint = " Unpack a list with *." if isinstance(key, list | tuple) else ""
            raise TypeMismatchError(f"sort({key!r}) takes column names and expressions.{hint}")
        expr = col(key) if isinstance(key, str) else _bare(key)
        if isinstance(expr, Column):
            names.append(expr.name)
        else:
            names.append(_fresh("_key", set(source.schema.names) | set(added)))
            added[names[-1]] = expr
    if added:
        kept = tuple((name, col(name)) for name in source.schema.names)
        source = Project(source, (*kept, *added.items()))
    return source, tuple(names)


def widen_keys(left: Node, right: Node, left_on: Sequence[str], right_on: Sequence[str]) -> tuple[Node, Node]:
    """Cast integer join keys of different widths to a type that holds both.

    Args:
        left, right: the sides.
        left_on, right_on: key columns, pairwise.

    Returns:
        The sides, with casts where they are needed.

    Raises:
        ColumnNotFoundError: a key that isn't there.
        SchemaMismatchError: no integer type holds both keys of a pair.
    """
    casts: tuple[dict[str, Expr], dict[str, Expr]] = ({}, {})
    for a, b in zip(left_on, right_on):
        for side, name, where in ((left, a, "left"), (right, b, "right")):
            if name not in side.schema.names:
                raise column_not_found(name, side.schema.names, f"join, {where} side")
        s, t = left.schema.field(a).type, right.schema.field(b).type
        if s == t or not (pa.types.is_integer(s) and pa.types.is_integer(t)):
            continue
        common = _common_integer(s, t)
        if common is None:
            raise SchemaMismatchError(
                f"join: no integer type holds both {a!r} ({s}) and {b!r} ({t}). Cast one of them first."
            )
        for side_casts, name, type in zip(casts, (a, b), (s, t)):
            if type != common:
                side_casts[name] = col(name).cast(common)
    return _with_casts(left, casts[0]), _with_casts(right, casts[1])


def _with_casts(node: Node, casts: Mapping[str, Expr]) -> Node:
    if not casts:
        return node
    return Project(node, tuple((name, casts.get(name, col(name))) for name in node.schema.names))


def _common_integer(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    signed_a, signed_b = pa.types.is_signed_integer(a), pa.types.is_signed_integer(b)
    if signed_a == signed_b:
        return a if a.bit_width >= b.bit_width else b
    unsigned, signed = (b, a) if signed_a else (a, b)
    if unsigned.bit_width >= 64:
        return None
    return max(
        signed, {8: pa.int16(), 16: pa.int32(), 32: pa.int64()}[unsigned.bit_width], key=lambda t: t.bit_width
    )


def row_identity(node: Node) -> str:
    """Name the rows of a dataset, whatever columns they have: the lineage key below all projections.

    A sample draws by it, so that computing a column first, or persisting, doesn't change which rows are drawn.
    """
    while isinstance(node, Project | Persist):
        node = node.input
    return node.key


def takes_fill(type: pa.DataType, value: Any) -> bool:
    """Whether ``fill_null(value)`` without a column name means columns of this type."""
    if isinstance(value, bool):
        return pa.types.is_boolean(type)
    if isinstance(value, int):
        return pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type)
    if isinstance(value, float):
        return pa.types.is_floating(type)
    return pa.scalar(value).type == type
