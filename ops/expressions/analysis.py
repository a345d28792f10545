"""Analysis: what the planner asks of predicates and expressions, without looking at data."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from .call import Call
from .cast import Cast
from .expr import Alias, Column, Expr, Literal
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
    return _never(expr, True, frozenset(columns))


def _never(expr: Expr, value: bool, null: frozenset[str]) -> bool:
    """Whether a boolean expression is never ``value`` when the columns are null."""
    if _surely_null(expr, null):
        return True
    if isinstance(expr, Alias):
        return _never(expr.children[0], value, null)
    if isinstance(expr, Literal):
        return expr.scalar.as_py() is not value and isinstance(expr.scalar.as_py(), bool)
    if not isinstance(expr, Call):
        return False
    children = expr.children
    if expr.function in ("and", "or"):
        decides = any if (expr.function == "and") == value else all
        return decides(_never(child, value, null) for child in children)
    if expr.function == "not":
        return _never(children[0], not value, null)
    if expr.function in ("is_null", "is_not_null"):
        return value == (expr.function == "is_not_null") and _surely_null(children[0], null)
    if expr.function in ("coalesce", "fill_null"):
        return all(_never(child, value, null) for child in children)
    if expr.function == "when":
        return all(_never(child, value, null) for child in _values(children))
    return False


def _surely_null(expr: Expr, null: frozenset[str]) -> bool:
    if isinstance(expr, Column):
        return expr.name in null
    if isinstance(expr, Literal):
        return not expr.scalar.is_valid
    if isinstance(expr, Alias | Cast):
        return _surely_null(expr.children[0], null)
    if not isinstance(expr, Call):
        return False
    if expr.definition.strict:
        return any(_surely_null(child, null) for child in expr.children)
    if expr.function in ("and", "or", "coalesce", "fill_null", "fill_nan"):
        return all(_surely_null(child, null) for child in expr.children)
    return expr.function == "when" and all(_surely_null(child, null) for child in _values(expr.children))


def _values(children: Sequence[Expr]) -> list[Expr]:
    """What a `when` may give."""
    return [*children[1::2], children[-1]]


def simple_predicates(expr: Expr) -> list[SimplePredicate]:
    """Return the conjuncts that are conditions on one column and a constant; others are left out.

    Example:
        >>> from headwater.ops.expressions import col
        >>> simple_predicates((col("x") > 1) & (col("x") < col("y")))
        [SimplePredicate(column='x', op='>', value=<pyarrow.Int64Scalar: 1>)]
    """
    return [simple for part in conjuncts(expr) if (simple := simple_predicate(part)) is not None]
