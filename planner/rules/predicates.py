"""Predicates: conjunctions of many terms."""

from __future__ import annotations

from collections.abc import Sequence

from ...ops.expressions.analysis import conjunction
from ...ops.expressions.expr import Expr


def all_of(terms: Sequence[Expr]) -> Expr:
    """Join at least one term by `and`, as a balanced tree, so that many terms make no deep expression.

    Example:
        >>> from headwater.ops.expressions import col
        >>> all_of([col("a"), col("b"), col("c")]).columns() == {"a", "b", "c"}
        True
    """
    terms = list(terms)
    while len(terms) > 1:
        pairs = [conjunction(terms[i : i + 2]) for i in range(0, len(terms), 2)]
        terms = [pair for pair in pairs if pair is not None]
    return terms[0]
