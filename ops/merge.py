"""External merge: sorted runs on disk become one sorted stream, a range of keys at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .kernel import MORSEL_ROWS, Context, Stream
from .morsels import gather, slices
from .ordering import SortKey, key_names, quantiles, segments, sort_indices
from .spill import SpillFile

#: rows sampled from each run for the choice of ranges
_SAMPLE = 256
_MOST_PARTS = 65_536


def merge_runs(runs: Sequence[SpillFile], keys: Sequence[SortKey], context: Context) -> Stream:
    """Merge sorted runs, stable in the order of the runs.

    Ranges of keys are chosen so that the rows of one, from all runs, take about a quarter of the
    memory; each range is sorted on its own. Rows equal to a range's lower bound need no sorting, and
    pass run by run: so a key with more rows than fit in memory, which becomes a bound, is never held.

    Args:
        runs: finished files, each sorted by the keys.
        keys: most significant first.
        context: says how much memory there is.

    Returns:
        The rows of all runs, sorted.
    """
    runs = [run for run in runs if run.rows]
    if not runs:
        return
    wanted = 1 + 4 * sum(run.bytes for run in runs) // max(context.memory_bytes, 1)
    parts = min(wanted, sum(run.rows for run in runs), _MOST_PARTS)
    samples = [_sample(run, keys) for run in runs]
    weights = [np.full(s.num_rows, run.rows / s.num_rows) for run, s in zip(runs, samples)]
    bounds = quantiles(pa.concat_tables(samples), np.concatenate(weights), keys, parts)
    ends = [_ends(run, bounds, keys) for run in runs]
    starts = [np.concatenate([[0], end[:-1]]) for end in ends]
    for part in range(bounds.num_rows + 1):
        lowest = bounds.slice(part - 1, 1) if part else None
        rest: list[pa.Table] = []
        for run, start, end in zip(runs, starts, ends):
            piece = run.slice(start[part], end[part])
            equal = 0 if lowest is None else _equal_rows(piece, lowest, keys)
            yield from slices(piece.slice(0, equal))
            if equal < piece.num_rows:  # a copy, so that the rows that have passed are let go
                rest.append(piece.take(pa.array(np.arange(equal, piece.num_rows))) if equal else piece)
        if rest:
            yield from sorted_slices(pa.concat_tables(rest).combine_chunks(), keys)


def _equal_rows(piece: pa.Table, lowest: pa.Table, keys: Sequence[SortKey]) -> int:
    """How many rows of a sorted piece, from its first, equal its lower bound in every key."""
    equal = pa.repeat(pa.scalar(True), piece.num_rows)
    for key in keys:
        column, bound = piece.column(key.column), lowest.column(key.column)[0]
        if not bound.is_valid:
            same = pc.is_null(column)
        elif pa.types.is_floating(column.type) and math.isnan(bound.as_py()):
            same = pc.is_nan(column)
        else:
            same = pc.equal(column, bound)
        equal = pc.and_(equal, pc.fill_null(same, False))
    first_other = pc.index(equal, False).as_py()
    return piece.num_rows if first_other < 0 else first_other


def sorted_slices(table: pa.Table, keys: Sequence[SortKey]) -> Stream:
    """Yield the rows of a table in order, a slice at a time."""
    order = sort_indices(table, keys)
    for start in range(0, len(order), MORSEL_ROWS):
        yield gather(table, order.slice(start, MORSEL_ROWS))


def _sample(run: SpillFile, keys: Sequence[SortKey]) -> pa.Table:
    """Key columns of rows at equal distances."""
    step = -(-run.rows // _SAMPLE)
    offset, taken = 0, []
    for table in run.read(key_names(keys)):
        taken.append(table.take(pa.array(np.arange(-offset % step, table.num_rows, step))))
        offset += table.num_rows
    return pa.concat_tables(taken).combine_chunks()


def _ends(run: SpillFile, bounds: pa.Table, keys: Sequence[SortKey]) -> np.ndarray:
    """Where, in a run, the rows of each range end."""
    counts = np.zeros(bounds.num_rows + 1, dtype=np.int64)
    for table in run.read(key_names(keys)):
        counts += np.bincount(segments(table, bounds, keys), minlength=len(counts))
    return np.cumsum(counts)
