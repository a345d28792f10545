"""A task on a worker: from splits and blocks to blocks or staged files, and nothing left when it fails."""

import errno
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headwater.datasets.sinks import ParquetSink
from headwater.errors import DiskFullError, PlanError, UserFunctionError
from headwater.lineage.fingerprint import Fingerprint
from headwater.ops.kernel import Broadcast, Context, Kernel, Stream
from headwater.ops.partitioner import HashPartitioner, RoundRobinPartitioner
from headwater.ops.sink import Sink, StagedFile
from headwater.ops.sort import SortKey
from headwater.ops.source import Source, Split
from headwater.planner.plan import (
    BlockLeaf,
    BroadcastLeaf,
    Exchange,
    Operator,
    ScanLeaf,
    ShuffleLeaf,
    Step,
    UnionStep,
)
from headwater.runtime.collect import _windows
from headwater.runtime.nodes.node_store import NodeStore
from headwater.runtime.task import (
    CancelledTask,
    FetchFailedError,
    PartitionInput,
    StageProgram,
    Task,
    TaskResult,
)
from headwater.runtime.workers.broadcast import BroadcastCache
from headwater.runtime.workers.fetch import Fetcher
from headwater.runtime.workers.run_task import run_task

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.float64())])


def rows(partition: int, count: int = 1000) -> pa.Table:
    rng = np.random.default_rng(partition)
    return pa.table({"k": rng.integers(0, 20, count), "v": rng.random(count)}, SCHEMA)


@dataclass(frozen=True)
class Rows(Source):
    """Partition i is ``rows(i)``, in small tables."""

    def read(
        self, split: Split, columns: Sequence[str], predicate: Any = None, limit: int | None = None
    ) -> Iterator[pa.Table]:
        table = rows(split.index).select(list(columns))
        for start in range(0, 1000, 100):
            yield table.slice(start, 100)


@dataclass(frozen=True)
class Doubled(Kernel):
    """Doubles ``v``."""

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        for table in inputs[0]:
            yield table.set_column(1, "v", pc.multiply(table["v"], 2.0))


@dataclass(frozen=True)
class Tagged(Kernel):
    """Replaces ``k`` with the partition as the kernel knows it."""

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        for table in inputs[0]:
            tags = pa.array(np.full(table.num_rows, context.partition))
            yield table.set_column(0, "k", tags)


@dataclass(frozen=True)
class WithSum(Kernel):
    """Adds the sum of the broadcast input to ``v``."""

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        stream, whole = inputs
        total = whole.once("sum", lambda: pc.sum(whole.table()["v"]).as_py())
        for table in stream:
            yield table.set_column(1, "v", pc.add(table["v"], total))


@dataclass(frozen=True)
class Doing(Kernel):
    """Calls a function with the number of each table of a partition, then passes the table on."""

    act: Any

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        for number, table in enumerate(inputs[0]):
            yield self.act(context, number, table)


@dataclass(frozen=True)
class Folder(Sink):
    """Stages one IPC file a partition."""

    path: str

    def stage(
        self, run: str, partition: int, attempt: int, stream: Iterator[pa.Table], schema: pa.Schema
    ) -> list[StagedFile]:
        table = pa.concat_tables([schema.empty_table(), *stream])
        target = Path(self.path) / f"{partition}.arrow"
        with pa.ipc.new_file(target, schema) as writer:
            writer.write_table(table)
        return [StagedFile(target.name, target.name, table.num_rows, target.stat().st_size)]


SCAN = ScanLeaf(0, Rows(), ("k", "v"), None, None, SCHEMA)


class Node:
    """A node that stands alone, with what it takes to run tasks on it."""

    def __init__(self, root: Path):
        self.store = NodeStore(root)
        self.fetcher = Fetcher.local(self.store)
        self.broadcasts = BroadcastCache()

    def run(
        self,
        operator: Operator,
        partitions: Sequence[PartitionInput],
        stage: int = 0,
        program: dict[str, Any] | None = None,
        cancelled: threading.Event | None = None,
        **task: Any,
    ) -> TaskResult:
        made = StageProgram(
            "r1", stage, f"key{stage}", "scan > double", operator, **{"schema": SCHEMA, **(program or {})}
        )
        what = Task("r1", stage, 7, task.pop("attempt", 0), tuple(partitions), **task)
        return run_task(what, made, self.store, self.fetcher, "w1", cancelled, self.broadcasts)

    def scan(self, count: int, operator: Operator = SCAN, **more: Any) -> TaskResult:
        return self.run(operator, splits(count), **more)

    def read(self, result: TaskResult, schema: pa.Schema = SCHEMA) -> list[pa.Table]:
        found = []
        for part in result.partitions:
            assert part.block is not None
            segment = part.block.whole()
            with self.fetcher.open([segment], {}) as inputs:
                found.append(pa.concat_tables([schema.empty_table(), *inputs.tables([segment], schema)]))
        return found


