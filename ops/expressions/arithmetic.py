"""Arithmetic kernels: ``+ - * / // % **``, negation and absolute value, on numbers, dates and durations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import decimals
from .call import register
from .types import (
    NoCommonTypeError,
    Value,
    adopt_literals,
    as_decimal_type,
    common_type,
    is_number,
    is_text,
    retype,
    type_name,
)

_DAY = 86_400
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def align_numbers(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Bring operands of arithmetic to one type; decimals keep their scales, dates and durations theirs."""
    if any(pa.types.is_temporal(value.type) for value in values):
        return _align_times(values, weak)
    values = adopt_literals(values, weak)
    types = [value.type for value in values]
    if any(map(is_text, types)) or not all(_is_numeric(type) for type in types):
        return values
    if any(map(pa.types.is_decimal, types)) and not any(map(pa.types.is_floating, types)):
        return [
            value if pa.types.is_decimal(value.type) else retype(value, as_decimal_type(value.type))
            for value in values
        ]
    target = common_type(types)
    target = {pa.bool_(): pa.int64(), pa.null(): pa.int64(), pa.float16(): pa.float32()}.get(target, target)
    return [retype(value, target) for value in values]


def _is_numeric(type: pa.DataType) -> bool:
    return is_number(type) or pa.types.is_boolean(type) or pa.types.is_null(type)


