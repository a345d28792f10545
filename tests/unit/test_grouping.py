"""Group numbers against Python's own dictionary, for keys near the limits of their types and far apart."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.grouping import group

DAY = datetime.date(1970, 1, 1)
#: keys by how they are told apart: by slots, by a hash table, by sorting pairs
KEYS = {
    "few": lambda r, n: pa.array(r.integers(0, 9, n)),
    "dense": lambda r, n: pa.array(r.integers(-n, n, n)),
    "lowest": lambda r, n: pa.array(-(2**63) + r.integers(0, 3, n)),
    "highest": lambda r, n: pa.array(np.uint64(2**64 - 1) - r.integers(0, 3, n).astype(np.uint64)),
    "far apart": lambda r, n: pa.array(r.integers(-(2**62), 2**62, n)),
    "both ends": lambda r, n: pa.array(r.choice([-(2**63), 2**63 - 1], n)),
    "days": lambda r, n: pa.array([DAY + datetime.timedelta(int(x)) for x in r.integers(-5, 5, n)]),
    "truths": lambda r, n: pa.array(r.integers(0, 2, n).astype(bool)),
    "text": lambda r, n: pa.array(r.integers(0, 40, n)).cast(pa.string()),
    "dictionary": lambda r, n: pa.array(r.integers(0, 4, n)).cast(pa.string()).dictionary_encode(),
}


@pytest.mark.parametrize("rows", [1, 2, 7, 3000])
@pytest.mark.parametrize("second", [None, *KEYS])
@pytest.mark.parametrize("first", KEYS)
def test_groups_are_numbered_by_first_appearance(first: str, second: str | None, rows: int):
    random = np.random.default_rng(rows)
    columns = [KEYS[name](random, rows) for name in (first, second) if name]
    columns[0] = pa.array(
        [None if random.random() < 0.2 else value for value in columns[0].to_pylist()], columns[0].type
    )
    numbers: dict[tuple, int] = {}
    keys = zip(*(column.to_pylist() for column in columns))
    expected = [numbers.setdefault(key, len(numbers)) for key in keys]
    groups = group(columns, rows)
    assert groups.codes.tolist() == expected
    assert groups.count == len(numbers)
