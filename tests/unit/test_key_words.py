"""Packed sort keys order rows as comparing the values does, and tell equal rows from others."""

from __future__ import annotations

import datetime
import decimal
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.distinct import first_rows
from headwater.ops.key_words import first_rows_of, key_words, order_of, sortable
from headwater.ops.ordering import SortKey, quantiles, segments, sort_indices

NAN = float("nan")
VALUES: dict[pa.DataType, Callable[[random.Random], Any]] = {
    pa.int64(): lambda r: r.choice([r.randint(-(2**63), 2**63 - 1), r.randint(-3, 3), -(2**63), 2**63 - 1]),
    pa.int8(): lambda r: r.randint(-128, 127),
    pa.uint64(): lambda r: r.choice([r.randint(0, 2**64 - 1), r.randint(0, 3)]),
    pa.float64(): lambda r: r.choice([r.uniform(-1, 1), 0.0, -0.0, NAN, float("inf"), -1e300]),
    pa.decimal128(18, 2): lambda r: (
        decimal.Decimal(r.choice([r.randint(-(10**16), 10**16), r.randint(-3, 3)])) / 4
    ),
    pa.decimal128(38, 0): lambda r: decimal.Decimal(r.randint(-(10**30), 10**30)),
    pa.bool_(): lambda r: r.random() < 0.5,
    pa.date32(): lambda r: datetime.date(2000, 1, 1) + datetime.timedelta(r.randint(-5, 5)),
    pa.string(): lambda r: r.choice(["", "a", "b", "ab"]),
}


def column(r: random.Random, type: pa.DataType, rows: int) -> pa.Array:
    share = r.choice([0, 0, 0.2, 1])
    return pa.array([None if r.random() < share else VALUES[type](r) for _ in range(rows)], type)


def ranks(column: pa.ChunkedArray, key: SortKey) -> list[tuple[int, int]]:
    """Each value's place: nulls at their end, NaN above all numbers, the zeros equal."""
    values = [
        None if v is None else (v != v, 0 if v != v else v + 0) for v in map(_plain, column.to_pylist())
    ]
    place = {v: i for i, v in enumerate(sorted({v for v in values if v is not None}))}
    nulls = (-1 if key.nulls_first else 1, 0)
    return [nulls if v is None else (0, -place[v] if key.descending else place[v]) for v in values]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date):
        return value.toordinal()
    return sum(ord(c) << (8 * (4 - i)) for i, c in enumerate(value)) if isinstance(value, str) else value


@pytest.mark.parametrize("seed", range(60))
def test_rows_are_ordered_and_cut_as_their_values_are(seed: int):
    r = random.Random(seed)
    rows = r.choice([0, 1, 5, 40, 120])
    types = r.choices(list(VALUES), k=r.choice([1, 1, 2, 3, 4]))
    table = pa.table({str(i): column(r, type, rows + 2) for i, type in enumerate(types)})[1 : rows + 1]
    keys = [SortKey(name, r.random() < 0.5, r.random() < 0.5) for name in table.column_names]
    places = list(zip(*(ranks(table[key.column], key) for key in keys)))
    assert sort_indices(table, keys).to_pylist() == sorted(range(rows), key=places.__getitem__)
    distinct = [row for row in range(rows) if places[row] not in places[:row]]
    assert first_rows(table).tolist() == distinct
    bounds = quantiles(table, np.ones(rows), keys, r.choice([2, 3, 9]))
    both = pa.concat_tables([table, bounds])
    places = list(zip(*(ranks(both[key.column], key) for key in keys)))
    expected = [sum(bound <= place for bound in places[rows:]) for place in places[:rows]]
    assert segments(table, bounds, keys).tolist() == expected


@pytest.mark.parametrize("most", [1, 3, 400, 2**31, 2**40, 2**64 - 1])
def test_words_of_any_size_are_ordered_stably(most: int):
    rng = np.random.default_rng(most % 1000)
    word = rng.integers(0, most, 5000, np.uint64, endpoint=True)[rng.integers(0, 5000, 8000)]
    assert order_of([word], len(word)).tolist() == np.argsort(word, kind="stable").tolist()
    assert first_rows_of(word).tolist() == np.sort(np.unique(word, return_index=True)[1]).tolist()


def test_keys_that_fit_share_a_word():
    price = pa.array([decimal.Decimal(n) / 100 for n in (90_000, 10_500_000)], pa.decimal128(15, 2))
    keys = [(sortable(array), False, False) for array in (price, pa.array([1, 6_000_000]), pa.array([7, 1]))]
    assert len(key_words(keys) or ()) == 1
    wide = pa.array([-(2**63), 2**63 - 1])
    assert len(key_words([*keys, (wide, False, False)]) or ()) == 2
    assert key_words([(pa.array(["a"]), False, False)]) is None
