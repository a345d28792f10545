"""A stage that partitions its rows on a device leaves the blocks that the host would: byte for byte, same digest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import PlanError
from headwater.ops.device.operators.partition import DevicePartition
from headwater.ops.device.transfer import ToDevice
from headwater.ops.ordering import quantiles
from headwater.ops.partitioned import PartitionedTable
from headwater.ops.partitioner import (
    HashPartitioner,
    Partitioner,
    RangePartitioner,
    RoundRobinPartitioner,
    SinglePartitioner,
)
from headwater.ops.sort import SortKey
from headwater.ops.source import Source, Split
from headwater.planner.plan import Exchange, Operator, ScanLeaf, Step
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.task import PartitionInput, StageProgram, Task
from headwater.runtime.workers.exchange import write_block
from headwater.runtime.workers.fetch import Fetcher
from headwater.runtime.workers.run_task import run_task


def rows(count: int) -> pa.Table:
    rng = np.random.default_rng(count)

    def holes(share: float) -> np.ndarray:
        return rng.random(count) < share

    words = rng.choice(["", "a", "of some length", "ö"], count).tolist()
    return pa.table(
        {
            "k": pa.array(rng.integers(0, 300, count), mask=holes(0.05)),
            "s": pa.array(words, pa.string(), mask=holes(0.2)),
            "b": pa.array(holes(0.5), mask=holes(0.3)),
            "f": pa.array(rng.normal(size=count).astype(np.float32)),
            "t": pa.array(rng.integers(0, 2**40, count), mask=holes(0.01)).cast(pa.timestamp("us")),
            "d": pa.array(rng.integers(0, 9**9, count)).cast(pa.decimal128(20, 1)).cast(pa.decimal128(18, 2)),
            "n": pa.nulls(count, pa.int16()),
        }
    )


@dataclass(frozen=True)
class Rows(Source):
    """Some rows, in tables of odd sizes."""

    count: int

    def read(
        self, split: Split, columns: Sequence[str], predicate: Any = None, limit: int | None = None
    ) -> Iterator[pa.Table]:
        table = rows(self.count).select(list(columns))
        for start in range(0, self.count, 1777):
            yield table.slice(start, 1777)


def run(
    root: Path, operator: Operator, partitioner: Partitioner, memory: int, attempt: int, **program: Any
) -> Any:
    store = NodeStore(root)
    made = StageProgram(
        "r1",
        0,
        "key",
        "scan",
        operator,
        operator.schema,
        Exchange(partitioner),
        **{"merges": False, **program},
    )
    given = PartitionInput(3, {0: Split(0, 1000, 16_000)})
    task = Task("r1", 0, 0, attempt, (given,), memory_bytes=memory)
    (part,) = run_task(task, made, store, Fetcher.local(store), "w1").partitions
    with pa.ipc.open_file(store.resolve(part.block.path)) as file:
        batches = [file.get_batch(i) for i in range(file.num_record_batches)]
    start, stop = int(part.block.offsets[0]), int(part.block.offsets[-1])
    return part, batches, store.resolve(part.block.path).read_bytes()[start:stop]


def scan(count: int, columns: Sequence[str] | None = None) -> ScanLeaf:
    schema = rows(0).schema
    names = tuple(schema.names if columns is None else columns)
    return ScanLeaf(0, Rows(count), names, None, None, pa.schema([schema.field(name) for name in names]))


def there(leaf: ScanLeaf, partitioner: Partitioner) -> Step:
    return Step(DevicePartition(partitioner), (Step(ToDevice(), (leaf,), leaf.schema),), leaf.schema)


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("count", [0, 1, 30_000])
@pytest.mark.parametrize(
    "partitioner",
    [
        HashPartitioner(("k", "s"), 5),
        HashPartitioner(("b",), 2000),
        RoundRobinPartitioner(7),
        SinglePartitioner(),
    ],
    ids=lambda p: p.describe(),
)
def test_blocks_are_the_hosts(tmp_path: Path, partitioner: Partitioner, count: int, merges: bool) -> None:
    leaf = scan(count)
    here = run(tmp_path, leaf, partitioner, 64 << 20, 0, merges=merges)
    away = run(tmp_path, there(leaf, partitioner), partitioner, 64 << 20, 1, merges=merges)
    assert np.array_equal(away[0].block.offsets, here[0].block.offsets)
    assert away[0].fingerprint == here[0].fingerprint
    assert away[1] == here[1]
    if partitioner.count > 1:  # else the host takes what lies under nulls along
        assert away[2] == here[2]


def test_ranges_get_their_boundaries_from_the_stage(tmp_path: Path) -> None:
    leaf, keys = scan(5000), (SortKey("s"), SortKey("k", descending=True))
    boundaries = quantiles(rows(5000)[:500], np.ones(500), keys, 30)
    planned = RangePartitioner(keys, 30)
    resolved = RangePartitioner(keys, 30, boundaries)
    here = run(tmp_path, leaf, resolved, 64 << 20, 0)
    away = run(tmp_path, there(leaf, planned), resolved, 64 << 20, 1)
    assert away[0].fingerprint == here[0].fingerprint
    assert away[2] == here[2]


def test_blocks_are_the_same_when_runs_are_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.ops.device.transfer.UNIT_ROWS", 20_000)
    monkeypatch.setattr("headwater.ops.device.operators.partition.UNIT_ROWS", 20_000)
    leaf, partitioner = scan(200_000), HashPartitioner(("k",), 6)
    here = run(tmp_path, leaf, partitioner, 64 << 20, 0)
    away = run(tmp_path, there(leaf, partitioner), partitioner, 1 << 20, 1)
    assert away[0].fingerprint == here[0].fingerprint
    assert away[1] == here[1]


@pytest.mark.parametrize("partitioner", [None, HashPartitioner(("k",), 4)])
def test_rows_cut_otherwise_are_refused(tmp_path: Path, partitioner: Partitioner | None) -> None:
    store = NodeStore(tmp_path)
    store.open_run("r1")
    table = rows(3)
    cut = PartitionedTable(table, np.array([0, 1, 3]))
    with store.create_block("r1", 0, 0, 0) as file, pytest.raises(PlanError):
        write_block(file, iter([cut]), table.schema, partitioner)


def test_samples_want_rows_in_order(tmp_path: Path) -> None:
    leaf, partitioner = scan(100), HashPartitioner(("k",), 4)
    with pytest.raises(PlanError, match="stay in order"):
        run(tmp_path, there(leaf, partitioner), partitioner, 1 << 20, 0, sample=(SortKey("k"),))


def test_runs_of_both_kinds_keep_their_order(tmp_path: Path) -> None:
    store, table, partitioner = NodeStore(tmp_path), rows(5000), RoundRobinPartitioner(3)
    store.open_run("r1")
    order = np.argsort(partitioner.assign(table[2000:3500], 0, 2000), kind="stable")
    sizes = np.bincount(partitioner.assign(table[2000:3500], 0, 2000))
    middle = PartitionedTable(table[2000:3500].take(pa.array(order)), np.concatenate([[0], np.cumsum(sizes)]))
    written, shown = [], [[], []]
    for attempt, stream in enumerate([[table], [table[:2000], middle, table[3500:]]]):
        with store.create_block("r1", 0, 0, attempt) as file:
            write_block(file, iter(stream), table.schema, partitioner, passing=shown[attempt].append)
            file.publish()
        with pa.ipc.open_file(store.resolve(file.path)) as block:
            written.append([block.get_batch(i) for i in range(block.num_record_batches)])
    assert written[0] == written[1]
    first, second = (pa.concat_tables(tables) for tables in shown)
    assert first.combine_chunks() == second.combine_chunks()
