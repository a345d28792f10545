"""Types of values inside a kernel: what C calls an Arrow type, and constants as C writes them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ..column import SHORT_DECIMAL, is_coded, physical_type

#: ticks of a second, by unit
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DAY = 86_400

_C = {
    "bool": "bool",
    "int8": "signed char",
    "uint8": "unsigned char",
    "int16": "short",
    "uint16": "unsigned short",
    "int32": "int",
    "uint32": "unsigned",
    "int64": "long long",
    "uint64": "unsigned long long",
    "float32": "float",
    "float64": "double",
}


class Refused(Exception):
    """An expression has no form in a kernel; the text says why."""


def c_type(type: pa.DataType) -> str:
    """Return the C type that a kernel computes an Arrow type in.

    Raises:
        Refused: there is none.

    Example:
        >>> c_type(pa.uint16()), c_type(pa.timestamp("us"))
        ('unsigned short', 'long long')
    """
    return c_name(dtype_of(type))


def c_name(dtype: np.dtype) -> str:
    """Return C's name of a dtype."""
    return _C[dtype.name]


def dtype_of(type: pa.DataType) -> np.dtype:
    """Return the dtype of a type's values on a device, or refuse it."""
    dtype = physical_type(type)
    if dtype is None:
        if pa.types.is_decimal(type):
            raise Refused(f"it needs {type}, and decimals there have at most {SHORT_DECIMAL} digits")
        raise Refused(f"values of {type} have no form there")
    if is_coded(type) and not pa.types.is_string(type):
        raise Refused(f"values of {type} only pass through there")
    if pa.types.is_date64(type):
        raise Refused("date64 only passes through there")
    return dtype


def integer(value: int, ctype: str) -> str:
    """Write an integer constant of a C type.

    Example:
        >>> integer(-128, "signed char"), integer(2**64 - 1, "unsigned long long")
        ('((signed char)-128LL)', '((unsigned long long)18446744073709551615ULL)')
    """
    if value == -(2**63):
        return f"(({ctype})(-9223372036854775807LL - 1))"
    return f"(({ctype}){value}{'ULL' if value >= 2**63 else 'LL'})"


def is_signed(type: pa.DataType) -> bool:
    """Whether an integer type has negative values."""
    return pa.types.is_signed_integer(type)


def limits(type: pa.DataType) -> tuple[int, int]:
    """Return the least and greatest value of an integer type."""
    info = np.iinfo(type.to_pandas_dtype())
    return int(info.min), int(info.max)


def physical(scalar: pa.Scalar) -> int | float | bool:
    """Return what stands for a constant on a device: unscaled integers for decimals, ticks for times."""
    type = scalar.type
    if pa.types.is_decimal(type):
        return int(scalar.as_py().scaleb(type.scale).to_integral_value())
    if pa.types.is_temporal(type):
        return int(scalar.value)
    return scalar.as_py()
