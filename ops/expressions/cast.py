"""Cast: a value as another type; what doesn't fit raises, or becomes null."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import TypeMismatchError
from .expr import Computed, Expr, Value, operand
from .types import is_number, parse_type, retype, type_name

#: texts that can't be such a type; what passes may still fail
_PATTERNS: list[tuple[Callable[[pa.DataType], bool], str]] = [
    (pa.types.is_integer, r"^[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)$"),
    (pa.types.is_floating, r"^(?i)[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?$|^[+-]?(inf|infinity|nan)$"),
    (pa.types.is_date, r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"),
    (pa.types.is_timestamp, r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    (pa.types.is_boolean, r"^(?i)(true|false|0|1)$"),
]


class Cast(Computed):
    """An expression as another type."""

    def __init__(self, expr: Expr, type: Any, strict: bool = True):
        self.children = (expr,)
        self.type = parse_type(type)
        self.strict = strict

    def with_children(self, children: Sequence[Expr]) -> Cast:
        return Cast(children[0], self.type, self.strict)

    def token_of(self, tokens: Sequence[str]) -> str:
        return f"cast({tokens[0]}, {self.type}, strict={self.strict})"

    def type_of(self, types: Sequence[pa.DataType]) -> pa.DataType:
        try:
            cast_value(pa.nulls(0, types[0]), self.type, self.strict)
        except (pa.ArrowException, TypeError):
            raise TypeMismatchError(
                f"{self}: there is no way from {type_name(types[0])} to {type_name(self.type)}."
            ) from None
        return self.type

    def value_of(self, values: Sequence[Value]) -> Value:
        value = values[0]
        scalar = isinstance(value, pa.Scalar)
        try:
            result = cast_value(pa.repeat(value, 1) if scalar else value, self.type, self.strict)
        except pa.ArrowException as error:
            raise TypeMismatchError(
                f"{self}: {error}. Write {operand(self.children[0])}.cast('{type_name(self.type)}', "
                "strict=False) to make what doesn't fit null."
            ) from error
        return result[0] if scalar else result

    def text_of(self, texts: Sequence[str], operands: Sequence[str]) -> str:
        strict = "" if self.strict else ", strict=False"
        return f"{operands[0]}.cast('{type_name(self.type)}'{strict})"


def cast_value(
    value: pa.Array | pa.ChunkedArray, type: pa.DataType, strict: bool = True
) -> pa.Array | pa.ChunkedArray:
    """Convert a column.

    Args:
        value: the column.
        type: the type it becomes.
        strict: True raises where a value doesn't fit, False makes it null.

    Returns:
        The column in that type.

    Raises:
        ArrowInvalid: a value doesn't fit, and ``strict``.
        ArrowNotImplementedError: no value of the one type has a place in the other.

    Example:
        >>> cast_value(pa.array([1.9, -1.9]), pa.int8()).to_pylist()
        [1, -1]
    """
    if value.type == type:
        return value
    value = _prepare(value, type)
    try:
        return _convert(value, type)
    except pa.ArrowInvalid:
        if strict:
            raise
    if isinstance(value, pa.ChunkedArray):
        return pa.chunked_array([_convert_leniently(chunk, type) for chunk in value.chunks], type)
    return _convert_leniently(value, type)


def _prepare(value: Any, type: pa.DataType) -> Any:
    """Drop what a conversion drops silently: fractions, and times below the new unit."""
    source = value.type
    if pa.types.is_floating(source) and pa.types.is_integer(type):
        return pc.trunc(retype(value, pa.float32()) if pa.types.is_float16(source) else value)
    if pa.types.is_decimal(source) and pa.types.is_integer(type):
        kind = pa.decimal128 if pa.types.is_decimal128(source) else pa.decimal256
        return value.cast(kind(source.precision, 0), safe=False) if source.scale > 0 else value
    if pa.types.is_floating(source) and pa.types.is_decimal(type):
        return retype(value, pa.float64())
    if pa.types.is_decimal(source) and pa.types.is_decimal(type) and type.scale < source.scale:
        wide = value.cast(pa.decimal256(min(source.precision + 1, 76), source.scale))
        return pc.round(wide, ndigits=type.scale, round_mode="half_towards_infinity")
    if pa.types.is_timestamp(source) and pa.types.is_timestamp(type) and _ticks(source) > _ticks(type):
        return pc.floor_temporal(
            value, unit={"s": "second", "ms": "millisecond", "us": "microsecond"}[type.unit]
        )
    if pa.types.is_timestamp(source) and source.tz and (pa.types.is_date(type) or pa.types.is_time(type)):
        return pc.local_timestamp(value)
    return value


def _ticks(type: pa.DataType) -> int:
    return ("s", "ms", "us", "ns").index(type.unit)


def _convert(value: Any, type: pa.DataType) -> Any:
    source = value.type
    if is_number(source) and pa.types.is_floating(type):
        return retype(value, type)
    if pa.types.is_boolean(source) and pa.types.is_decimal(type):
        return retype(value, type)
    if pa.types.is_integer(source) and pa.types.is_decimal(type):
        return retype(value, type)
    if pa.types.is_decimal(source) and pa.types.is_boolean(type):
        return pc.not_equal(value, pa.scalar(0).cast(pa.decimal128(19, 0)))
    if pa.types.is_duration(source) and pa.types.is_duration(type):
        return value.cast(type, safe=_ticks(type) > _ticks(source))
    if pa.types.is_time(source) and pa.types.is_time(type):
        return value.cast(type, safe=False)
    return value.cast(type)


def _convert_leniently(array: pa.Array, type: pa.DataType) -> pa.Array:
    """Convert each distinct value that can be, leaving out the others."""
    encoded = array.dictionary_encode()
    distinct = _possible(encoded.dictionary, type)
    fitting = _bisect(distinct, type)
    return fitting.take(encoded.indices)


def _possible(values: pa.Array, type: pa.DataType) -> pa.Array:
    """Make null at once what surely fails, so that only few values have to be found by trying."""
    fits = None
    if pa.types.is_string(values.type):
        pattern = next((pattern for matches, pattern in _PATTERNS if matches(type)), None)
        fits = pc.match_substring_regex(values, pattern) if pattern else None
    elif pa.types.is_integer(type) and (
        pa.types.is_floating(values.type) or pa.types.is_integer(values.type)
    ):
        limits = np.iinfo(type.to_pandas_dtype())
        numbers = (
            values.to_numpy(zero_copy_only=False)
            if values.null_count == 0
            else pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
        )
        # the largest integers aren't floats; one more is, and isn't reached
        below = numbers < float(limits.max) + 1 if numbers.dtype.kind == "f" else numbers <= limits.max
        fits = pa.array((numbers >= limits.min) & below)
    return values if fits is None else pc.if_else(fits, values, pa.scalar(None, values.type))


def _bisect(values: pa.Array, type: pa.DataType) -> pa.Array:
    try:
        return _convert(values, type)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, type)
        middle = len(values) // 2
        return pa.concat_arrays([_bisect(values[:middle], type), _bisect(values[middle:], type)])
