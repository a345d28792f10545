"""Key tables and indexes beside a dict of lists."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.ops.key_index import KeyIndex
from headwater.ops.key_table import DirectTable, HashTable, key_table

EDGES = [0, 1, -1, 2**31, -(2**31), 2**62, -(2**63), 2**63 - 1]
KEYS = st.lists(st.one_of(st.integers(-3, 3), st.sampled_from(EDGES), st.integers(-(2**63), 2**63 - 1)))


@pytest.mark.parametrize("build", [key_table, HashTable])
@settings(max_examples=100, deadline=None)
@given(keys=KEYS, probes=KEYS)
def test_first_row_of_each_key(build, keys, probes):
    first = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    table = build(np.array(keys, dtype=np.int64))
    assert table.firsts.tolist() == [first[key] for key in keys]
    probes = [*probes, *keys]
    assert table.lookup(np.array(probes, dtype=np.int64)).tolist() == [first.get(key, -1) for key in probes]


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (np.arange(1000) * 7, DirectTable),
        (np.arange(1000) << 40, HashTable),
        (np.random.default_rng(0).integers(0, 1 << 60, 5000), HashTable),
    ],
)
def test_narrow_ranges_are_indexed_and_others_hashed(keys, kind):
    table = key_table(keys)
    assert type(table) is kind
    shuffled = np.random.default_rng(1).permutation(len(keys))
    assert (table.lookup(keys[shuffled]) == shuffled).all()
    assert (table.lookup(keys + 1) == -1).mean() > 0.99


COLUMNS = {
    pa.int64(): [None, 0, 1, -1, 2**63 - 1, -(2**63)],
    pa.uint64(): [None, 0, 1, 2**64 - 1],
    pa.float64(): [None, 0.0, -0.0, 1.5, math.nan, math.inf],
    pa.float32(): [None, 0.0, -0.0, 1.5, math.nan],
    pa.string(): [None, "", "a", "ä"],
    pa.bool_(): [None, True, False],
    pa.date32(): [None, 0, 20000],
}


def canonical(key: tuple) -> tuple:
    """One form of equal keys: all NaN are one value, which Python's dict doesn't know."""
    return tuple("nan" if value != value else value for value in key)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_rows_of_keys_of_several_columns(data):
    types = data.draw(st.lists(st.sampled_from(list(COLUMNS)), min_size=1, max_size=4))
    row = st.tuples(*(st.sampled_from(COLUMNS[type]) for type in types))
    build, probe = (data.draw(st.lists(row, max_size=20)) for _ in range(2))
    columns = [
        [pa.array([r[i] for r in rows], type) for i, type in enumerate(types)] for rows in (build, probe)
    ]
    expected: dict[tuple, list[int]] = {}
    for number, key in enumerate(build):
        if None not in key:
            expected.setdefault(canonical(key), []).append(number)
    index = KeyIndex(columns[0])
    assert index.unique == all(len(rows) == 1 for rows in expected.values())
    codes = index.lookup(columns[1])
    counts = index.counts(codes)
    for key, code, count in zip(probe, codes, counts):
        wanted = [] if None in key else expected.get(canonical(key), [])
        assert count == len(wanted)
        found = index.rows(np.full(count, code), np.arange(count))
        assert found.tolist() == wanted
