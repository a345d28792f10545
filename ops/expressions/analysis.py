"""Analysis: what the planner asks of predicates and expressions, without looking at data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from .call import Call
from .cast import Cast
from .expr import Alias, Column, Computed, Expr, Literal, fold
from .folding import fold_constants
from .statistics import ColumnStatistics, SimplePredicate, can_match, simple_predicate

__all__ = [
    "ColumnStatistics",
    "SimplePredicate",
    "can_match",
    "conjunction",
    "conjuncts",
    "fold_constants",
    "is_deterministic_cheap",
    "is_trivial",
    "may_raise",
    "null_rejecting",
    "simple_predicates",
    "substitute",
]

_CHEAP = frozenset(
    [
        "add",
        "subtract",
        "multiply",
        "negate",
        "equal",
        "not_equal",
        "less",
        "less_equal",
        "greater",
        "greater_equal",
        "and",
        "or",
        "xor",
        "not",
        "is_null",
        "is_not_null",
    ]
)


def conjuncts(expr: Expr) -> list[Expr]:
    """Return the predicates that ``expr`` joins by ``&``, from left to right.

    Example:
        >>> from headwater.ops.expressions import col
        >>> conjuncts((col("a") > 0) & (col("b") > 0) & col("c"))
        [col('a') > 0, col('b') > 0, col('c')]
    """
    found: list[Expr] = []
    stack = [expr]
    while stack:
        item = stack.pop()
        if isinstance(item, Call) and item.function == "and":
            stack.extend(reversed(item.children))
        else:
            found.append(item)
    return found


def conjunction(predicates: Iterable[Expr]) -> Expr | None:
    """Return one predicate that is true where all are, or None for none."""
    items = list(predicates)
    return functools.reduce(lambda a, b: a & b, items) if items else None


def substitute(expr: Expr, mapping: Mapping[str, Expr]) -> Expr:
    """Put expressions in the place of columns.

    Args:
        expr: any expression.
        mapping: column name to expression; other columns stay.

    Returns:
        The expression over the columns that the mapping is written over. Types stay: a literal that
        takes a column's place counts as typed.

    Example:
        >>> from headwater.ops.expressions import col
        >>> substitute(col("a") > col("b"), {"a": col("x") + 1})
        (col('x') + 1) > col('b')
    """

    def replace(part: Expr) -> Expr:
        if not isinstance(part, Column) or part.name not in mapping:
            return part
        new = mapping[part.name]
        while isinstance(new, Alias):
            new = new.children[0]
        return Literal(new.scalar, typed=True) if isinstance(new, Literal) else new

    return expr.transform(replace)


def is_trivial(expr: Expr) -> bool:
    """Return whether an expression is a bare column or literal, aliased or not."""
    while isinstance(expr, Alias):
        expr = expr.children[0]
    return isinstance(expr, Column | Literal)


def is_deterministic_cheap(expr: Expr) -> bool:
    """Return whether computing an expression twice costs less than keeping its value.

    All expressions are deterministic; cheap are columns, literals, and at most two additions,
    multiplications, comparisons and the like.
    """
    parts = [part for part in expr.walk() if not is_trivial(part)]
    return len(parts) <= 2 and all(isinstance(part, Call) and part.function in _CHEAP for part in parts)


def may_raise(expr: Expr, schema: pa.Schema | None = None) -> bool:
    """Return whether some value of the right type may make an expression raise.

    Args:
        expr: any expression.
        schema: of the rows, if known; then a cast that always fits is seen as such.

    Returns:
        True for a strict cast or a strict parse of text.
    """
    return any(_raises(part, schema) for part in expr.walk())


def _raises(part: Expr, schema: pa.Schema | None) -> bool:
    if isinstance(part, Cast):
        return part.strict and not (
            schema is not None and _always_fits(part.children[0].infer(schema), part.type)
        )
    return isinstance(part, Call) and part.definition.raises and dict(part.options).get("strict", True)


def _always_fits(source: pa.DataType, target: pa.DataType) -> bool:
    numbers = pa.types.is_integer(source) or pa.types.is_floating(source) or pa.types.is_decimal(source)
    if numbers or pa.types.is_boolean(source):
        if pa.types.is_floating(target) or pa.types.is_string(target):
            return True
        fits = pa.types.is_integer(source) and pa.types.is_integer(target)
        wider = fits and target.bit_width > source.bit_width and pa.types.is_signed_integer(target)
        return wider or (pa.types.is_boolean(source) and pa.types.is_integer(target)) or source == target
    if pa.types.is_timestamp(source):
        return pa.types.is_date(target) or pa.types.is_string(target)
    return (
        source == target
        or pa.types.is_null(source)
        or (pa.types.is_temporal(source) and pa.types.is_string(target))
    )


def null_rejecting(expr: Expr, columns: Iterable[str]) -> bool:
    """Return whether a predicate is certainly not true of a row in which all given columns are null.

    Args:
        expr: a boolean expression.
        columns: names; typically the right columns of a left join.

    Returns:
        True where it is certain, so that the predicate makes an outer join an inner one.

    Example:
        >>> from headwater.ops.expressions import col
        >>> null_rejecting(col("a") > 0, ["a"]), null_rejecting(col("a").is_null(), ["a"])
        (True, False)
    """
    null = frozenset(columns)
    return fold(expr, lambda part, inner: _given_nulls(part, inner, null), Computed).never_true


class _GivenNulls(NamedTuple):
    """What is certain of a value in a row where the columns are null; a null is never true nor false."""

    null: bool
    never_true: bool
    never_false: bool


def _given_nulls(expr: Expr, inner: Sequence[_GivenNulls], null: frozenset[str]) -> _GivenNulls:
    certain, unknown = _GivenNulls(True, True, True), _GivenNulls(False, False, False)
    if isinstance(expr, Column):
        return certain if expr.name in null else unknown
    if isinstance(expr, Literal):
        value = expr.scalar.as_py()
        return certain if value is None else _GivenNulls(False, value is False, value is True)
    if isinstance(expr, Alias):
        return inner[0]
    if isinstance(expr, Cast):
        return certain if inner[0].null else unknown
    if not isinstance(expr, Call):
        return unknown
    if expr.function in _NULLS:
        return _NULLS[expr.function](inner)
    return certain if expr.definition.strict and any(child.null for child in inner) else unknown


def _nulls_of_and(inner: Sequence[_GivenNulls]) -> _GivenNulls:
    never_true, never_false = any(c.never_true for c in inner), all(c.never_false for c in inner)
    return _GivenNulls(never_true and never_false, never_true, never_false)


def _nulls_of_or(inner: Sequence[_GivenNulls]) -> _GivenNulls:
    return _nulls_of_not([_nulls_of_and([_nulls_of_not([child]) for child in inner])])


def _nulls_of_not(inner: Sequence[_GivenNulls]) -> _GivenNulls:
    return _GivenNulls(inner[0].null, inner[0].never_false, inner[0].never_true)


def _nulls_of_choice(inner: Sequence[_GivenNulls]) -> _GivenNulls:
    """One of the values, whichever."""
    return _GivenNulls(*(all(child[i] for child in inner) for i in range(3)))


_NULLS: dict[str, Callable[[Sequence[_GivenNulls]], _GivenNulls]] = {
    "and": _nulls_of_and,
    "or": _nulls_of_or,
    "not": _nulls_of_not,
    "is_null": lambda inner: _GivenNulls(False, False, inner[0].null),
    "is_not_null": lambda inner: _GivenNulls(False, inner[0].null, False),
    "coalesce": _nulls_of_choice,
    "fill_null": _nulls_of_choice,
    "when": lambda inner: _nulls_of_choice([*inner[1::2], inner[-1]]),
}


def simple_predicates(expr: Expr) -> list[SimplePredicate]:
    """Return the conjuncts that are conditions on one column and a constant; others are left out.

    Example:
        >>> from headwater.ops.expressions import col
        >>> simple_predicates((col("x") > 1) & (col("x") < col("y")))
        [SimplePredicate(column='x', op='>', value=<pyarrow.Int64Scalar: 1>)]
    """
    return [simple for part in conjuncts(expr) if (simple := simple_predicate(part)) is not None]
