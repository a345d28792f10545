"""Read types: columns that a scan yields in the type that what follows wants, where the source can.

Strings that are only grouped by stay dictionaries, so that no row's text is copied, filtered and hashed.
Decimals that are only cast to float64 are read as such, once. Both are left to the source, which knows its
data: `Source.reading_as`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from ..ops.expressions.cast import Cast
from ..ops.expressions.expr import Alias, Column, Expr
from ..ops.filter import FilterKernel
from ..ops.project import ProjectKernel
from .plan import Operator, ScanLeaf, Step, all_leaves

Types = Mapping[str, pa.DataType]


def read_types(operator: Operator, grouped: Sequence[str], others: Iterable[str]) -> Operator:
    """Let the scan below an aggregation read columns in other types.

    Args:
        operator: what the aggregation reads: a scan, below projections and filters.
        grouped: columns that it only groups by; they may come as dictionaries.
        others: columns that it reads otherwise.

    Returns:
        The same operator, or one that gives ``grouped`` columns as dictionaries and all others as before.
    """
    others = set(others)
    wanted = {
        name: pa.dictionary(pa.int32(), operator.schema.field(name).type)
        for name in grouped
        if name not in others and _is_text(operator.schema.field(name).type)
    }
    return _rewritten(operator, wanted)


def changes(before: Operator, after: Operator) -> list[str]:
    """Say for each column that is read in another type which: ``name as type``."""
    return [
        f"{new.name} as {'dictionary' if pa.types.is_dictionary(new.type) else new.type}"
        for old_leaf, new_leaf in zip(all_leaves(before), all_leaves(after))
        for old, new in zip(old_leaf.schema, new_leaf.schema)
        if old.type != new.type
    ]


def _rewritten(operator: Operator, wanted: Types) -> Operator:
    """Give as many of the wanted columns in the wanted type as the source can."""
    if isinstance(operator, ScanLeaf):
        used = operator.predicate.columns() if operator.predicate is not None else frozenset()
        return _reading(operator, {name: type for name, type in wanted.items() if name not in used})
    if not isinstance(operator, Step):
        return operator
    if isinstance(operator.kernel, FilterKernel):
        used = operator.kernel.predicate.columns()
        below = {name: type for name, type in wanted.items() if name not in used}
        child = _rewritten(operator.inputs[0], below)
        return replace(operator, inputs=(child,), schema=child.schema)
    if isinstance(operator.kernel, ProjectKernel):
        return _projected(operator, operator.kernel, wanted)
    return operator


def _projected(operator: Step, kernel: ProjectKernel, wanted: Types) -> Operator:
    source = operator.inputs[0].schema
    passed = {name: column for name, expr in kernel.exprs if (column := _bare(expr)) is not None}
    below = {passed[name]: type for name, type in wanted.items() if name in passed}
    for name, expr in kernel.exprs:
        taken = {passed[name]} if name in wanted and name in passed else set()
        below = {column: type for column, type in below.items() if column not in expr.columns() - taken}
    below |= {name: pa.float64() for name in _cast_to_float([expr for _, expr in kernel.exprs], source)}
    child = _rewritten(operator.inputs[0], below)
    floats = {name for name in below if child.schema.field(name).type == pa.float64()}
    exprs = tuple((name, _without_casts(expr, floats)) for name, expr in kernel.exprs)
    types = [
        child.schema.field(passed[name]).type if name in wanted and name in passed else field.type
        for (name, _), field in zip(kernel.exprs, kernel.schema)
    ]
    schema = pa.schema([pa.field(name, type) for name, type in zip(kernel.schema.names, types)])
    return Step(ProjectKernel(exprs, schema), (child,), schema)


def _cast_to_float(exprs: Sequence[Expr], schema: pa.Schema) -> set[str]:
    """The decimal columns of which nothing is used but their casts to float64."""
    found: set[str] = set()
    otherwise: set[str] = set()
    for expr in exprs:
        casts = {id(part.children[0]) for part in expr.walk() if _is_float_cast(part)}
        for part in expr.walk():
            if isinstance(part, Column):
                (found if id(part) in casts else otherwise).add(part.name)
    return {name for name in found - otherwise if pa.types.is_decimal(schema.field(name).type)}


def _without_casts(expr: Expr, floats: set[str]) -> Expr:
    def bare(part: Expr) -> Expr:
        if _is_float_cast(part) and isinstance(column := part.children[0], Column) and column.name in floats:
            return column
        return part

    return expr.transform(bare)


def _is_float_cast(expr: Expr) -> bool:
    return isinstance(expr, Cast) and expr.type == pa.float64() and isinstance(expr.children[0], Column)


def _bare(expr: Expr) -> str | None:
    while isinstance(expr, Alias):
        expr = expr.children[0]
    return expr.name if isinstance(expr, Column) else None


def _reading(leaf: ScanLeaf, wanted: Types) -> ScanLeaf:
    if not wanted:
        return leaf
    source = leaf.source.reading_as(wanted)
    schema = pa.schema([source.schema.field(name) for name in leaf.columns])
    return replace(leaf, source=source, schema=schema)


def _is_text(type: pa.DataType) -> bool:
    return pa.types.is_string(type) or pa.types.is_binary(type)
