"""The map side of an exchange: every row in its segment, in stream order, whatever the memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from headwater.errors import DiskFullError
from headwater.ops.partitioner import HashPartitioner, Partitioner, RoundRobinPartitioner
from headwater.runtime.nodes.blocks import map_range, read_segment
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.workers.exchange import BlockIndex, write_block
from headwater.runtime.workers.recut import recut, rows_only


@dataclass(frozen=True)
class ByColumn(Partitioner):
    """Segments are written in the column ``to``."""

    count: int

    def assign(self, table: pa.Table, partition: int, offset: int) -> np.ndarray:
        return table["to"].to_numpy().astype(np.uint32)


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    store = NodeStore(tmp_path)
    store.open_run("r1")
    return store


def cut(
    store: NodeStore,
    tables: list[pa.Table] | Iterator[pa.Table],
    schema: pa.Schema,
    partitioner: Partitioner | None,
    memory: int = 64 << 20,
    attempt: int = 0,
    partition: int = 0,
    quota: int | None = None,
) -> tuple[BlockIndex, Path]:
    with (
        store.spill_folder("r1", "test") as folder,
        store.create_block("r1", 0, 0, attempt, quota) as file,
    ):
        index = write_block(
            file,
            iter(tables),
            schema,
            partitioner,
            partition,
            memory,
            lambda: store.create_spill(folder, quota),
        )
        file.publish()
    return index, store.resolve(file.path)


def segments(index: BlockIndex, path: Path, schema: pa.Schema) -> list[pa.Table]:
    found = []
    for start, stop in zip(index.offsets, index.offsets[1:]):
        tables = list(read_segment(map_range(path, int(start), int(stop - start)), schema))
        found.append(pa.concat_tables([schema.empty_table(), *tables]))
    return found


def batches(path: Path) -> list[pa.RecordBatch]:
    """The record batches of a file, cut where it cuts them."""
    with pa.ipc.open_file(path) as file:
        return [file.get_batch(i) for i in range(file.num_record_batches)]


def sample(rows: int, count: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "to": rng.integers(0, count, rows),
            "n": np.arange(rows),
            "s": pa.array([None if i % 11 == 0 else f"row {i}" for i in range(rows)]),
        }
    )


def expected(table: pa.Table, count: int) -> list[pa.Table]:
    frame = table.to_pandas()
    groups = dict(iter(frame.groupby("to", sort=False)))
    return [
        pa.Table.from_pandas(groups.get(i, frame[:0]), schema=table.schema, preserve_index=False)
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [2, 7, 300, 70_000])
def test_rows_reach_their_segment_in_stream_order(store: NodeStore, count: int) -> None:
    table = sample(5000, min(count, 500))
    index, path = cut(store, [table[:10], table[10:10], table[10:]], table.schema, ByColumn(count))
    assert index.rows.sum() == 5000
    assert index.rows.tolist() == np.bincount(table["to"], minlength=count).tolist()
    if count <= 300:
        assert segments(index, path, table.schema) == expected(table, count)


def test_spilling_changes_nothing_but_the_memory(store: NodeStore) -> None:
    table = sample(400_000, 5)
    tables = [table[start : start + 20_000] for start in range(0, 400_000, 20_000)]
    held, held_path = cut(store, tables, table.schema, ByColumn(5), attempt=0)
    put_aside, path = cut(store, tables, table.schema, ByColumn(5), memory=2 << 20, attempt=1)
    assert held.spilled_bytes == 0
    assert put_aside.spilled_bytes > 4 << 20
    assert batches(path) == batches(held_path)
    assert put_aside.rows.tolist() == held.rows.tolist()
    assert store.space.used_bytes() == path.stat().st_size + held_path.stat().st_size


@pytest.mark.parametrize("count", [5, 50])
def test_segments_are_cut_as_any_stream_is(store: NodeStore, count: int) -> None:
    table = sample(400_000, count)
    tables = [table[start : start + 20_000] for start in range(0, 400_000, 20_000)]
    _, path = cut(store, tables, table.schema, ByColumn(count), memory=64 << 20)
    whole = expected(table, count)
    cut_alone = [piece for rows in whole for piece in recut(iter([rows]), table.schema)]
    assert [batch.num_rows for batch in batches(path)] == [piece.num_rows for piece in cut_alone]
    assert pa.Table.from_batches(batches(path)) == pa.concat_tables(whole)


def test_rows_that_just_fill_the_memory_are_written_once(store: NodeStore) -> None:
    """Nothing is put aside before there is more to hold."""
    memory = 4 << 20
    table = sample(memory * 3 // 4 // sample(1000, 5).nbytes * 1000 + 20_000, 5)
    most = cut(store, [table], table.schema, ByColumn(5), memory=memory, attempt=0)[0]
    more = cut(store, [table, table[:1]], table.schema, ByColumn(5), memory=memory, attempt=1)[0]
    assert (most.spilled_bytes, more.spilled_bytes > 0) == (0, True)


def test_memory_stays_within_its_bound(store: NodeStore) -> None:
    peak = 0

    def stream() -> Iterator[pa.Table]:
        nonlocal peak
        for seed in range(60):
            peak = max(peak, pa.total_allocated_bytes())
            rng = np.random.default_rng(seed)
            yield pa.table({"to": pa.array(rng.integers(0, 8, 65_536)), "n": pa.array(rng.random(65_536))})

    before = pa.total_allocated_bytes()
    schema = pa.schema([("to", pa.int64()), ("n", pa.float64())])
    index, _ = cut(store, stream(), schema, ByColumn(8), memory=12 << 20)
    assert index.rows.sum() == 60 * 65_536
    assert peak - before < 16 << 20
    assert index.spilled_bytes > 40 << 20


def test_the_cut_of_the_stream_leaves_no_trace(store: NodeStore) -> None:
    table = sample(200_000, 3)
    _, one = cut(store, [table], table.schema, ByColumn(3), attempt=0)
    _, many = cut(
        store, [table[i : i + 777] for i in range(0, 200_000, 777)], table.schema, ByColumn(3), attempt=1
    )
    assert batches(one) == batches(many)


@pytest.mark.parametrize("partitioner", [None, ByColumn(1)])
def test_one_segment_is_the_whole_partition(store: NodeStore, partitioner: Partitioner | None) -> None:
    table = sample(1000, 1)
    index, path = cut(store, [table[:1], table[1:]], table.schema, partitioner)
    assert segments(index, path, table.schema) == [table]


@pytest.mark.parametrize("partitioner", [None, ByColumn(4)])
def test_a_partition_of_no_rows_is_a_block(store: NodeStore, partitioner: Partitioner | None) -> None:
    schema = sample(1, 1).schema
    index, path = cut(store, [], schema, partitioner)
    assert index.rows.sum() == 0
    assert pa.ipc.open_file(path).read_all().num_rows == 0


def test_rows_of_no_columns_can_be_dealt_out(store: NodeStore) -> None:
    index, path = cut(
        store, [rows_only(10), rows_only(4)], pa.schema([]), RoundRobinPartitioner(4), partition=1
    )
    assert index.rows.tolist() == [3, 4, 4, 3]
    assert path.exists()


def test_a_hash_exchange_keeps_equal_keys_together(store: NodeStore) -> None:
    keys = np.random.default_rng(1).integers(0, 50, 3000)
    table = pa.table({"k": keys, "v": np.arange(3000)})
    index, path = cut(store, [table], table.schema, HashPartitioner(("k",), 4))
    owners = pd.concat(
        [part.to_pandas().assign(segment=i) for i, part in enumerate(segments(index, path, table.schema))]
    )
    assert (owners.groupby("k").segment.nunique() == 1).all()
    assert sorted(owners.v) == list(range(3000))
    assert owners.segment.nunique() > 1


def test_a_quota_too_small_for_the_spill_leaves_nothing(store: NodeStore) -> None:
    table = sample(400_000, 5)
    tables = [table[start : start + 20_000] for start in range(0, 400_000, 20_000)]
    with pytest.raises(DiskFullError):
        cut(store, tables, table.schema, ByColumn(5), memory=2 << 20, quota=3 << 20)
    assert store.space.used_bytes() == 0
    assert [path.name for path in (store.root / "runs").rglob("*.tmp")] == []
