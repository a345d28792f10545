"""JSON text of Arrow columns, made with Arrow kernels: no Python per row."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..ops.morsels import contiguous

#: rows are rendered in pieces of this many bytes, so that 32-bit offsets hold the text
_PIECE_BYTES = 128 << 20

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def json_lines(table: pa.Table) -> list[pa.Buffer]:
    """Render a table as JSON lines: an object a row, nulls written as ``null``.

    NaN and infinities, which JSON lacks, become null. Times are ISO 8601; decimals are numbers.

    Args:
        table: rows; of types that `is_json_type` takes.

    Returns:
        UTF-8 text in pieces.

    Example:
        >>> table = pa.table({"a": [1, None], "s": ["x\\"y", "z"], "l": [[1.0], []]})
        >>> print(b"".join(json_lines(table)).decode(), end="")
        {"a":1,"s":"x\\"y","l":[1.0]}
        {"a":null,"s":"z","l":[]}
    """
    if table.nbytes > _PIECE_BYTES and table.num_rows > 1:
        middle = table.num_rows // 2
        return json_lines(table.slice(0, middle)) + json_lines(table.slice(middle))
    if not table.num_rows:
        return []
    arrays = [contiguous(column) for column in table.columns]
    return [text_bytes(_object(table.column_names, arrays, end="}\n"))]


def is_json_type(type: pa.DataType) -> bool:
    """Whether values of a type have a JSON text."""
    if pa.types.is_map(type):
        return (
            is_json_type(type.key_type)
            and not pa.types.is_nested(type.key_type)
            and is_json_type(type.item_type)
        )
    if pa.types.is_nested(type):
        return not pa.types.is_union(type) and all(
            is_json_type(type.field(i).type) for i in range(type.num_fields)
        )
    return not (
        pa.types.is_binary(type)
        or pa.types.is_fixed_size_binary(type)
        or pa.types.is_duration(type)
        or pa.types.is_interval(type)
    )


def _object(names: Sequence[str], arrays: Sequence[pa.Array], end: str = "}") -> pa.Array:
    pieces: list[pa.Array | pa.Scalar] = []
    for name, array in zip(names, arrays):
        pieces += [("," if pieces else "{") + dumps(name, ensure_ascii=False) + ":", _text(array)]
    return joined(*(pieces or ["{"]), end)


def _text(array: pa.Array) -> pa.Array:
    """The JSON text of each value, as strings without nulls."""
    return pc.fill_null(_nullable_text(array), "null")


def _nullable_text(array: pa.Array) -> pa.Array:
    type = array.type
    if pa.types.is_string(type):
        return _quoted(array)
    if pa.types.is_boolean(type) or pa.types.is_integer(type) or pa.types.is_decimal(type):
        return array.cast(pa.string())
    if pa.types.is_floating(type):
        return _float_text(array)
    if pa.types.is_temporal(type):
        return _time_text(array)
    if pa.types.is_null(type):
        return array.cast(pa.string())
    if pa.types.is_struct(type):
        names = [type.field(i).name for i in range(type.num_fields)]
        return _masked(_object(names, array.flatten()) if names else pa.repeat("{}", len(array)), array)
    if pa.types.is_map(type):
        return _map_text(array)
    return _list_text(array, "[", "]", _text(array.flatten()))


def _float_text(array: pa.Array) -> pa.Array:
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    text = pc.if_else(pc.is_finite(array), array.cast(pa.string()), pa.scalar(None, pa.string()))
    return joined(text, fraction(text))


def _time_text(array: pa.Array) -> pa.Array:
    text = array.cast(pa.string())
    if pa.types.is_timestamp(array.type):
        text = pc.replace_substring(text, " ", "T", max_replacements=1)
    return joined('"', text, '"')


def _quoted(array: pa.Array) -> pa.Array:
    used = np.bincount(np.frombuffer(text_bytes(array), np.uint8), minlength=256)
    for code in (ord("\\"), ord('"'), *range(0x20)):
        if used[code]:
            array = pc.replace_substring(array, chr(code), _ESCAPES.get(chr(code), f"\\u{code:04x}"))
    return joined('"', array, '"')


def _map_text(array: pa.Array) -> pa.Array:
    plain = array.cast(pa.list_(pa.struct([("key", array.type.key_type), ("value", array.type.item_type)])))
    keys, values = plain.flatten().flatten()
    return _list_text(plain, "{", "}", joined(_quoted(keys.cast(pa.string())), ":", _text(values)))


def _list_text(array: pa.Array, start: str, end: str, values: pa.Array) -> pa.Array:
    """Join the texts of the flattened values of each list."""
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), values)
    return _masked(joined(start, pc.binary_join(lists, ","), end), array)


def _masked(text: pa.Array, array: pa.Array) -> pa.Array:
    return pc.if_else(array.is_valid(), text, pa.scalar(None, pa.string())) if array.null_count else text


def fraction(text: pa.Array) -> pa.Array:
    """Return ``.0`` for each text of a float that lacks a fraction, so that it is a float when it is read again."""
    whole = pc.fill_null(pc.match_substring_regex(text, r"^-?\d+$"), False).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(text) + 1, np.int32)
    np.cumsum(2 * whole, out=offsets[1:])
    return pa.StringArray.from_buffers(
        len(text), pa.py_buffer(offsets), pa.py_buffer(b".0" * (int(offsets[-1]) // 2))
    )


def joined(*pieces: pa.Array | str) -> pa.Array:
    """Join texts row by row; null where one of them is null."""
    return pc.binary_join_element_wise(*pieces, "")


def text_bytes(text: pa.Array) -> pa.Buffer:
    """The characters of a string array in a row."""
    if not len(text) or text.buffers()[2] is None:
        return pa.py_buffer(b"")
    offsets = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1]
    return text.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
