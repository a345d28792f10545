"""Row hashes: 64 bits for each row of some columns, for hash exchanges and for fingerprints.

Every row has a state of 64 bits. A value is taken as one or more 64-bit words, and each word is
absorbed by ``state = mix(state ^ word)``, where mix is a bijection; so columns, and the words of a
value, count in order. All rows absorb at once, in slices that fit the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import xxhash

from ..errors import TypeMismatchError

#: rows absorbed at a time: a few arrays of this many words fit the second-level cache
_SLICE = 16_384
#: strings longer than this many bytes are hashed one by one, at the speed of memory
_LONG = 256
#: the word of a null, whatever bytes lie under it
NULL_WORD = np.uint64(0xA0761D6478BD642F)
#: ratio of the polynomial over the items of a list; 5 modulo 8, so its powers have the longest period
_RATIO = np.uint64(0x9E3779B97F4A7C15)
_TAIL_MASKS = np.array([0, *((1 << 8 * n) - 1 for n in range(1, 9))], dtype=np.uint64)


def hash_columns(
    columns: Sequence[pa.Array | pa.ChunkedArray], seed: int = 0, exact: bool = False
) -> np.ndarray:
    """Hash the rows of some columns of equal length.

    A hash depends on the values alone: not on chunks, offsets, the bytes under a null, or whether an
    all-valid column carries a validity bitmap.

    Args:
        columns: at least one column, of canonical types (see ``ops/schema.py``).
        seed: another seed gives independent hashes.
        exact: False, for partitioning, hashes equal values alike: integers of any width, floats of any
            width, -0.0 and 0.0. True, for fingerprints, tells -0.0 from 0.0. NaNs are alike in both.

    Returns:
        Array of shape (rows,), dtype uint64.

    Raises:
        TypeMismatchError: a column's type isn't canonical.
        ValueError: columns of different lengths.

    Example:
        >>> narrow, wide = pa.array([1, None], pa.int8()), pa.array([1, None], pa.int64())
        >>> bool((hash_columns([narrow]) == hash_columns([wide])).all())
        True

    Source:
        The finaliser is "Moremur", P. Evensen, "Stronger, better, morer, Moremur; a better
        Murmur3-type mixer" (2019), after A. Appleby's MurmurHash3.
    """
    rows = len(columns[0]) if columns else 0
    states = np.full(rows, start_state(seed), dtype=np.uint64)
    for column in columns:
        if len(column) != rows:
            raise ValueError(f"hash_columns: a column has {len(column)} rows, the first has {rows}")
        offset = 0
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else (column,):
            _absorb_sliced(chunk, states[offset : offset + len(chunk)], exact)
            offset += len(chunk)
    return states


def mix(words: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words in place by a bijection, and return them. Takes NumPy and CuPy arrays.

    Args:
        words: any shape, dtype uint64; overwritten.
    """
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x3C79AC492BA7B653)
    words ^= words >> np.uint64(33)
    words *= np.uint64(0x1C69B3F74AC4AE35)
    words ^= words >> np.uint64(27)
    return words


def powers(ratio: np.uint64, count: int) -> np.ndarray:
    """Return ``ratio ** [0, 1, ..., count - 1]`` modulo 2**64, shape (count,), dtype uint64."""
    table = np.full(max(count, 1), ratio, dtype=np.uint64)
    table[0] = 1
    return np.multiply.accumulate(table)[:count]


def start_state(seed: int = 0) -> np.uint64:
    """Return the state that every row has before it absorbs a value."""
    return mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64) ^ np.uint64(0x2D358DCCAA6C78A5))[0]


