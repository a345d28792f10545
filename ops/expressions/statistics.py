"""Statistics: whether a predicate can be true of any row, judged by the bounds of each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import HeadwaterError
from .call import Call
from .expr import Alias, Column, Computed, Expr, Literal, fold

_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
_NEGATED = {
    "equal": "not_equal",
    "not_equal": "equal",
    "less": "greater_equal",
    "less_equal": "greater",
    "greater": "less_equal",
    "greater_equal": "less",
}


@dataclass(frozen=True)
class ColumnStatistics:
    """What is known of a column's values in a piece of data; None where nothing is.

    Attributes:
        min: a value no non-null value is below; Python or Arrow scalar. NaNs may be left out of account.
        max: a value no non-null value is above.
        null_count: number of nulls.
        rows: number of rows.
        type: the column's type. Without it, bounds of floats and of timestamps with a zone say nothing.
    """

    min: Any = None
    max: Any = None
    null_count: int | None = None
    rows: int | None = None
    type: pa.DataType | None = None

    @property
    def all_null(self) -> bool:
        """Whether every value is certainly null."""
        return self.rows is not None and self.null_count is not None and self.null_count >= self.rows


class Outcome(NamedTuple):
    """What a boolean expression may be for some row of each piece (null apart)."""

    true: np.ndarray
    false: np.ndarray


def can_match(expr: Expr, statistics: Mapping[str, ColumnStatistics]) -> bool:
    """Return whether a predicate may be true of some row.

    Args:
        expr: a boolean expression.
        statistics: what is known of each column; columns may be missing.

    Returns:
        False only if no row can satisfy the predicate. Comparisons of columns and constants, ``is_in``,
        null tests and their combinations by ``& | ~`` are understood; anything else may be true.

    Example:
        >>> from headwater.ops.expressions import col
        >>> can_match(col("x") > 5, {"x": ColumnStatistics(min=1, max=5)})
        False
    """
    return bool(which_match(expr, {name: [known] for name, known in statistics.items()}, 1)[0])


def which_match(expr: Expr, statistics: Mapping[str, Sequence[ColumnStatistics]], pieces: int) -> np.ndarray:
    """Judge a predicate of many pieces of data at once, as `can_match` does of one.

    Args:
        expr: a boolean expression.
        statistics: what is known of each column in each piece; columns may be missing.
        pieces: how many there are.

    Returns:
        For each piece whether some row may satisfy the predicate: bool, shape (pieces,).

    Example:
        >>> from headwater.ops.expressions import col
        >>> which_match(col("x") > 5, {"x": [ColumnStatistics(1, 5), ColumnStatistics(4, 9)]}, 2).tolist()
        [False, True]
    """
    ranges = {name: _ranges(statistics[name]) for name in sorted(expr.columns()) if name in statistics}
    return fold(expr, lambda part, inner: _outcome(part, inner, ranges, pieces), Computed).true


#: a literal, or an array of a value for each piece, null where it isn't known
Bound: TypeAlias = Literal | pa.Array


@dataclass(frozen=True)
class _Ranges:
    """What is known of a column in each piece."""

    low: pa.Array
    high: pa.Array
    has_null: np.ndarray
    has_value: np.ndarray


def _outcome(expr: Expr, inner: Sequence[Outcome], ranges: Mapping[str, _Ranges], pieces: int) -> Outcome:
    if isinstance(expr, Alias):
        return inner[0]
    if isinstance(expr, Literal):
        return _of_literal(expr, pieces)
    if isinstance(expr, Column) and expr.name in ranges:
        return _of_flag(ranges[expr.name])
    if not isinstance(expr, Call):
        return _constant(True, True, pieces)
    if expr.function in ("and", "or"):
        every, some = np.logical_and.reduce, np.logical_or.reduce
        first, second = (every, some) if expr.function == "and" else (some, every)
        return Outcome(first([o.true for o in inner]), second([o.false for o in inner]))
    if expr.function == "not":
        return Outcome(inner[0].false, inner[0].true)
    first_column = expr.children[0]
    known = ranges.get(first_column.name) if isinstance(first_column, Column) else None
    if expr.function in ("is_null", "is_not_null") and known is not None:
        null, valid = known.has_null, known.has_value
        return Outcome(null, valid) if expr.function == "is_null" else Outcome(valid, null)
    if expr.function == "is_in" and known is not None:
        return _of_membership(expr, known)
    if expr.function in _COMPARISONS:
        return _of_comparison(expr, ranges, pieces)
    return _constant(True, True, pieces)


def _constant(true: bool, false: bool, pieces: int) -> Outcome:
    return Outcome(np.full(pieces, true), np.full(pieces, false))


def _of_literal(expr: Literal, pieces: int) -> Outcome:
    value = expr.scalar.as_py()
    if value is None:
        return _constant(False, False, pieces)
    return _constant(value, not value, pieces) if isinstance(value, bool) else _constant(True, True, pieces)


def _of_flag(known: _Ranges) -> Outcome:
    if not pa.types.is_boolean(known.low.type):
        return Outcome(known.has_value, known.has_value)
    high, low = _numpy(pc.fill_null(known.high, True)), _numpy(pc.fill_null(known.low, False))
    return Outcome(high & known.has_value, ~low & known.has_value)


def _of_membership(expr: Call, known: _Ranges) -> Outcome:
    members = expr.children[1]
    if not isinstance(members, Literal):
        return Outcome(known.has_value, known.has_value)
    values = [Literal(item, members.typed) for item in members.scalar if item.is_valid]
    if len(values) > 1000:
        return Outcome(known.has_value, known.has_value)
    true = np.zeros(len(known.low), bool)
    for value in values:
        true |= _may(known.low, "less_equal", value) & _may(value, "less_equal", known.high)
    unknown = _numpy(known.low.is_null())
    return Outcome((true | unknown) & known.has_value, known.has_value)


def _of_comparison(expr: Call, ranges: Mapping[str, _Ranges], pieces: int) -> Outcome:
    columns = [
        ranges[child.name] for child in expr.children if isinstance(child, Column) and child.name in ranges
    ]
    if any(isinstance(child, Literal) and not child.scalar.is_valid for child in expr.children):
        return _constant(False, False, pieces)
    possible = np.logical_and.reduce([np.full(pieces, True), *(known.has_value for known in columns)])
    sides = [_bounds(child, ranges) for child in expr.children]
    if sides[0] is None or sides[1] is None or not columns:
        return Outcome(possible, possible)
    true = _satisfiable(expr.function, sides[0], sides[1])
    if any(pa.types.is_floating(_type(bound)) for side in sides if side for bound in side):
        # NaN isn't within the bounds
        return Outcome(possible & (true | (expr.function == "not_equal")), possible)
    return Outcome(possible & true, possible & _satisfiable(_NEGATED[expr.function], sides[0], sides[1]))


Bounds: TypeAlias = tuple[Bound, Bound]


def _satisfiable(function: str, a: Bounds, b: Bounds) -> np.ndarray:
    if function in ("less", "less_equal"):
        return _may(a[0], function, b[1])
    if function in ("greater", "greater_equal"):
        return _may(a[1], function, b[0])
    if function == "equal":
        return _may(a[0], "less_equal", b[1]) & _may(b[0], "less_equal", a[1])
    return _may(a[0], "not_equal", a[1]) | _may(b[0], "not_equal", b[1]) | _may(a[0], "not_equal", b[0])


def _may(a: Bound, function: str, b: Bound) -> np.ndarray:
    """Compare as the engine will; what isn't known or can't be compared may be anything."""
    arrays = {name: side for name, side in (("a", a), ("b", b)) if isinstance(side, pa.Array)}
    sides = [Column(name) if isinstance(side, pa.Array) else side for name, side in (("a", a), ("b", b))]
    try:
        answer = Call(function, sides).evaluate(pa.table(arrays))
    except (HeadwaterError, pa.ArrowException, TypeError):
        return np.array(True)
    if isinstance(answer, pa.Scalar):
        return np.array(answer.as_py() is not False)
    return _numpy(pc.fill_null(answer, True))


def _bounds(expr: Expr, ranges: Mapping[str, _Ranges]) -> Bounds | None:
    if isinstance(expr, Literal):
        return expr, expr
    if not isinstance(expr, Column) or expr.name not in ranges:
        return None
    return ranges[expr.name].low, ranges[expr.name].high


def _type(bound: Bound) -> pa.DataType:
    return bound.scalar.type if isinstance(bound, Literal) else bound.type


def _ranges(known: Sequence[ColumnStatistics]) -> _Ranges:
    type = next((piece.type for piece in known if piece.type is not None), None)
    low, high = _typed([piece.min for piece in known], type), _typed([piece.max for piece in known], type)
    both = pc.and_(low.is_valid(), high.is_valid())
    return _Ranges(
        pc.if_else(both, low, pa.scalar(None, low.type)),
        pc.if_else(both, high, pa.scalar(None, high.type)),
        np.array([piece.null_count != 0 for piece in known], bool),
        np.array([not piece.all_null for piece in known], bool),
    )


def _typed(values: Sequence[Any], type: pa.DataType | None) -> pa.Array:
    """Bounds as one array; null where there is none that can be used."""
    given = [value.as_py() if isinstance(value, pa.Scalar) else value for value in values]
    typed = type is not None or any(isinstance(value, pa.Scalar) for value in values)
    if type is None:
        type = next((value.type for value in values if isinstance(value, pa.Scalar)), None)
    try:
        array = pa.array(given, type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.nulls(len(values)) if len(values) == 1 else _one_by_one(values, type)
    if not typed and _depends_on_type(array.type):
        return pa.nulls(len(values))
    if pa.types.is_floating(array.type):
        return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return array


def _one_by_one(values: Sequence[Any], type: pa.DataType | None) -> pa.Array:
    arrays = [_typed([value], type) for value in values]
    type = type or next((array.type for array in arrays if not pa.types.is_null(array.type)), pa.null())
    return pa.concat_arrays([array if array.type == type else pa.nulls(1, type) for array in arrays])


def _depends_on_type(type: pa.DataType) -> bool:
    return pa.types.is_floating(type) or (pa.types.is_timestamp(type) and type.tz is not None)


def _numpy(flags: pa.Array | pa.ChunkedArray) -> np.ndarray:
    flags = flags.combine_chunks() if isinstance(flags, pa.ChunkedArray) else flags
    return flags.to_numpy(zero_copy_only=False)


_OPERATORS: dict[str, str] = {
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True)
class SimplePredicate:
    """One condition on one column, as storage formats understand it.

    Attributes:
        column: its name.
        op: "==", "!=", "<", "<=", ">", ">=", "in", "is_null" or "is_not_null".
        value: an Arrow scalar; a list scalar for "in"; None for the null tests.
    """

    column: str
    op: str
    value: pa.Scalar | None = None


def simple_predicate(expr: Expr) -> SimplePredicate | None:
    """Return a conjunct as a condition on one column, or None if it is no such thing.

    Example:
        >>> from headwater.ops.expressions import col
        >>> simple_predicate(5 > col("x"))
        SimplePredicate(column='x', op='<', value=<pyarrow.Int64Scalar: 5>)
    """
    if not isinstance(expr, Call):
        return None
    first, *rest = expr.children
    if expr.function in ("is_null", "is_not_null") and isinstance(first, Column):
        return SimplePredicate(first.name, expr.function)
    if expr.function == "is_in" and isinstance(first, Column) and isinstance(rest[0], Literal):
        return SimplePredicate(first.name, "in", rest[0].scalar)
    if expr.function not in _OPERATORS:
        return None
    op = _OPERATORS[expr.function]
    if isinstance(first, Column) and isinstance(rest[0], Literal):
        return SimplePredicate(first.name, op, rest[0].scalar)
    if isinstance(first, Literal) and isinstance(rest[0], Column):
        return SimplePredicate(rest[0].name, _MIRRORED[op], first.scalar)
    return None
