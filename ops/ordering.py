"""Row order: how sort keys order rows, and where rows fall between boundaries.

Sorting, range exchanges and external merges all ask here, so that they agree on nulls, NaN (above
every number), -0.0 (equal to 0.0) and direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .grouping import group, null_mask
from .key_words import key_words, order_of, sortable
from .morsels import contiguous


@dataclass(frozen=True)
class SortKey:
    """A column to sort by. NaN sorts above every number; nulls go where ``nulls_first`` says."""

    column: str
    descending: bool = False
    nulls_first: bool = False

    def __str__(self) -> str:
        return (
            self.column + (" desc" if self.descending else "") + (" nulls first" if self.nulls_first else "")
        )


def key_names(keys: Sequence[SortKey]) -> list[str]:
    """Return the columns of sort keys, each once."""
    return list(dict.fromkeys(key.column for key in keys))


def sort_indices(table: pa.Table, keys: Sequence[SortKey]) -> pa.Array:
    """Return the row numbers of a table in the order of the keys; equal rows keep their order.

    Args:
        table: has the key columns.
        keys: most significant first.

    Returns:
        Array of shape (rows,), of integers.

    Example:
        >>> table = pa.table({"x": [1.0, float("nan"), None, 2.0]})
        >>> sort_indices(table, [SortKey("x", descending=True)]).to_pylist()
        [1, 3, 0, 2]
    """
    columns = [sortable(contiguous(table.column(key.column))) for key in keys]
    words = key_words([(c, key.descending, key.nulls_first) for c, key in zip(columns, keys)])
    if words is not None:
        order = order_of(words, table.num_rows)
        return pa.array(order.astype(np.uint32) if len(order) < 1 << 32 else order)  # as take likes it best
    names = [str(position) for position in range(len(keys))]
    directions = [
        (name, "descending" if key.descending else "ascending", "at_start" if key.nulls_first else "at_end")
        for name, key in zip(names, keys)
    ]
    return pc.sort_indices(pa.table(columns, names=names), sort_keys=directions)


def segments(table: pa.Table, boundaries: pa.Table, keys: Sequence[SortKey]) -> np.ndarray:
    """Count, for each row, the boundaries that it doesn't come before.

    Args:
        table: has the key columns.
        boundaries: key columns of distinct rows in the order of the keys.
        keys: most significant first.

    Returns:
        Array of shape (rows,), dtype uint32, values from 0 to the number of boundaries.

    Example:
        >>> table, boundaries = pa.table({"x": [1, 5, 9, None]}), pa.table({"x": [5]})
        >>> segments(table, boundaries, [SortKey("x")]).tolist()
        [0, 1, 1, 1]
    """
    if boundaries.num_rows == 0:
        return np.zeros(table.num_rows, dtype=np.uint32)
    width = 2 * boundaries.num_rows + 4
    rows, bounds = _ranks(table, boundaries, keys[0])
    counts = _below(rows, bounds, width)
    undecided = (
        np.flatnonzero(rows % 2 == 0) if len(keys) > 1 else rows[:0]
    )  # where the first key is a bound's
    if len(undecided):
        equal = table.select(key_names(keys)).take(pa.array(undecided))
        rows = rows[undecided]
        for key in keys[1:]:
            more, edges = _ranks(equal, boundaries, key)
            rows, bounds = rows * width + more, bounds * width + edges
            known = np.unique(bounds)
            rows, bounds = _ranks_of_numbers(rows, known), _ranks_of_numbers(bounds, known)
        counts[undecided] = _below(rows, bounds, width)
    return counts


def quantiles(rows: pa.Table, weights: np.ndarray, keys: Sequence[SortKey], count: int) -> pa.Table:
    """Choose boundaries that cut weighted rows into about equal parts.

    Args:
        rows: sampled key columns, in any order.
        weights: how many rows each stands for, shape (rows,), float64.
        keys: most significant first.
        count: how many parts.

    Returns:
        At most ``count - 1`` distinct rows in the order of the keys.
    """
    rows = rows.select(key_names(keys))
    if count < 2 or rows.num_rows == 0:
        return rows.schema.empty_table()
    order = sort_indices(rows, keys)
    below = np.cumsum(weights[order.to_numpy()])
    targets = below[-1] * np.arange(1, count) / count
    places = np.minimum(np.searchsorted(below, targets, side="right"), len(below) - 1)
    chosen = rows.take(order.take(pa.array(np.unique(places)))).combine_chunks()
    return chosen.take(pa.array(group(chosen.columns, chosen.num_rows).first_rows))


def _below(rows: np.ndarray, bounds: np.ndarray, width: int) -> np.ndarray:
    """For each rank, how many of the bounds' aren't above it."""
    return np.searchsorted(bounds, np.arange(width), side="right").astype(np.uint32)[rows]


def _ranks(table: pa.Table, boundaries: pa.Table, key: SortKey) -> tuple[np.ndarray, np.ndarray]:
    """Rank a column's values, and the boundaries, among the distinct boundaries, as the key orders."""
    values, limits = (sortable(contiguous(t.column(key.column))) for t in (table, boundaries))
    known = pc.unique(limits.drop_null())
    known = known.take(pc.sort_indices(known)) if len(known) else known
    top = 2 * len(known) + 2
    return _rank(values, known, top, key), _rank(limits, known, top, key)


def _rank(array: pa.Array, known: pa.Array, top: int, key: SortKey) -> np.ndarray:
    """1 to top - 1 for values, 0 or top for nulls; odd is between, even is equal to a known value."""
    nulls = null_mask(array)
    if len(known) == 0:
        ranks = np.ones(len(array), dtype=np.int64)
    elif pa.types.is_integer(array.type):
        plain = array.fill_null(0) if nulls is not None else array
        ranks = _ranks_of_numbers(plain.to_numpy(), known.to_numpy()) + 1
    else:
        ranks = _ranks_by_bisection(array, known) + 1
    if key.descending:
        ranks = top - ranks
    if nulls is not None:
        ranks[nulls] = 0 if key.nulls_first else top
    return ranks


def _ranks_of_numbers(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """2 i + 1 for a value equal to the i-th known one, 2 i for one between its predecessor and it."""
    place = np.searchsorted(known, values)
    equal = known[np.minimum(place, len(known) - 1)] == values
    return 2 * place + (equal & (place < len(known)))


def _ranks_by_bisection(array: pa.Array, known: pa.Array) -> np.ndarray:
    """`_ranks_of_numbers` for any ordered Arrow type: one comparison of all rows for each halving."""
    low = np.zeros(len(array), dtype=np.int64)
    high = np.full(len(array), len(known), dtype=np.int64)
    for _ in range(len(known).bit_length()):
        middle = np.minimum((low + high) >> 1, len(known) - 1)
        above = _true(pc.less(known.take(pa.array(middle)), array)) & (low < high)
        low, high = np.where(above, middle + 1, low), np.where(above | (low >= high), high, middle)
    nearest = known.take(pa.array(np.minimum(low, len(known) - 1)))
    return 2 * low + (_true(pc.equal(nearest, array)) & (low < len(known)))


def _true(mask: pa.Array) -> np.ndarray:
    return mask.fill_null(False).to_numpy(zero_copy_only=False)