def string_words(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the words that strings, or values of bytes, are absorbed as; a null is one word.

    Args:
        array: a column of strings or bytes.

    Returns:
        The words of all values one after another, dtype uint64; and where each value's words begin and the
        last one's end, shape (rows + 1,), int64.

    Example:
        >>> words, bounds = string_words(pa.array(["a", None]))
        >>> words[:2].tolist(), bounds.tolist()
        ([97, 1], [0, 2, 3])
    """
    if not len(array):
        return np.zeros(0, dtype=np.uint64), np.zeros(1, dtype=np.int64)
    data, starts, lengths = _byte_ranges(array)
    valid = _valid(array)
    if valid is not None:
        lengths = np.where(valid, lengths, 0)
    counts = -(-lengths // 8)
    long = np.flatnonzero(lengths > _LONG)
    counts[long] = 1
    bounds = np.concatenate([[0], np.cumsum(counts + 1)])
    rows = np.repeat(np.arange(len(array)), counts)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    every = np.ndarray((data.size - 7,), dtype="<u8", buffer=data, strides=(1,))
    left = np.minimum(lengths[rows] - 8 * place, 8)
    words = np.empty(int(bounds[-1]), dtype=np.uint64)
    words[bounds[rows] + place] = every[starts[rows] + 8 * place] & _TAIL_MASKS.take(left)
    view = data.data
    for row in long.tolist():
        first = int(starts[row])
        words[bounds[row]] = xxhash.xxh3_64_intdigest(view[first : first + int(lengths[row])])
    words[bounds[1:] - 1] = (
        lengths if valid is None else np.where(valid, lengths.astype(np.uint64), NULL_WORD)
    )
    return words, bounds


def _absorb_sliced(array: pa.Array, states: np.ndarray, exact: bool) -> None:
    for first in range(0, len(array), _SLICE):
        part = array.slice(first, _SLICE)
        _absorb(part, states[first : first + len(part)], exact)


def _absorb(array: pa.Array, states: np.ndarray, exact: bool) -> None:
    type = array.type
    if pa.types.is_null(type):
        _absorb_word(states, np.full(len(array), NULL_WORD), None)
    elif pa.types.is_boolean(type):
        _absorb_word(states, _bitmap(array, array.buffers()[1]).astype(np.uint64), _valid(array))
    elif pa.types.is_floating(type):
        _absorb_word(states, _float_words(array, exact), _valid(array))
    elif pa.types.is_struct(type):
        _absorb_struct(array, states, exact)
    elif pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        _absorb_lists(array, array.values, states, exact)
    elif pa.types.is_map(type):
        entries = pa.StructArray.from_arrays([array.keys, array.items], names=["key", "value"])
        _absorb_lists(array, entries, states, exact)
    elif _is_bytes(type):
        _absorb_bytes(array, states)
    elif _is_fixed(type):
        for word in _fixed_words(array):
            _absorb_word(states, word, _valid(array))
    else:
        raise TypeMismatchError(
            f"a column of {type} has no row hash. Turn it into a canonical type first, as sources do "
            "(canonical_table in ops/schema.py)."
        )


def _absorb_word(states: np.ndarray, word: np.ndarray, valid: np.ndarray | None) -> None:
    states ^= word if valid is None else np.where(valid, word, NULL_WORD)
    mix(states)


def _is_fixed(type: pa.DataType) -> bool:
    t = pa.types
    return t.is_integer(type) or t.is_temporal(type) or t.is_decimal(type) or t.is_interval(type)


def _is_bytes(type: pa.DataType) -> bool:
    t = pa.types
    plain = t.is_string(type) or t.is_binary(type) or t.is_fixed_size_binary(type)
    return plain or t.is_large_string(type) or t.is_large_binary(type)


def _valid(array: pa.Array) -> np.ndarray | None:
    """Which slots hold a value, dtype bool; None if all do."""
    return None if array.null_count == 0 else _bitmap(array, array.buffers()[0])


def _bitmap(array: pa.Array, buffer: pa.Buffer | None) -> np.ndarray:
    if buffer is None:
        return np.zeros(len(array), dtype=bool)
    first, skip = divmod(array.offset, 8)
    packed = np.frombuffer(buffer, np.uint8)[first : first + (skip + len(array) + 7) // 8]
    return np.unpackbits(packed, bitorder="little")[skip : skip + len(array)].view(bool)


def _values(array: pa.Array, dtype: str | np.dtype, width: int = 1) -> np.ndarray:
    """The fixed-width values of a primitive array, ``width`` items each, without a copy."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array) * width, dtype)
    first = array.offset * width
    return np.frombuffer(buffer, dtype)[first : first + len(array) * width]


def _fixed_words(array: pa.Array) -> Sequence[np.ndarray]:
    """Integers, dates, times and decimals as one or more words; integers are extended to 64 bits."""
    type = array.type
    if type.bit_width > 64:
        count = type.bit_width // 64
        return list(_values(array, "<u8", count).reshape(-1, count).T)
    if pa.types.is_unsigned_integer(type):
        return [_values(array, f"<u{type.bit_width // 8}").astype(np.uint64)]
    return [_values(array, f"<i{type.bit_width // 8}").astype(np.int64, copy=False).view(np.uint64)]


def _float_words(array: pa.Array, exact: bool) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        values = _values(array, f"<f{array.type.bit_width // 8}").astype(np.float64)
    if not exact:
        values += 0.0  # -0.0 + 0.0 is 0.0
    nan = np.isnan(values)
    if nan.any():
        values[nan] = np.nan
    return values.view(np.uint64)


def _absorb_struct(array: pa.StructArray, states: np.ndarray, exact: bool) -> None:
    fields = states.copy()
    for index in range(array.type.num_fields):
        _absorb(array.field(index), fields, exact)
    valid = _valid(array)
    if valid is not None:
        fields[~valid] = NULL_WORD
    states ^= fields
    mix(states)


def _absorb_lists(array: pa.Array, items: pa.Array, states: np.ndarray, exact: bool) -> None:
    """Absorb for each list the polynomial of its items' hashes, then its length."""
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        offsets = np.arange(array.offset, array.offset + len(array) + 1, dtype=np.int64) * width
    else:
        offsets = array.offsets.to_numpy().astype(np.int64, copy=False)
    first, lengths = int(offsets[0]), np.diff(offsets)
    total = int(offsets[-1]) - first
    hashes = np.full(total, start_state(1), dtype=np.uint64)
    _absorb_sliced(items.slice(first, total), hashes, exact)
    position = np.arange(total) - np.repeat(offsets[:-1] - first, lengths)
    hashes *= powers(_RATIO, int(lengths.max(initial=0))).take(position)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes)])
    valid = _valid(array)
    _absorb_word(states, sums[offsets[1:] - first] - sums[offsets[:-1] - first], valid)
    _absorb_word(states, lengths.astype(np.uint64), valid)


