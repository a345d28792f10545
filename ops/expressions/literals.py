"""Literals: Python, NumPy and Arrow constants as expressions."""

from __future__ import annotations

import datetime
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import TypeMismatchError
from ..schema import canonical_type
from .expr import Expr, Literal
from .types import decimal_to_float, parse_type, retype

_EPOCH = datetime.date(1970, 1, 1).toordinal()
#: type of a constant to its Arrow type, and its value as the buffers of an array of length one
_BUFFERS: dict[type, tuple[pa.DataType, Callable[[Any], tuple[bytes, ...]]]] = {
    bool: (pa.bool_(), lambda value: (bytes([value]),)),
    int: (pa.int64(), lambda value: (struct.pack("<q", value),)),
    float: (pa.float64(), lambda value: (struct.pack("<d", value),)),
    str: (pa.string(), lambda value: _text_buffers(value.encode())),
    datetime.date: (pa.date32(), lambda value: (struct.pack("<i", value.toordinal() - _EPOCH),)),
}
_PLAIN = (bool, int, float, str, bytes, datetime.date, datetime.time, datetime.timedelta, Decimal, type(None))


def lit(value: Any, type: Any = None) -> Expr:
    """Return a constant as an expression.

    Args:
        value: None, bool, int, float, str, bytes, Decimal, date, datetime, time, timedelta, a NumPy or
            Arrow scalar, or a list or dict of such. An expression is returned as it is.
        type: the Arrow type or its name. A constant without one takes the type of what it meets, if it
            fits; NumPy and Arrow scalars keep theirs.

    Returns:
        The literal.

    Raises:
        TypeMismatchError: the value is no constant, or doesn't fit the type.

    Example:
        >>> from headwater.ops.expressions import col
        >>> (col("n") + lit(1)).infer(pa.schema({"n": pa.int8()}))
        DataType(int8)
        >>> (col("n") + lit(1, "int32")).infer(pa.schema({"n": pa.int8()}))
        DataType(int32)
    """
    if isinstance(value, Expr):
        return value if type is None else value.cast(type)
    if type is not None:
        target = parse_type(type)
        try:
            return Literal(_typed_scalar(value, target), typed=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise TypeMismatchError(f"lit({value!r}, {str(target)!r}): {error}") from None
    if isinstance(value, pa.Scalar | np.generic):
        return Literal(_own_scalar(value), typed=True)
    if not isinstance(value, _PLAIN) and not isinstance(value, list | tuple | dict):
        raise TypeMismatchError(
            f"{value!r} ({value.__class__.__name__}) is no constant and no expression. "
            "Write col('name') for a column, or a number, string, date or other plain value."
        )
    return Literal(_plain_scalar(value))


def as_expr(value: Any) -> Expr:
    """Return an expression as it is, anything else as a literal."""
    return value if isinstance(value, Expr) else lit(value)


def _typed_scalar(value: Any, target: pa.DataType) -> pa.Scalar:
    if isinstance(value, pa.Scalar | np.generic):
        return retype(_own_scalar(value), target)
    if isinstance(value, int | float | Decimal) and pa.types.is_floating(target):
        scalar = _plain_scalar(value)
        scalar = decimal_to_float(scalar) if pa.types.is_decimal(scalar.type) else scalar
        return scalar.cast(target, safe=False)
    if isinstance(value, str) and not pa.types.is_string(target):
        return pa.scalar(value).cast(target)
    return pa.scalar(value, target)


def _text_buffers(text: bytes) -> tuple[bytes, bytes]:
    return struct.pack("<ii", 0, len(text)), text


def _own_scalar(value: pa.Scalar | np.generic) -> pa.Scalar:
    if isinstance(value, pa.Scalar):
        return value.cast(canonical_type(value.type))
    try:
        return pa.array(np.asarray([value]))[0].cast(canonical_type(pa.array(np.asarray([value])).type))
    except (pa.ArrowException, TypeError) as error:
        raise TypeMismatchError(f"{value!r} has no Arrow type: {error}") from None


def _plain_scalar(value: Any) -> pa.Scalar:
    if value.__class__ in _BUFFERS:
        kind, buffers = _BUFFERS[value.__class__]
        try:  # `pa.scalar` would import pandas, which takes longer than all else that a declaration needs
            return pa.Array.from_buffers(kind, 1, [None, *map(pa.py_buffer, buffers(value))])[0]
        except (struct.error, UnicodeEncodeError):
            pass  # out of range, or no valid text: what follows says so
    if isinstance(value, int) and not isinstance(value, bool):
        if -(2**63) <= value < 2**63:
            return pa.scalar(int(value), pa.int64())
        if 0 <= value < 2**64:
            return pa.scalar(int(value), pa.uint64())
        value = Decimal(int(value))
    try:
        return pa.scalar(value)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise TypeMismatchError(f"{value!r} has no Arrow type: {error}") from None
