"""Morsels: whatever the pieces a stream comes in, it leaves in the same ones."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.runtime.workers.recut import bytes_between, recut, rows_only, value_bytes

ROWS = pa.table(
    {
        "x": np.arange(200, dtype=np.int32),
        "s": ["é" * (i % 17) for i in range(200)],
        "b": [i % 3 == 0 for i in range(200)],
        "l": [None if i % 7 == 0 else list(range(i % 5)) for i in range(200)],
        "f": pa.array([[float(i), 0.0] for i in range(200)], pa.list_(pa.float64(), 2)),
        "t": [{"a": i, "b": "x" * (i % 3)} for i in range(200)],
        "m": pa.array([[("k", i)] * (i % 2) for i in range(200)], pa.map_(pa.string(), pa.int64())),
    }
)


def pieces(table: pa.Table, cuts: Sequence[int]) -> list[pa.Table]:
    bounds = [0, *sorted(cuts), table.num_rows]
    return [table[start:stop] for start, stop in pairwise(bounds)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 200)), st.integers(1, 250), st.integers(1, 9000))
def test_bounds_don_t_depend_on_the_pieces(cuts: list[int], max_rows: int, max_bytes: int) -> None:
    given_pieces = list(recut(iter(pieces(ROWS, cuts)), ROWS.schema, max_rows, max_bytes))
    whole = list(recut(iter([ROWS]), ROWS.schema, max_rows, max_bytes))
    assert [t.num_rows for t in given_pieces] == [t.num_rows for t in whole]
    assert pa.concat_tables(given_pieces).equals(ROWS)
    assert all(c.num_chunks == 1 for t in given_pieces for c in t.columns)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 200)))
def test_bytes_of_pieces_add_up(cuts: list[int]) -> None:
    assert sum(map(value_bytes, pieces(ROWS, cuts))) == value_bytes(ROWS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 150)), st.integers(0, 50))
def test_bytes_of_consecutive_slices_are_those_of_each(cuts: list[int], begin: int) -> None:
    bounds = np.array([0, *sorted(cuts), 150])
    (batch,) = ROWS.select(["x", "s", "b"]).slice(begin, 150).to_batches()
    each = [value_bytes(pa.Table.from_batches([batch[a:b]])) for a, b in pairwise(bounds)]
    assert bytes_between(batch, bounds).tolist() == each


def test_bytes_of_nested_values_are_not_told_for_all_slices_at_once() -> None:
    assert bytes_between(ROWS.select(["x", "l"]).to_batches()[0], np.array([0, 200])) is None


def test_a_morsel_ends_with_the_row_that_makes_it_large() -> None:
    rows = pa.table({"s": ["x" * 10, "x" * 10, "x" * 100, "x"]})
    assert [t.num_rows for t in recut(iter([rows]), rows.schema, max_bytes=20)] == [2, 1, 1]


def test_a_table_that_is_a_morsel_passes_without_a_copy() -> None:
    rows = pa.table({"x": np.arange(100)})
    address = rows["x"].chunk(0).buffers()[1].address
    (passed,) = recut(iter([rows]), rows.schema, max_rows=100)
    assert passed["x"].chunk(0).buffers()[1].address == address


def test_many_small_tables_become_few() -> None:
    tables = [pa.table({"x": [i]}) for i in range(1000)]
    out = list(recut(iter(tables), tables[0].schema, max_rows=400))
    assert [t.num_rows for t in out] == [400, 400, 200]
    assert pa.concat_tables(out)["x"].to_pylist() == list(range(1000))


@pytest.mark.parametrize("counts", [[5], [3, 0, 4], []])
def test_rows_of_no_columns_are_counted(counts: list[int]) -> None:
    out = list(recut(iter(map(rows_only, counts)), pa.schema([]), max_rows=4))
    assert sum(t.num_rows for t in out) == sum(counts)
    assert all(0 < t.num_rows <= 4 for t in out)