def splits(count: int) -> list[PartitionInput]:
    return [PartitionInput(i, {0: Split(i, 1000, 16_000)}) for i in range(count)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "node")


def test_each_partition_leaves_a_block_of_its_rows(node: Node) -> None:
    result = node.scan(3, Step(Doubled(), (SCAN,), SCHEMA))
    for index, table in enumerate(node.read(result)):
        assert table["k"].to_pylist() == rows(index)["k"].to_pylist()
        np.testing.assert_array_equal(table["v"], rows(index)["v"].to_numpy() * 2)
    assert (result.stage, result.id, result.attempt, result.worker) == (0, 7, 0, "w1")
    assert result.node == node.store.node
    assert [part.block.path for part in result.partitions if part.block] == [
        block.path for block in node.store.blocks("r1")
    ]


def test_fingerprints_are_those_of_the_rows(node: Node) -> None:
    result = node.scan(2)
    for index, part in enumerate(result.partitions):
        assert part.fingerprint == Fingerprint(SCHEMA).update(rows(index)).hexdigest()
        assert part.block is not None
        assert part.block.fingerprint == part.fingerprint
        assert part.rows == 1000


def test_metrics_count_what_went_in_and_out(node: Node) -> None:
    metrics = node.scan(3).metrics
    assert (metrics.rows_in, metrics.rows_out, metrics.bytes_in) == (3000, 3000, 48_000)
    assert metrics.bytes_out == node.store.space.used_bytes()
    assert (metrics.local_bytes, metrics.remote_bytes, metrics.spilled_bytes) == (0, 0, 0)
    assert metrics.seconds > 0


def test_an_exchange_brings_equal_keys_together_in_map_order(node: Node) -> None:
    maps = node.scan(4, program={"exchange": Exchange(HashPartitioner(("k",), 3))})
    blocks = [part.block for part in maps.partitions if part.block]
    leaf = ShuffleLeaf(0, 0, SCHEMA)
    given = [PartitionInput(i, {0: tuple(block.segment(i) for block in blocks)}) for i in range(3)]
    reduced = node.run(leaf, given, stage=1)
    whole = pa.concat_tables([rows(i) for i in range(4)])
    owner = HashPartitioner(("k",), 3).assign(whole, 0, 0)
    for index, table in enumerate(node.read(reduced)):
        assert table.equals(whole.filter(pa.array(owner == index)).combine_chunks())
    assert reduced.metrics.local_bytes == sum(block.whole().length for block in blocks)
    assert reduced.metrics.rows_in == 4000


