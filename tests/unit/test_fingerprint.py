"""Fingerprints: the polynomial by brute force, sensitivity, text form."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import ParameterError, SchemaMismatchError
from headwater.lineage.fingerprint import RATIOS, SECOND_LANE, Fingerprint, content_digest
from headwater.lineage.hashing import hash_columns, mix


def fingerprint(table):
    return Fingerprint(table.schema).update(table).hexdigest()


def test_is_the_polynomial_it_claims_to_be():
    table = pa.table({"x": np.arange(40_000), "s": [str(i) for i in range(40_000)]})
    hashes = hash_columns(table.columns, exact=True)
    lanes = []
    for words, ratio in zip((hashes, mix(hashes ^ SECOND_LANE)), RATIOS):
        lane = 0
        for word in words.tolist():
            lane = (lane * ratio + word) % 2**64
        lanes.append(f"{lane:016x}")
    assert fingerprint(table) == f"{40_000:x}-{''.join(lanes)}"


@pytest.mark.parametrize("points", [(0,), (1,), (16_384,), (5, 5, 20_000), (39_999, 40_000)])
def test_parsed_fingerprints_merge(points):
    table = pa.table({"x": np.arange(40_000) % 1000})
    edges = [0, *points, len(table)]
    merged = Fingerprint()
    for start, stop in pairwise(edges):
        merged.merge(Fingerprint.parse(fingerprint(table[start:stop])))
    assert merged.rows == 40_000
    assert merged.hexdigest() == fingerprint(table)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"x": [1, 2]}, {"x": [2, 1]}),
        ({"x": [0, 1]}, {"x": [None, 1]}),
        ({"x": ["", "a"]}, {"x": [None, "a"]}),
        ({"x": ["a", "bc"]}, {"x": ["ab", "c"]}),
        ({"x": [0.0]}, {"x": [-0.0]}),
        ({"x": [1]}, {"x": [1, 1]}),
        ({"x": [1], "y": [2]}, {"x": [2], "y": [1]}),
        ({"x": [None, 1]}, {"x": [1, None]}),
    ],
)
def test_what_differs_has_another_fingerprint(one, two):
    assert fingerprint(pa.table(one)) != fingerprint(pa.table(two))


def test_swapping_far_rows_shows():
    values = np.arange(1 << 17)
    swapped = values.copy()
    swapped[[0, 1 << 16]] = swapped[[1 << 16, 0]]
    assert fingerprint(pa.table({"x": values})) != fingerprint(pa.table({"x": swapped}))


def test_rows_without_columns_are_counted():
    table = pa.table({"x": [1, 2, 3]}).select([])
    assert Fingerprint(table.schema).update(table).rows == 3


def test_content_digest_holds_names_types_order_and_rows():
    table = pa.table({"a": pa.array([1], pa.int32()), "b": pa.array([1], pa.int32())})
    variants = [
        table,
        table.rename_columns(["a", "c"]),
        table.set_column(1, "b", pa.array([1], pa.int64())),
        table.select(["b", "a"]),
        table[:0],
    ]
    digests = {content_digest([fingerprint(t)], t.schema) for t in variants}
    assert len(digests) == len(variants)
    assert all(len(digest) == 32 for digest in digests)
    assert content_digest([], table.schema) == content_digest([fingerprint(table[:0])] * 3, table.schema)


def test_wrong_schema_and_wrong_text_are_refused():
    with pytest.raises(SchemaMismatchError, match="int64"):
        Fingerprint(pa.schema([("x", pa.int32())])).update(pa.table({"x": [1]}))
    with pytest.raises(ParameterError, match="isn't a fingerprint"):
        Fingerprint.parse("3-12")
