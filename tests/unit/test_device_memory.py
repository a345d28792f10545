"""Memory of a device: pools, what crosses, what happens when it is full, and blocks that stay there."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.device import crossing, memory
from headwater.ops.device.cache import BlockKey, DeviceCache
from headwater.ops.device.crossing import counted, fetched, staged
from headwater.ops.device.memory import DeviceMemoryError, on_low_memory, retried, set_up_pool, split_on_oom
from headwater.ops.device.table import DeviceTable, to_device
from headwater.runtime.executor import classify
from headwater.runtime.scheduler_events import FailureKind


@pytest.fixture
def xp(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """What stands for CuPy, whatever is installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "emulation"))
    import cupy

    yield cupy
    for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
        del sys.modules[name]  # for good: what a patch deletes comes back


def table(rows: int) -> DeviceTable:
    return to_device(pa.table({"x": np.arange(rows)}), np)


@pytest.mark.parametrize("length", [0, 1, 1000, 70_001, 300_000])
@pytest.mark.parametrize("dtype", ["f8", "i4", "?", "u1", "c16"])
def test_what_crosses_comes_as_it_was_and_is_counted(xp, monkeypatch, length, dtype):
    monkeypatch.setattr(crossing, "BUFFER_BYTES", 64 << 10)
    monkeypatch.setattr(crossing, "STAGED_BYTES", 4 << 10)
    crossing._lanes.cache_clear()
    given = np.random.default_rng(length).integers(0, 200, length).astype(dtype)
    with counted() as traffic:
        there = staged(xp, given)
        back = fetched(there)
    assert type(there) is xp.ndarray
    assert back.dtype == given.dtype
    np.testing.assert_array_equal(back, given)
    assert (traffic.to_device, traffic.to_host) == (given.nbytes, given.nbytes)


def test_arrays_of_two_axes_and_with_gaps_cross(xp, monkeypatch):
    monkeypatch.setattr(crossing, "STAGED_BYTES", 16)
    given = np.arange(60.0).reshape(6, 10)
    there = staged(xp, given)
    np.testing.assert_array_equal(fetched(there), given)
    np.testing.assert_array_equal(fetched(there[:, ::2]), given[:, ::2])
    np.testing.assert_array_equal(fetched(staged(xp, given[::2])), given[::2])
    assert staged(np, given) is given
    assert fetched(given) is given


