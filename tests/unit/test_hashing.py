"""Row hashes depend on values alone."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import TypeMismatchError
from headwater.lineage.hashing import hash_columns

NAN = float("nan")
LONG = "long " * 100

#: of `test_hashes_are_the_same_on_every_machine`; a change of it makes every lineage's blocks strangers
GOLDEN = [
    0x2B0CDCC2D4DA95FD,
    0x541483AE2C144B8E,
    0x2837BD3AD46DB803,
    0x90AF19E5278A92CE,
    0x8F611DAF08882840,
]

#: for each canonical type, values that all differ
DISTINCT = [
    (pa.int8(), [0, 1, -1, 127, -128]),
    (pa.int64(), [0, 1, -1, 2**62, -(2**63)]),
    (pa.uint64(), [0, 1, 2**63, 2**64 - 1]),
    (pa.bool_(), [True, False]),
    (pa.float16(), [np.float16(0.5), np.float16(1.5), np.float16(NAN)]),
    (pa.float32(), [0.5, -0.5, NAN, float("inf"), float("-inf")]),
    (pa.float64(), [0.1, 0.2, 5e-324, NAN]),
    (pa.string(), ["", "a", "b", "a\0", "ab", "ba", "12345678", "123456789", "ü", LONG, LONG + "!"]),
    (pa.binary(), [b"", b"\0", b"\0\0", b"\0" * 8, b"\0" * 9, b"\0" * 300, b"\0" * 301]),
    (pa.binary(11), [b"abcdefghijk", b"abcdefghijl", b"\0" * 11]),
    (pa.date32(), [dt.date(1970, 1, 1), dt.date(2026, 1, 1)]),
    (pa.date64(), [dt.date(1970, 1, 1), dt.date(2026, 1, 1)]),
    (pa.time32("ms"), [dt.time(0), dt.time(1)]),
    (pa.time64("us"), [dt.time(0), dt.time(1)]),
    (pa.timestamp("us", "UTC"), [dt.datetime(1970, 1, 1), dt.datetime(2026, 1, 1)]),
    (pa.duration("ns"), [dt.timedelta(0), dt.timedelta(1)]),
    (pa.decimal128(30, 2), [Decimal("0.00"), Decimal("1.00"), Decimal("-1.00"), Decimal(10**25)]),
    (pa.decimal256(60, 2), [Decimal("0.00"), Decimal("1.00"), Decimal("-1.00"), Decimal(10**55)]),
    (pa.list_(pa.string()), [[], [None], [""], ["a", "bc"], ["ab", "c"], ["a", "b", "c"], ["abc"]]),
    (pa.list_(pa.list_(pa.int8())), [[], [[]], [[], []], [[1], [2]], [[1, 2]], [[2], [1]], [[1, 2], []]]),
    (pa.list_(pa.float32(), 2), [[0, 1], [1, 0], [None, 0]]),
    (pa.struct([("a", pa.int8()), ("b", pa.string())]), [{"a": 1, "b": "x"}, {"a": 1}, {"b": "x"}, {}]),
    (pa.map_(pa.string(), pa.int8()), [[], [("a", 1)], [("a", None)], [("a", 1), ("b", 2)]]),
]


@pytest.mark.parametrize(("type", "values"), DISTINCT, ids=[str(type) for type, _ in DISTINCT])
class TestEveryType:
    def test_values_differ_and_null_differs_from_all(self, type, values):
        column = pa.array([*values, None, *values, None], type)
        first, second = np.split(hash_columns([column]), 2)
        assert len(set(first.tolist())) == len(values) + 1
        assert (first == second).all()

    def test_offsets_and_chunks_dont_count(self, type, values):
        column = pa.array([None, *values, None, *values, *values], type)
        whole = hash_columns([column])
        for offset in range(len(column)):
            assert (hash_columns([column.slice(offset, 5)]) == whole[offset : offset + 5]).all()
        chunked = pa.chunked_array([column[:1], column[1:1], column[1:4], column[4:]])
        assert (hash_columns([chunked]) == whole).all()

    def test_a_needless_validity_bitmap_doesnt_count(self, type, values):
        plain = pa.array(values, type)
        with_bitmap = pa.array([None, *values], type)[1:]
        assert with_bitmap.buffers()[0] is not None
        assert (hash_columns([plain]) == hash_columns([with_bitmap])).all()

    def test_seeds_differ(self, type, values):
        column = pa.array([*values, None], type)
        assert not (hash_columns([column], seed=0) == hash_columns([column], seed=1)).any()


def test_integers_of_any_width_hash_alike():
    hashes = [
        hash_columns([pa.array([0, 1, 100, None], type)]) for type in (pa.int8(), pa.uint16(), pa.int64())
    ]
    assert (hashes[0] == hashes[1]).all()
    assert (hashes[0] == hashes[2]).all()
    assert hash_columns([pa.array([-1], pa.int8())]) == hash_columns([pa.array([-1], pa.int64())])


def test_signed_zero_and_nan():
    other_nan = np.array([0x7FF8000000000123], dtype=np.uint64).view(np.float64)[0]
    column = pa.array(np.array([0.0, -0.0, NAN, other_nan, -NAN]))
    loose, exact = hash_columns([column]), hash_columns([column], exact=True)
    assert loose[0] == loose[1]
    assert exact[0] != exact[1]
    assert len(set(loose[2:].tolist())) == 1
    assert len(set(exact[2:].tolist())) == 1


def test_bytes_under_a_null_dont_count():
    valid = pa.py_buffer(b"\x01")
    numbers = [
        pa.Array.from_buffers(pa.int64(), 2, [valid, pa.py_buffer(np.array(v))]) for v in ([7, 0], [7, 9])
    ]
    offsets = pa.py_buffer(np.array([0, 1, 4], np.int32))
    strings = [
        pa.Array.from_buffers(pa.string(), 2, [valid, offsets, pa.py_buffer(b)]) for b in (b"abcd", b"axyz")
    ]
    items = [pa.array([1, 2, 3, 4]), pa.array([1, 7, 8, 9])]
    lists = [pa.Array.from_buffers(pa.list_(pa.int64()), 2, [valid, offsets], children=[c]) for c in items]
    structs = [pa.StructArray.from_arrays([c[:2]], ["a"], mask=pa.array([False, True])) for c in items]
    for one, two in (numbers, strings, lists, structs):
        assert (hash_columns([one]) == hash_columns([two])).all()


def test_columns_count_in_order():
    a, b = pa.array([1, 2]), pa.array([2, 1])
    assert not (hash_columns([a, b]) == hash_columns([b, a])).any()
    one, two = [pa.array(["a"]), pa.array(["bc"])], [pa.array(["ab"]), pa.array(["c"])]
    assert hash_columns(one) != hash_columns(two)


def test_hashes_are_the_same_on_every_machine():
    column = pa.array(["tide", None, "", "a string of more than eight bytes", LONG])
    assert hash_columns([column, pa.array([1, 2, 3, None, 5])], seed=3).tolist() == GOLDEN


def test_no_collisions_and_even_buckets():
    rows = 200_000
    hashes = hash_columns([pa.array(np.arange(rows)), pa.array(np.arange(rows) % 7)])
    assert len(np.unique(hashes)) == rows
    for buckets in (hashes % np.uint64(64), hashes >> np.uint64(58)):
        counts = np.bincount(buckets.astype(np.int64), minlength=64)
        chi_square = ((counts - rows / 64) ** 2 / (rows / 64)).sum()
        assert chi_square < 150  # 63 degrees of freedom; chance 1e-8


def test_rows_beyond_one_slice_hash_as_alone():
    strings = pa.array([f"{i:0{i % 40}d}" for i in range(40_000)])
    whole = hash_columns([strings])
    for row in (0, 16_383, 16_384, 39_999):
        assert whole[row] == hash_columns([strings[row : row + 1]])[0]


def test_zero_rows():
    assert hash_columns([pa.array([], pa.string())]).shape == (0,)
    assert hash_columns([pa.chunked_array([], pa.list_(pa.int8()))]).dtype == np.uint64


def test_a_type_that_isnt_canonical_is_named():
    with pytest.raises(TypeMismatchError, match=r"dictionary.*canonical_table"):
        hash_columns([pa.array(["a"]).dictionary_encode()])
