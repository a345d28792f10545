"""Fingerprint: a content digest of rows in order, independent of chunks, that merges in row order.

Each row is hashed to 64 bits (``lineage/hashing.py``), and spread over two lanes. In each lane the
digest of rows ``h[0] .. h[n-1]`` is the polynomial ``sum(h[i] * B**(n-1-i))`` modulo 2**64, so

    digest(X followed by Y) = digest(X) * B**len(Y) + digest(Y)

and fingerprints of partitions merge to that of the output, wherever the partitions were cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Self

import numpy as np
import pyarrow as pa
import xxhash

from ..errors import ParameterError, SchemaMismatchError
from .hashing import hash_columns, mix, powers

_MODULUS = 1 << 64
#: one ratio a lane; both 5 modulo 8, so that powers repeat only after 2**62 rows
RATIOS = (0xD1342543DE82EF95, 0xAF251AF3B0F025B5)
#: what the second lane takes is ``mix(hash ^ SECOND_LANE)``
SECOND_LANE = np.uint64(0x589965CC75374CC3)
_NO_COLUMNS = np.uint64(0x1D8E4E27C47D124F)
_SLICE = 16_384
_TEXT = re.compile(r"([0-9a-f]+)-([0-9a-f]{16})([0-9a-f]{16})")


class Fingerprint:
    """A growing digest of rows.

    Two sequences of rows have the same fingerprint if and (but for a chance of about 2**-64) only if
    they have equal values in the same order. Values are compared bit for bit, but all NaNs are alike.

    Args:
        schema: the rows' schema, or None for a fingerprint that only merges others.

    Example:
        >>> table = pa.table({"x": [1, 2, 3]})
        >>> whole, first, rest = (Fingerprint(table.schema) for _ in range(3))
        >>> _ = whole.update(table), first.update(table[:1]), rest.update(table[1:])
        >>> first.merge(Fingerprint.parse(rest.hexdigest())).hexdigest() == whole.hexdigest()
        True

    Source:
        R. Karp and M. Rabin, "Efficient randomized pattern-matching algorithms" (1987), section 2,
        over row hashes for letters.
    """

    def __init__(self, schema: pa.Schema | None = None):
        self.schema = schema
        #: rows digested so far
        self.rows = 0
        self._lanes: tuple[int, ...] = (0, 0)

    def update(self, table: pa.Table | pa.RecordBatch) -> Self:
        """Append the rows of a table.

        Args:
            table: rows with the names and types of the schema.

        Returns:
            This fingerprint.

        Raises:
            SchemaMismatchError: other names or types.
        """
        if self.schema is not None and table.schema != self.schema:
            raise SchemaMismatchError(
                f"a fingerprint of rows with\n{self.schema}\ngot a table with\n{table.schema}"
            )
        if table.num_columns:
            hashes = hash_columns(table.columns, exact=True)
        else:
            hashes = np.full(table.num_rows, _NO_COLUMNS)
        for first in range(0, len(hashes), _SLICE):
            self._append(hashes[first : first + _SLICE])
        return self

    def merge(self, other: Fingerprint) -> Self:
        """Append the rows that another fingerprint stands for; returns this fingerprint."""
        self._lanes = tuple(
            (mine * pow(ratio, other.rows, _MODULUS) + theirs) % _MODULUS
            for mine, theirs, ratio in zip(self._lanes, other._lanes, RATIOS)
        )
        self.rows += other.rows
        return self

    def hexdigest(self) -> str:
        """The fingerprint as text, ``ROWS-LANES``, hexadecimal; `parse` reads it back."""
        return f"{self.rows:x}-{self._lanes[0]:016x}{self._lanes[1]:016x}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `hexdigest` wrote.

        Raises:
            ParameterError: the text isn't a fingerprint.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ParameterError(
                f"{text!r} isn't a fingerprint: expected hexadecimal rows, '-', and 32 digits."
            )
        parsed = cls()
        parsed.rows = int(match[1], 16)
        parsed._lanes = (int(match[2], 16), int(match[3], 16))
        return parsed

    def _append(self, hashes: np.ndarray) -> None:
        tail = Fingerprint()
        tail.rows = len(hashes)
        tail._lanes = tuple(
            int(np.dot(words, _descending(ratio)[-len(hashes) :]))
            for words, ratio in zip((hashes, mix(hashes ^ SECOND_LANE)), RATIOS)
        )
        self.merge(tail)


def content_digest(fingerprints: Iterable[str], schema: pa.Schema) -> str:
    """Digest a whole output: its rows in partition order, its column names and types.

    Args:
        fingerprints: `Fingerprint.hexdigest` of each partition, in order.
        schema: the output's schema.

    Returns:
        32 hexadecimal digits; the same however the rows are cut into partitions.

    Example:
        >>> table = pa.table({"x": [1, 2, 3]})
        >>> cut = [Fingerprint(table.schema).update(t).hexdigest() for t in (table[:2], table[2:])]
        >>> whole = [Fingerprint(table.schema).update(table).hexdigest()]
        >>> content_digest(cut, table.schema) == content_digest(whole, table.schema)
        True
    """
    total = Fingerprint()
    for text in fingerprints:
        total.merge(Fingerprint.parse(text))
    columns = "\n".join(f"{field.name!r}: {field.type}" for field in schema)
    return xxhash.xxh3_128_hexdigest(f"{total.hexdigest()}\n{columns}".encode())


@cache
def _descending(ratio: int) -> np.ndarray:
    return powers(np.uint64(ratio), _SLICE)[::-1].copy()
