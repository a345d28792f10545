"""Decimal arithmetic: exact, in at most 38 digits; results that don't fit are null.

Arrow refuses operands whose result type would need more than 38 digits, even if the values are short.
Here the type is capped instead (see `types.decimal_type`), and the values are computed in as few digits as
they really have, or in 76.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal

import pyarrow as pa
import pyarrow.compute as pc

from .types import MAX_DIGITS, Value, decimal_type, relabel

_MAX_WIDE = 76
_EXACT = Context(prec=100)


def add(a: Value, b: Value) -> Value:
    """The sum, with the finer scale."""
    return _compute(pc.add, a, b, _sum_digits)


def subtract(a: Value, b: Value) -> Value:
    """The difference, with the finer scale."""
    return _compute(pc.subtract, a, b, _sum_digits)


def multiply(a: Value, b: Value) -> Value:
    """The product, with the sum of the scales."""
    return _compute(pc.multiply, a, b, _product_digits)


def divide(a: Value, b: Value) -> Value:
    """The quotient, cut to the scale of `_quotient_digits`; null where the divisor is zero."""
    digits, scale = _quotient_digits(a.type, b.type)
    result = decimal_type(digits, scale)
    b = _null_zeros(b)
    if digits <= MAX_DIGITS and _is_narrow(a) and _is_narrow(b):
        return _fit(pc.divide(a, b), result)
    shift = result.scale - a.type.scale + b.type.scale
    quotient = _cut_quotient(_unscaled(a, a.type.scale), _unscaled(b, b.type.scale), max(shift, 4))
    return _fit(_relabelled(quotient, _MAX_WIDE, result.scale + max(0, 4 - shift)), result)


def floor_divide(a: Value, b: Value) -> Value:
    """The quotient rounded down, with scale 0; null where the divisor is zero."""
    digits = a.type.precision - a.type.scale + b.type.scale + 1
    return _fit(_divmod(a, b)[0], decimal_type(max(digits, 1), 0))


def modulo(a: Value, b: Value) -> Value:
    """The rest with the divisor's sign; null where the divisor is zero."""
    scale = max(a.type.scale, b.type.scale)
    rest = _divmod(a, b)[1]
    rest = _relabelled(rest, _MAX_WIDE, scale)
    return _fit(rest, decimal_type(b.type.precision - b.type.scale + scale, scale))


def _sum_digits(a: pa.DataType, b: pa.DataType) -> tuple[int, int]:
    scale = max(a.scale, b.scale)
    return max(a.precision - a.scale, b.precision - b.scale) + scale + 1, scale


def _product_digits(a: pa.DataType, b: pa.DataType) -> tuple[int, int]:
    return a.precision + b.precision + 1, a.scale + b.scale


def _quotient_digits(a: pa.DataType, b: pa.DataType) -> tuple[int, int]:
    scale = max(4, a.scale + b.precision - b.scale + 1)
    return a.precision - a.scale + b.scale + scale, scale


def _compute(
    operation: Callable[..., Value],
    a: Value,
    b: Value,
    digits: Callable[[pa.DataType, pa.DataType], tuple[int, int]],
) -> Value:
    result = decimal_type(*digits(a.type, b.type))
    if digits(a.type, b.type)[0] > MAX_DIGITS or not (_is_narrow(a) and _is_narrow(b)):
        a, b = _narrow(a), _narrow(b)
        if digits(a.type, b.type)[0] > MAX_DIGITS or not (_is_narrow(a) and _is_narrow(b)):
            a, b = _widen(a), _widen(b)
            over = max(
                0, digits(a.type, b.type)[0] - _MAX_WIDE
            )  # a label too small harms nothing in 76 digits
            a, b = _relabelled(a, a.type.precision - over), _relabelled(b, b.type.precision - over)
    return _fit(operation(a, b), result)


def _is_narrow(value: Value) -> bool:
    return pa.types.is_decimal128(value.type)


def _widen(value: Value) -> Value:
    return (
        value if not _is_narrow(value) else value.cast(pa.decimal256(value.type.precision, value.type.scale))
    )


