"""Types that meet: the common type of operands, and how an untyped literal takes its partner's type.

The rules are NumPy 2's (NEP 50): typed operands are promoted, a bare Python number adopts the type of
the column it meets as long as it fits. Decimals stay decimals among themselves and with integers.
"""

from __future__ import annotations

import builtins
import functools
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import ParameterError, did_you_mean
from ..schema import canonical_type

Value: TypeAlias = pa.Array | pa.ChunkedArray | pa.Scalar

#: most decimal digits a decimal128 holds; results are capped to it
MAX_DIGITS = 38

_NAMED_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "boolean": pa.bool_(),
    **{
        f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")()
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int": pa.int64(),
    "float": pa.float64(),
    "double": pa.float64(),
    "str": pa.string(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "date32": pa.date32(),
    "datetime": pa.timestamp("us"),
    **{f"timestamp[{unit}]": pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")},
    **{f"duration[{unit}]": pa.duration(unit) for unit in ("s", "ms", "us", "ns")},
    "time32[s]": pa.time32("s"),
    "time32[ms]": pa.time32("ms"),
    "time64[us]": pa.time64("us"),
    "time64[ns]": pa.time64("ns"),
}
_DECIMAL = re.compile(r"decimal(?:128)?\((\d+),\s*(-?\d+)\)")
_DECIMAL256 = re.compile(r"decimal256\((\d+),\s*(-?\d+)\)")
_ZONED = re.compile(r"timestamp\[(s|ms|us|ns),\s*(?:tz=)?([^\]]+)\]")
_LIST = re.compile(r"list<(?:item:\s*)?(.+)>")
_UNITS = {"s": 0, "ms": 1, "us": 2, "ns": 3}
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}


class NoCommonTypeError(TypeError):
    """Operands that don't go together; the expression that holds them turns it into a TypeMismatchError."""


def parse_type(type: Any) -> pa.DataType:
    """Return the Arrow type that a user named.

    Args:
        type: an Arrow type, or text as ``"int64"``, ``"timestamp[us]"``, ``"timestamp[us, UTC]"``,
            ``"decimal128(10,2)"``, ``"list<string>"``; or one of int, float, str, bool, bytes.

    Returns:
        The canonical type.

    Raises:
        ParameterError: no such type.

    Example:
        >>> parse_type("decimal128(10,2)")
        Decimal128Type(decimal128(10, 2))
    """
    if isinstance(type, pa.DataType):
        return canonical_type(type)
    name = getattr(type, "__name__", None) if isinstance(type, builtins.type) else type
    if not isinstance(name, str):
        raise ParameterError(f"cast() takes an Arrow type or its name, not {type!r}. Write cast('int64').")
    text = name.strip().lower()
    if text in _NAMED_TYPES:
        return _NAMED_TYPES[text]
    try:
        if match := _DECIMAL.fullmatch(text):
            return pa.decimal128(int(match[1]), int(match[2]))
        if match := _DECIMAL256.fullmatch(text):
            return pa.decimal256(int(match[1]), int(match[2]))
    except (ValueError, pa.ArrowException) as error:
        raise ParameterError(f"{name!r} is no decimal type: {error}") from None
    if match := _ZONED.fullmatch(name.strip()):
        return pa.timestamp(match[1], tz=match[2])
    if match := _LIST.fullmatch(name.strip()):
        return pa.list_(parse_type(match[1]))
    choices = [*_NAMED_TYPES, "decimal128(10,2)", "list<string>"]
    raise ParameterError(f"there is no type {name!r}. {did_you_mean(name, choices)}")


def type_name(type: pa.DataType) -> str:
    """Return the name by which `parse_type` knows a type: float64 rather than Arrow's double."""
    return {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date32"}.get(
        str(type), str(type)
    )


def is_number(type: pa.DataType) -> bool:
    """Return whether a type is an integer, float or decimal."""
    return pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type)


