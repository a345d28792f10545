"""Aggregations: what may stand inside ``agg``, as methods of an expression and as functions of a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import TypeMismatchError

if TYPE_CHECKING:
    from .expr import AggregateCall, Expr


class Aggregations:
    """The aggregations of an expression. All but first, last and n_unique leave out nulls."""

    def sum(self) -> AggregateCall:
        """The sum of the values that aren't null."""
        return _aggregate("sum", self)

    def mean(self) -> AggregateCall:
        """The mean of the values that aren't null."""
        return _aggregate("mean", self)

    def var(self, ddof: int = 1) -> AggregateCall:
        """The variance: squared deviations over the count less ``ddof``."""
        return _aggregate("var", self, ddof=ddof)

    def std(self, ddof: int = 1) -> AggregateCall:
        """The standard deviation: the square root of `var`."""
        return _aggregate("std", self, ddof=ddof)

    def min(self) -> AggregateCall:
        """The least value."""
        return _aggregate("min", self)

    def max(self) -> AggregateCall:
        """The greatest value."""
        return _aggregate("max", self)

    def count(self) -> AggregateCall:
        """The number of values that aren't null."""
        return _aggregate("count", self)

    def n_unique(self) -> AggregateCall:
        """The number of distinct values."""
        return _aggregate("n_unique", self)

    def first(self) -> AggregateCall:
        """The value in the first row."""
        return _aggregate("first", self)

    def last(self) -> AggregateCall:
        """The value in the last row."""
        return _aggregate("last", self)


def sum(column: str | Expr) -> AggregateCall:
    """The sum of a column or expression, inside ``agg``."""
    return _aggregate("sum", column)


def mean(column: str | Expr) -> AggregateCall:
    """The mean of a column or expression, inside ``agg``."""
    return _aggregate("mean", column)


def var(column: str | Expr, ddof: int = 1) -> AggregateCall:
    """The variance of a column or expression, inside ``agg``."""
    return _aggregate("var", column, ddof=ddof)


def std(column: str | Expr, ddof: int = 1) -> AggregateCall:
    """The standard deviation of a column or expression, inside ``agg``."""
    return _aggregate("std", column, ddof=ddof)


def min(column: str | Expr) -> AggregateCall:
    """The least value of a column or expression, inside ``agg``."""
    return _aggregate("min", column)


def max(column: str | Expr) -> AggregateCall:
    """The greatest value of a column or expression, inside ``agg``."""
    return _aggregate("max", column)


def count(column: str | Expr | None = None) -> AggregateCall:
    """Count rows, or the values of a column or expression that aren't null, inside ``agg``."""
    return _aggregate("count", column)


def n_unique(column: str | Expr) -> AggregateCall:
    """The number of distinct values of a column or expression, inside ``agg``."""
    return _aggregate("n_unique", column)


def first(column: str | Expr) -> AggregateCall:
    """The value of a column or expression in the first row, inside ``agg``."""
    return _aggregate("first", column)


def last(column: str | Expr) -> AggregateCall:
    """The value of a column or expression in the last row, inside ``agg``."""
    return _aggregate("last", column)


def _aggregate(function: str, of: object, **options: int) -> AggregateCall:
    from .expr import AggregateCall, Column, Expr

    if of is not None and not isinstance(of, str | Expr):
        raise TypeMismatchError(
            f"{function}() takes a column name or an expression, not {of!r}. Write {function}('x')."
        )
    column = Column(of) if isinstance(of, str) else of
    return AggregateCall(function, () if column is None else (column,), tuple(sorted(options.items())))
