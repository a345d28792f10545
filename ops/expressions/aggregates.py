"""Aggregations: what may stand inside ``agg``, as methods of an expression and as functions of a name."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

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

    def approx_quantile(self, q: float | Sequence[float], accuracy: float = 0.01) -> AggregateCall:
        """The value below which a fraction ``q`` of the values lies, to a relative error of at most ``accuracy``.

        That of rank floor(q * (n - 1)) of n values in order, as NumPy's quantile with ``method="lower"``; NaN is the
        largest number. It has the column's type (float64 for decimals) and lies between the smallest and the largest
        value; these are exact, as are integers up to 1 / accuracy. Numbers below 2.3e-308 may be off by 2.3e-308 times
        the accuracy. The rows' order, partitions and devices make no difference.

        A group takes 12 bytes for each bucket of values it has: about 640 buckets where its values span a factor of
        1000, at most 262,018; both double with each halving of the accuracy.

        Args:
            q: from 0 to 1. Several give a list column, in their order.
            accuracy: from 0.00001 to 0.25.
        """
        return _quantile(self, q, accuracy)

    def approx_median(self, accuracy: float = 0.01) -> AggregateCall:
        """The middle value, the lower of two, to a relative error of at most ``accuracy``: `approx_quantile` of 0.5."""
        return _quantile(self, 0.5, accuracy)

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


def approx_quantile(column: str | Expr, q: float | Sequence[float], accuracy: float = 0.01) -> AggregateCall:
    """A quantile of a column or expression to a relative error, inside ``agg``; see `Aggregations.approx_quantile`."""
    return _quantile(column, q, accuracy)


def approx_median(column: str | Expr, accuracy: float = 0.01) -> AggregateCall:
    """The middle value of a column or expression to a relative error, inside ``agg``."""
    return _quantile(column, 0.5, accuracy)


def first(column: str | Expr) -> AggregateCall:
    """The value of a column or expression in the first row, inside ``agg``."""
    return _aggregate("first", column)


def last(column: str | Expr) -> AggregateCall:
    """The value of a column or expression in the last row, inside ``agg``."""
    return _aggregate("last", column)


def _quantile(of: object, q: object, accuracy: object) -> AggregateCall:
    several = isinstance(q, Sequence | np.ndarray) and not isinstance(q, str)
    wanted = tuple(_plain(part) for part in q) if several else _plain(q)  # type: ignore[attr-defined]
    return _aggregate("approx_quantile", of, q=wanted, accuracy=_plain(accuracy))


def _plain(number: object) -> object:
    """Numbers of any kind as floats, so that equal ones are written alike; the rest is refused with the schema."""
    return number if isinstance(number, bool) or not isinstance(number, Real) else float(number)


def _aggregate(function: str, of: object, **options: object) -> AggregateCall:
    from .expr import AggregateCall, Column, Expr

    if of is not None and not isinstance(of, str | Expr):
        raise TypeMismatchError(
            f"{function}() takes a column name or an expression, not {of!r}. Write {function}('x')."
        )
    column = Column(of) if isinstance(of, str) else of
    return AggregateCall(function, () if column is None else (column,), tuple(sorted(options.items())))
