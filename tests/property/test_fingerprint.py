"""Fingerprints of random tables, cut at random, merge to that of the whole."""

from decimal import Decimal
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.lineage.fingerprint import Fingerprint, content_digest
from headwater.lineage.stream_fingerprint import StreamFingerprint

SCHEMA = pa.schema(
    [
        ("i", pa.int32()),
        ("f", pa.float64()),
        ("s", pa.string()),
        ("l", pa.list_(pa.int8())),
        ("b", pa.bool_()),
        ("h", pa.float32()),
        ("w", pa.binary(2)),
        ("d", pa.decimal128(5, 2)),
    ]
)
KINDS = pytest.mark.parametrize("kind", [Fingerprint, StreamFingerprint])

rows = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-3, 3),
        "f": st.none() | st.floats(allow_nan=True),
        "s": st.none() | st.text(max_size=20),
        "l": st.none() | st.lists(st.none() | st.integers(0, 2), max_size=3),
        "b": st.none() | st.booleans(),
        "h": st.none() | st.sampled_from([0.0, -0.0, 1.5, float("inf"), float("-inf"), float("nan")]),
        "w": st.none() | st.sampled_from([b"ab", b"\0\0"]),
        "d": st.none() | st.sampled_from([Decimal("1.50"), Decimal("0.00")]),
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
    floats = [
        None if f is None else "nan" if f != f else np.float64(f).tobytes()
        for f in (record["f"], record["h"])
    ]
    others = [record[name] for name in ("i", "s", "b", "w", "d")]
    return (*floats, *others, None if record["l"] is None else tuple(record["l"]))


@settings(deadline=None, max_examples=100)
@given(st.lists(rows, max_size=3), st.lists(rows, max_size=3))
@KINDS
def test_equal_exactly_when_the_rows_are(kind, one, two):
    digests = [kind(SCHEMA).update(table_of(records)).hexdigest() for records in (one, two)]
    assert (digests[0] == digests[1]) == ([bits(r) for r in one] == [bits(r) for r in two])


@settings(deadline=None, max_examples=40)
@given(st.lists(rows, min_size=2, max_size=8), st.randoms(use_true_random=False))
@KINDS
def test_order_counts(kind, records, random):
    shuffled = records[:]
    random.shuffle(shuffled)
    digests = [kind(SCHEMA).update(table_of(r)).hexdigest() for r in (records, shuffled)]
    assert (digests[0] == digests[1]) == ([bits(r) for r in records] == [bits(r) for r in shuffled])


@settings(deadline=None, max_examples=60)
@given(st.lists(rows, max_size=20), st.lists(st.integers(0, 20), max_size=5))
def test_a_stream_doesnt_depend_on_chunks_or_on_what_lies_under_nulls(records, points):
    table = table_of(records)
    whole = StreamFingerprint(SCHEMA).update(table).hexdigest()
    pieces = StreamFingerprint(SCHEMA)
    for part in cut(table, points):
        pieces.update(part)
    assert pieces.hexdigest() == whole
    changed = table_of([dirty(record) for record in records])
    masks = [[record[field.name] is None for record in records] for field in SCHEMA]
    covered = [
        column if pa.types.is_list(column.type) else under_nulls(other, mask)
        for column, other, mask in zip(table.columns, changed.columns, masks)
    ]
    assert StreamFingerprint(SCHEMA).update(pa.table(covered, schema=SCHEMA)).hexdigest() == whole


def dirty(record):
    """The same row with values where it has nulls."""
    values = {"i": 7, "f": 7.5, "s": "dirt", "b": True, "h": 7.5, "w": b"zz", "d": Decimal("7.00"), "l": None}
    return {name: values[name] if value is None else value for name, value in record.items()}


def under_nulls(column, mask):
    """The column with nulls where the mask says so, and its values left under them."""
    array = column.combine_chunks()
    if not len(array):
        return array
    bits = pa.py_buffer(np.packbits(~np.array(mask, dtype=bool), bitorder="little").tobytes())
    return pa.Array.from_buffers(array.type, len(array), [bits, *array.buffers()[1:]])
