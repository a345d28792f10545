"""Methods: nulls, membership, types, rounding and elementary functions, on any expression."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ...errors import ParameterError, TypeMismatchError
from .operators import call

if TYPE_CHECKING:
    from .expr import Expr

_CLOSED = {"both": (">=", "<="), "left": (">=", "<"), "right": (">", "<="), "neither": (">", "<")}
_COMPARE: dict[str, Any] = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class Methods:
    """The methods of an expression that aren't in a namespace."""

    def alias(self, name: str) -> Expr:
        """Return the same value under another column name."""
        from .expr import Alias

        if not isinstance(name, str):
            raise TypeMismatchError(f"{self}.alias({name!r}): a column's name is a text.")
        return Alias(self, name)  # type: ignore[arg-type]

    def cast(self, type: Any, strict: bool = True) -> Expr:
        """Convert to another type.

        Floats and decimals lose their fraction towards zero when they become integers, decimals round half
        away from zero, timestamps round down to days or coarser units.

        Args:
            type: an Arrow type or its name, as ``"int64"``, ``"decimal128(10,2)"``, ``"timestamp[us]"``.
            strict: True raises when a value doesn't fit, False makes it null.

        Returns:
            The expression.

        Raises:
            ParameterError: there is no such type.

        Example:
            >>> from headwater.ops.expressions import col
            >>> table = pa.table({"x": ["1", "two"]})
            >>> col("x").cast("int64", strict=False).evaluate(table).to_pylist()
            [1, None]
        """
        from .cast import Cast

        return Cast(self, type, strict)  # type: ignore[arg-type]

    def is_null(self) -> Expr:
        """Whether the value is null. NaN isn't."""
        return call("is_null", self)

    def is_not_null(self) -> Expr:
        """Whether the value isn't null."""
        return call("is_not_null", self)

    def is_nan(self) -> Expr:
        """Whether the number is NaN; null for null."""
        return call("is_nan", self)

    def is_not_nan(self) -> Expr:
        """Whether the number isn't NaN; null for null."""
        return call("is_not_nan", self)

    def is_finite(self) -> Expr:
        """Whether the number is neither infinite nor NaN; null for null."""
        return call("is_finite", self)

    def fill_null(self, value: Any) -> Expr:
        """Replace nulls by a constant or an expression."""
        return call("fill_null", self, value)

    def fill_nan(self, value: Any) -> Expr:
        """Replace NaN by a constant or an expression; nulls stay."""
        return call("fill_nan", self, value)

    def is_in(self, values: Iterable[Any]) -> Expr:
        """Whether the value is one of several; null for null.

        Args:
            values: constants, or an Arrow or NumPy array. A null among them matches nothing, nor does NaN.
                If there are expressions among them, each is compared with ``==``.

        Returns:
            A boolean expression.

        Example:
            >>> from headwater.ops.expressions import col
            >>> col("x").is_in([1, 3]).evaluate(pa.table({"x": [1, 2, None]})).to_pylist()
            [True, False, None]
        """
        from .expr import Expr, Literal

        if isinstance(values, str | bytes | Expr) or not isinstance(values, Iterable):
            raise TypeMismatchError(
                f"is_in() takes a list of values, not {values!r}. Write .is_in([{values!r}])."
            )
        if isinstance(values, pa.Array | pa.ChunkedArray | np.ndarray):
            array = values if not isinstance(values, np.ndarray) else pa.array(values)
            array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
            return call(
                "is_in", self, Literal(pa.ListArray.from_arrays([0, len(array)], array)[0], typed=True)
            )
        items = list(values) if not isinstance(values, set | frozenset) else sorted(values, key=repr)
        if any(isinstance(item, Expr) for item in items):
            return functools.reduce(operator.or_, [self == item for item in items])
        items = [item.item() if isinstance(item, np.generic) else item for item in items]
        return call("is_in", self, items)

    def between(self, low: Any, high: Any, closed: str = "both") -> Expr:
        """Whether the value lies between two bounds.

        Args:
            low: lower bound, constant or expression.
            high: upper bound.
            closed: which bounds belong to it: "both", "left", "right" or "neither".

        Returns:
            ``(self >= low) & (self <= high)``, or with ``>`` or ``<``.
        """
        if closed not in _CLOSED:
            raise ParameterError(f"between(closed={closed!r}): valid are {', '.join(map(repr, _CLOSED))}.")
        lower, upper = _CLOSED[closed]
        return _COMPARE[lower](self, low) & _COMPARE[upper](self, high)

    def abs(self) -> Expr:
        """The absolute value."""
        return call("abs", self)

    def sign(self) -> Expr:
        """-1, 0 or 1, in the number's own type; for decimals in int64."""
        return call("sign", self)

    def sqrt(self) -> Expr:
        """The square root; NaN for negative numbers."""
        return call("sqrt", self)

    def exp(self) -> Expr:
        """e to the power of the number."""
        return call("exp", self)

    def log(self, base: float | None = None) -> Expr:
        """The logarithm, natural unless a base is given; -inf at 0, NaN below."""
        return call("log", self) if base is None else call("log", self, base=base)

    def log10(self) -> Expr:
        """The logarithm to base 10."""
        return call("log10", self)

    def log2(self) -> Expr:
        """The logarithm to base 2."""
        return call("log2", self)

    def log1p(self) -> Expr:
        """The natural logarithm of one plus the number, exact near zero."""
        return call("log1p", self)

    def expm1(self) -> Expr:
        """e to the power of the number, less one, exact near zero."""
        return call("expm1", self)

    def floor(self) -> Expr:
        """The largest whole number not above; integers as they are."""
        return call("floor", self)

    def ceil(self) -> Expr:
        """The smallest whole number not below; integers as they are."""
        return call("ceil", self)

    def round(self, decimals: int = 0) -> Expr:
        """Round to some decimals, halves to the even neighbour (NumPy, Python); negative: tens, hundreds."""
        return call("round", self, decimals=decimals)

    def clip(self, lower: Any = None, upper: Any = None) -> Expr:
        """Limit to bounds (constants or expressions; None is no bound). Null and NaN stay."""
        clipped = self if lower is None else call("clip_lower", self, lower)
        return clipped if upper is None else call("clip_upper", clipped, upper)  # type: ignore[return-value]

    def pow(self, exponent: Any) -> Expr:
        """The number to a power; the same as ``**``."""
        return call("power", self, exponent)

    def sin(self) -> Expr:
        """The sine of an angle in radians."""
        return call("sin", self)

    def cos(self) -> Expr:
        """The cosine of an angle in radians."""
        return call("cos", self)

    def tan(self) -> Expr:
        """The tangent of an angle in radians."""
        return call("tan", self)

    def asin(self) -> Expr:
        """The arc sine in radians; NaN outside -1 to 1."""
        return call("asin", self)

    def acos(self) -> Expr:
        """The arc cosine in radians; NaN outside -1 to 1."""
        return call("acos", self)

    def atan(self) -> Expr:
        """The arc tangent in radians."""
        return call("atan", self)

    def tanh(self) -> Expr:
        """The hyperbolic tangent."""
        return call("tanh", self)