def is_text(type: pa.DataType) -> bool:
    """Return whether a type is a string or binary."""
    return pa.types.is_string(type) or pa.types.is_binary(type)


def decimal_type(digits: int, scale: int) -> pa.DataType:
    """Return a decimal type of at most 38 digits, giving up fraction digits beyond the sixth if need be.

    Example:
        >>> decimal_type(49, 6), decimal_type(45, 20)
        (Decimal128Type(decimal128(38, 6)), Decimal128Type(decimal128(38, 13)))

    Source:
        Spark SQL, ``DecimalPrecision.adjustPrecisionScale``, after SQL Server's rules.
    """
    if digits <= MAX_DIGITS:
        return pa.decimal128(max(digits, scale, 1), scale)
    return pa.decimal128(MAX_DIGITS, max(MAX_DIGITS - (digits - scale), min(scale, 6)))


def integer_as_decimal(type: pa.DataType) -> pa.DataType:
    """Return the scale-0 decimal that holds every value of an integer type."""
    return pa.decimal128(_DIGITS[type.bit_width], 0)


def common_type(types: Sequence[pa.DataType], exact: bool = False) -> pa.DataType:
    """Return the type that values of several types are brought to.

    Args:
        types: at least one.
        exact: True for comparisons: integers and decimals are never rounded against each other, so
            uint64 and int64 meet as decimals, not as float64.

    Returns:
        The type.

    Raises:
        NoCommonTypeError: there is none, as for string and int64.

    Example:
        >>> common_type([pa.int8(), pa.float32()])
        DataType(float)
    """
    return functools.reduce(lambda a, b: _promote(a, b, exact), types)


def _promote(a: pa.DataType, b: pa.DataType, exact: bool) -> pa.DataType:
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if (is_number(a) or pa.types.is_boolean(a)) and (is_number(b) or pa.types.is_boolean(b)):
        return _promote_numbers(a, b, exact)
    if _is_date(a) and _is_date(b):
        return pa.date32()
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b) and (a.tz is None) == (b.tz is None):
        return pa.timestamp(_finer(a.unit, b.unit), tz=a.tz)
    if _is_date(a) and pa.types.is_timestamp(b) and b.tz is None:
        return b
    if _is_date(b) and pa.types.is_timestamp(a) and a.tz is None:
        return a
    if pa.types.is_duration(a) and pa.types.is_duration(b):
        return pa.duration(_finer(a.unit, b.unit))
    if pa.types.is_time(a) and pa.types.is_time(b):
        unit = _finer(a.unit, b.unit)
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    if pa.types.is_list(a) and pa.types.is_list(b):
        return pa.list_(_promote(a.value_type, b.value_type, exact))
    raise NoCommonTypeError(f"{type_name(a)} and {type_name(b)} have no common type")


def _promote_numbers(a: pa.DataType, b: pa.DataType, exact: bool) -> pa.DataType:
    if pa.types.is_decimal(a) or pa.types.is_decimal(b):
        if pa.types.is_floating(a) or pa.types.is_floating(b):
            return pa.float64()
        a, b = as_decimal_type(a), as_decimal_type(b)
        scale = max(a.scale, b.scale)
        digits = max(a.precision - a.scale, b.precision - b.scale) + scale
        if exact and digits > MAX_DIGITS:
            return pa.decimal256(min(digits, 76), scale)
        return decimal_type(digits, scale)
    promoted = pa.from_numpy_dtype(np.promote_types(a.to_pandas_dtype(), b.to_pandas_dtype()))
    if exact and pa.types.is_floating(promoted) and pa.types.is_integer(a) and pa.types.is_integer(b):
        return pa.decimal128(20, 0)
    return promoted


def as_decimal_type(type: pa.DataType) -> pa.DataType:
    """Return the decimal type that stands for a decimal, integer or boolean type."""
    if pa.types.is_decimal(type):
        return type
    return pa.decimal128(1, 0) if pa.types.is_boolean(type) else integer_as_decimal(type)


