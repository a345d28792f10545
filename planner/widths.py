"""Widths: how many bytes a value of a type is taken to need in memory."""

from __future__ import annotations

import pyarrow as pa

#: assumed bytes of a string or binary value, offsets included, and of values in a list
TEXT_BYTES = 20.0
LIST_LENGTH = 4


def type_width(type: pa.DataType) -> float:
    """Return the expected bytes of one value.

    Args:
        type: a canonical Arrow type.

    Returns:
        Exact for fixed-width types, a guess for text and nested ones.

    Example:
        >>> type_width(pa.int64()), type_width(pa.bool_())
        (8.0, 0.125)
    """
    if pa.types.is_null(type):
        return 0.0
    if pa.types.is_struct(type):
        return sum((type_width(field.type) for field in type), 0.0)
    if pa.types.is_map(type):
        return LIST_LENGTH * (type_width(type.key_type) + type_width(type.item_type))
    if pa.types.is_fixed_size_list(type):
        return type.list_size * type_width(type.value_type)
    if pa.types.is_nested(type):
        return LIST_LENGTH * type_width(type.value_type)
    try:
        return type.bit_width / 8
    except ValueError:
        return TEXT_BYTES


def row_width(schema: pa.Schema) -> float:
    """Return the expected bytes of one row; at least one."""
    return max(1.0, sum(type_width(field.type) for field in schema))
