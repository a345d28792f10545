"""Key words: the keys of a row as few words of 64 bits, equal where the keys are equal.

Null is a value like any other, all NaN are one value, and -0.0 equals 0.0. The order of words means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ...backend import Array, to_host
from ..column import DeviceColumn, is_coded
from ..modules import kernel, launch, on_device

#: a word has so many values
_WORD = 1 << 64
#: and one of 32 bits so many
_NARROW = 1 << 32
#: blocks that look for the range of a column; more would only wait for the same two numbers
_BLOCKS = 1024
#: rows of a thread that appends a key, as in the source
_EACH = 4
_SIGN = np.uint64(1 << 63)

#: how the CUDA sources call a dtype
C_NAMES = {
    np.dtype(dtype): name
    for dtype, name in {
        "bool": "u8",
        "uint8": "u8",
        "int8": "i8",
        "uint16": "u16",
        "int16": "i16",
        "uint32": "u32",
        "int32": "i32",
        "uint64": "u64",
        "int64": "i64",
        "float32": "f32",
        "float64": "f64",
    }.items()
}


@dataclass(frozen=True)
class KeyWords:
    """Keys as words.

    Attributes:
        words: shape (words a row, rows), dtype uint64, or uint32 where that is enough for the one word a row; no words
            a row where all keys are equal.
        size: the words of a row are below it, if there is one word a row; else it counts nothing.
    """

    words: Array
    size: int


@dataclass(frozen=True)
class _Part:
    """What one column adds to a word: its values from ``low`` on, or only whether they are null."""

    column: DeviceColumn
    size: int
    low: int = 0
    nullable: bool = False
    flags: bool = False


def key_words(columns: Sequence[DeviceColumn], rows: int, xp: ModuleType) -> KeyWords:
    """Pack keys into words.

    Integers are first read for their range: their own width of bytes a row. Then each column is read again and
    its word is read and written: 16 bytes a row, 8 for a word's first column; half of that for words of 32 bits.

    Args:
        columns: the keys, each of ``rows`` values; codes of different columns needn't share a dictionary.
        rows: how many rows.
        xp: NumPy or CuPy.

    Example:
        >>> import pyarrow as pa
        >>> from headwater.ops.device.column import to_device
        >>> keys = [to_device(pa.array([7, None, 9]), np), to_device(pa.array([True, True, False]), np)]
        >>> packed = key_words(keys, 3, np)
        >>> packed.words.tolist(), packed.size
        ([[3, 1, 6]], 8)
    """
    words: list[list[_Part]] = []
    room = 1
    for part in _parts(columns, xp):
        if part.size <= 1:
            continue
        if words and room * part.size <= _WORD:
            words[-1].append(part)
            room *= part.size
        else:
            words.append([part])
            room = part.size
    narrow = len(words) == 1 and room <= _NARROW
    packed = xp.empty((len(words), rows), dtype=np.uint32 if narrow else np.uint64)
    for place, parts in enumerate(words):
        for number, part in enumerate(parts):
            _append(packed[place], part, number == 0, xp)
    return KeyWords(packed, room)


def one_form(values: Array, xp: ModuleType) -> Array:
    """Bring floats to one representation of each value: no -0.0, one NaN; other values are as they were."""
    if values.dtype.kind != "f":
        return values
    bits = values.view(f"i{values.dtype.itemsize}")  # what CuPy adds to 32 bits takes tiny ones for zero
    plain = xp.where(bits == np.iinfo(bits.dtype).min, bits.dtype.type(0), bits).view(values.dtype)
    return xp.where(values == values, plain, values.dtype.type(np.nan))


def ranges(columns: Sequence[DeviceColumn], xp: ModuleType) -> list[tuple[int, int]]:
    """Return the least value of each column, and how many values there are from it to the greatest.

    Reads the values and their mask once, and waits for the device once.

    Args:
        columns: of integers.
        xp: NumPy or CuPy.

    Returns:
        A pair for each column; (0, 0) for one without values that aren't null.
    """
    if not columns:
        return []
    limits = np.iinfo(np.int64)
    found = xp.empty((len(columns), 2), dtype=np.int64)
    found[:, 0], found[:, 1] = limits.max, limits.min
    for place, column in enumerate(columns):
        if on_device(xp):
            function = kernel(xp, "key_words", "key_range", T=C_NAMES[column.values.dtype])
            nullable, valid = column.valid is not None, _flags(column)
            items = min(len(column), 256 * _BLOCKS)
            launch(
                function,
                items,
                (column.values, valid, np.int32(nullable), np.int64(len(column)), found[place]),
            )
        else:
            known = column.values if column.valid is None else column.values[column.valid]
            if known.dtype == np.uint64:
                known = (known ^ _SIGN).view(np.int64)
            if len(known):
                found[place] = known.min(), known.max()
    result = []
    for column, (low, high) in zip(columns, to_host(found).tolist()):
        shift = 1 << 63 if column.values.dtype == np.uint64 else 0
        result.append((low + shift, high - low + 1) if low <= high else (0, 0))
    return result


def _parts(columns: Sequence[DeviceColumn], xp: ModuleType) -> list[_Part]:
    sizes: list[tuple[int, int] | None] = [_known_range(column) for column in columns]
    unknown = [place for place, size in enumerate(sizes) if size is None]
    for place, found in zip(unknown, ranges([columns[place] for place in unknown], xp)):
        sizes[place] = found
    parts = []
    for column, range in zip(columns, sizes):
        assert range is not None
        low, size = range
        if column.valid is None:
            parts.append(_Part(column, size, low))
        elif size < _WORD:
            parts.append(_Part(column, size + 1, low, nullable=True))
        else:
            parts += [_Part(column, 2, flags=True), _Part(column, size, low)]
    return parts


def _known_range(column: DeviceColumn) -> tuple[int, int] | None:
    """The least code of a column and how many codes there may be, if that is known without reading it."""
    dtype = column.values.dtype
    if is_coded(column.type):
        return 0, max(1, len(column.dictionary))  # type: ignore[arg-type]
    if dtype.kind == "f":
        return 0, 1 << 8 * dtype.itemsize
    if dtype.kind == "b":
        return 0, 2
    return (int(np.iinfo(dtype).min), 256) if dtype.itemsize == 1 else None


def _append(word: Array, part: _Part, first: bool, xp: ModuleType) -> None:
    column, rows = part.column, int(word.shape[0])
    low, size = np.uint64(part.low % _WORD), np.uint64(part.size % _WORD)  # a whole word is always the first
    if on_device(xp):
        name = "append_narrow" if word.dtype == np.uint32 else "append_key"
        function = kernel(xp, "key_words", name, T=C_NAMES[column.values.dtype])
        flags = (np.int32(part.nullable), np.int32(part.flags))
        launch(
            function,
            rows,
            (column.values, _flags(column), *flags, low, size, np.int32(first), np.int64(rows), word),
            each=_EACH,
        )
        return
    if part.flags:
        codes = column.valid.astype(np.uint64)  # type: ignore[union-attr]
    else:
        codes = _bits(column.values) - low
        if part.nullable:
            codes = np.where(column.valid, codes + np.uint64(1), np.uint64(0))
    word[:] = codes if first else word * size + codes


def _flags(column: DeviceColumn) -> Array:
    """The validity of a column, or in its place any array, which is not read."""
    return column.values if column.valid is None else column.valid


def _bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return one_form(values, np).view(f"u{values.dtype.itemsize}").astype(np.uint64)
    if values.dtype.kind in "ub":
        return values.astype(np.uint64)
    return values.astype(np.int64).view(np.uint64)
