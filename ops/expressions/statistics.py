"""Statistics: whether a predicate can be true of any row, judged by the bounds of each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import HeadwaterError
from .call import Call
from .expr import Alias, Column, Computed, Expr, Literal, fold

_EMPTY = pa.table({})
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
    """What a boolean expression may be for some row (null apart)."""

    true: bool
    false: bool


_UNKNOWN = Outcome(True, True)
_NEVER = Outcome(False, False)


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
    return fold(expr, lambda part, inner: _outcome(part, inner, statistics), Computed).true


def _outcome(expr: Expr, inner: Sequence[Outcome], statistics: Mapping[str, ColumnStatistics]) -> Outcome:
    if isinstance(expr, Alias):
        return inner[0]
    if isinstance(expr, Literal):
        return _of_literal(expr)
    if isinstance(expr, Column):
        return _of_flag(expr, statistics)
    if not isinstance(expr, Call):
        return _UNKNOWN
    if expr.function == "and":
        return Outcome(all(o.true for o in inner), any(o.false for o in inner))
    if expr.function == "or":
        return Outcome(any(o.true for o in inner), all(o.false for o in inner))
    if expr.function == "not":
        return Outcome(inner[0].false, inner[0].true)
    if expr.function in ("is_null", "is_not_null"):
        return _of_null_test(expr, statistics)
    if expr.function == "is_in":
        return _of_membership(expr, statistics)
    if expr.function in _COMPARISONS:
        return _of_comparison(expr, statistics)
    return _UNKNOWN


def _of_literal(expr: Literal) -> Outcome:
    value = expr.scalar.as_py()
    if value is None:
        return _NEVER
    return Outcome(value, not value) if isinstance(value, bool) else _UNKNOWN


def _of_flag(expr: Column, statistics: Mapping[str, ColumnStatistics]) -> Outcome:
    known = statistics.get(expr.name, ColumnStatistics())
    if known.all_null:
        return _NEVER
    low, high = _python(known.min), _python(known.max)
    return Outcome(high is not False, low is not True)


def _python(value: Any) -> Any:
    return value.as_py() if isinstance(value, pa.Scalar) else value


def _of_null_test(expr: Call, statistics: Mapping[str, ColumnStatistics]) -> Outcome:
    column = expr.children[0]
    if not isinstance(column, Column):
        return _UNKNOWN
    known = statistics.get(column.name, ColumnStatistics())
    null, valid = known.null_count != 0, not known.all_null
    return Outcome(null, valid) if expr.function == "is_null" else Outcome(valid, null)


def _of_membership(expr: Call, statistics: Mapping[str, ColumnStatistics]) -> Outcome:
    column, members = expr.children
    if not isinstance(column, Column) or not isinstance(members, Literal):
        return _UNKNOWN
    if statistics.get(column.name, ColumnStatistics()).all_null:
        return _NEVER
    bounds = _bounds(column, statistics)
    if bounds is None:
        return _UNKNOWN
    low, high = bounds
    values = [Literal(item, members.typed) for item in members.scalar if item.is_valid]
    if len(values) > 1000:
        return _UNKNOWN
    true = any(_may(low, "less_equal", value) and _may(value, "less_equal", high) for value in values)
    return Outcome(true, True)


def _of_comparison(expr: Call, statistics: Mapping[str, ColumnStatistics]) -> Outcome:
    names = [child.name for child in expr.children if isinstance(child, Column)]
    if any(statistics.get(name, ColumnStatistics()).all_null for name in names):
        return _NEVER
    if any(isinstance(child, Literal) and not child.scalar.is_valid for child in expr.children):
        return _NEVER
    sides = [_bounds(child, statistics) for child in expr.children]
    if sides[0] is None or sides[1] is None or not names:
        return _UNKNOWN
    true = _satisfiable(expr.function, sides[0], sides[1])
    if any(_is_float(bound) for side in sides if side for bound in side):  # NaN isn't within the bounds
        return Outcome(true or expr.function == "not_equal", True)
    return Outcome(true, _satisfiable(_NEGATED[expr.function], sides[0], sides[1]))


Bounds = tuple[Literal, Literal]


def _satisfiable(function: str, a: Bounds, b: Bounds) -> bool:
    if function in ("less", "less_equal"):
        return _may(a[0], function, b[1])
    if function in ("greater", "greater_equal"):
        return _may(a[1], function, b[0])
    if function == "equal":
        return _may(a[0], "less_equal", b[1]) and _may(b[0], "less_equal", a[1])
    return _may(a[0], "not_equal", a[1]) or _may(b[0], "not_equal", b[1]) or _may(a[0], "not_equal", b[0])


def _may(a: Literal, function: str, b: Literal) -> bool:
    """Compare as the engine will; what can't be compared may be anything."""
    try:
        return Call(function, (a, b)).evaluate(_EMPTY).as_py() is not False
    except (HeadwaterError, pa.ArrowException, TypeError):
        return True


def _bounds(expr: Expr, statistics: Mapping[str, ColumnStatistics]) -> Bounds | None:
    if isinstance(expr, Literal):
        return expr, expr
    if not isinstance(expr, Column) or expr.name not in statistics:
        return None
    known = statistics[expr.name]
    if known.min is None or known.max is None:
        return None
    low, high = _typed(known.min, known.type), _typed(known.max, known.type)
    if low is None or high is None:
        return None
    return low, high


def _typed(value: Any, type: pa.DataType | None) -> Literal | None:
    try:
        scalar = value if isinstance(value, pa.Scalar) else pa.scalar(value, type)
        scalar = scalar if type is None or scalar.type == type else scalar.cast(type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    if not scalar.is_valid or (pa.types.is_floating(scalar.type) and pc.is_nan(scalar).as_py()):
        return None
    if type is None and not isinstance(value, pa.Scalar) and _depends_on_type(scalar.type):
        return None
    return Literal(scalar, typed=True)


def _depends_on_type(type: pa.DataType) -> bool:
    return pa.types.is_floating(type) or (pa.types.is_timestamp(type) and type.tz is not None)


def _is_float(bound: Literal) -> bool:
    return pa.types.is_floating(bound.scalar.type)


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
