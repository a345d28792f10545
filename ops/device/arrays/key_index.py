"""DeviceKeyIndex: which rows of a device table have a given key; built once, probed by whole columns.

Each key column adds its place in the range of the rows that were put in to one word a row. Where the range leaves no
room in 64 bits, what stands there so far, or the column, is first replaced by the first row that has it: so words are
equal only where keys are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...backend import Array
from ..column import DeviceColumn, is_coded
from ..modules import kernel, launch, on_device
from .compaction import compact
from .hash_table import HashTable
from .sort_keys import EACH, TYPES, WORD, key_args, key_ranges, ordered, translated
from .word_order import sort_order

_ZERO = 1 << 63  # the ordered word of 0 in int64


@dataclass(frozen=True)
class _Step:
    """How a column is added to words: by its place between two `ordered` words.

    Attributes:
        low, high: the range; empty if no row has a value.
        before: replaces what the words are so far by rows.
        own: replaces the column by rows.
    """

    low: int
    high: int
    before: HashTable | None = None
    own: HashTable | None = None

    @property
    def size(self) -> int:
        return max(1, self.high - self.low + 1)


class DeviceKeyIndex:
    """Rows by key. Null matches nothing, NaN matches NaN, and -0.0 matches 0.0.

    Traffic, in bytes a row: 8 to write a word, 16 for each key column after the first, the columns' widths (twice to
    build), 2 for marks, and that of `HashTable`. Keys that stand in several rows are sorted besides.

    Args:
        columns: the key columns, of equal length.
        xp: NumPy or CuPy.

    Attributes:
        unique: no key stands in two rows.
        rows: rows with a key, those of a key together and in order; shape (n,), int64. None where unique.
        spans: where, for a row that is the first of its key, the key's rows begin and end in ``rows``; shape
            (2 * rows,), int64. None where unique.

    Example:
        >>> from headwater.ops.device.column import to_device
        >>> index = DeviceKeyIndex([to_device(pa.array(["a", "b", "a", None]), np)], np)
        >>> index.lookup([to_device(pa.array(["a", "c", None, "b"]), np)]).tolist(), index.rows.tolist()
        ([0, -1, -1, 1], [0, 2, 1])
    """

    def __init__(self, columns: Sequence[DeviceColumn], xp: ModuleType):
        self._xp = xp
        self._steps: list[_Step] = []
        self._dictionaries = [_distinct(column) for column in columns]
        self._translations: list[tuple[pa.Array, np.ndarray] | None] = [None] * len(columns)
        words, known, size = self._build(columns)
        self._table = HashTable(words, known, size, xp)
        firsts = self._table.lookup(words, known)
        rows = xp.arange(self._table.rows, dtype=np.int64)
        there, among = compact([rows, firsts], firsts >= 0, xp)
        self.unique = int(xp.count_nonzero(firsts == rows)) == int(there.shape[0])
        self.rows: Array | None = None
        self.spans: Array | None = None
        if not self.unique:
            order = sort_order([among.view(np.uint64)], int(there.shape[0]), xp)
            self.rows = there[order]
            self.spans = _spans(among[order], self._table.rows, xp)

    def lookup(self, columns: Sequence[DeviceColumn]) -> Array:
        """Return the first row of each key, -1 for one that isn't here; shape (rows,), int64."""
        words = known = None
        for place, (step, column) in enumerate(zip(self._steps, columns)):
            words, known = self._add(step, self._plain(place, column), words, known)
        return self._table.lookup(words, known)

    def _build(self, columns: Sequence[DeviceColumn]) -> tuple[Array, Array, int]:
        """The words of the columns, which are known, and what they are below."""
        plain = [self._plain(place, column) for place, column in enumerate(columns)]
        rows = max(1, len(columns[0]))
        words = known = None
        size = 1
        for column, (low, high) in zip(plain, key_ranges(plain, [False] * len(plain), self._xp)):
            before = own = None
            step = _Step(low, high) if low <= high else _Step(1, 0)
            if size * step.size > WORD and size > rows:
                before, size = HashTable(words, known, size, self._xp), rows
            if size * step.size > WORD:
                own = HashTable(*self._add(step, column, None, None), step.size, self._xp)
            step = _Step(step.low, step.high, before, own)
            words, known = self._add(step, column, words, known)
            size *= step.size if own is None else rows
            self._steps.append(step)
        return words, known, size

    def _add(
        self, step: _Step, column: DeviceColumn, words: Array | None, known: Array | None
    ) -> tuple[Array, Array]:
        """Add a column to words, or begin them; which rows are known goes along."""
        if step.own is not None:
            codes = step.own.lookup(*self._add(_Step(step.low, step.high), column, None, None))
            column, step = DeviceColumn(pa.int64(), codes), _rows_step(step.own, step.before)
        if step.before is not None:
            codes = step.before.lookup(words, known)
            words, known = codes.view(np.uint64), codes >= 0
        return matched(column, step.low, step.high, words, known, self._xp)

    def _plain(self, place: int, column: DeviceColumn) -> DeviceColumn:
        """Codes of strings as places in the dictionary of the rows that were put in; other columns unchanged."""
        values = self._dictionaries[place]
        if values is None:
            return column
        remembered = self._translations[place]
        if remembered is None or remembered[0] is not column.dictionary:
            found = pc.index_in(column.dictionary, values, skip_nulls=True).fill_null(-1)
            remembered = column.dictionary, found.to_numpy(zero_copy_only=False)
            self._translations[place] = remembered
        column = translated(column, remembered[1], self._xp)
        if not (remembered[1] < 0).any():
            return column
        valid = column.values >= 0
        if column.valid is not None:
            valid &= column.valid
        return DeviceColumn(column.type, column.values, valid)