def test_a_step_in_a_union_counts_partitions_from_its_branch(node: Node) -> None:
    branch = Step(Tagged(), (SCAN,), SCHEMA)
    other = Step(Tagged(), (replace(SCAN, slot=1),), SCHEMA)
    union = Step(Doubled(), (UnionStep(((branch, 2), (other, 2)), SCHEMA),), SCHEMA)
    given = [PartitionInput(i, {i // 2: Split(i, 1000, 16_000)}) for i in range(4)]
    tables = node.read(node.run(union, given))
    assert [set(table["k"].to_pylist()) for table in tables] == [{0}, {1}, {0}, {1}]


def test_a_scan_filters_and_limits_exactly(node: Node) -> None:
    from headwater.ops.expressions import col

    operator = replace(SCAN, columns=("v",), predicate=col("k") > 10, limit=150)
    schema = pa.schema([("v", pa.float64())])
    (table,) = node.read(node.scan(1, operator, program={"schema": schema}), schema)
    expected = rows(0).filter(pc.greater(rows(0)["k"], 10))["v"].to_pylist()[:150]
    assert table["v"].to_pylist() == expected


def test_a_broadcast_is_read_once_for_all_partitions_and_tasks(node: Node) -> None:
    small = [part.block for part in node.scan(3).partitions if part.block]
    leaf = BroadcastLeaf(1, 0, SCHEMA)
    operator = Step(WithSum(), (SCAN, leaf), SCHEMA)
    whole = {1: tuple(block.whole() for block in small)}
    first = node.run(operator, splits(2), stage=1, broadcast=whole)
    again = node.run(operator, splits(2), stage=1, broadcast=whole, attempt=1)
    total = sum(pc.sum(rows(i)["v"]).as_py() for i in range(3))
    for result in (first, again):
        np.testing.assert_allclose(node.read(result)[1]["v"], rows(1)["v"].to_numpy() + total)
    assert first.metrics.rows_in == 5000
    assert again.metrics.rows_in == 2000


def test_a_sink_gets_the_rows_and_the_result_its_files(node: Node, tmp_path: Path) -> None:
    result = node.scan(2, program={"sink": Folder(str(tmp_path))})
    for index, part in enumerate(result.partitions):
        (file,) = part.files
        with pa.ipc.open_file(tmp_path / file.path) as reader:
            assert reader.read_all().equals(rows(index))
        assert part.block is None
        assert part.fingerprint == Fingerprint(SCHEMA).update(rows(index)).hexdigest()
    assert result.metrics.bytes_out == sum(part.files[0].bytes for part in result.partitions)
    assert node.store.blocks("r1") == []


def test_key_samples_are_drawn_from_the_rows_and_repeat(node: Node) -> None:
    keys = (SortKey("v"),)
    once, again = (node.scan(2, program={"sample": keys}, attempt=attempt) for attempt in (0, 1))
    for index, part in enumerate(once.partitions):
        assert part.sample is not None
        assert part.sample.rows == 1000
        assert set(part.sample.keys["v"].to_pylist()) <= set(rows(index)["v"].to_pylist())
    assert [p.sample.keys for p in once.partitions if p.sample] == [
        p.sample.keys for p in again.partitions if p.sample
    ]


def test_rows_of_no_columns_are_counted_through_an_exchange(node: Node) -> None:
    nothing = pa.schema([])
    leaf = replace(SCAN, columns=(), schema=nothing)
    maps = node.scan(2, leaf, program={"schema": nothing, "exchange": Exchange(RoundRobinPartitioner(3))})
    blocks = [part.block for part in maps.partitions if part.block]
    assert [part.rows for part in maps.partitions] == [1000, 1000]
    given = [PartitionInput(i, {0: tuple(block.segment(i) for block in blocks)}) for i in range(3)]
    reduced = node.run(ShuffleLeaf(0, 0, nothing), given, stage=1, program={"schema": nothing})
    assert sum(part.rows for part in reduced.partitions) == 2000


def test_a_partition_of_no_rows_leaves_an_empty_block(node: Node) -> None:
    empty = Step(Doing(lambda context, number, table: table[:0]), (SCAN,), SCHEMA)
    result = node.scan(1, empty, program={"exchange": Exchange(HashPartitioner(("k",), 4))})
    assert result.partitions[0].rows == 0
    assert node.read(result)[0].equals(SCHEMA.empty_table())


def boom(context: Context, number: int, table: pa.Table) -> pa.Table:
    if context.partition == 1 and number == 3:
        raise ZeroDivisionError("boom")
    return table


def test_an_unexpected_error_tells_stage_and_partition_and_leaves_nothing(node: Node) -> None:
    with pytest.raises(ZeroDivisionError, match="boom") as caught:
        node.scan(3, Step(Doing(boom), (SCAN,), SCHEMA))
    assert caught.value.__notes__ == ["in partition 1 of stage 0 (scan > double), task s0-t7#0 of run r1"]
    assert node.store.blocks("r1") == []
    assert node.store.space.used_bytes() == 0
    assert list((node.store.root / "runs/r1/spill").iterdir()) == []


def test_errors_of_ours_pass_as_they_are(node: Node) -> None:
    def act(context: Context, number: int, table: pa.Table) -> pa.Table:
        raise UserFunctionError("yours")

    with pytest.raises(UserFunctionError) as caught:
        node.scan(1, Step(Doing(act), (SCAN,), SCHEMA))
    assert not hasattr(caught.value, "__notes__")


def test_a_full_disk_in_a_kernel_is_explained(node: Node) -> None:
    def act(context: Context, number: int, table: pa.Table) -> pa.Table:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match="HEADWATER_SCRATCH"):
        node.scan(1, Step(Doing(act), (SCAN,), SCHEMA))


def test_a_task_over_its_quota_fails_and_frees_what_it_took(node: Node) -> None:
    with pytest.raises(DiskFullError, match="quota is"):
        node.scan(4, quota_bytes=40_000)
    assert node.store.space.used_bytes() == 0


def test_rows_that_break_the_stage_s_promise_are_a_plan_error(node: Node) -> None:
    wrong = Step(Doing(lambda context, number, table: table.select(["v"])), (SCAN,), SCHEMA)
    with pytest.raises(PlanError, match="scan > double"):
        node.scan(1, wrong)


def test_a_cancelled_task_stops_at_the_next_table_and_leaves_only_what_it_had_finished(node: Node) -> None:
    cancelled, seen = threading.Event(), []

    def act(context: Context, number: int, table: pa.Table) -> pa.Table:
        seen.append((context.partition, number))
        if (context.partition, number) == (1, 2):
            cancelled.set()
        return table

    with pytest.raises(CancelledTask, match="s0-t7#0"):
        node.scan(3, Step(Doing(act), (SCAN,), SCHEMA), cancelled=cancelled)
    assert seen[-1] == (1, 2)
    (left,) = node.store.blocks("r1")
    assert (left.partition, left.attempt, left.bytes) == (0, 0, node.store.space.used_bytes())


def test_a_task_cancelled_before_it_began_touches_nothing(node: Node) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledTask):
        node.scan(1, cancelled=cancelled)
    assert node.store.runs() == []


@pytest.mark.parametrize("sink", [False, True])
def test_cancelled_with_the_last_table_leaves_nothing(node: Node, tmp_path: Path, sink: bool) -> None:
    cancelled = threading.Event()

    @dataclass(frozen=True)
    class CancelsAtTheEnd(Kernel):
        def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
            yield from inputs[0]
            cancelled.set()

    target = ParquetSink(tmp_path / "out")
    with pytest.raises(CancelledTask):
        node.scan(
            1,
            Step(CancelsAtTheEnd(), (SCAN,), SCHEMA),
            cancelled=cancelled,
            program={"sink": target} if sink else {},
        )
    assert node.store.blocks("r1") == []
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_task_names_every_block_it_misses(node: Node) -> None:
    blocks = [part.block for part in node.scan(4).partitions if part.block]
    node.store.delete_blocks([blocks[1].path, blocks[3].path])
    given = [PartitionInput(i, {0: (block.whole(),)}) for i, block in enumerate(blocks)]
    with pytest.raises(FetchFailedError) as caught:
        node.run(BlockLeaf(0, 0, SCHEMA), given, stage=1)
    assert caught.value.lost == ((0, 1, 0), (0, 3, 0))
    assert len(node.store.blocks("r1")) == 2


def test_less_memory_spills_and_gives_the_same_segments(node: Node) -> None:
    many = Step(Doing(lambda context, number, table: pa.concat_tables([table] * 100)), (SCAN,), SCHEMA)
    program = {"exchange": Exchange(HashPartitioner(("k",), 5))}
    roomy = node.scan(2, many, program=program)
    tight = node.scan(2, many, program=program, attempt=1, memory_bytes=2 << 20)
    assert roomy.metrics.spilled_bytes == 0
    assert tight.metrics.spilled_bytes > 0
    assert [part.fingerprint for part in roomy.partitions] == [part.fingerprint for part in tight.partitions]
    assert node.read(roomy) == node.read(tight)
    assert node.store.space.used_bytes() == roomy.metrics.bytes_out + tight.metrics.bytes_out


def test_windows_hold_neighbours_up_to_their_size(node: Node) -> None:
    segments = [part.block.whole() for part in node.scan(5).partitions if part.block]
    size = segments[0].length
    assert [len(window) for window in _windows(segments, 2 * size)] == [2, 2, 1]
    assert [len(window) for window in _windows(segments, 1)] == [1] * 5
    assert [segment for window in _windows(segments, 2 * size) for segment in window] == segments
