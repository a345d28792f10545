"""Sorting on a device leaves the rows in the host's order, whatever the keys' types and how they crowd."""

from __future__ import annotations

import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from headwater.ops.device.arrays import word_order
from headwater.ops.device.arrays.sort_keys import key_ranges, ordered, sort_words
from headwater.ops.device.arrays.word_order import row_order, sort_order
from headwater.ops.device.device_kernel import device_kernel
from headwater.ops.device.operators import merge as device_merge
from headwater.ops.device.operators.sort import DeviceSort
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.kernel import Context
from headwater.ops.key_words import key_words, sortable
from headwater.ops.ordering import SortKey, sort_indices
from headwater.ops.sort import SortKernel

SIZES = (0, 1, 255, 5001)
WORDS = ("", "a", "Z", "ä", "zebra", "zebra\0", "日本", "a b", "Ω", "~")


def random_table(rows: int, nulls: float, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng([seed, rows, int(nulls * 100)])

    def column(values, type=None):
        mask = rng.random(rows) < nulls
        return pa.array(values, type, mask=mask if nulls else None, from_pandas=False)

    floats = rng.choice([np.nan, -np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-40, -1.5, 3e38], rows)
    whole = np.iinfo(np.int64)
    return pa.table(
        {
            "bool": column(rng.random(rows) < 0.5),
            "i8": column(rng.integers(-128, 128, rows).astype(np.int8)),
            "u16": column(rng.integers(0, 65536, rows).astype(np.uint16)),
            "i64": column(rng.choice([whole.min, whole.max, 0, -1], rows)),
            "u64": column(rng.choice(np.array([0, 1, 2**64 - 1, 2**63], np.uint64), rows)),
            "f32": column(floats.astype(np.float32)),
            "f64": column(floats),
            "normal": column(rng.normal(size=rows)),
            "text": column(rng.choice(WORDS, rows).astype(object), pa.string()),
            "date": column(rng.integers(-9, 9, rows).astype(np.int32), pa.int32()).cast(pa.date32()),
            "dec": column(
                [decimal.Decimal(int(v)) / 100 for v in rng.integers(-9, 9, rows)], pa.decimal128(12, 2)
            ),
            "same": column(np.full(rows, 7)),
            "row": pa.array(np.arange(rows)),
        }
    )


KEYS = [
    *(
        [name]
        for name in ("bool", "i8", "u16", "i64", "u64", "f32", "f64", "normal", "text", "date", "dec", "same")
    ),
    ["i8", "text", "f32"],
    ["normal", "f64"],
    ["i64", "u64", "bool", "dec"],
    ["u16", "i8", "date", "same", "i64"],
]


def stated(names, seed):
    rng = np.random.default_rng(seed)
    return tuple(SortKey(name, bool(rng.random() < 0.5), bool(rng.random() < 0.5)) for name in names)


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("nulls", [0.0, 0.3, 1.0])
def test_order_is_the_hosts(rows, nulls, xp):
    table = random_table(rows, nulls)
    here, there = to_device(table, np), to_device(table, xp)
    for place, names in enumerate(KEYS):
        keys = stated(names, [place, rows])
        expected = sort_indices(table, keys).to_numpy()
        np.testing.assert_array_equal(row_order(here, keys, np), expected)
        np.testing.assert_array_equal(row_order(there, keys, xp).get(), expected, str(keys))


@pytest.mark.parametrize("nulls", [0.0, 0.3])
def test_words_are_the_hosts(nulls, xp):
    table = random_table(3000, nulls)
    for place, names in enumerate(KEYS):
        if "text" in names:
            continue
        keys = stated(names, place)
        columns = [sortable(table.column(key.column).combine_chunks()) for key in keys]
        expected = key_words([(c, key.descending, key.nulls_first) for c, key in zip(columns, keys)])
        for namespace in (np, xp):
            there = to_device(table, namespace)
            words = sort_words([there.column(key.column) for key in keys], keys, namespace)
            assert len(words) == len(expected)
            for word, known in zip(words, expected):
                word = word if namespace is np else word.get()
                assert word.dtype == np.uint64
                np.testing.assert_array_equal(word, known)


def test_order_is_that_of_pandas(xp):
    table = random_table(5001, 0.2)
    frame = table.to_pandas()
    keys = [SortKey("u16", True), SortKey("i8")]
    expected = frame.sort_values(["u16", "i8"], ascending=[False, True], kind="stable", na_position="last")
    result = row_order(to_device(table, xp), keys, xp).get()
    np.testing.assert_array_equal(frame["row"].to_numpy()[result], expected["row"])
    assert pd.isna(frame["u16"].to_numpy()[result][-1])


@pytest.mark.parametrize(
    "tops", [(1,), (1 << 20,), (1 << 40,), (1 << 52,), (1 << 63,), (3, 5), (1 << 63, 2, 1 << 63)]
)
def test_order_of_words(tops, xp):
    rng = np.random.default_rng(1)
    for rows in (1, 2, 3000, 4097):
        words = [rng.integers(0, top, rows, dtype=np.uint64, endpoint=True) for top in tops]
        words[0][rows // 2 :] = words[0][: rows - rows // 2]
        expected = np.lexsort(words[::-1])
        result = sort_order([xp.asarray(word) for word in words], rows, xp)
        assert result.dtype == np.int64
        np.testing.assert_array_equal(result.get(), expected)
        np.testing.assert_array_equal(sort_order(words, rows, np), expected)


@pytest.mark.gpu
def test_beyond_two_thousand_million_rows(xp):
    rows = (1 << 31) + 77
    if xp.cuda.Device().mem_info[0] < 72 << 30:
        pytest.skip("needs 72 GiB of a device's memory")
    word = xp.arange(rows, dtype=np.uint64)
    word[:] = word[::-1].copy()
    order = sort_order([word], rows, xp)
    del word
    assert int(order[0]) == rows - 1
    assert int(order[-1]) == 0
    for start in range(0, rows, 1 << 26):
        piece = order[start : start + (1 << 26)]
        assert bool((piece == xp.arange(rows - 1 - start, rows - 1 - start - len(piece), -1)).all())


def test_ranges(xp):
    table = random_table(5001, 0.4)
    for name in table.column_names:
        if name == "text":
            continue
        here, there = to_device(table, np).column(name), to_device(table, xp).column(name)
        assert key_ranges([here], [False], np) == key_ranges([there], [False], xp)
        assert key_ranges([here], [True], np) == key_ranges([there], [True], xp)


def test_ordered_words_compare_as_values():
    values = np.array([-np.inf, -1.5, -5e-324, 0.0, 5e-324, 1.0, np.inf, np.nan])
    assert (np.diff(ordered(values).astype(object)) > 0).all()
    assert ordered(np.array([-0.0])) == ordered(np.array([0.0]))
    assert (np.diff(ordered(values, descending=True).astype(object)) < 0).all()


def cut(table, namespace, *places):
    ends = [0, *places, table.num_rows]
    return (to_device(table.slice(a, b - a), namespace) for a, b in zip(ends, ends[1:]))


def rows_of(stream):
    tables = [to_arrow(table) for table in stream]
    return pa.concat_tables(tables).combine_chunks() if tables else None


@pytest.mark.parametrize("held", [None, 40_000])
def test_sort_operator(held, xp, monkeypatch, tmp_path):
    monkeypatch.setattr(device_merge, "UNIT_ROWS", 1000)
    table = random_table(4100, 0.2)
    keys = (SortKey("text", True), SortKey("f32", nulls_first=True))
    context = Context(memory_bytes=200_000, spill_root=tmp_path)
    expected = pa.concat_tables(SortKernel(keys).run([iter([table])], Context()))
    operator = DeviceSort(keys, held)
    tables = list(operator.run([cut(table, xp, 0, 700, 701, 3000)], context))
    assert all(t.rows <= 1000 for t in tables)
    assert type(tables[0].column("i8").values) is xp.ndarray
    result = rows_of(iter(tables))
    assert result.schema.equals(table.schema)
    for name in table.column_names:
        assert repr(result.column(name).to_pylist()) == repr(expected.column(name).to_pylist()), name
    assert bool(context.metrics.get("spilled_bytes")) == (held is not None)
    assert list(operator.run([iter([])], context)) == []
    assert list(operator.run([cut(table.slice(0, 0), xp)], context)) == []


def test_lowering():
    schema = pa.schema([("x", pa.int64()), ("t", pa.string()), ("d", pa.dictionary(pa.int32(), pa.string()))])
    kernel = SortKernel((SortKey("x"), SortKey("t")))
    assert device_kernel(kernel, [schema]) == DeviceSort(kernel.keys)
    assert "'d'" in device_kernel(SortKernel((SortKey("d"),)), [schema])
    assert "'l'" in device_kernel(kernel, [schema.append(pa.field("l", pa.list_(pa.int8())))])


@pytest.mark.parametrize(
    "widths", [(64,), (53, 3), (20, 64, 1), (5, 5), (30, 31), (64, 64), (0, 64), (1, 60, 64)]
)
@pytest.mark.parametrize("ties", ["none", "in order", "wrong", "all"])
def test_leading_bits_decide_or_the_rest_does(widths, ties, xp):
    rng = np.random.default_rng(3)
    rows = 3001
    words = [
        rng.integers(0, 1 << width, rows, dtype=np.uint64) if width else np.zeros(rows, np.uint64)
        for width in (min(w, 63) for w in widths)
    ]
    if ties != "none":
        few = rng.integers(0, 40 if ties != "all" else 1, rows)
        words = [word[few] for word in words]
        if ties != "in order":
            words[-1] ^= rng.integers(0, 2, rows, dtype=np.uint64)
    expected = np.lexsort(words[::-1])
    np.testing.assert_array_equal(sort_order([xp.asarray(word) for word in words], rows, xp).get(), expected)


def test_only_rows_that_stand_wrongly_are_sorted_again(xp, monkeypatch):
    sorted_again = []
    whole = word_order._order_by_each
    monkeypatch.setattr(
        word_order,
        "_order_by_each",
        lambda sized, xp: sorted_again.append(len(sized[0][0])) or whole(sized, xp),
    )
    rng = np.random.default_rng(4)
    prices = to_device(pa.table({"x": np.round(rng.random(5000) * 90, 2), "row": np.arange(5000)}), xp)
    expected = np.argsort(prices.column("x").values.get(), kind="stable")
    np.testing.assert_array_equal(row_order(prices, [SortKey("x")], xp).get(), expected)
    assert sorted_again == []  # rows of equal prices stand as they stood
    word = rng.integers(0, 1 << 63, 5000, dtype=np.uint64)
    word[100:140] = word[100] ^ np.arange(40, dtype=np.uint64)[::-1]
    np.testing.assert_array_equal(
        sort_order([xp.asarray(word)], 5000, xp).get(), np.argsort(word, kind="stable")
    )
    assert sorted_again == [40]
