"""Fingerprints of random tables, cut at random, merge to that of the whole."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.lineage.fingerprint import Fingerprint, content_digest

SCHEMA = pa.schema([("i", pa.int32()), ("f", pa.float64()), ("s", pa.string()), ("l", pa.list_(pa.int8()))])

rows = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-3, 3),
        "f": st.none() | st.floats(allow_nan=True),
        "s": st.none() | st.text(max_size=20),
        "l": st.none() | st.lists(st.none() | st.integers(0, 2), max_size=3),
    }
)


def table_of(records):
    return pa.Table.from_pylist(records, schema=SCHEMA)


def cut(table, points):
    edges = [0, *sorted(min(p, len(table)) for p in points), len(table)]
    return [table[a:b] for a, b in pairwise(edges)]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(rows, max_size=20),
    st.lists(st.integers(0, 20), max_size=5),
    st.lists(st.integers(0, 20), max_size=5),
)
def test_merging_doesnt_depend_on_the_cut(records, one, two):
    table = table_of(records)
    digests = []
    for points in (one, two):
        parts = [Fingerprint(SCHEMA).update(pa.concat_tables([part])) for part in cut(table, points)]
        digests.append(content_digest([part.hexdigest() for part in parts], SCHEMA))
    assert digests[0] == digests[1]


def bits(record):
    """A row as something Python compares as fingerprints should: floats by bits, NaNs alike."""
    f = record["f"]
    key = None if f is None else "nan" if f != f else np.float64(f).tobytes()
    return (record["i"], key, record["s"], None if record["l"] is None else tuple(record["l"]))


@settings(deadline=None, max_examples=100)
@given(st.lists(rows, max_size=4), st.lists(rows, max_size=4))
def test_equal_exactly_when_the_rows_are(one, two):
    digests = [Fingerprint(SCHEMA).update(table_of(records)).hexdigest() for records in (one, two)]
    assert (digests[0] == digests[1]) == ([bits(r) for r in one] == [bits(r) for r in two])


@settings(deadline=None, max_examples=40)
@given(st.lists(rows, min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_order_counts(records, random):
    shuffled = records[:]
    random.shuffle(shuffled)
    digests = [Fingerprint(SCHEMA).update(table_of(r)).hexdigest() for r in (records, shuffled)]
    assert (digests[0] == digests[1]) == ([bits(r) for r in records] == [bits(r) for r in shuffled])
