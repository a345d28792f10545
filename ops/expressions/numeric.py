"""Elementary function kernels: roots, logarithms, rounding, trigonometry, on numbers of any type."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from .call import register, unary
from .types import NoCommonTypeError, Value, is_number, retype, type_name

_HINT = "Cast it to a number first, as {0}.cast('float64')."


def align_float(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Bring numbers to float64; float32 stays."""
    return [
        value if pa.types.is_float32(value.type) else retype(value, pa.float64())
        for value in _numbers(values)
    ]


def align_number(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Check that values are numbers; booleans count as integers."""
    return _numbers(values)


def _numbers(values: Sequence[Value]) -> list[Value]:
    result = []
    for value in values:
        if pa.types.is_boolean(value.type) or pa.types.is_null(value.type):
            value = value.cast(pa.int64())
        elif not is_number(value.type):
            raise NoCommonTypeError(f"it takes a number, not {type_name(value.type)}")
        result.append(retype(value, pa.float32()) if pa.types.is_float16(value.type) else value)
    return result


for _name in (
    "sqrt",
    "exp",
    "expm1",
    "log10",
    "log2",
    "log1p",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "tanh",
):
    register(_name, align=align_float, hint=_HINT)(unary(getattr(pc, _name)))


@register("log", align=align_float, hint=_HINT)
def log(x: Value, base: float | None = None) -> Value:
    """The logarithm, natural without a base."""
    return pc.ln(x) if base is None else pc.logb(x, pa.scalar(base, x.type))


def _whole(function: Callable[[Value], Value]) -> Callable[[Value], Value]:
    def kernel(x: Value) -> Value:
        return x if pa.types.is_integer(x.type) else function(x)

    return kernel


register("floor", align=align_number, hint=_HINT)(_whole(pc.floor))
register("ceil", align=align_number, hint=_HINT)(_whole(pc.ceil))


@register("round", align=align_number, hint=_HINT)
def round_(x: Value, decimals: int = 0) -> Value:
    """Round halves to even."""
    if pa.types.is_integer(x.type) and decimals >= 0:
        return x
    return pc.round(x, ndigits=decimals, round_mode="half_to_even")


@register("sign", align=align_number, hint=_HINT)
def sign(x: Value) -> Value:
    """-1, 0 or 1 in the number's type; for decimals, of which not all have room for a 1, in int64."""
    found = pc.sign(x)
    return found if pa.types.is_decimal(x.type) else found.cast(x.type)