def _narrow(value: Value) -> Value:
    """Declare no more digits than the values have."""
    if isinstance(value, pa.Scalar):
        extremes = [value.as_py()]
    else:
        extremes = list(pc.min_max(value).as_py().values())
    unscaled = [abs(int(v.scaleb(value.type.scale, _EXACT))) for v in extremes if v is not None]
    digits = len(str(max(unscaled, default=0)))
    if digits >= value.type.precision:
        return value
    if digits <= MAX_DIGITS and not _is_narrow(value):
        return value.cast(pa.decimal128(digits, value.type.scale))
    return _relabelled(value, digits)


def _relabelled(value: Value, digits: int, scale: int | None = None) -> Value:
    """Declare other digits, or another scale, for the same stored integers."""
    kind = pa.decimal128 if _is_narrow(value) else pa.decimal256
    return _relabel_any(value, kind(max(1, digits), value.type.scale if scale is None else scale))


def _relabel_any(value: Value, type: pa.DataType) -> Value:
    if value.type == type:
        return value
    return relabel(pa.repeat(value, 1), type)[0] if isinstance(value, pa.Scalar) else relabel(value, type)


def _null_zeros(value: Value) -> Value:
    zero = pa.scalar(Decimal(0), value.type)
    return pc.if_else(pc.equal(value, zero), pa.scalar(None, value.type), value)


def _fit(value: Value, type: pa.DataType) -> Value:
    """Bring a result to its declared type; null where it has too many digits."""
    if value.type.scale == type.scale and value.type.precision <= type.precision and _is_narrow(value):
        return _relabel_any(value, type)
    wide = _relabel_any(_widen(value), pa.decimal256(_MAX_WIDE, value.type.scale))
    if value.type.scale > type.scale:
        wide = wide.cast(pa.decimal256(_MAX_WIDE, type.scale), safe=False)
    elif value.type.scale < type.scale:
        wide = wide.cast(pa.decimal256(_MAX_WIDE, type.scale))
    limit = pa.scalar(Decimal(1).scaleb(type.precision - type.scale), wide.type)
    return pc.if_else(pc.less(pc.abs(wide), limit), wide, pa.scalar(None, wide.type)).cast(type)


def _divmod(a: Value, b: Value) -> tuple[Value, Value]:
    """Quotient rounded down and rest, both as unscaled integers at the finer scale."""
    scale = max(a.type.scale, b.type.scale)
    a, b = _unscaled(a, scale), _null_zeros(_unscaled(b, scale))
    quotient = _cut_quotient(a, b, 4).cast(pa.decimal256(_MAX_WIDE, 0), safe=False)
    product = pc.multiply(
        _relabelled(quotient, 38), _relabelled(b, 37)
    )  # no more than a, whatever the labels
    rest = _relabelled(pc.subtract(_relabelled(a, 75), _relabelled(product, 75)), _MAX_WIDE)
    zero, one = (pa.scalar(Decimal(n), pa.decimal256(_MAX_WIDE, 0)) for n in (0, 1))
    crosses = pc.and_(pc.not_equal(rest, zero), pc.xor(pc.less(rest, zero), pc.less(b, zero)))
    lower = pc.subtract(_relabelled(quotient, 75), _relabelled(one, 75))
    raised = pc.add(_relabelled(rest, 75), _relabelled(b, 75))
    return pc.if_else(crosses, lower, quotient), pc.if_else(crosses, raised, rest)


def _unscaled(value: Value, scale: int) -> Value:
    """The integer that a decimal is stored as, at a scale no coarser than its own."""
    digits = min(value.type.precision - value.type.scale + scale, _MAX_WIDE)
    return _relabelled(_widen(value).cast(pa.decimal256(digits, scale)), _MAX_WIDE, 0)


def _cut_quotient(a: Value, b: Value, scale: int) -> Value:
    """a / b for integers, cut to at least 4 fraction digits; null where a has no room for as many zeros.

    Arrow derives the scale from the declared digits of the divisor, so these are set to give the scale.
    """
    room = pa.scalar(Decimal(1).scaleb(_MAX_WIDE - scale), a.type)
    a = pc.if_else(pc.less(pc.abs(a), room), a, pa.scalar(None, a.type))
    return pc.divide(_relabelled(a, _MAX_WIDE - scale), _relabelled(b, scale - 1))
