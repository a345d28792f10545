"""Inlining: when an expression over a projection's outputs may be written over its inputs."""

from __future__ import annotations

from collections.abc import Mapping

from ...ops.expressions.analysis import is_deterministic_cheap, substitute
from ...ops.expressions.expr import Alias, Column, Expr
from ...ops.project import Project

#: most terms an expression may have after inlining; keeps planning linear and evaluation shallow
MAX_TERMS = 200


def definitions(project: Project) -> dict[str, Expr]:
    """Return what each output column stands for."""
    return {name: _bare(expr) for name, expr in project.exprs}


def inline(expr: Expr, mapping: Mapping[str, Expr]) -> Expr:
    """Write an expression over the columns that ``mapping`` defines its own columns by."""
    if all(is_column(mapping.get(name), name) for name in expr.columns()):
        return expr
    return substitute(expr, mapping)


def terms(expr: Expr) -> int:
    """Count the nodes of an expression tree."""
    count, stack = 0, [expr]
    while stack:
        count += 1
        stack.extend(stack.pop().children)
    return count


def inlined_terms(expr: Expr, mapping: Mapping[str, Expr]) -> int:
    """Count the terms that an expression would have after inlining."""
    count, stack = 0, [expr]
    while stack:
        item = stack.pop()
        count += terms(mapping[item.name]) if isinstance(item, Column) and item.name in mapping else 1
        stack.extend(item.children)
    return count


def column_uses(expr: Expr) -> list[str]:
    """List the columns an expression names, once for each time it does."""
    names, stack = [], [expr]
    while stack:
        item = stack.pop()
        if isinstance(item, Column):
            names.append(item.name)
        stack.extend(item.children)
    return names


def is_identity(project: Project) -> bool:
    """Return whether a projection gives exactly its input's columns, in order."""
    return [name for name, _ in project.exprs] == project.input.schema.names and all(
        is_column(expr, name) for name, expr in project.exprs
    )


def is_column(expr: Expr | None, name: str) -> bool:
    """Return whether an expression is that column as it is."""
    return isinstance(expr, Column) and expr.name == name


def is_cheap(expr: Expr) -> bool:
    """Return whether computing an expression twice costs nothing worth saving."""
    return is_deterministic_cheap(expr)


def _bare(expr: Expr) -> Expr:
    while isinstance(expr, Alias):
        expr = expr.children[0]
    return expr
