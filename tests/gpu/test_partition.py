"""Partitioning on a device gives every row the place that the host gives it."""

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import PlanError
from headwater.ops.backend import use_backend
from headwater.ops.device.column import DeviceColumn
from headwater.ops.device.crossing import counted
from headwater.ops.device.operators.partition import (
    MOST,
    TILE,
    DevicePartition,
    hash_partition,
    partition_by,
    refusal,
    segments_of,
)
from headwater.ops.device.table import DeviceTable, to_arrow, to_device
from headwater.ops.kernel import Context
from headwater.ops.partitioner import (
    HashPartitioner,
    RangePartitioner,
    RoundRobinPartitioner,
    SinglePartitioner,
)
from headwater.ops.sort import SortKey

RNG = np.random.default_rng(17)


def rows_of(rows):
    return pa.table(
        {
            "k": pa.array(RNG.integers(0, 500, rows), mask=RNG.random(rows) < 0.1),
            "i": pa.array(np.arange(rows, dtype=np.int32)),
            "h": pa.array(RNG.integers(0, 99, rows).astype(np.int16)),
            "b": pa.array(RNG.random(rows) < 0.5, mask=RNG.random(rows) < 0.5),
            "s": pa.array(
                RNG.choice(["a", "bb", ""], rows).tolist(), pa.string(), mask=RNG.random(rows) < 0.1
            ),
            "f": pa.array(RNG.normal(size=rows)),
        }
    )


def check(table, found, offsets, segments, count):
    order = np.argsort(segments, kind="stable")
    assert to_arrow(found).equals(table.take(pa.array(order)).combine_chunks())
    assert offsets.dtype == np.int64
    assert offsets.tolist() == [0, *np.cumsum(np.bincount(segments, minlength=count))]


@pytest.mark.parametrize("rows", [0, 1, 31, TILE - 1, TILE, TILE + 1, 3 * TILE + 77])
@pytest.mark.parametrize("module", ["numpy", "device"])
def test_by_hash(rows, module, xp):
    xp = np if module == "numpy" else xp
    table = rows_of(rows)
    for keys, count in [(["k"], 7), (["s", "k"], 300)]:
        segments = HashPartitioner(tuple(keys), count).assign(table, 0, 0)
        found, offsets = hash_partition(to_device(table, xp), keys, count, xp)
        check(table, found, offsets, segments, count)


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, MOST - 1, MOST, MOST + 1, 70_000])
def test_any_number_of_segments(count, xp):
    table = rows_of(2 * TILE + 5)
    segments = RNG.integers(0, count, table.num_rows).astype(np.uint32)
    segments[RNG.random(len(segments)) < 0.3] = count - 1
    found, offsets = partition_by(to_device(table, xp), xp.asarray(segments), count, xp)
    check(table, found, offsets, segments, count)


@pytest.mark.parametrize("lone", [0, 1, 4])
def test_all_rows_to_one_segment(lone, xp):
    table = rows_of(TILE + 100)
    segments = np.full(table.num_rows, lone, np.uint8)
    found, offsets = partition_by(to_device(table, xp), xp.asarray(segments), 5, xp)
    check(table, found, offsets, segments, 5)


def test_slices(xp):
    table = rows_of(6000)
    segments = RNG.integers(0, 9, 6000).astype(np.uint16)
    found, offsets = partition_by(to_device(table, xp).slice(5, 4999), xp.asarray(segments)[5:4999], 9, xp)
    check(table[5:4999], found, offsets, segments[5:4999], 9)


@pytest.mark.parametrize(
    "partitioner",
    [
        HashPartitioner(("k", "b"), 11),
        RoundRobinPartitioner(300),
        RoundRobinPartitioner(3),
        SinglePartitioner(),
        RangePartitioner((SortKey("k"), SortKey("s", True)), 5, rows_of(4).sort_by("k").select(["k", "s"])),
    ],
    ids=lambda p: p.describe(),
)
def test_segments_are_the_partitioners(partitioner, xp):
    table = rows_of(1500)
    expected = partitioner.assign(table, 5, 70)
    for module in (np, xp):
        found = segments_of(partitioner, to_device(table, module), 5, 70, module)
        np.testing.assert_array_equal(found if module is np else found.get(), expected)
    assert refusal(partitioner) is None


def test_ranges_need_boundaries():
    with pytest.raises(PlanError, match="no boundaries"):
        segments_of(RangePartitioner((SortKey("k"),), 4), to_device(rows_of(3), np), 0, 0, np)


def test_rows_without_columns(xp):
    segments = np.array([2, 0, 2], np.uint8)
    found, offsets = partition_by(DeviceTable((), pa.schema([]), 3), xp.asarray(segments), 3, xp)
    assert (found.rows, offsets.tolist()) == (3, [0, 1, 1, 3])


@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_the_step_counts_rows_over_the_stream(backend, xp):
    table, partitioner = rows_of(3000), RoundRobinPartitioner(7)
    with use_backend(backend) as module:
        parts = (to_device(table[at : at + 700], module) for at in range(0, 3000, 700))
        with counted() as traffic:
            (found,) = DevicePartition(partitioner).run([parts], Context(partition=4))
    order = np.argsort(partitioner.assign(table, 4, 0), kind="stable")
    assert found.table.equals(table.take(pa.array(order)).combine_chunks())
    assert found.num_rows == 3000
    assert found.offsets[-1] == 3000
    assert (traffic.to_host > 0) == (backend == "cupy")


@pytest.mark.gpu
def test_more_rows_than_an_int_counts(xp):
    rows, count = 2**31 + 4099, 5
    values = (xp.arange(rows, dtype=xp.int64) % 250).astype(xp.uint8)
    table = DeviceTable((DeviceColumn(pa.uint8(), values),), pa.schema([("x", pa.uint8())]), rows)
    found, offsets = partition_by(table, values % count, count, xp)
    assert offsets[-1] == rows
    for segment in range(count):
        part = found.column("x").values[int(offsets[segment]) : int(offsets[segment + 1])]
        assert (part == (segment + count * (xp.arange(len(part)) % (250 // count))).astype(xp.uint8)).all()