def _absorb_bytes(array: pa.Array, states: np.ndarray) -> None:
    """Absorb strings by words of eight bytes, one pass over all rows for each, then the lengths."""
    data, starts, lengths = _byte_ranges(array)
    valid = _valid(array)
    if valid is not None:
        lengths = np.where(valid, lengths, 0)
    short = lengths
    if lengths.max(initial=0) > _LONG:
        long = np.flatnonzero(lengths > _LONG)
        _absorb_long(data, starts, lengths, long, states)
        short = lengths.copy()
        short[long] = 0
    _absorb_short(data, starts, short, states)
    _absorb_word(states, lengths.astype(np.uint64), valid)


def _byte_ranges(array: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes that an array's values lie in (with at least 8 more after them), starts and lengths."""
    type, buffer = array.type, array.buffers()[-1]
    if pa.types.is_fixed_size_binary(type):
        width = type.byte_width
        offsets = np.arange(array.offset, array.offset + len(array) + 1, dtype=np.int64) * width
    else:
        wide = pa.types.is_large_string(type) or pa.types.is_large_binary(type)
        offsets = np.frombuffer(array.buffers()[1], "<i8" if wide else "<i4")
        offsets = offsets[array.offset : array.offset + len(array) + 1].astype(np.int64, copy=False)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)
    if last + 8 <= data.size:
        data = data[first : last + 8]
    else:
        data = np.concatenate([data[first:last], np.zeros(8, np.uint8)])
    return data, offsets[:-1] - first, np.diff(offsets)


def _absorb_short(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray, states: np.ndarray) -> None:
    """Absorb ``ceil(length / 8)`` words of each row; rows drop out as they end."""
    words = np.ndarray((data.size - 7,), dtype="<u8", buffer=data, strides=(1,))  # one at every byte
    rows: np.ndarray | None = None
    for done in range(0, int(lengths.max(initial=0)), 8):
        left = lengths - done if rows is None else lengths[rows] - done
        if left.min() <= 0:
            active = np.flatnonzero(left > 0)
            rows, left = (active, left[active]) if rows is None else (rows[active], left[active])
        word = words[starts + done if rows is None else starts[rows] + done]
        if left.min() < 8:
            word &= _TAIL_MASKS.take(np.minimum(left, 8))
        if rows is None:
            _absorb_word(states, word, None)
        else:
            word ^= states[rows]
            states[rows] = mix(word)


def _absorb_long(
    data: np.ndarray, starts: np.ndarray, lengths: np.ndarray, rows: np.ndarray, states: np.ndarray
) -> None:
    view = data.data
    digests = [
        xxhash.xxh3_64_intdigest(view[start : start + length])
        for start, length in zip(starts[rows].tolist(), lengths[rows].tolist())
    ]
    states[rows] = mix(states[rows] ^ np.array(digests, dtype=np.uint64))