def matched(
    column: DeviceColumn, low: int, high: int, words: Array | None, known: Array | None, xp: ModuleType
) -> tuple[Array, Array]:
    """Append a column's place in a range to words: ``words * size + place``.

    Traffic, in bytes a row, for a column of width w: w + 9, and 10 more if it isn't the first, 1 more with nulls.

    Args:
        column: of any type but codes.
        low, high: `ordered` words, the least and the greatest in the range.
        words: shape (rows,), dtype uint64, changed in place; None begins them.
        known: shape (rows,), dtype bool, changed in place; None begins them, too.
        xp: NumPy or CuPy.

    Returns:
        The words, and which rows are known: not those that are null or out of the range.
    """
    first, rows = words is None, len(column)
    factor = 0 if first else high - low + 1
    if not on_device(xp):
        word = ordered(column.values)
        within = (word >= np.uint64(low)) & (word <= np.uint64(high))
        if column.valid is not None:
            within &= column.valid
        part = np.where(within, word - np.uint64(low), np.uint64(0))
        if words is None or known is None:
            return part, within
        return words * np.uint64(factor) + part, known & within
    if first:
        words, known = xp.empty(rows, dtype=np.uint64), xp.empty(rows, dtype=bool)
    match = kernel(xp, "sort_keys", "match_key", VALUE=TYPES[np.dtype(column.values.dtype)])
    numbers = [np.uint64(low), np.uint64(high), np.uint64(factor), np.int32(first), words, known]
    launch(match, rows, [*key_args(column, xp), *numbers], each=EACH)
    return words, known


def _rows_step(table: HashTable, before: HashTable | None) -> _Step:
    return _Step(_ZERO, _ZERO + max(1, table.rows) - 1, before)


def _spans(firsts: Array, rows: int, xp: ModuleType) -> Array:
    """Where the rows of each key begin and end, given the first row of each, ascending."""
    spans = xp.zeros(2 * rows, dtype=np.int64)
    if on_device(xp):
        args = [firsts, np.int64(firsts.shape[0]), spans]
        launch(kernel(xp, "join", "mark_spans"), int(firsts.shape[0]), args)
        return spans
    edges = np.flatnonzero(np.diff(firsts, prepend=-1, append=-1))
    heads = firsts[edges[:-1]]
    spans[2 * heads], spans[2 * heads + 1] = edges[:-1], edges[1:]
    return spans


def _distinct(column: DeviceColumn) -> pa.Array | None:
    """The values that codes stand for, each once and without null; None for other columns."""
    if not is_coded(column.type):
        return None
    assert column.dictionary is not None
    return column.dictionary.drop_null().unique()
