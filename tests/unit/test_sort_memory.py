"""A key with more rows than fit in memory is sorted without holding its rows, whatever the key's value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headwater.ops.kernel import Context
from headwater.ops.sort import SortKernel, SortKey

ROWS, MEMORY = 1_000_000, 4 << 20


def heavy(case: str) -> pa.Array:
    rng = np.random.default_rng(3)
    values = rng.normal(size=ROWS)
    often = rng.random(ROWS) < 0.9
    if case == "null":
        return pa.array(values, mask=often)
    return pa.array(np.where(often, {"number": 0.25, "nan": np.nan}[case], values))


@pytest.mark.parametrize("case", ["number", "nan", "null"])
@pytest.mark.parametrize("descending", [False, True])
def test_a_heavy_key_passes_within_memory(case: str, descending: bool):
    keys = heavy(case)
    table = pa.table({"key": keys, "row": np.arange(ROWS), "x": np.zeros(ROWS), "y": np.zeros(ROWS)})
    assert table.nbytes > 6 * MEMORY
    before, peak, rows = pa.total_allocated_bytes(), 0, []
    stream = (pa.Table.from_batches([batch]) for batch in table.to_batches(max_chunksize=50_000))
    kernel = SortKernel((SortKey("key", descending),))
    for piece in kernel.run([stream], Context(memory_bytes=MEMORY)):
        peak = max(peak, pa.total_allocated_bytes() - before)
        rows.append(piece.column("row").to_numpy().copy())
    order = "descending" if descending else "ascending"
    ranked = pc.if_else(pc.is_nan(keys), np.inf, keys)  # NaN is above every number, nulls are last
    expected = pc.sort_indices(pa.table({"key": ranked}), [("key", order, "at_end")])
    assert np.array_equal(np.concatenate(rows), expected.to_numpy())
    assert peak < 5 * MEMORY < table.nbytes
