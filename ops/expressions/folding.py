"""Constant folding: what literals decide is computed when the plan is made, the types staying as they are."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from ...errors import HeadwaterError
from .call import Call
from .cast import Cast
from .expr import AggregateCall, Alias, Expr, Literal
from .types import NoCommonTypeError

_NO_ROWS = pa.table({})


def fold_constants(expr: Expr, schema: pa.Schema) -> Expr:
    """Simplify an expression.

    Args:
        expr: any expression that types over the schema.
        schema: of the rows.

    Returns:
        An expression with the same values and type: subtrees without columns are literals, ``x & True``
        is x, ``x & False`` is False, likewise for ``|``, ``~~x`` is x, a `when` loses what can't be chosen,
        a cast to the type at hand goes away. What would raise is left to raise at its time.

    Example:
        >>> from headwater.ops.expressions import col, lit
        >>> fold_constants((col("x") > lit(2) * 3) & True, pa.schema({"x": pa.int64()}))
        col('x') > 6
    """
    return expr.transform(lambda part: _simplify(part, schema))


def _simplify(expr: Expr, schema: pa.Schema) -> Expr:
    if isinstance(expr, Literal | Alias | AggregateCall) or not expr.children:
        return expr
    if all(isinstance(child, Literal) for child in expr.children):
        return _computed(expr)
    if isinstance(expr, Cast):
        return _simplify_cast(expr, schema)
    if isinstance(expr, Call) and expr.function in _RULES:
        return _RULES[expr.function](expr, schema)
    return expr


def _computed(expr: Expr) -> Expr:
    """The value of an expression over literals; typed, because the expression had one type only."""
    try:
        type = expr.infer(_NO_ROWS.schema)
        value = expr.evaluate(_NO_ROWS)
    except (HeadwaterError, pa.ArrowException, NoCommonTypeError):
        return expr
    if not isinstance(value, pa.Scalar) or value.type != type:
        return expr
    return Literal(value, typed=True)


def _simplify_cast(expr: Cast, schema: pa.Schema) -> Expr:
    child = expr.children[0]
    source = child.infer(schema)
    if source == expr.type:
        return child
    if isinstance(child, Cast) and _widens(child.children[0].infer(schema), source):
        return _simplify(Cast(child.children[0], expr.type, expr.strict), schema)
    return expr


def _widens(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether a cast between two integer types loses nothing."""
    if not pa.types.is_integer(source) or not pa.types.is_integer(target):
        return False
    same_sign = pa.types.is_signed_integer(source) == pa.types.is_signed_integer(target)
    widened = target.bit_width >= source.bit_width if same_sign else target.bit_width > source.bit_width
    return widened and (same_sign or pa.types.is_signed_integer(target))


def _is(expr: Expr, value: bool) -> bool:
    return (
        isinstance(expr, Literal) and pa.types.is_boolean(expr.scalar.type) and expr.scalar.as_py() is value
    )


def _boolean(expr: Expr, schema: pa.Schema) -> bool:
    return pa.types.is_boolean(expr.infer(schema))


def _and_or(decides: bool) -> Callable[[Call, pa.Schema], Expr]:
    """False decides an and, True an or; the other of the two changes nothing."""

    def rule(expr: Call, schema: pa.Schema) -> Expr:
        for literal, other in (expr.children, reversed(expr.children)):
            if _is(literal, decides) and _boolean(expr, schema):
                return Literal(pa.scalar(decides), typed=True)
            if _is(literal, not decides) and _boolean(other, schema):
                return other
        return expr

    return rule


def _not(expr: Call, schema: pa.Schema) -> Expr:
    child = expr.children[0]
    return child.children[0] if isinstance(child, Call) and child.function == "not" else expr


def _when(expr: Call, schema: pa.Schema) -> Expr:
    *pairs, otherwise = expr.children
    kept: list[Expr] = []
    for condition, value in zip(pairs[::2], pairs[1::2]):
        if _is(condition, True):
            otherwise = value
            break
        if not (isinstance(condition, Literal) and condition.scalar.as_py() in (False, None)):
            kept += [condition, value]
    if len(kept) + 1 == len(expr.children):
        return expr
    rest = Call("when", (*kept, otherwise)) if kept else otherwise
    type = expr.infer(schema)
    if rest.infer(schema) != type:
        rest = _simplify(Cast(rest, type), schema)
    return Literal(rest.scalar, typed=True) if isinstance(rest, Literal) else rest


_RULES: dict[str, Callable[[Call, pa.Schema], Expr]] = {
    "and": _and_or(False),
    "or": _and_or(True),
    "not": _not,
    "when": _when,
}
