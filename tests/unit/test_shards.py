"""Shards: the same rows as the blocks have, in order, as arrays; whole files or none; batches drawn ahead."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import CorruptFileError, DiskFullError, HeadwaterError, ParameterError, PlanError
from headwater.ops.training.features import Features, agreed_widths
from headwater.ops.training.local_shard import local_shards
from headwater.ops.training.program import BLOCK_ROWS, DataInfo, Shard
from headwater.ops.training.sampling import Order, shard_bounds, shard_shares
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.task import Block, CancelledTask, FetchFailedError, Segment
from headwater.runtime.training.mapped_shard import MappedShard
from headwater.runtime.training.prefetch import PrefetchedShard, Prefetcher
from headwater.runtime.training.shard_file import ShardFile, ShardWriter
from headwater.runtime.training.shard_source import (
    PreparedShard,
    ShardSource,
    cached_rows,
    open_shard,
    plan_shards,
)
from headwater.runtime.training.streamed_shard import StreamedShard
from headwater.runtime.workers.exchange import write_block
from headwater.runtime.workers.fetch import Fetcher

SCHEMA = pa.schema([("a", pa.float64()), ("v", pa.list_(pa.float32())), ("label", pa.int64())])
FEATURES = Features(("a", "v"), target="label")
BATCH = 50


def rows(count: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    vectors = list(rng.normal(size=(count, 3)).astype(np.float32))
    columns = [rng.normal(size=count), pa.array(vectors, SCHEMA.field("v").type), rng.integers(0, 5, count)]
    return pa.table(columns, schema=SCHEMA)


def write_blocks(store: NodeStore, table: pa.Table, sizes: Sequence[int], batch: int = 300) -> list[Segment]:
    """Put a table's rows on a node's disk, cut into partitions of given sizes."""
    store.open_run("r1")
    segments, first = [], 0
    for partition, size in enumerate(sizes):
        part = table.slice(first, size)
        pieces = iter([part.slice(i, batch) for i in range(0, size, batch)])
        with store.create_block("r1", 0, partition, 0) as file:
            index = write_block(file, pieces, table.schema)
            size_on_disk = file.publish()
        block = Block(0, partition, 0, store.node, file.path, index.offsets, index.rows, size_on_disk, "")
        segments.append(block.whole())
        first += size
    return segments


def source_of(store: NodeStore, **options: Any) -> ShardSource:
    given = {"schema": SCHEMA, "features": FEATURES} | options
    return ShardSource("r1", "s1-training", store=store, fetcher=Fetcher.local(store), **given)


def opened(
    source: ShardSource, segments: Sequence[Segment], shards: int, cache: float = 1.0, seed: int = 0
) -> list[Shard]:
    count = sum(segment.rows for segment in segments)
    plans = plan_shards(segments, shard_bounds(count, shards, BATCH))
    prepared = list(source.prepare(plans, cache))
    widths = agreed_widths({shard.plan.index: shard.widths for shard in prepared})
    shares = shard_shares(shards, BATCH)
    return [
        open_shard(p, source, Order(seed, p.plan.index, p.plan.rows, int(shares[p.plan.index])), widths)
        for p in prepared
    ]


def in_memory(table: pa.Table, shards: int, seed: int = 0) -> Sequence[Shard]:
    return local_shards(
        FEATURES.to_arrays(table), DataInfo(table.num_rows, shards=shards, batch_size=BATCH, seed=seed)
    )


def assert_equal(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


def assert_same_shards(mine: Sequence[Shard], expected: Sequence[Shard], steps: int = 4) -> None:
    for shard, other in zip(mine, expected, strict=True):
        assert (shard.index, shard.rows, shard.first_row) == (other.index, other.rows, other.first_row)
        for block, wanted in zip(shard.blocks(), other.blocks(), strict=True):
            assert_equal(block, wanted)
        for epoch in (0, 1):
            for step in range(steps):
                assert_equal(shard.batch(epoch, step), other.batch(epoch, step))
        assert shard.rng(1, 2).random() == other.rng(1, 2).random()


@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=6).filter(any),
    shards=st.integers(1, 9),
    batch=st.sampled_from([50, 300, 1000]),
)
@settings(deadline=None, max_examples=25)
def test_shards_have_the_rows_of_all_partitions_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], shards: int, batch: int
) -> None:
    store, table = NodeStore(tmp_path_factory.mktemp("node")), rows(sum(sizes))
    segments = write_blocks(store, table, sizes, batch)
    mine = opened(source_of(store), segments, shards)
    assert_same_shards(mine, in_memory(table, shards), steps=-(-table.num_rows // BATCH))


@pytest.mark.parametrize("cache", [0.0, 0.4, 0.9])
def test_what_is_not_kept_is_read_again_and_gives_the_same_bits(tmp_path: Path, cache: float) -> None:
    store, table = NodeStore(tmp_path), rows(70_000)
    segments = write_blocks(store, table, [30_000, 0, 40_000], 7000)
    mine = opened(source_of(store), segments, 2, cache)
    assert all(isinstance(shard, StreamedShard) for shard in mine)
    files = list(tmp_path.glob("runs/r1/shards/*"))
    assert [ShardFile.open(path).rows for path in files] == [cached_rows(35_000, cache)] * (2 if cache else 0)
    assert_same_shards(mine, in_memory(table, 2))


def test_a_streamed_shard_decodes_once_for_many_batches(tmp_path: Path) -> None:
    table, passes = rows(5000), []

    def tables() -> Iterator[pa.Table]:
        passes.append(1)
        yield from (table.slice(i, 900) for i in range(0, 5000, 900))

    widths = FEATURES.widths(table)
    nothing = ShardFile.without_rows(0, 0, FEATURES.layout(SCHEMA, widths), widths)
    row_bytes, expected = 20, in_memory(table, 1)[0]
    shard = StreamedShard(
        nothing, 5000, tables, FEATURES, Order(0, 0, 5000, BATCH), None, row_bytes * BATCH * 25
    )
    for step in range(100):
        assert_equal(shard.batch(0, step), expected.batch(0, step))
    assert len(passes) == 4
    assert_equal(shard.batch(0, 3), expected.batch(0, 3))
    assert_equal(shard.batch(0, 100), expected.batch(0, 100))


def test_arrays_lie_aligned_and_files_cannot_be_written_to(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    shard = opened(source_of(store), write_blocks(store, rows(20_000), [20_000]), 1)[0]
    batches = [shard.batch(0, 0), *shard.blocks()]
    assert [len(batch["y"]) for batch in batches] == [BATCH, BLOCK_ROWS, BLOCK_ROWS, 20_000 - 2 * BLOCK_ROWS]
    assert all(array.ctypes.data % 64 == 0 for batch in batches for array in batch.values())
    with pytest.raises(ValueError, match="read-only"):
        batches[1]["x"][0] = 0


def test_empty_shards_take_their_widths_from_the_others(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    segments = write_blocks(store, rows(3), [0, 2, 0, 1])
    mine = opened(source_of(store), segments, 8)
    assert sorted(shard.rows for shard in mine) == [0] * 5 + [1] * 3
    assert all(shard.batch(0, 0)["x"].shape[1] == 4 for shard in mine)
    empty = next(shard for shard in mine if not shard.rows)
    assert list(empty.blocks()) == []
    prepared = PreparedShard(plan_shards([], np.array([0, 0]))[0], None, {}, None)
    with pytest.raises(ParameterError, match="how long the vectors of 'v' are isn't known"):
        open_shard(prepared, source_of(store), Order(0, 0, 0, 1), {})


def test_the_range_of_the_target_is_found_on_the_way(tmp_path: Path) -> None:
    store, table = NodeStore(tmp_path), rows(30_000)
    segments = write_blocks(store, table, [30_000])
    bounds = shard_bounds(30_000, 2, BATCH)
    labels = table["label"].to_numpy()
    expected = [(float(part.min()), float(part.max())) for part in (labels[:15_000], labels[15_000:])]
    for cache in (0.0, 0.6, 1.0, 1.0):
        prepared = source_of(store).prepare(plan_shards(segments, bounds), cache)
        assert [shard.target_range for shard in prepared] == expected


def test_a_file_that_is_there_needs_no_blocks(tmp_path: Path) -> None:
    store, table = NodeStore(tmp_path), rows(1000)
    segments = write_blocks(store, table, [600, 400])
    opened(source_of(store), segments, 3)
    store.delete_blocks(segment.path for segment in segments)
    assert_same_shards(opened(source_of(store), segments, 3), in_memory(table, 3))
    with pytest.raises(FetchFailedError):
        opened(source_of(store), segments, 4)


def test_lost_blocks_are_read_from_where_they_are_made_again(tmp_path: Path) -> None:
    store, table = NodeStore(tmp_path), rows(1000)
    segments = write_blocks(store, table, [600, 400])
    store.delete_blocks([segments[1].path])
    told = []

    def relocate(lost: Sequence[Segment]) -> tuple[dict, dict]:
        told.extend(lost)
        again = write_blocks(store, table, [600, 400])
        return {segments[1]: again[1]}, {}

    mine = opened(source_of(store, relocate=relocate), segments, 3)
    assert_same_shards(mine, in_memory(table, 3))
    assert set(told) == {segments[1]}


def test_a_broken_file_is_made_again(tmp_path: Path) -> None:
    store, table = NodeStore(tmp_path), rows(1000)
    segments = write_blocks(store, table, [1000])
    opened(source_of(store), segments, 3)
    first, second, third = sorted(tmp_path.glob("runs/r1/shards/*"))
    first.write_bytes(first.read_bytes()[:-64])
    second.write_bytes(b"\0" * second.stat().st_size)
    third.write_bytes(b"")
    for path in (first, second, third):
        with pytest.raises(CorruptFileError):
            ShardFile.open(path)
    assert_same_shards(opened(source_of(store), segments, 3), in_memory(table, 3))


def test_a_bad_row_leaves_no_file_and_is_named_by_its_number_among_all(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    table = rows(1000).to_pandas()
    table.loc[700, "a"] = None
    bad = pa.Table.from_pandas(table, SCHEMA, preserve_index=False)
    segments = write_blocks(store, bad, [300, 700])
    used = store.space.used_bytes()
    for cache in (1.0, 0.0):
        with pytest.raises(HeadwaterError, match="row 700 of the feature 'a' is null"):
            opened(source_of(store), segments, 1, cache)
    assert list(tmp_path.glob("runs/r1/shards/*")) == list(tmp_path.glob("runs/r1/shards/.*")) == []
    assert store.space.used_bytes() == used


def test_a_file_counts_against_the_quota_from_its_start_and_goes_with_its_run(tmp_path: Path) -> None:
    store, table = NodeStore(tmp_path), rows(100_000)
    segments = write_blocks(store, table, [100_000], 10_000)
    before = store.space.used_bytes()
    with pytest.raises(DiskFullError):
        opened(source_of(store, quota_bytes=before + 1_000_000), segments, 1)
    assert store.space.used_bytes() == before
    opened(source_of(store), segments, 2)
    sizes = [path.stat().st_size for path in tmp_path.glob("runs/r1/shards/*")]
    assert len(sizes) == 2
    assert store.space.used_bytes() == before + sum(sizes)
    NodeStore(tmp_path).purge_orphans()
    assert store.space.used_bytes() == before + sum(sizes)
    store.remove_run("r1")
    assert store.space.used_bytes() == 0


def test_two_that_build_the_same_shard_at_once_leave_one_file(tmp_path: Path) -> None:
    store, table = NodeStore(tmp_path), rows(20_000)
    segments = write_blocks(store, table, [20_000])
    before, together = store.space.used_bytes(), threading.Barrier(4)

    def build(_: int) -> list[Shard]:
        own = NodeStore(tmp_path)
        together.wait(30)
        return opened(source_of(own), segments, 2)

    with ThreadPoolExecutor(4) as pool:
        for mine in pool.map(build, range(4)):
            assert_same_shards(mine, in_memory(table, 2), steps=2)
    sizes = [path.stat().st_size for path in tmp_path.glob("runs/r1/shards/*")]
    assert len(sizes) == 2
    assert store.space.used_bytes() == before + sum(sizes)


def test_reading_stops_when_it_is_cancelled(tmp_path: Path) -> None:
    store, flag = NodeStore(tmp_path), threading.Event()
    segments = write_blocks(store, rows(1000), [1000])
    flag.set()
    with pytest.raises(CancelledTask):
        opened(source_of(store, cancelled=flag), segments, 1)
    assert not list(tmp_path.glob("runs/r1/shards/*.shard"))


def test_a_writer_wants_all_rows_and_no_more(tmp_path: Path) -> None:
    store, table = NodeStore(tmp_path), rows(10)
    store.open_run("r1")
    with store.create_shard("r1", "x") as file:
        writer = ShardWriter(file, FEATURES, SCHEMA, 0, 0, 15)
        writer.write(table)
        with pytest.raises(PlanError, match="15 rows, and more arrived"):
            writer.write(table)
        with pytest.raises(PlanError, match="15 rows, and 10 arrived"):
            writer.publish()
    with pytest.raises(PlanError, match="have 0 rows, and the shards 10"):
        plan_shards([], np.array([0, 10]))


@pytest.mark.parametrize("least", [0.0, 60.0], ids=["ahead", "when asked for"])
@pytest.mark.parametrize("cache", [1.0, 0.0])
def test_batches_drawn_ahead_are_the_same_also_after_a_step_back(
    tmp_path: Path, cache: float, least: float
) -> None:
    store, table = NodeStore(tmp_path), rows(330)
    plain = opened(source_of(store), write_blocks(store, table, [330]), 3, cache)
    steps = -(-330 // BATCH)
    walk = (
        [(0, s) for s in range(steps)] + [(1, s) for s in range(3)] + [(0, 5), (0, 6), (1, 0), (4, 2), (4, 3)]
    )
    with Prefetcher(least_seconds=least) as prefetcher:
        ahead = [PrefetchedShard(shard, prefetcher, steps) for shard in plain]
        for epoch, step in walk:
            for shard, other in zip(ahead, plain):
                assert_equal(shard.batch(epoch, step), other.batch(epoch, step))
    assert_equal(ahead[0].batch(4, 4), plain[0].batch(4, 4))  # closed: it draws by itself
    assert_same_shards(ahead, plain)


class _Watched(MappedShard):
    """Tells when a batch is drawn, and by which thread; fails at step 3."""

    def batch(self, epoch: int, step: int) -> Any:
        drawn[epoch, step] = threading.current_thread().name
        seen.release()
        if step == 3:
            raise OSError("the disk is gone")
        return super().batch(epoch, step)


drawn: dict[tuple[int, int], str] = {}
seen = threading.Semaphore(0)


def test_the_next_batches_are_drawn_while_nobody_waits_and_errors_come_with_their_step(
    tmp_path: Path,
) -> None:
    store = NodeStore(tmp_path)
    plain = opened(source_of(store), write_blocks(store, rows(500), [500]), 1)[0]
    assert isinstance(plain, MappedShard)
    drawn.clear()
    with Prefetcher(depth=2, least_seconds=0) as prefetcher:
        shard = PrefetchedShard(_Watched(plain.file, plain.order), prefetcher, 10)
        shard.batch(0, 0)
        for _ in range(3):
            assert seen.acquire(timeout=30)
        assert set(drawn) == {(0, 0), (0, 1), (0, 2)}
        assert drawn[0, 1].startswith("headwater-prefetch")
        assert not drawn[0, 0].startswith("headwater-prefetch")
        shard.batch(0, 1)
        shard.batch(0, 2)
        with pytest.raises(OSError, match="the disk is gone"):
            shard.batch(0, 3)
        assert_equal(shard.batch(0, 4), plain.batch(0, 4))
    assert not [t for t in threading.enumerate() if t.name.startswith("headwater-prefetch")]


def test_a_killed_writers_draft_is_cleaned_away(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    store.open_run("r1")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with store.create_shard("r1", "x") as file:
        left = file.draft.with_name(file.draft.name.replace(f".{os.getpid()}-", f".{process.pid}-"))
        left.write_bytes(b"half a shard")
        store.purge_orphans()
        assert file.draft.exists()
        assert not left.exists()


def test_parts_of_plans_are_cut_where_they_should_be() -> None:
    segments = [Segment(0, i, 0, "n", "p", 0, 1, size) for i, size in enumerate([4, 0, 5, 1])]
    plan = plan_shards(segments, np.array([0, 2, 10]))[1]
    assert [(piece.segment.partition, piece.start, piece.rows) for piece in plan.pieces] == [
        (0, 2, 2),
        (2, 0, 5),
        (3, 0, 1),
    ]
    part = plan.part(3, 7)
    assert (part.first_row, part.rows) == (5, 4)
    assert [(piece.segment.partition, piece.start, piece.rows) for piece in part.pieces] == [(2, 1, 4)]