def _is_date(type: pa.DataType) -> bool:
    return pa.types.is_date(type)


def _finer(a: str, b: str) -> str:
    return max(a, b, key=_UNITS.__getitem__)


def retype(value: Value, type: pa.DataType) -> Value:
    """Bring a value to a type that holds it: rounding to floats is silent, anything lost otherwise raises."""
    if value.type == type:
        return value
    if pa.types.is_decimal(value.type) and pa.types.is_floating(type):
        return decimal_to_float(value).cast(type)
    if pa.types.is_boolean(value.type) and pa.types.is_decimal(type):
        value = value.cast(pa.int8())
    if pa.types.is_integer(value.type) and pa.types.is_decimal(type):
        value = value.cast(integer_as_decimal(value.type))  # Arrow wants room for the widest integer
    if pa.types.is_floating(type):
        return value.cast(type, safe=False)
    return value.cast(type)


def decimal_to_float(value: Value) -> Value:
    """Convert decimals to float64, correctly rounded up to 15 digits, so that 0.07 is 0.07."""
    scale = value.type.scale
    if isinstance(value, pa.ChunkedArray):
        return pa.chunked_array([decimal_to_float(chunk) for chunk in value.chunks], pa.float64())
    if isinstance(value, pa.Array) and pa.types.is_decimal128(value.type) and 0 <= scale <= 22:
        numbers = decimal_integers(value)
        if numbers is not None:
            nulls = value.is_null().to_numpy(zero_copy_only=False) if value.null_count else None
            return pa.array(numbers / 10.0**scale, mask=nulls)
    if not 0 <= scale <= 22 or isinstance(value, pa.Scalar):
        return (
            pa.scalar(_float(value.as_py()), pa.float64())
            if isinstance(value, pa.Scalar)
            else value.cast("float64")
        )
    wide = pa.decimal256 if pa.types.is_decimal256(value.type) else pa.decimal128
    return pc.divide(relabel(value, wide(value.type.precision, 0)).cast(pa.float64()), 10.0**scale)


