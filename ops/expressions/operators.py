"""Operators: Python's arithmetic, comparison and boolean signs, on expressions and constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from .expr import Expr


def call(function: str, *args: Any, **options: Any) -> Expr:
    """Build a call; see `call.call`, which stands above the expressions that this module is part of."""
    from .call import call as build

    return build(function, *args, **options)


class Operators:
    """The operators of an expression. Constants are lifted to literals.

    ``+ - *`` keep integers (overflow wraps, as in NumPy) and decimals (null where 38 digits don't
    suffice). ``/`` is true division: integers give float64, decimals a decimal; a decimal divided by
    zero is null, anything else infinity or NaN. ``//`` and ``%`` round down and take the divisor's sign;
    integers and decimals by zero are null. ``**`` keeps an integer under a non-negative integer constant, and
    is a float otherwise. A null operand makes the result null, but ``&`` and ``|`` are Kleene's: False
    & null is False. NaN compares as in IEEE 754: it equals nothing, itself included.
    """

    def __add__(self, other: Any) -> Expr:
        return call("add", self, other)

    def __radd__(self, other: Any) -> Expr:
        return call("add", other, self)

    def __sub__(self, other: Any) -> Expr:
        return call("subtract", self, other)

    def __rsub__(self, other: Any) -> Expr:
        return call("subtract", other, self)

    def __mul__(self, other: Any) -> Expr:
        return call("multiply", self, other)

    def __rmul__(self, other: Any) -> Expr:
        return call("multiply", other, self)

    def __truediv__(self, other: Any) -> Expr:
        return call("divide", self, other)

    def __rtruediv__(self, other: Any) -> Expr:
        return call("divide", other, self)

    def __floordiv__(self, other: Any) -> Expr:
        return call("floor_divide", self, other)

    def __rfloordiv__(self, other: Any) -> Expr:
        return call("floor_divide", other, self)

    def __mod__(self, other: Any) -> Expr:
        return call("modulo", self, other)

    def __rmod__(self, other: Any) -> Expr:
        return call("modulo", other, self)

    def __pow__(self, other: Any) -> Expr:
        return call("power", self, other)

    def __rpow__(self, other: Any) -> Expr:
        return call("power", other, self)

    def __neg__(self) -> Expr:
        return call("negate", self)

    def __pos__(self) -> Expr:
        return self  # type: ignore[return-value]

    def __abs__(self) -> Expr:
        return call("abs", self)

    def __eq__(self, other: Any) -> Expr:  # type: ignore[override]
        return call("equal", self, other)

    def __ne__(self, other: Any) -> Expr:  # type: ignore[override]
        return call("not_equal", self, other)

    def __lt__(self, other: Any) -> Expr:
        return call("less", self, other)

    def __le__(self, other: Any) -> Expr:
        return call("less_equal", self, other)

    def __gt__(self, other: Any) -> Expr:
        return call("greater", self, other)

    def __ge__(self, other: Any) -> Expr:
        return call("greater_equal", self, other)

    def __and__(self, other: Any) -> Expr:
        return call("and", self, other)

    def __rand__(self, other: Any) -> Expr:
        return call("and", other, self)

    def __or__(self, other: Any) -> Expr:
        return call("or", self, other)

    def __ror__(self, other: Any) -> Expr:
        return call("or", other, self)

    def __xor__(self, other: Any) -> Expr:
        return call("xor", self, other)

    def __rxor__(self, other: Any) -> Expr:
        return call("xor", other, self)

    def __invert__(self) -> Expr:
        return call("not", self)

    def __contains__(self, item: Any) -> NoReturn:
        bool(self)  # raises what to write instead
        raise AssertionError("unreachable")
