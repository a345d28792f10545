"""Kept blocks: they outlive their run, cost no room twice, and go when room is needed, unless someone needs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from headwater.errors import DiskFullError
from headwater.lineage.owner import Owner, this_process
from headwater.runtime.nodes.block_index import BlockLabel
from headwater.runtime.nodes.kept import Kept
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.task import Block, PartitionResult
from headwater.runtime.workers.exchange import write_block
from headwater.runtime.workers.fetch import Fetcher

SCHEMA = pa.schema([("x", pa.int64())])


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    store = NodeStore(tmp_path)
    store.open_run("r1")
    return store


@pytest.fixture(scope="module")
def dead() -> Owner:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(this_process(), pid=process.pid, started=psutil.Process(process.pid).create_time())
    process.communicate(b"\n")
    return owner


def put(
    store: NodeStore,
    key: str,
    partition: int,
    rows: int = 1000,
    run: str = "r1",
    stage: int = 0,
    seconds: float = 1.0,
    quota: int | None = None,
) -> str:
    table = pa.table({"x": np.arange(rows) + partition}, SCHEMA)
    label = BlockLabel(run, stage, key, partition, 0, f"{key}-{partition}", seconds)
    store.open_run(run)
    with store.create_block(run, stage, partition, 0, quota) as file:
        write_block(file, iter([table]), SCHEMA, label=lambda: label)
        file.publish()
    return file.path


def block_of(result: PartitionResult) -> Block:
    assert result.block is not None
    return result.block


def read(store: NodeStore, results: list[PartitionResult]) -> list[int]:
    segments = [block_of(result).whole() for result in results]
    with Fetcher.local(store).open(segments, {}) as inputs:
        tables = [SCHEMA.empty_table(), *inputs.tables(segments, SCHEMA)]
        return pa.concat_tables(tables)["x"].to_pylist()


def size_of(store: NodeStore) -> int:
    """Bytes of all block files, each counted once."""
    files = [path.stat() for path in store.root.rglob("*.arrow")]
    return sum({stat.st_ino: stat.st_size for stat in files}.values())


def test_kept_blocks_outlive_their_run_and_are_read_as_others(store: NodeStore) -> None:
    kept = Kept(store)
    paths = [put(store, "aa", partition) for partition in (3, 1)]
    found = kept.keep(paths)
    assert [(result.index, block_of(result).path) for result in found] == [
        (1, "kept/aa/p1.arrow"),
        (3, "kept/aa/p3.arrow"),
    ]
    store.remove_run("r1")
    again = Kept(NodeStore(store.root)).inventory(["aa", "bb"])
    assert [result.fingerprint for result in again["aa"]] == ["aa-1", "aa-3"]
    assert again["bb"] == []
    assert read(store, again["aa"]) == [*range(1, 1001), *range(3, 1003)]


def test_a_block_with_two_names_takes_room_once(store: NodeStore) -> None:
    kept = Kept(store)
    paths = [put(store, "aa", partition) for partition in range(3)]
    size = size_of(store)
    kept.keep(paths)
    assert store.space.used_bytes() == kept.used_bytes() == size
    assert store.delete_blocks(paths[:1]) == 0  # the kept name remains
    assert store.space.used_bytes() == size
    store.remove_run("r1")
    assert store.space.used_bytes() == size_of(store) == size
    NodeStore(store.root).purge_orphans()
    assert store.space.used_bytes() == size
    assert kept.drop(["aa"]) == size
    assert store.space.used_bytes() == size_of(store) == 0


def test_room_is_free_when_the_second_name_goes_in_whatever_order(store: NodeStore) -> None:
    kept = Kept(store)
    kept.keep([put(store, "aa", 0)])
    assert kept.drop(["aa"]) == 0
    size = size_of(store)
    assert store.space.used_bytes() == size
    assert store.remove_run("r1") == size
    assert store.space.used_bytes() == 0


def test_two_runs_that_keep_the_same_share_it(store: NodeStore) -> None:
    kept = Kept(store)
    first = kept.keep([put(store, "aa", 0, run="r1", stage=2)])
    second = kept.keep([put(store, "aa", 0, run="r2", stage=7)])
    assert [block_of(result).path for result in first] == [block_of(result).path for result in second]
    assert block_of(second[0]).stage == 2
    store.remove_run("r1")
    store.remove_run("r2")
    assert store.space.used_bytes() == block_of(first[0]).bytes


def test_what_is_no_block_is_not_kept(store: NodeStore) -> None:
    kept = Kept(store)
    good = put(store, "aa", 0)
    evil = put(store, "../../aa", 1)
    torn = store.resolve(good).with_name("s0-p9-a0.arrow")
    torn.write_bytes(store.resolve(good).read_bytes()[:-9])
    found = kept.keep([good, evil, "runs/r1/blocks/s0-p9-a0.arrow", "runs/r1/blocks/s0-p8-a0.arrow"])
    assert [result.index for result in found] == [0]
    assert [path.name for path in store.root.rglob("p*.arrow")] == ["p0.arrow"]


def test_a_run_never_deletes_what_it_only_reads(store: NodeStore) -> None:
    kept = Kept(store)
    (result,) = kept.keep([put(store, "aa", 0)])
    store.remove_run("r1")
    assert store.delete_blocks([block_of(result).path]) == 0
    assert read(store, [result]) == list(range(1000))


class TestTheBound:
    """Least valuable first; pinned and used blocks stay."""

    def test_the_least_valuable_go_first(self, store: NodeStore) -> None:
        paths = [put(store, "cheap", 0, seconds=1.0), put(store, "dear", 0, seconds=9.0, stage=1)]
        size = size_of(store) // 2
        kept = Kept(store, limit_bytes=2 * size)
        kept.keep(paths)
        kept.keep([put(store, "middle", 0, seconds=5.0, stage=2)])
        assert [entry.key for entry in kept.summary()] == ["dear", "middle"]
        assert not (store.kept / "cheap").exists()

    def test_single_partitions_go(self, store: NodeStore) -> None:
        paths = [put(store, "aa", partition) for partition in range(4)]
        size = size_of(store) // 4
        kept = Kept(store, limit_bytes=size * 3)
        assert [result.index for result in kept.keep(paths)] == [0, 1, 2]

    def test_what_is_worth_less_than_all_that_is_there_is_not_kept(self, store: NodeStore) -> None:
        path = put(store, "dear", 0, seconds=9.0)
        kept = Kept(store, limit_bytes=size_of(store) + 100)
        kept.keep([path])
        assert kept.keep([put(store, "cheap", 0, seconds=1.0, stage=1)]) == []
        assert [entry.key for entry in kept.summary()] == ["dear"]

    def test_pinned_blocks_stay_and_fill_the_bound(self, store: NodeStore) -> None:
        path = put(store, "aa", 0, seconds=0.1)
        kept = Kept(store, limit_bytes=size_of(store) + 100)
        kept.keep([path], pinned=True)
        dear = put(store, "bb", 0, seconds=99.0, stage=1)
        assert kept.keep([dear]) == []
        assert kept.keep([dear], pinned=True) == []
        assert store.resolve(dear).exists()
        kept.unpin(["aa"])
        assert len(kept.keep([dear])) == 1
        assert kept.inventory(["aa"]) == {"aa": []}

    def test_blocks_in_use_stay_until_their_run_is_removed(self, store: NodeStore) -> None:
        path = put(store, "aa", 0, seconds=0.1)
        size = size_of(store)
        kept = Kept(store, limit_bytes=size + 100)
        kept.keep([path])
        assert [result.index for result in kept.use("r2", ["aa", "zz"], this_process())["aa"]] == [0]
        assert not (store.kept / "zz").exists()
        dear = put(store, "bb", 0, seconds=99.0, stage=1)
        assert kept.keep([dear]) == []
        assert kept.drop(["aa"]) == 0
        assert len(kept.inventory(["aa"])["aa"]) == 1
        store.remove_run("r2")
        assert len(kept.keep([dear])) == 1
        assert kept.inventory(["aa"]) == {"aa": []}

    def test_the_default_bound_is_half_of_the_quota(self, tmp_path: Path) -> None:
        assert Kept(NodeStore(tmp_path / "a", quota_bytes=1000)).limit_bytes() == 500
        free = shutil.disk_usage(tmp_path).free
        assert 0 < Kept(NodeStore(tmp_path / "b")).limit_bytes() <= free

    def test_recently_used_blocks_outlive_equals(self, store: NodeStore) -> None:
        paths = [put(store, key, 0, stage=i) for i, key in enumerate("abc")]
        size = size_of(store) // 3
        kept = Kept(store, limit_bytes=3 * size + 300)
        for path in paths:
            kept.keep([path])
        kept.use("r2", ["a"])
        store.remove_run("r2")
        kept.keep([put(store, "d", 0, stage=3)])
        assert [entry.key for entry in kept.summary()] == ["a", "c", "d"]


class TestWhenARunNeedsTheRoom:
    """A quota that is full makes kept blocks go before it makes a run fail."""

    def test_kept_blocks_give_way(self, store: NodeStore) -> None:
        kept = Kept(store)
        kept.keep([put(store, "aa", partition) for partition in range(4)])
        store.remove_run("r1")
        size = size_of(store)
        put(store, "bb", 0, quota=size + 100)
        assert len(kept.inventory(["aa"])["aa"]) == 3
        assert store.space.used_bytes() == size_of(store) <= size + 100

    def test_as_it_grows_too(self, store: NodeStore) -> None:
        kept = Kept(store)
        kept.keep([put(store, "aa", 0, rows=1_000_000)])
        store.remove_run("r1")
        put(store, "bb", 0, rows=1_500_000, quota=16 << 20)
        assert kept.used_bytes() == 0

    @pytest.mark.parametrize("how", ["pinned", "used", "still a run's own"])
    def test_unless_they_are_needed(self, store: NodeStore, how: str) -> None:
        kept = Kept(store)
        path = put(store, "aa", 0)
        kept.keep([path], pinned=how == "pinned")
        if how == "used":
            kept.use("r2", ["aa"])
        if how != "still a run's own":
            store.remove_run("r1")
        with pytest.raises(DiskFullError):
            put(store, "bb", 0, run="r3", quota=size_of(store) + 100)
        assert len(kept.inventory(["aa"])["aa"]) == 1

    def test_another_process_makes_room_as_well(self, store: NodeStore) -> None:
        Kept(store).keep([put(store, "aa", partition) for partition in range(4)])
        store.remove_run("r1")
        other = NodeStore(store.root)
        Kept(other)
        put(other, "bb", 0, quota=size_of(store) + 100)
        assert store.space.used_bytes() == size_of(store)


class TestPurge:
    """What crashes left goes; what lives stays."""

    def test_pins_of_dead_sessions_end(self, store: NodeStore, dead: Owner) -> None:
        kept = Kept(store)
        kept.keep([put(store, "aa", 0)], pinned=True, owner=dead)
        kept.pin(["bb"])
        kept.keep([put(store, "cc", 0, stage=1)], pinned=True, owner=this_process())
        assert [entry.pinned for entry in kept.summary()] == [True, True, True]
        kept.purge()
        assert [(entry.key, entry.pinned) for entry in kept.summary()] == [
            ("aa", False),
            ("bb", True),
            ("cc", True),
        ]

    def test_an_owner_takes_off_its_own_pin_only(self, store: NodeStore) -> None:
        kept = Kept(store)
        kept.keep([put(store, "aa", 0)], pinned=True, owner=this_process())
        kept.pin(["aa"])
        kept.unpin(["aa"], this_process())
        assert kept.summary()[0].pinned
        kept.unpin(["aa"])
        assert not kept.summary()[0].pinned

    def test_marks_of_purged_runs_end(self, store: NodeStore, dead: Owner) -> None:
        kept = Kept(store)
        kept.keep([put(store, "aa", 0)])
        kept.use("r2", ["aa"], dead)
        store.purge_orphans(keep_seconds=3600)
        assert kept.summary()[0].in_use
        store.purge_orphans(keep_seconds=0)
        assert not kept.summary()[0].in_use
        kept.purge()
        assert list((store.kept / "aa" / "users").iterdir()) == []

    def test_files_that_are_not_what_they_say_go(self, store: NodeStore, dead: Owner) -> None:
        kept = Kept(store)
        kept.keep([put(store, "aa", 0), put(store, "aa", 1)])
        store.remove_run("r1")
        folder = store.kept / "aa"
        os.truncate(folder / "p1.arrow", 1000)
        os.link(folder / "p0.arrow", folder / "p7.arrow")
        draft = folder / f".p5.arrow.{dead.pid}-0a.tmp"
        draft.write_bytes(b"half")
        (store.kept / ".trash-1").mkdir()
        (store.kept / "empty").mkdir()
        store.purge_orphans()
        kept.purge()
        assert sorted(path.name for path in folder.glob("*.arrow")) == ["p0.arrow"]
        assert not draft.exists()
        assert sorted(path.name for path in store.kept.iterdir()) == ["aa"]
        assert store.space.used_bytes() == size_of(store)


def test_a_summary_tells_what_is_kept(store: NodeStore) -> None:
    kept = Kept(store)
    kept.keep([put(store, "aa", p, seconds=1.5) for p in range(2)], pinned=True)
    kept.use("r1", ["aa"])
    (entry,) = kept.summary()
    assert (entry.key, entry.partitions, entry.bytes, entry.seconds) == ("aa", 2, size_of(store), 3.0)
    assert (entry.pinned, entry.in_use) == (True, True)


def _churn(root: str, seed: int) -> int:
    """Make, keep, use, drop and remove at random, on a quota that is always short."""
    store, rng = NodeStore(root, quota_bytes=400_000), np.random.default_rng(seed)
    kept, full = Kept(store), 0
    for step in range(20):
        run = f"r{seed}-{step}"
        try:
            paths = [
                put(store, f"k{rng.integers(6)}", int(rng.integers(3)), int(rng.integers(2000)), run, p)
                for p in range(4)
            ]
        except DiskFullError:
            full += 1
            paths = []
        kept.keep(paths)
        used = kept.use(run, [f"k{i}" for i in rng.integers(6, size=2)])
        for results in used.values():
            assert all(store.resolve(block_of(result).path).exists() for result in results)
        if rng.random() < 0.2:
            kept.drop([f"k{rng.integers(6)}"])
        if rng.random() < 0.1:
            kept.purge()
        for results in used.values():
            assert all(store.resolve(block_of(result).path).exists() for result in results)
        store.remove_run(run)
    return full


def test_processes_at_odds_never_lose_count_nor_what_is_in_use(tmp_path: Path) -> None:
    store = NodeStore(tmp_path, quota_bytes=400_000)
    with ProcessPoolExecutor(3, mp_context=get_context("forkserver")) as pool:
        list(pool.map(_churn, [str(tmp_path)] * 3, range(3)))
    assert store.space.used_bytes() == size_of(store)
    kept = Kept(store)
    kept.purge()  # two that keep at the same moment may exceed the bound, until the next one looks
    assert kept.used_bytes() == size_of(store) == store.space.used_bytes()
    assert 0 < kept.used_bytes() <= kept.limit_bytes()
    kept.drop(entry.key for entry in kept.summary())
    assert (store.space.used_bytes(), store.runs(), list(store.kept.glob("k*"))) == (0, [], [])