def decimal_integers(array: pa.Array) -> np.ndarray | None:
    """The integers that decimals are stored as, if they fit 64 bits.

    Args:
        array: of decimal128.

    Returns:
        Shape (rows,), int64, those of nulls unknown; None if one doesn't fit.

    Example:
        >>> decimal_integers(pa.array([Decimal("1.25"), Decimal("-0.50")])).tolist()
        [125, -50]
    """
    words = np.frombuffer(array.buffers()[1] or b"", dtype=np.int64)
    words = words[2 * array.offset : 2 * (array.offset + len(array))]
    low, high = words[::2], words[1::2]
    if array.type.precision > 18 and (high != low >> 63).any():
        return None
    return low


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def relabel(value: pa.Array | pa.ChunkedArray, type: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Read the same bytes as another type of the same layout; no copy, no check."""
    if isinstance(value, pa.ChunkedArray):
        return pa.chunked_array([relabel(chunk, type) for chunk in value.chunks], type=type)
    return pa.Array.from_buffers(type, len(value), value.buffers(), value.null_count, value.offset)


def meet(values: Sequence[Value], weak: Sequence[bool], exact: bool = False) -> list[Value]:
    """Bring values to one type, untyped literals giving way to the others.

    Args:
        values: columns and scalars.
        weak: for each, whether it is an untyped literal.
        exact: True for comparisons; see `common_type`.

    Returns:
        The values, all of one type.

    Raises:
        NoCommonTypeError: there is no such type.
    """
    adapted = adopt_literals(values, weak, exact)
    target = common_type([value.type for value in adapted], exact)
    return [retype(value, target) for value in adapted]


def adopt_literals(values: Sequence[Value], weak: Sequence[bool], exact: bool = False) -> list[Value]:
    """Cast untyped literals to the common type of the others, where they fit."""
    strong = [v.type for v, w in zip(values, weak) if not w and not pa.types.is_null(v.type)]
    if not strong:
        return list(values)
    target = common_type(strong, exact)
    return [
        adopt(value, target, exact) if w or pa.types.is_null(value.type) else value
        for value, w in zip(values, weak)
    ]


def adopt(value: Value, target: pa.DataType, exact: bool = False) -> Value:
    """Cast an untyped literal, or the values of a literal list, to a type if they fit."""
    source = value.type
    if source == target:
        return value
    if pa.types.is_null(source):
        return value.cast(target)
    if pa.types.is_integer(source) and is_number(target):
        return _integer_literal(value, target)
    if pa.types.is_floating(source) and pa.types.is_floating(target):
        narrow = value.cast(target, safe=False)
        overflowed = _any(pc.and_(pc.is_inf(narrow), pc.is_finite(value)))
        return value if overflowed else narrow
    if pa.types.is_floating(source) and pa.types.is_decimal(target) and exact:
        return _as_written(value)
    if pa.types.is_decimal(source) and pa.types.is_floating(target):
        return decimal_to_float(value).cast(target)
    if pa.types.is_string(source) and pa.types.is_temporal(target):
        return _parse_literal(value, target)
    if pa.types.is_string(source) and pa.types.is_binary(target):
        return value.cast(target)
    if pa.types.is_temporal(source) and pa.types.is_temporal(target):
        return _temporal_literal(value, target)
    return value


def _any(mask: Value) -> bool:
    return bool(mask.as_py()) if isinstance(mask, pa.Scalar) else bool(pc.any(mask).as_py())


def _integer_literal(value: Value, target: pa.DataType) -> Value:
    if pa.types.is_decimal(target):
        digits = max((len(str(abs(v))) for v in _python_values(value)), default=1)
        return value.cast(integer_as_decimal(value.type)).cast(pa.decimal128(digits, 0))
    try:
        return value.cast(target, safe=not pa.types.is_floating(target))
    except pa.ArrowInvalid:
        return value


def _python_values(value: Value) -> list[Any]:
    items = [value.as_py()] if isinstance(value, pa.Scalar) else value.to_pylist()
    return [item for item in items if item is not None]


def _as_written(value: Value) -> Value:
    """Read float literals as the decimals they were written as, so that 0.07 equals Decimal('0.07')."""
    if not all(np.isfinite(v) for v in _python_values(value)):
        return value
    if isinstance(value, pa.Scalar):
        return pa.scalar(Decimal(repr(value.as_py())))
    return pa.array([None if v is None else Decimal(repr(v)) for v in value.to_pylist()])


def _parse_literal(value: Value, target: pa.DataType) -> Value:
    zone = target.tz if pa.types.is_timestamp(target) else None
    plain = pa.timestamp(target.unit) if zone else target
    fallbacks = [pa.timestamp("us"), pa.timestamp("ns")] if not pa.types.is_time(target) else []
    for type in [target, plain, *fallbacks]:
        try:
            parsed = value.cast(type)
        except pa.ArrowInvalid:
            continue
        return pc.assume_timezone(parsed, timezone=zone) if zone and type is not target else parsed
    raise NoCommonTypeError(
        f"{_python_values(value)[0]!r} is no {type_name(target)}; write 2024-01-31 or 2024-01-31 12:30:00"
    )


def _temporal_literal(value: Value, target: pa.DataType) -> Value:
    if pa.types.is_timestamp(target) and target.tz:
        if pa.types.is_date(value.type):
            value = value.cast(pa.timestamp("us"))
        if pa.types.is_timestamp(value.type) and value.type.tz is None:
            value = pc.assume_timezone(value, timezone=target.tz)
    if pa.types.is_timestamp(value.type) and pa.types.is_date(target):
        day = value.cast(target)
        return day if not _any(pc.not_equal(day.cast(value.type), value)) else value
    if pa.types.is_date(value.type) and not pa.types.is_timestamp(target):
        return value
    try:
        return value.cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return value
