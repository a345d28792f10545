"""Shards on a device: the rows that a CPU gets, whether they are kept there or come again at each pass."""

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.backend import use_backend
from headwater.ops.training.features import Features
from headwater.ops.training.program import BLOCK_ROWS
from headwater.ops.training.sampling import Order
from headwater.runtime.training import resident
from headwater.runtime.training.mapped_shard import MappedShard
from headwater.runtime.training.prefetch import PrefetchedShard, Prefetcher
from headwater.runtime.training.shard_file import ShardFile
from headwater.runtime.training.streamed_shard import StreamedShard

ROWS = 2 * BLOCK_ROWS + 300
TABLE = pa.table({name: np.random.default_rng(i).normal(size=ROWS) for i, name in enumerate("abc")})
FEATURES = Features()


def shard_file(rows):
    widths = FEATURES.widths(TABLE)
    arrays = FEATURES.to_arrays(TABLE.slice(0, rows), widths, 0)
    return ShardFile(0, 0, rows, FEATURES.layout(TABLE.schema, widths), widths, None, arrays)


def mapped(order):
    return MappedShard(shard_file(ROWS), order)


def streamed(order):
    return StreamedShard(
        shard_file(BLOCK_ROWS), ROWS, lambda: iter([TABLE.slice(BLOCK_ROWS)]), FEATURES, order
    )


def everything(shard, backend):
    """Batches and blocks of two sizes, as bytes."""
    with use_backend(backend):
        batches = [shard.batch(epoch, step) for epoch in (0, 1) for step in range(3)]
        batches += [*shard.blocks(), *shard.blocks(2 * BLOCK_ROWS)]
        return [
            {name: (array if backend == "numpy" else array.get()).tobytes() for name, array in batch.items()}
            for batch in batches
        ]


@pytest.mark.parametrize("make", [mapped, streamed])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("share", [0.5, 1e-9])
def test_a_device_gets_the_same_rows(make, shuffle, share, xp, monkeypatch):
    monkeypatch.setattr(resident, "SHARE", share)
    order = Order(0, 0, ROWS, 100, shuffle)
    assert everything(make(order), "numpy") == everything(make(order), "cupy")


def test_prefetched_batches_are_the_same(xp):
    order = Order(0, 0, ROWS, 100)
    with Prefetcher(least_seconds=0) as prefetcher:
        shard = PrefetchedShard(streamed(order), prefetcher, 10)
        assert everything(shard, "cupy") == everything(streamed(order), "numpy")


def test_rows_cross_once_where_there_is_room(xp):
    import cupy

    if not hasattr(cupy, "transfers"):
        pytest.skip("only the emulation counts what crosses")
    shard = mapped(Order(0, 0, ROWS, 100))
    size = sum(array.nbytes for array in shard.file.arrays.values())
    before = cupy.transfers["to_device"]
    for _ in range(3):
        list(shard.blocks())
    assert cupy.transfers["to_device"] - before == size


def test_large_arrays_cross_in_parts(xp, monkeypatch):
    from headwater.runtime.training import buffers

    monkeypatch.setattr(buffers, "_SMALL", 100)
    monkeypatch.setattr(buffers, "_STAGED", 1000)
    given = {"x": np.arange(7777.0).reshape(-1, 7), "none": np.zeros((0, 3)), "one": np.ones(3)}
    moved = buffers.to_device(given, xp)
    for name, array in given.items():
        np.testing.assert_array_equal(moved[name].get(), array)
