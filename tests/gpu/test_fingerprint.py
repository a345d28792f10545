"""Fingerprints of device tables are those of the host."""

import numpy as np
import pyarrow as pa
import pytest

from headwater.lineage.fingerprint import Fingerprint
from headwater.ops.device.arrays.fingerprint import TILE, fingerprint_rows
from headwater.ops.device.table import DeviceTable, to_device

RNG = np.random.default_rng(13)
ROWS = [0, 1, 2, 1023, 1024, 1025, TILE - 1, TILE, TILE + 1, 2 * TILE + 1500]


def rows_of(count):
    values = RNG.normal(size=count)
    values[RNG.random(count) < 0.1] = np.nan
    values[RNG.random(count) < 0.1] = -0.0
    return pa.table(
        {
            "i": pa.array(RNG.integers(-(2**63), 2**63, count), mask=RNG.random(count) < 0.2),
            "f": pa.array(values, from_pandas=False),
            "s": pa.array(
                RNG.choice(["", "a", "a longer one"], count).tolist(),
                pa.string(),
                mask=RNG.random(count) < 0.1,
            ),
            "b": pa.array(RNG.random(count) < 0.5),
        }
    )


@pytest.mark.parametrize("count", ROWS)
def test_the_same_as_on_the_host(count, xp):
    table = rows_of(count)
    expected = Fingerprint(table.schema).update(table)
    for module in (np, xp):
        found = fingerprint_rows(to_device(table, module), module)
        assert found.rows == count
        assert found.hexdigest() == expected.hexdigest()


def test_parts_merge(xp):
    table = rows_of(TILE + 700)
    total = Fingerprint(table.schema)
    for part in (table[:300], table[300:TILE], table[TILE:]):
        total.merge(fingerprint_rows(to_device(part, xp), xp))
    assert total.hexdigest() == Fingerprint(table.schema).update(table).hexdigest()


def test_goes_on_with_rows_of_the_host(xp):
    table = rows_of(2000)
    found = fingerprint_rows(to_device(table[:900], xp), xp).update(table[900:])
    assert found.hexdigest() == Fingerprint(table.schema).update(table).hexdigest()


def test_rows_without_columns(xp):
    host = pa.table({"x": pa.nulls(5)}).select([])
    found = fingerprint_rows(DeviceTable((), host.schema, 5), xp)
    assert found.hexdigest() == Fingerprint(host.schema).update(host).hexdigest()