def _align_times(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    instants = [pa.types.is_date(v.type) or pa.types.is_timestamp(v.type) for v in values]
    aligned = []
    for value, is_weak, other, instant in zip(values, weak, reversed(values), reversed(instants)):
        if pa.types.is_null(value.type):
            value = value.cast(pa.duration("s") if instant else other.type)
        elif is_weak and pa.types.is_string(value.type):
            value = adopt_literals([value, other], [True, False])[0]
        elif pa.types.is_duration(value.type) and pa.types.is_date(other.type) and not is_weak:
            value = retype(value, pa.duration("us")) if value.type.unit == "s" else value
        elif is_weak and pa.types.is_duration(value.type) and value.as_py() is not None:
            value = _plainest(value)
        elif pa.types.is_integer(value.type):
            value = value.cast(pa.int64())
        aligned.append(value)
    return aligned


def _plainest(duration: pa.Scalar) -> pa.Scalar:
    """A timedelta of whole seconds as such, so that it keeps the unit of what it meets."""
    seconds, rest = divmod(duration.value, _TICKS[duration.type.unit])
    return duration if rest else pa.scalar(seconds, pa.duration("s"))


def align_quotient(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """As `align_numbers`, with integers as float64."""
    values = align_numbers(values, weak)
    if all(pa.types.is_integer(value.type) for value in values):
        return [retype(value, pa.float64()) for value in values]
    return values


def align_power(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Keep an integer base under a non-negative integer constant; floats otherwise."""
    base, exponent = values
    if not _is_numeric(base.type) or not _is_numeric(exponent.type):
        return values
    aligned = align_numbers(values, weak)
    if weak[1] and all(pa.types.is_integer(value.type) for value in aligned) and (exponent.as_py() or 0) >= 0:
        return aligned
    if pa.types.is_floating(aligned[0].type):
        return aligned
    return [retype(value, pa.float64()) for value in values]


@register("add", align=align_numbers, symbol="+")
def add(a: Value, b: Value) -> Value:
    """Numbers, texts, or a time and a duration."""
    if pa.types.is_string(a.type) and pa.types.is_string(b.type):
        return pc.binary_join_element_wise(a, b, "")
    if pa.types.is_binary(a.type) and pa.types.is_binary(b.type):
        return pc.binary_join_element_wise(a, b, b"")
    if pa.types.is_decimal(a.type) and pa.types.is_decimal(b.type):
        return decimals.add(a, b)
    if pa.types.is_date(a.type) and pa.types.is_duration(b.type):
        return _shift_date(pc.add, a, b)
    if pa.types.is_date(b.type) and pa.types.is_duration(a.type):
        return _shift_date(pc.add, b, a)
    return pc.add(a, b)


@register("subtract", align=align_numbers, symbol="-")
def subtract(a: Value, b: Value) -> Value:
    """Numbers; a time less a duration, or less a time."""
    if pa.types.is_decimal(a.type) and pa.types.is_decimal(b.type):
        return decimals.subtract(a, b)
    if pa.types.is_date(a.type) and pa.types.is_duration(b.type):
        return _shift_date(pc.subtract, a, b)
    if pa.types.is_date(a.type) and pa.types.is_timestamp(b.type):
        return pc.subtract(a.cast(b.type), b)
    if pa.types.is_timestamp(a.type) and pa.types.is_date(b.type):
        return pc.subtract(a, b.cast(a.type))
    return pc.subtract(a, b)


def _shift_date(operation: Callable[..., Value], date: Value, shift: Value) -> Value:
    """A date moved by whole days stays a date; by a column or by hours it becomes a timestamp."""
    if isinstance(shift, pa.Scalar) and shift.type == pa.duration("s") and not (shift.value or 0) % _DAY:
        days = pc.divide(shift.cast(pa.int64()), _DAY).cast(pa.int32())
        return operation(date.cast(pa.date32()).cast(pa.int32()), days).cast(pa.date32())
    return operation(date.cast(pa.timestamp(shift.type.unit)), shift)


@register("multiply", align=align_numbers, symbol="*")
def multiply(a: Value, b: Value) -> Value:
    """Numbers; a duration and a number."""
    if pa.types.is_decimal(a.type) and pa.types.is_decimal(b.type):
        return decimals.multiply(a, b)
    if pa.types.is_duration(b.type):
        a, b = b, a
    if pa.types.is_duration(a.type) and pa.types.is_floating(b.type):
        return (
            pc.multiply(a.cast(pa.int64()).cast(pa.float64(), safe=False), b)
            .cast(pa.int64(), safe=False)
            .cast(a.type)
        )
    return pc.multiply(a, b)


@register("divide", align=align_quotient, symbol="/")
def divide(a: Value, b: Value) -> Value:
    """True division of numbers; the ratio of durations; a duration by a number."""
    if pa.types.is_decimal(a.type) and pa.types.is_decimal(b.type):
        return decimals.divide(a, b)
    if pa.types.is_duration(a.type) and pa.types.is_duration(b.type):
        target = common_type([a.type, b.type])
        return pc.divide(*(v.cast(target).cast(pa.int64()).cast(pa.float64(), safe=False) for v in (a, b)))
    if pa.types.is_duration(a.type) and is_number(b.type):
        ratio = pc.divide(a.cast(pa.int64()).cast(pa.float64(), safe=False), retype(b, pa.float64()))
        finite = pc.if_else(pc.is_finite(ratio), ratio, pa.scalar(None, pa.float64()))
        return finite.cast(pa.int64(), safe=False).cast(a.type)
    _require_numbers(a, b)
    return pc.divide(a, b)


@register("floor_divide", align=align_numbers, symbol="//")
def floor_divide(a: Value, b: Value) -> Value:
    """Division rounded down; null for integers by zero."""
    if pa.types.is_decimal(a.type) and pa.types.is_decimal(b.type):
        return decimals.floor_divide(a, b)
    return _with_numpy(np.floor_divide, a, b)


@register("modulo", align=align_numbers, symbol="%")
def modulo(a: Value, b: Value) -> Value:
    """The rest, with the divisor's sign; null for integers by zero."""
    if pa.types.is_decimal(a.type) and pa.types.is_decimal(b.type):
        return decimals.modulo(a, b)
    return _with_numpy(np.mod, a, b)


def _with_numpy(function: Callable[..., Any], a: Value, b: Value) -> Value:
    _require_numbers(a, b)
    type = a.type
    if pa.types.is_integer(type):
        b = pc.if_else(pc.equal(b, pa.scalar(0, type)), pa.scalar(None, type), b)
    null = np.logical_or(*(~_numpy(pc.is_valid(value)) for value in (a, b)))
    with np.errstate(all="ignore"):
        result = function(*(_numpy(pc.fill_null(value, pa.scalar(1, type))) for value in (a, b)))
    return pa.array(result, type, mask=np.broadcast_to(null, result.shape) if null.any() else None)


def _numpy(value: Value) -> Any:
    if isinstance(value, pa.Scalar):
        return pa.repeat(value, 1).to_numpy(zero_copy_only=False)
    if isinstance(value, pa.ChunkedArray):
        value = value.combine_chunks()
    return value.to_numpy(zero_copy_only=False)


def _require_numbers(a: Value, b: Value) -> None:
    if a.type != b.type or not is_number(a.type):
        raise NoCommonTypeError(f"it takes numbers, not {type_name(a.type)} and {type_name(b.type)}")


@register("power", align=align_power, symbol="**")
def power(a: Value, b: Value) -> Value:
    """A number to a power; integer overflow wraps."""
    _require_numbers(a, b)
    return pc.power(a, b)


def align_signed(values: Sequence[Value], weak: Sequence[bool]) -> Sequence[Value]:
    """Give a null a type."""
    return [value.cast(pa.int64()) if pa.types.is_null(value.type) else value for value in values]


@register(
    "negate",
    align=align_signed,
    symbol="-",
    hint="Write ~{0} to negate a boolean, -{0}.cast('int64') for a number.",
)
def negate(a: Value) -> Value:
    """The number with the other sign."""
    return pc.negate(a)


@register("abs", align=align_signed, hint="Cast it to a number first, as {0}.cast('float64').abs().")
def absolute(a: Value) -> Value:
    """The absolute value."""
    return pc.abs(a)
