"""CSV text of Arrow columns, made with Arrow kernels: no Python per row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..ops.morsels import contiguous
from .json_text import fraction, joined, text_bytes

#: rows are rendered in pieces of this many bytes, so that 32-bit offsets hold the text
_PIECE_BYTES = 128 << 20
#: null in the only column, where nothing at all would be an empty line, which readers skip
_LONE_NULL = "NA"


def csv_lines(table: pa.Table, delimiter: str = ",") -> list[pa.Buffer]:
    """Render a table as CSV without a header: strings in quotes, null as nothing.

    Floats keep a fraction, so that they are floats when they are read again. Times are as Arrow writes them.

    Args:
        table: rows; no column is nested or binary.
        delimiter: one character.

    Returns:
        UTF-8 text in pieces.

    Example:
        >>> table = pa.table({"a": [1.0, None], "s": ['x"y', ""]})
        >>> print(b"".join(csv_lines(table)).decode(), end="")
        1.0,"x""y"
        ,""
    """
    if table.nbytes > _PIECE_BYTES and table.num_rows > 1:
        middle = table.num_rows // 2
        return csv_lines(table.slice(0, middle), delimiter) + csv_lines(table.slice(middle), delimiter)
    if not table.num_rows:
        return []
    pieces: list[pa.Array | str] = []
    for column in table.columns:
        pieces += [delimiter] * bool(pieces) + _pieces(contiguous(column))
    null = "" if table.num_columns > 1 else _LONE_NULL
    text = pc.binary_join_element_wise(*pieces, "\n", "", null_handling="replace", null_replacement=null)
    return [text_bytes(text)]


def csv_header(names: Sequence[str], delimiter: str = ",") -> bytes:
    """Render the line of the column names."""
    return (delimiter.join('"' + name.replace('"', '""') + '"' for name in names) + "\n").encode()


def _pieces(array: pa.Array) -> list[pa.Array | str]:
    """Texts that make up the column's values when they are joined."""
    if pa.types.is_floating(array.type):
        text = array.cast(pa.string())
        return [text, fraction(text)]
    if not pa.types.is_string(array.type):
        return [array.cast(pa.string())]
    if (np.frombuffer(text_bytes(array), np.uint8) == ord('"')).any():
        array = pc.replace_substring(array, '"', '""')
    return [joined('"', array, '"')]
