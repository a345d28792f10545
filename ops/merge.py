"""External merge: sorted runs on disk become one sorted stream, a range of keys at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from .kernel import Context, Stream
from .morsels import slices
from .ordering import SortKey, key_names, quantiles, segments, sort_indices
from .spill import SpillFile

#: rows sampled from each run for the choice of ranges
_SAMPLE = 256


def merge_runs(runs: Sequence[SpillFile], keys: Sequence[SortKey], context: Context) -> Stream:
    """Merge sorted runs, stable in the order of the runs.

    Ranges of keys are chosen so that the rows of one, from all runs, take about a quarter of the
    memory; each range is sorted on its own. Rows of a key that alone is larger are all held.

    Args:
        runs: finished files, each sorted by the keys.
        keys: most significant first.
        context: says how much memory there is.

    Returns:
        The rows of all runs, sorted.
    """
    tables = [run.table() for run in runs if run.rows]
    size = sum(run.bytes for run in runs)
    names = key_names(keys)
    parts = 1 + 4 * size // max(context.memory_bytes, 1)
    parts = min(parts, sum(table.num_rows for table in tables) or 1, 65_536)
    samples, weights = [], []
    for table in tables:
        picked = np.unique(np.linspace(0, table.num_rows - 1, min(_SAMPLE, table.num_rows)).astype(np.int64))
        samples.append(table.select(names).take(pa.array(picked)))
        weights.append(np.full(len(picked), table.num_rows / len(picked)))
    if not tables:
        return
    bounds = quantiles(pa.concat_tables(samples), np.concatenate(weights), keys, parts)
    ends = [_ends(table, bounds, keys) for table in tables]
    starts = [np.concatenate([[0], end[:-1]]) for end in ends]
    for part in range(bounds.num_rows + 1):
        pieces = [t.slice(s[part], e[part] - s[part]) for t, s, e in zip(tables, starts, ends)]
        joined = pa.concat_tables(pieces).combine_chunks()
        yield from sorted_slices(joined, keys)


def sorted_slices(table: pa.Table, keys: Sequence[SortKey]) -> Stream:
    """Yield the rows of a table in order, a slice at a time."""
    order = sort_indices(table, keys)
    for piece in slices(pa.table([order], names=["row"])):
        yield table.take(piece.column(0))


def _ends(table: pa.Table, bounds: pa.Table, keys: Sequence[SortKey]) -> np.ndarray:
    """Where, in a sorted table, the rows of each range end."""
    counts = np.zeros(bounds.num_rows + 1, dtype=np.int64)
    for piece in slices(table):
        counts += np.bincount(segments(piece, bounds, keys), minlength=len(counts))
    return np.cumsum(counts)
