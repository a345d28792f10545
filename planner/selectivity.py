"""Selectivity: the share of rows a predicate is expected to keep, from its shape alone.

The shares are System R's guesses (Selinger et al., SIGMOD 1979), as no statistics of values are kept.
"""

from __future__ import annotations

from ..ops.expressions.call import Call
from ..ops.expressions.expr import Expr, Literal

#: share of rows kept by a comparison of that name
SHARES = {
    "equal": 0.1,
    "not_equal": 0.9,
    "less": 1 / 3,
    "less_equal": 1 / 3,
    "greater": 1 / 3,
    "greater_equal": 1 / 3,
    "between": 1 / 4,
    "is_in": 0.2,
    "is_null": 0.1,
    "is_not_null": 0.9,
    "is_nan": 0.1,
    "is_not_nan": 0.9,
    "is_finite": 0.9,
}

#: anything else
UNKNOWN = 0.5
#: shares multiply as if terms were independent, which they seldom are; so never below this
LEAST = 0.001
#: how deep a predicate is looked into
DEPTH = 40


def selectivity(predicate: Expr) -> float:
    """Estimate the share of rows that satisfy a predicate.

    Args:
        predicate: a boolean expression.

    Returns:
        A number between 0 and 1; 0 only for a predicate that is false by itself.

    Example:
        >>> from headwater.ops.expressions import col
        >>> round(selectivity((col("a") == 1) & (col("b") != 2)), 3)
        0.09
    """
    return _share(predicate, DEPTH)


def _share(expr: Expr, depth: int) -> float:
    if isinstance(expr, Literal):
        return 1.0 if expr.scalar.as_py() is True else 0.0
    if not isinstance(expr, Call) or depth == 0:
        return UNKNOWN
    if expr.function in ("and", "or", "not"):
        shares = [_share(child, depth - 1) for child in expr.children]
        if expr.function == "not":
            return 1 - shares[0]
        left, right = shares
        if expr.function == "or":
            return left + right - left * right
        return 0.0 if 0 in shares else max(LEAST, left * right)
    return SHARES.get(expr.function, UNKNOWN)