def test_threads_that_cross_at_the_same_time_do_not_mix(xp, monkeypatch):
    monkeypatch.setattr(crossing, "BUFFER_BYTES", 1 << 10)
    monkeypatch.setattr(crossing, "STAGED_BYTES", 16)
    crossing._lanes.cache_clear()
    wrong: list[int] = []

    def cross(number: int) -> None:
        given = np.full(20_000, number)
        for _ in range(5):
            if not np.array_equal(fetched(staged(xp, given)), given):
                wrong.append(number)

    threads = [threading.Thread(target=cross, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_page_locked_memory_arrays_cross_all_the_same(xp, monkeypatch):
    def refuse(size: int) -> None:
        raise xp.cuda.runtime.CUDARuntimeError(2)

    monkeypatch.setattr(xp.cuda, "alloc_pinned_memory", refuse)
    crossing._lanes.cache_clear()
    given = np.arange(100_000.0)
    np.testing.assert_array_equal(fetched(staged(xp, given)), given)


def test_workers_that_share_a_device_share_its_memory(xp, monkeypatch):
    total = xp.cuda.runtime.getDeviceProperties(0)["totalGlobalMem"]
    assert set_up_pool(xp, 2) == int(total * memory.POOL_SHARE) // 2
    assert xp.get_default_memory_pool().get_limit() == int(total * memory.POOL_SHARE) // 2
    monkeypatch.setenv("CUPY_GPU_MEMORY_LIMIT", "50%")
    assert set_up_pool(xp) == xp.get_default_memory_pool().get_limit() > 0


def test_a_full_device_is_freed_and_tried_again(xp, monkeypatch):
    monkeypatch.setattr(memory, "_releasers", [])
    tries: list[int] = []
    cache = DeviceCache(1000)
    cache.put(BlockKey("r", 0, 0, 0), [[table(10)]])
    on_low_memory(cache.clear)
    on_low_memory(DeviceCache(1000).clear)  # gone at once

    def full_at_first(times: int) -> str:
        tries.append(times)
        if len(tries) <= times:
            raise xp.cuda.memory.OutOfMemoryError(64, 0)
        return "done"

    assert retried(full_at_first, 1) == "done"
    assert cache.bytes == 80  # its own unused blocks were enough
    tries.clear()
    assert retried(full_at_first, 2) == "done"
    assert cache.bytes == 0
    assert len(memory._releasers) == 1
    tries.clear()
    with pytest.raises(DeviceMemoryError, match=r"the GPU is full: Out of memory.*partition_bytes") as caught:
        retried(full_at_first, 9)
    assert caught.value.__context__ is None
    assert (
        classify(pickle.loads(pickle.dumps(caught.value))) is FailureKind.OTHER
    )  # another worker may have room
    assert xp.get_default_memory_pool().freed >= 5


def test_what_is_no_lack_of_device_memory_is_raised_at_once(xp):
    def fail() -> None:
        raise MemoryError("the host's")

    with pytest.raises(MemoryError, match="the host's"):
        retried(fail)


@pytest.mark.parametrize(("status", "again"), [(2, True), (700, False)])
def test_cuda_itself_may_be_full(xp, status, again):
    tries = []

    def launch() -> str:
        tries.append(status)
        if len(tries) == 1:
            raise xp.cuda.runtime.CUDARuntimeError(status)
        return "done"

    if again:
        assert retried(launch) == "done"
    else:
        with pytest.raises(xp.cuda.runtime.CUDARuntimeError):
            retried(launch)


@pytest.mark.parametrize("room", [1024, 3000, 5000, 100_000])
def test_rows_that_do_not_fit_together_are_halved(xp, room):
    seen = []

    def double(part: DeviceTable) -> np.ndarray:
        if part.rows > room:
            raise xp.cuda.memory.OutOfMemoryError(64, 0)
        seen.append(part.rows)
        return part.column("x").values * 2

    whole = list(split_on_oom(table(20_000), double))
    np.testing.assert_array_equal(np.concatenate(whole), np.arange(20_000) * 2)
    assert max(seen) <= room
    assert len(whole) == len(seen)


def test_a_device_without_any_room_is_an_error(xp):
    def full(part: DeviceTable) -> None:
        raise xp.cuda.memory.OutOfMemoryError(64, 0)

    with pytest.raises(DeviceMemoryError):
        list(split_on_oom(table(5000), full))


def test_the_cache_keeps_what_was_used_last():
    cache = DeviceCache(4000)
    keys = [BlockKey("r", 0, number, 0) for number in range(5)]
    assert all(cache.put(key, [[table(100)], [table(25)]]) for key in keys[:4])
    assert cache.bytes == 4000
    assert cache.get(keys[0], 1)[0].rows == 25
    assert cache.put(keys[4], [[table(125)]])
    assert cache.get(keys[1], 0) is None
    assert cache.get(keys[0], 0) is not None
    assert (cache.bytes, cache.dropped_bytes, cache.hits, cache.misses) == (4000, 1000, 2, 1)
    assert not cache.put(BlockKey("r", 1, 0, 0), [[table(501)]])
    assert cache.put(keys[4], [[table(10)]])
    assert cache.bytes == 3080


def test_the_cache_lets_go_of_runs_and_of_everything():
    cache = DeviceCache(10_000)
    for run in "ab":
        for partition in range(3):
            cache.put(BlockKey(run, 0, partition, 0), [[table(10)]])
    cache.drop([BlockKey("a", 0, 0, 0), BlockKey("a", 9, 9, 9)])
    assert cache.bytes == 400
    cache.forget("a")
    assert cache.bytes == 240
    assert cache.clear() == 240
    assert cache.bytes == 0
