"""Distinct on a device passes the rows on that the host does, in their order."""

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.backend import use_backend
from headwater.ops.device.device_kernel import device_kernel
from headwater.ops.device.operators import distinct as device_distinct
from headwater.ops.device.operators.distinct import DeviceDistinct
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.distinct import DistinctKernel
from headwater.ops.kernel import Context


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr(device_distinct, "UNIT_ROWS", 700)


def random_table(rows, nulls):
    rng = np.random.default_rng(rows)

    def column(values, type=None):
        return pa.array(values, type, mask=rng.random(rows) < nulls if nulls else None, from_pandas=False)

    return pa.table(
        {
            "key": column(rng.integers(0, 1200, rows)),
            "float": column(rng.choice([0.0, -0.0, np.nan, 1.5], rows)),
            "word": column(rng.choice(["a", "b", "ä", ""], rows).astype(object), pa.string()),
        }
    )


def on_device(kernel, table, xp, rows):
    parts = (to_device(table.slice(start, rows), xp) for start in range(0, table.num_rows, rows))
    with use_backend(xp.__name__):
        found = [to_arrow(part) for part in kernel.run([parts], Context())]
    return pa.concat_tables([table.schema.empty_table(), *found])


def assert_same(found, expected):
    for one, other in zip(found.columns, expected.columns, strict=True):
        one, other = one.combine_chunks(), other.combine_chunks()
        assert one.is_valid().equals(other.is_valid())
        np.testing.assert_array_equal(one.drop_null().to_numpy(False), other.drop_null().to_numpy(False))
        if pa.types.is_floating(one.type):  # rows stay as they are, -0.0 too
            signs = (np.signbit(part.drop_null().to_numpy()) for part in (one, other))
            np.testing.assert_array_equal(*signs)


@pytest.mark.parametrize("keys", [None, ("key",), ("float", "word"), ("word",)])
@pytest.mark.parametrize(("rows", "nulls"), [(0, 0), (1, 0), (5001, 0.2), (800, 1.0)])
def test_rows_are_the_hosts(keys, rows, nulls, xp):
    table = random_table(rows, nulls)
    host = DistinctKernel(keys)
    expected = pa.concat_tables([table.schema.empty_table(), *host.run([iter([table])], Context())])
    kernel = device_kernel(host, [table.schema])
    assert isinstance(kernel, DeviceDistinct)
    for module in (np, xp):
        for cut in (5001, 450):
            assert_same(on_device(kernel, table, module, cut), expected)


def test_against_pandas(xp):
    table = random_table(3000, 0).select(["key", "word"])
    expected = table.to_pandas().drop_duplicates(["key", "word"])
    found = on_device(DeviceDistinct(("key", "word")), table, xp, 1000)
    assert_same(found, pa.Table.from_pandas(expected, preserve_index=False))


def test_keys_beyond_memory_go_on_on_the_host(xp):
    table = random_table(5001, 0.2)
    expected = pa.concat_tables(DistinctKernel(("key",)).run([iter([table])], Context()))
    assert_same(on_device(DeviceDistinct(("key",), held=2000), table, xp, 500), expected)


def test_what_stays_on_the_host_says_why():
    schema = pa.schema([("x", pa.list_(pa.int8()))])
    assert device_kernel(DistinctKernel(None), [schema]) == "'x' is list<item: int8>"
