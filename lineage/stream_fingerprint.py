"""StreamFingerprint: a content digest of one partition's rows, at the speed of memory; it doesn't merge.

What is only passed on within a run is fingerprinted so that a recompute can be checked. For that the
columns' bytes are hashed as they stream by, each column in streams of its own: values, lengths and the
positions of nulls. Streams don't depend on chunks, offsets, or what lies under a null. Outputs get a
`Fingerprint`, ten times slower, which merges over partitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from .hashing import hash_columns

_MARK = "~"


class StreamFingerprint:
    """A growing digest of rows.

    Two sequences of rows of one schema have the same fingerprint if and (but for a chance of about 2**-64)
    only if they have equal values in the same order. Values are compared bit for bit, but all NaNs are alike.

    Args:
        schema: of the rows; canonical types (see ``ops/schema.py``).

    Example:
        >>> table = pa.table({"x": [1, 2, 3]})
        >>> whole, cut = StreamFingerprint(table.schema), StreamFingerprint(table.schema)
        >>> whole.update(table).hexdigest() == cut.update(table[:1]).update(table[1:]).hexdigest()
        True

    Source:
        The hash is XXH3, Y. Collet, "xxHash specification" (2023).
    """

    def __init__(self, schema: pa.Schema):
        self.schema = schema
        #: rows digested so far
        self.rows = 0
        self._columns = [_Column() for _ in schema]

    def update(self, table: pa.Table) -> Self:
        """Append the rows of a table with the schema; returns this fingerprint."""
        for column, values in zip(self._columns, table.columns):
            row = self.rows
            for chunk in values.chunks:
                if len(chunk):
                    column.update(chunk, row)
                    row += len(chunk)
        self.rows += table.num_rows
        return self

    def hexdigest(self) -> str:
        """The fingerprint as text, ``ROWS~DIGEST``, hexadecimal."""
        total = xxhash.xxh3_128()
        for column in self._columns:
            total.update(column.digest())
        return f"{self.rows:x}{_MARK}{total.hexdigest()}"


def is_stream(fingerprint: str) -> bool:
    """Whether a fingerprint's text is of this kind."""
    return _MARK in fingerprint


def agree(one: str | None, other: str) -> bool:
    """Whether two fingerprints may be of the same rows: as far as their kinds can be compared.

    Example:
        >>> agree("3~aa", "3~ab"), agree("3~aa", "3-aa"), agree(None, "3~aa"), agree("3~aa", "4-aa")
        (False, True, True, False)
    """
    if one is None or one == other:
        return True
    rows = [text.replace(_MARK, "-").partition("-")[0] for text in (one, other)]
    return is_stream(one) != is_stream(other) and rows[0] == rows[1]


def digest_of(fingerprints: Sequence[str]) -> str:
    """Digest the fingerprints of several partitions, in order: as text, ``PARTITIONS~DIGEST``."""
    joined = "\n".join(fingerprints).encode()
    return f"{len(fingerprints):x}{_MARK}{xxhash.xxh3_128_hexdigest(joined)}"


class _Column:
    """The streams of one column."""

    def __init__(self) -> None:
        self._values: Any = xxhash.xxh3_64()
        self._lengths: Any = xxhash.xxh3_64()
        self._nulls: Any = xxhash.xxh3_64()

    def update(self, array: pa.Array, row: int) -> None:
        type = array.type
        if array.null_count:
            positions = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
            self._nulls.update((positions + row).astype("<i8"))
        if pa.types.is_null(type):
            return
        if pa.types.is_boolean(type):
            filled = pc.fill_null(array, False) if array.null_count else array
            self._values.update(filled.to_numpy(zero_copy_only=False).view(np.uint8))
        elif pa.types.is_string(type) or pa.types.is_binary(type):
            self._update_bytes(array)
        elif _is_fixed(type):
            self._update_fixed(array)
        else:  # nested
            self._values.update(hash_columns([array], exact=True))

    def digest(self) -> bytes:
        return self._values.digest() + self._lengths.digest() + self._nulls.digest()

    def _update_bytes(self, array: pa.Array) -> None:
        if array.null_count:
            array = pc.fill_null(array, "" if pa.types.is_string(array.type) else b"")
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, "<i4")[array.offset : array.offset + len(array) + 1]
        self._lengths.update(np.diff(ends))
        if data is not None:
            self._values.update(memoryview(data)[int(ends[0]) : int(ends[-1])])

    def _update_fixed(self, array: pa.Array) -> None:
        """Integers, floats, dates, times, decimals and binary of fixed width."""
        width = array.type.byte_width
        data = array.buffers()[1]
        first, stop = array.offset * width, (array.offset + len(array)) * width
        plain = pa.types.is_floating(array.type)
        if data is None:  # nothing but nulls
            data = bytes(stop)
        if array.null_count:
            valid = array.is_valid().to_numpy(zero_copy_only=False)
            rows = np.frombuffer(data, np.uint8)[first:stop].reshape(len(array), width).copy()
            rows[~valid] = 0
            self._values.update(_one_nan(rows.reshape(-1), width) if plain else rows)
        elif plain:
            self._values.update(_one_nan(np.frombuffer(data, np.uint8)[first:stop], width))
        else:
            self._values.update(memoryview(data)[first:stop])


def _is_fixed(type: pa.DataType) -> bool:
    t = pa.types
    return t.is_primitive(type) or t.is_decimal(type) or t.is_fixed_size_binary(type) or t.is_interval(type)


def _one_nan(data: np.ndarray, width: int) -> np.ndarray:
    """Give all NaNs the same bits; ``data`` is bytes, and is left as it is."""
    values = data.view(f"<f{width}")
    with np.errstate(all="ignore"):
        suspect = np.isnan(values.sum())  # one pass; infinities of both signs give NaN, too
    if suspect and (nan := np.isnan(values)).any():
        values = np.where(nan, np.array(np.nan, values.dtype), values)
    return values.view(np.uint8)
