"""Functions that build expressions: columns, conditions, and combinations of several expressions."""

from __future__ import annotations

from typing import Any

from ...errors import ParameterError
from .call import Call, call
from .expr import Column, Expr
from .literals import as_expr, lit


def col(name: str) -> Expr:
    """Return the column of that name.

    Example:
        >>> (col("fare") > 0) & col("pickup").is_not_null()
        (col('fare') > 0) & col('pickup').is_not_null()
    """
    return Column(name)


class When:
    """A condition waiting for its value: ``when(condition)``."""

    def __init__(self, decided: tuple[Expr, ...], condition: Expr):
        self._decided = decided
        self._condition = condition

    def __repr__(self) -> str:
        return f"when({self._condition}), which lacks its .then(...),"

    def then(self, value: Any) -> Then:
        """Give the value where the condition is the first that is true."""
        return Then((*self._decided, self._condition, as_expr(value)))


class Then(Call):
    """An expression that is null where no condition was true, and to which more can be said."""

    def __init__(self, decided: tuple[Expr, ...]):
        super().__init__("when", (*decided, lit(None)))

    def when(self, condition: Expr) -> When:
        """Give another condition, looked at where the earlier ones aren't true."""
        return When(self.children[:-1], _condition(condition))

    def otherwise(self, value: Any) -> Expr:
        """Give the value where no condition is true."""
        return Call("when", (*self.children[:-1], as_expr(value)))


def when(condition: Expr) -> When:
    """Begin a choice: ``when(condition).then(value).when(…).then(…).otherwise(value)``.

    A null condition counts as false; without ``otherwise`` the rest is null. All branches are computed
    for all rows.

    Args:
        condition: a boolean expression.

    Returns:
        An object with the method ``then``.

    Example:
        >>> import pyarrow as pa
        >>> sign = when(col("x") > 0).then("+").when(col("x") < 0).then("-").otherwise("0")
        >>> sign.evaluate(pa.table({"x": [5, -5, None]})).to_pylist()
        ['+', '-', '0']
    """
    return When((), _condition(condition))


def _condition(condition: Any) -> Expr:
    if isinstance(condition, Expr | bool):
        return as_expr(condition)
    raise ParameterError(f"when() takes a condition, not {condition!r}. Write when(col('x') > 0).")


def coalesce(*exprs: Any) -> Expr:
    """Return the first value that isn't null; a string is a column's name, other constants are values.

    Example:
        >>> coalesce("nickname", col("name"), lit("?"))
        coalesce(col('nickname'), col('name'), '?')
    """
    return call("coalesce", *_several("coalesce", exprs))


def least(*exprs: Any) -> Expr:
    """Return the least of several values in each row, without nulls (SQL LEAST; Polars min_horizontal).

    NaN is left out too unless there is nothing else. A string is a column's name.

    Example:
        >>> import pyarrow as pa
        >>> least("a", "b").evaluate(pa.table({"a": [1, None], "b": [2, 3]})).to_pylist()
        [1, 3]
    """
    return call("least", *_several("least", exprs))


def greatest(*exprs: Any) -> Expr:
    """Return the greatest of several values in each row, without nulls (SQL GREATEST; Polars max_horizontal).

    NaN is left out too unless there is nothing else. A string is a column's name.

    Example:
        >>> import pyarrow as pa
        >>> greatest("a", 2).evaluate(pa.table({"a": [1, 3]})).to_pylist()
        [2, 3]
    """
    return call("greatest", *_several("greatest", exprs))


def concat_str(*exprs: Any, separator: str = "", skip_nulls: bool = False) -> Expr:
    """Join values as text.

    Args:
        exprs: expressions of any plain type; a string is a column's name, write ``lit("-")`` for a text.
        separator: text between them.
        skip_nulls: True leaves out nulls; False makes the whole text null where one is.

    Returns:
        A string expression.

    Example:
        >>> import pyarrow as pa
        >>> concat_str("a", "b", separator="-").evaluate(pa.table({"a": ["x"], "b": [1]})).to_pylist()
        ['x-1']
    """
    return call("concat_str", *_several("concat_str", exprs), separator=separator, skip_nulls=skip_nulls)


def hash_unit(*exprs: Any, seed: int = 0) -> Expr:
    """Return a number in [0, 1) drawn from the hash of each row's values: the same row, the same number.

    Args:
        exprs: what to hash; a string is a column's name.
        seed: another seed gives independent numbers.

    Returns:
        A float64 expression, uniform over distinct values.

    Example:
        >>> import pyarrow as pa
        >>> draw = hash_unit("id", seed=7).evaluate(pa.table({"id": [1, 2, 1]})).to_pylist()
        >>> draw[0] == draw[2] != draw[1]
        True
    """
    return call("hash_unit", *_several("hash_unit", exprs), seed=seed)


def _several(function: str, exprs: tuple[Any, ...]) -> list[Expr]:
    if len(exprs) == 1 and isinstance(exprs[0], list | tuple):
        exprs = tuple(exprs[0])
    if not exprs:
        raise ParameterError(f"{function}() needs at least one expression, as {function}('x', 'y').")
    return [Column(expr) if isinstance(expr, str) else as_expr(expr) for expr in exprs]
