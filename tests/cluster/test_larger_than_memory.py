"""A sort and a join of four times a worker's memory limit finish within it."""

from __future__ import annotations

import numpy as np
import pytest

import headwater as hw
from headwater import col

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LIMIT = 256 << 20
ROWS = 17_000_000  # of 64 bytes each


def _rows() -> hw.Dataset:
    """Rows of 64 bytes: a shuffled key and seven values."""
    ids = hw.range(ROWS, partitions=64)
    return ids.with_columns(key=(col("id") * 7_368_787) % ROWS, **{f"v{i}": col("id") * i for i in range(6)})


@pytest.fixture(scope="module")
def session():
    with hw.Session(workers=2, memory_limit=LIMIT, progress=False) as session:
        yield session


def test_the_data_is_four_times_the_limit():
    assert ROWS * 8 * 8 >= 4 * LIMIT


def test_sorting_it_gives_every_row_in_order_within_the_limit(session):
    rows = 0
    for batch in _rows().sort("key").iter_batches(session=session):
        keys = batch.column("key").to_numpy()
        assert np.array_equal(keys, np.arange(rows, rows + len(keys)))
        rows += len(keys)
    assert rows == ROWS
    assert max(session.peak_worker_memory().values()) <= LIMIT


def test_joining_it_gives_every_match_within_the_limit(session):
    left = _rows()
    right = _rows().select(key=ROWS - 1 - col("key"), other=col("v5"))
    joined = left.join(right, on="key", strategy="shuffle")
    totals = joined.agg(rows=hw.count(), keys=hw.sum("key"), other=hw.sum("other")).compute(session)
    whole = ROWS * (ROWS - 1) // 2
    assert totals.to_pylist() == [{"rows": ROWS, "keys": whole, "other": 5 * whole}]
    assert max(session.peak_worker_memory().values()) <= LIMIT
