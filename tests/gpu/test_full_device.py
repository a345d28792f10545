"""A device that is full for a whole table takes it in parts, with the same rows."""

from __future__ import annotations

import weakref

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.device import lowerings as lowerings
from headwater.ops.device import memory, streams
from headwater.ops.device import transfer as transfers
from headwater.ops.device.cache import BlockKey, DeviceCache
from headwater.ops.device.device_kernel import device_kernel
from headwater.ops.device.memory_bound import held_bytes
from headwater.ops.device.operators import filter_project, join, partition, project
from headwater.ops.device.operators.join import DeviceJoin
from headwater.ops.device.operators.partition import DevicePartition
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.expressions import col
from headwater.ops.filter import FilterKernel
from headwater.ops.join import JoinKernel
from headwater.ops.kernel import Broadcast, Context
from headwater.ops.partitioner import RoundRobinPartitioner
from headwater.ops.project import ProjectKernel

TABLE = pa.table({"x": np.arange(5000), "y": np.random.default_rng(0).normal(size=5000)})


@pytest.fixture
def room(xp, monkeypatch):
    """Lets functions of a module fail for tables of more rows than there is room for; counts the calls."""
    monkeypatch.setattr(memory, "LEAST_ROWS", 100)
    calls = []

    def bound(module, name, most):
        whole = getattr(module, name)

        def limited(table, *args):
            calls.append(table.num_rows)
            if table.num_rows > most:
                raise xp.cuda.memory.OutOfMemoryError(1, 2)
            return whole(table, *args)

        monkeypatch.setattr(module, name, limited)
        return calls

    return bound


def on_device(kernel, xp):
    lowered = device_kernel(kernel, [TABLE.schema])
    tables = lowered.run([iter([to_device(TABLE, xp)])], Context())
    return pa.concat_tables([to_arrow(table) for table in tables])


def test_workers_that_share_a_device_hold_less(xp):
    pool = xp.get_default_memory_pool()
    before = pool.get_limit()
    try:
        memory.set_up_pool(xp, 1)
        alone = held_bytes(Context(), xp)
        memory.set_up_pool(xp, 4)
        shared = held_bytes(Context(), xp)
        assert shared == pytest.approx(alone / 4, rel=1e-3)
        assert shared < pool.get_limit() / 3  # it works on what it holds
    finally:
        pool.set_limit(size=before)


def test_filters(xp, room):
    calls = room(filter_project, "rows_of", 1000)
    kernel = FilterKernel(col("y") > 0)
    assert on_device(kernel, xp).equals(pa.concat_tables(kernel.run([iter([TABLE])], Context())))
    assert calls.count(625) == 8


def test_what_crosses(xp, room):
    calls = room(transfers, "to_device", 700)
    tables = list(transfers.ToDevice().run([iter([TABLE])], Context()))
    assert [table.rows for table in tables] == [625] * 8
    assert pa.concat_tables(map(to_arrow, tables)).equals(TABLE)
    assert max(calls) == 5000


def test_projections(xp, room):
    room(project, "project_table", 700)
    schema = pa.schema([("z", pa.float64())])
    kernel = ProjectKernel((("z", col("y") * 2 + col("x")),), schema)
    assert on_device(kernel, xp).equals(pa.concat_tables(kernel.run([iter([TABLE])], Context())))


def test_partitions_count_rows_on(xp, room):
    partitioner = RoundRobinPartitioner(7)
    whole = list(DevicePartition(partitioner).run([iter([to_device(TABLE, xp)])], Context(partition=3)))
    room(partition, "partition_by", 2000)
    parts = list(DevicePartition(partitioner).run([iter([to_device(TABLE, xp)])], Context(partition=3)))
    assert (len(whole), len(parts)) == (1, 4)
    for segment in range(7):
        rows = [p.table.slice(p.offsets[segment], p.offsets[segment + 1] - p.offsets[segment]) for p in parts]
        start, stop = whole[0].offsets[segment : segment + 2]
        assert pa.concat_tables(rows).equals(whole[0].table.slice(start, stop - start))


def test_too_little_room_for_anything_is_told(xp, room):
    room(filter_project, "rows_of", 10)
    with pytest.raises(memory.DeviceMemoryError, match="partition_bytes"):
        on_device(FilterKernel(col("y") > 0), xp)


def test_what_crosses_is_tried_again(xp, monkeypatch):
    whole, failures = transfers.to_device, [xp.cuda.memory.OutOfMemoryError(1, 2)]

    def full_once(table, xp):
        if failures:
            raise failures.pop()
        return whole(table, xp)

    monkeypatch.setattr(transfers, "to_device", full_once)
    (there,) = transfers.ToDevice().run([iter([TABLE])], Context())
    assert to_arrow(there).equals(TABLE)


def test_what_is_put_together_finds_room_in_the_end(xp, monkeypatch):
    whole, failures = streams.concat, [xp.cuda.memory.OutOfMemoryError(1, 2)] * 2

    def full_twice(tables, xp):
        if failures:
            raise failures.pop()
        return whole(tables, xp)

    monkeypatch.setattr(streams, "concat", full_twice)
    halves = [to_device(TABLE.slice(0, 2500), xp), to_device(TABLE.slice(2500), xp)]
    (there,) = streams.rechunk(iter(halves), 5000, xp)
    assert to_arrow(there).equals(TABLE)
    assert not failures


@pytest.mark.parametrize("name", ["to_device", "concat"])
def test_a_broadcast_side_that_finds_no_room_is_joined_on_the_host(xp, monkeypatch, name):
    right = pa.table({"x": np.arange(0, 5000, 7), "z": np.arange(715)})
    schema = TABLE.schema.append(right.schema.field("z"))
    host = JoinKernel(("x",), ("x",), "inner", (("z", "z"),), schema)
    sides = [Broadcast(lambda: iter([right.slice(0, 400), right.slice(400)]), right.schema, {}) for _ in "ab"]
    expected = pa.concat_tables(host.run([iter([TABLE]), sides[0]], Context()))

    def full(*args):
        raise xp.cuda.memory.OutOfMemoryError(1, 2)

    there = to_device(TABLE, xp)
    monkeypatch.setattr(join, name, full)
    found = DeviceJoin(host).run([iter([there]), sides[1]], Context())
    assert pa.concat_tables(map(to_arrow, found)).equals(expected)


@pytest.mark.parametrize("told", [False, True])
def test_an_attempt_that_found_the_device_full_leaves_room_for_the_next(xp, told):
    cache, key = DeviceCache(1 << 20), BlockKey("run", 0, 0, 0)
    memory.on_low_memory(cache.clear)
    assert cache.put(key, [[to_device(TABLE, xp)]])
    memory.make_room_after(ValueError("something else"))
    assert cache.bytes == TABLE.nbytes
    arrays = []

    def stream():
        held = to_device(TABLE, xp)
        arrays.append(weakref.ref(held.columns[0].values))
        yield held
        raise memory.DeviceMemoryError if told else xp.cuda.memory.OutOfMemoryError(1, 2)

    with pytest.raises(MemoryError) as kept:
        list(stream())
    memory.make_room_after(kept.value)
    assert arrays[0]() is None
    assert cache.bytes == 0
