"""Compaction keeps what NumPy's and Arrow's filters keep."""

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.device.arrays.compaction import compact, compact_table
from headwater.ops.device.table import DeviceTable, to_arrow, to_device

RNG = np.random.default_rng(7)
DTYPES = [np.bool_, np.int8, np.uint16, np.int32, np.float32, np.int64, np.float64, np.uint64]


def masks(rows):
    yield RNG.random(rows) < 0.5
    yield RNG.random(rows) < 0.01
    yield np.zeros(rows, bool)
    yield np.ones(rows, bool)
    lone = np.zeros(rows, bool)
    lone[-1:] = True
    yield lone


@pytest.mark.parametrize("rows", [0, 1, 31, 1023, 1024, 1025, 9000])
def test_keeps_the_bits_of_what_is_kept(rows, xp):
    arrays = [RNG.integers(0, 256, (rows, np.dtype(t).itemsize), np.uint8).view(t).ravel() for t in DTYPES]
    arrays[0] = arrays[0].view(np.uint8) % 2 == 1
    for mask in masks(rows):
        there = compact([xp.asarray(a) for a in arrays], xp.asarray(mask), xp)
        here = compact(arrays, mask, np)
        for one, twin, array in zip(there, here, arrays):
            assert one.dtype == twin.dtype == array.dtype
            assert one.get().tobytes() == twin.tobytes() == array[mask].tobytes()


def test_all_kept_is_no_copy(xp):
    array = xp.arange(3000)
    assert compact([array], xp.ones(3000, dtype=bool), xp)[0] is array


def test_slices_begin_anywhere(xp):
    array, mask = np.arange(5000, dtype=np.int16), RNG.random(5000) < 0.3
    kept = compact([xp.asarray(array)[3:4801]], xp.asarray(mask)[5:4803], xp)[0]
    assert kept.get().tolist() == array[3:4801][mask[5:4803]].tolist()


@pytest.mark.parametrize("module", ["numpy", "device"])
def test_tables(module, xp):
    xp = np if module == "numpy" else xp
    rows = 3000
    table = pa.table(
        {
            "i": pa.array(RNG.integers(0, 9, rows), mask=RNG.random(rows) < 0.5),
            "s": pa.array(RNG.choice(["a", "bb", ""], rows), mask=RNG.random(rows) < 0.1),
            "b": pa.array(RNG.random(rows) < 0.5),
            "n": pa.nulls(rows, pa.float32()),
        }
    )
    for mask in masks(rows):
        kept = compact_table(to_device(table, xp), xp.asarray(mask), xp)
        assert kept.rows == mask.sum()
        assert to_arrow(kept).equals(table.filter(pa.array(mask)).combine_chunks())


def test_tables_without_columns(xp):
    assert (
        compact_table(DeviceTable((), pa.schema([]), 4), xp.asarray([True, False, True, True]), xp).rows == 3
    )


@pytest.mark.gpu
def test_more_rows_than_an_int_counts(xp):
    rows = 2**31 + 4099
    values = (xp.arange(rows, dtype=xp.int64) % 251).astype(xp.uint8)
    keep = values % 2 == 0
    (kept,) = compact([values], keep, xp)
    assert int(kept.shape[0]) == int(keep.sum())
    tail = values[-5000:]
    assert (kept[-2000:] == tail[tail % 2 == 0][-2000:]).all()
