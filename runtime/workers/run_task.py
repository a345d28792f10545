"""run_task: compute the partitions of one task, from splits and blocks to blocks or staged files."""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...errors import HeadwaterError, PlanError
from ...lineage.fingerprint import Fingerprint
from ...lineage.stream_fingerprint import StreamFingerprint
from ...ops.backend import stage_backend
from ...ops.device.cache import DeviceCache
from ...ops.device.crossing import Traffic, counted
from ...ops.device.device_kernel import DeviceStream
from ...ops.device.memory import make_room_after
from ...ops.device.operators.partition import DevicePartition
from ...ops.device.table import DeviceTable
from ...ops.device.transfer import ToDevice, ToHost
from ...ops.kernel import Broadcast, Context, Stream
from ...ops.partitioned import PartitionedTable
from ...ops.partitioner import KeySample, KeySampler
from ...ops.sink import StagedFile
from ...ops.source import Split, read_exactly
from ...ops.training.train import TrainKernel
from ...planner.plan import (
    BlockLeaf,
    BroadcastLeaf,
    Leaf,
    Operator,
    ScanLeaf,
    ShuffleLeaf,
    Step,
    UnionStep,
    all_leaves,
)
from ..fault_points import reach, reaching
from ..nodes.block_index import BlockLabel
from ..nodes.node_store import NodeStore
from ..task import (
    Block,
    CancelledTask,
    Metrics,
    PartitionInput,
    PartitionResult,
    Segment,
    StageProgram,
    Task,
    TaskResult,
)
from ..training.stage import TrainingHost, train_stage
from .broadcast import BroadcastCache, SharedBroadcast
from .device_blocks import DeviceBlocks
from .device_borrowing import DeviceBorrowing
from .exchange import write_block
from .fetch import Fetcher, Inputs, Relocate
from .recut import recut
from .relocation import Mailbox
from .task_progress import TaskProgress


def run_task(
    task: Task,
    program: StageProgram,
    store: NodeStore,
    fetcher: Fetcher,
    worker_name: str,
    cancelled: threading.Event | None = None,
    broadcasts: BroadcastCache | None = None,
    mailbox: Mailbox | None = None,
    progress: TaskProgress | None = None,
    training: TrainingHost | None = None,
    device_cache: DeviceCache | None = None,
    device_borrowing: DeviceBorrowing | None = None,
) -> TaskResult:
    """Run one attempt at a task.

    Args:
        task: what to compute, and where its inputs lie.
        program: the stage's.
        store: the node's scratch folder.
        fetcher: reads blocks.
        worker_name: for the result.
        cancelled: looked at for each table; once set, the task stops.
        broadcasts: shared with the other tasks of the process.
        mailbox: where the driver tells new places of inputs that are lost; None makes a loss an error.
        progress: told how far the task is.
        training: lends what a train stage needs.
        device_cache: keeps blocks on the worker's device, too.
        device_borrowing: copies blocks from devices of the node's other workers.

    Returns:
        The blocks or staged files, and what it took.

    Raises:
        FetchFailedError: an input is lost, and there is no mailbox, or nothing comes.
        CancelledTask: the flag was set. If it was before the start, the store wasn't touched.
        DiskFullError: the scratch folder is full.
        HeadwaterError: what a kernel, source or sink raised on purpose. Other exceptions come with a
            note that tells the stage and partition.
    """
    attempt = _Attempt(
        task,
        program,
        store,
        fetcher,
        cancelled,
        broadcasts,
        mailbox,
        progress,
        training,
        device_cache,
        device_borrowing,
    )
    started = time.perf_counter()
    partitions = attempt.run()
    metrics = Metrics(seconds=time.perf_counter() - started, **attempt.counts)
    return TaskResult(
        task.stage, task.id, task.attempt, store.node, worker_name, partitions, metrics, attempt.training_log
    )


class _Attempt:
    def __init__(
        self,
        task: Task,
        program: StageProgram,
        store: NodeStore,
        fetcher: Fetcher,
        cancelled: threading.Event | None,
        broadcasts: BroadcastCache | None,
        mailbox: Mailbox | None,
        progress: TaskProgress | None,
        training: TrainingHost | None,
        device_cache: DeviceCache | None,
        device_borrowing: DeviceBorrowing | None,
    ):
        self.task, self.program, self.store, self.fetcher = task, program, store, fetcher
        self.cancelled = cancelled or threading.Event()
        self.broadcasts = broadcasts or BroadcastCache()
        self.mailbox = mailbox
        self.progress = progress or TaskProgress(len(task.partitions))
        self.training = training
        self.device_blocks: DeviceBlocks | None = None
        if device_cache is not None:
            self.device_blocks = DeviceBlocks(
                device_cache, task, store.node, device_borrowing, self.cancelled
            )
        self.training_log: dict[str, Any] | None = None
        self.counts: Counter[str] = Counter()
        #: what crosses between host and device
        self.traffic = Traffic()
        #: a task's memory, shared by what holds rows at the same time
        self.kernel_bytes = self.exchange_bytes = task.memory_bytes * 3 // 8
        self.input_bytes = task.memory_bytes // 4
        self.spill_folder = Path()
        self.inputs: Inputs | None = None

    def run(self) -> tuple[PartitionResult, ...]:
        task, done = self.task, []
        self._check_cancelled()
        self.store.open_run(task.run, self.program.owner)
        try:
            with (
                stage_backend(self.program.device),
                counted(self.traffic),
                self.store.spill_folder(task.run, task.name) as self.spill_folder,
                self._opened(_segments(task), self.mailbox.relocate if self.mailbox else None) as self.inputs,
            ):
                for given in task.partitions:
                    self.progress.begin(given)
                    done.append(self._partition(given))
                    self.progress.end()
        except CancelledTask:
            raise  # what it has finished may have been found and taken meanwhile; it goes with the run
        except BaseException as error:
            make_room_after(error)
            with suppress(OSError):
                self.store.delete_blocks(result.block.path for result in done if result.block)
            if isinstance(error, FileNotFoundError) and str(self.store.root) in str(error):
                gone = f"the scratch folder {self.store.root} was emptied under a running task"
                raise OSError(errno.EIO, gone) from error  # unlike an input that isn't there, worth a retry
            raise
        self.counts.update(to_device_bytes=self.traffic.to_device, to_host_bytes=self.traffic.to_host)
        if (blocks := self.device_blocks) is not None:
            self.counts.update(device_bytes=blocks.own_bytes, peer_device_bytes=blocks.borrowed_bytes)
        return tuple(done)

    def _partition(self, given: PartitionInput) -> PartitionResult:
        try:
            with self.store.space.full_disk_explained():
                return self._compute(given)
        except HeadwaterError:
            raise
        except Exception as error:
            error.add_note(
                f"in partition {given.index} of stage {self.task.stage} ({self.program.label}), "
                f"task {self.task.name} of run {self.task.run}"
            )
            raise

    def _compute(self, given: PartitionInput) -> PartitionResult:
        program, index = self.program, given.index
        tap = _Tap(program, index)
        stream = self._watched(self._evaluate(program.operator, given, index))
        rows = reaching(_phase(program), tap.passing(stream))  # type: ignore[arg-type]
        block: Block | None = None
        files: tuple[StagedFile, ...] = ()
        if program.sink is None:
            block = self._write(rows, index, tap)
            self.counts["bytes_out"] += block.bytes
        else:
            staged = program.sink.stage(self.task.run, index, self.task.attempt, rows, program.schema)
            self._check_cancelled()
            files = tuple(staged)
            self.counts["bytes_out"] += sum(file.bytes for file in files)
        self.counts["rows_out"] += tap.digest.rows
        return PartitionResult(index, tap.digest.rows, tap.digest.hexdigest(), block, files, tap.sample())

    def _write(self, rows: Stream, index: int, tap: _Tap) -> Block:
        task, exchange = self.task, self.program.exchange
        with self.store.create_block(task.run, task.stage, index, task.attempt, task.quota_bytes) as file:
            written = write_block(
                file,
                rows,
                self.program.schema,
                exchange.partitioner if exchange else None,
                index,
                self.exchange_bytes,
                lambda: self.store.create_spill(self.spill_folder, task.quota_bytes),
                lambda: self._label(index, tap),
                tap.digest.update,
            )
            if exchange:
                reach("shuffle-write")
            self._check_cancelled()
            size = file.publish()
        if self.device_blocks is not None:
            self.device_blocks.keep(index, written.offsets)
        self.counts["spilled_bytes"] += written.spilled_bytes
        return Block(
            task.stage,
            index,
            task.attempt,
            self.store.node,
            file.path,
            written.offsets,
            written.rows,
            size,
            tap.digest.hexdigest(),
        )

    def _label(self, index: int, tap: _Tap) -> BlockLabel:
        """What the block of a partition whose rows have all passed says of itself."""
        task, program = self.task, self.program
        seconds = time.perf_counter() - tap.started
        digest, sample = tap.digest.hexdigest(), tap.sample()
        return BlockLabel(task.run, task.stage, program.key, index, task.attempt, digest, seconds, sample)

    def _evaluate(self, operator: Operator, given: PartitionInput, partition: int) -> Stream | Broadcast:
        """Evaluate an operator tree; in a branch of a union, the partition counts from the branch's start."""
        if isinstance(operator, UnionStep):
            branch, local = operator.locate(partition)
            return self._evaluate(branch, given, local)
        if not isinstance(operator, Step):
            return self._read(operator, given)
        if isinstance(operator.kernel, TrainKernel):
            return self._train(operator, operator.kernel)
        kernel, blocks = operator.kernel, self.device_blocks
        if (
            isinstance(kernel, ToDevice)
            and blocks is not None
            and (leaf := _blocks_leaf(operator)) is not None
        ):
            return self._to_device(kernel, leaf, given, partition, blocks)
        inputs = [self._evaluate(child, given, partition) for child in operator.inputs]
        if operator is self.program.operator and isinstance(kernel, ToHost) and blocks is not None:
            inputs = [blocks.passing(inputs[0])]  # type: ignore[arg-type, list-item]
        if isinstance(kernel, DevicePartition) and self.program.exchange is not None:
            # as the block's writer would: ranges have boundaries now, and partitions count over the stage
            kernel, partition = replace(kernel, partitioner=self.program.exchange.partitioner), given.index
            if blocks is not None:
                blocks.begin()
                kernel = replace(kernel, passing=blocks.add)
        context = Context(partition, self.kernel_bytes, kernel.label, self.spill_folder)
        return self._metered(kernel.run(inputs, context), context)

    def _read(self, leaf: Leaf, given: PartitionInput) -> Stream | Broadcast:
        if isinstance(leaf, BroadcastLeaf):
            return self._broadcast(leaf)
        what = given.slots[leaf.slot]
        if isinstance(leaf, ScanLeaf):
            assert isinstance(what, Split)
            stream = reaching(
                "scan", read_exactly(leaf.source, what, leaf.columns, leaf.predicate, leaf.limit)
            )
        else:
            return self._blocks(leaf, what)  # type: ignore[arg-type]
        return self._watched(self._counted(stream, leaf.slot))

    def _blocks(self, leaf: BlockLeaf | ShuffleLeaf, segments: Sequence[Segment]) -> Stream:
        assert self.inputs is not None
        stream = self.inputs.tables(segments, leaf.schema)
        if isinstance(leaf, ShuffleLeaf):
            stream = recut(reaching("shuffle-read", stream), leaf.schema)
        return self._watched(self._counted(stream, leaf.slot))

    def _to_device(
        self,
        kernel: ToDevice,
        leaf: BlockLeaf | ShuffleLeaf,
        given: PartitionInput,
        partition: int,
        blocks: DeviceBlocks,
    ) -> Stream:
        """Read blocks as tables of the device, from there where they are there."""
        context = Context(partition, self.kernel_bytes, kernel.label, self.spill_folder)

        def host(segments: Sequence[Segment]) -> DeviceStream:
            return kernel.run([self._blocks(leaf, segments)], context)

        def seen(table: DeviceTable) -> None:
            self._count(table, leaf.slot)

        segments: Sequence[Segment] = given.slots[leaf.slot]  # type: ignore[assignment]
        stream: Iterator[Any] = blocks.read(segments, leaf.schema, host, seen)
        if isinstance(leaf, ShuffleLeaf):
            stream = reaching("shuffle-read", stream)
        return self._watched(stream)

    def _broadcast(self, leaf: BroadcastLeaf) -> Broadcast:
        segments, mailbox = self.task.broadcast[leaf.slot], self.mailbox

        def load() -> Stream:
            relocate = partial(_relocate_shared, mailbox, shared) if mailbox else None
            with self._opened(segments, relocate) as inputs:
                yield from self._watched(self._counted(inputs.tables(segments, leaf.schema)))

        size, key = sum(segment.length for segment in segments), (self.task.run, leaf.stage)
        shared = self.broadcasts.get(key, size, load, leaf.schema, self._stand_by)
        return shared

    def _train(self, operator: Step, kernel: TrainKernel) -> Stream:
        assert self.training is not None
        leaves: list[BroadcastLeaf] = list(operator.inputs)  # type: ignore[arg-type]
        inputs = [self.task.broadcast[leaf.slot] for leaf in leaves]
        model, log = train_stage(
            self.training,
            self.task,
            self.program,
            kernel,
            inputs,
            [leaf.schema for leaf in leaves],
            self.mailbox.relocate if self.mailbox else None,
            self.cancelled,
            self.progress.tell,
        )
        self.training_log = log.record()
        self.traffic.add(log.to_device_bytes, log.to_host_bytes)
        self.counts["rows_in"] += sum(segment.rows for segments in inputs for segment in segments)
        self.counts["bytes_in"] += sum(segment.length for segments in inputs for segment in segments)
        for batch in model.to_batches():
            yield pa.Table.from_batches([batch])

    def _stand_by(self, lacking: Sequence[Segment]) -> None:
        """Another task reads the broadcast that this one waits for; it may itself wait for lost blocks."""
        self._check_cancelled()
        if self.mailbox is not None:
            self.mailbox.stand_by(lacking)

    @contextmanager
    def _opened(self, segments: tuple[Segment, ...], relocate: Relocate | None) -> Iterator[Inputs]:
        """Open inputs, and count what they took in the end."""
        memory, folder, quota = self.input_bytes, self.spill_folder, self.task.quota_bytes
        with self.fetcher.open(
            segments, self.task.nodes, memory, folder, self.cancelled, quota, relocate
        ) as inputs:
            try:
                yield inputs
            finally:
                for name in ("local_bytes", "remote_bytes", "spilled_bytes"):
                    self.counts[name] += getattr(inputs, name)

    def _counted(self, stream: Stream, slot: int | None = None) -> Stream:
        for table in stream:
            self._count(table, slot)
            yield table

    def _count(self, table: pa.Table | DeviceTable, slot: int | None = None) -> None:
        self.counts["rows_in"] += table.num_rows
        self.counts["bytes_in"] += table.nbytes
        if slot is not None:
            self.progress.advance(slot, table.num_rows, table.nbytes)

    def _metered(self, stream: Stream, context: Context) -> Stream:
        yield from stream
        self.counts["spilled_bytes"] += context.metrics.get("spilled_bytes", 0)

    def _watched(self, stream: Stream | Broadcast) -> Stream:
        for table in stream:  # type: ignore[union-attr]
            self._check_cancelled()
            yield table
        self._check_cancelled()  # before those who take the rows finish what they made of them

    def _check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise CancelledTask(f"task {self.task.name} of run {self.task.run} was cancelled")


class _Tap:
    """What is learnt of a partition's rows: their digest, and a sample of their keys.

    The sample is drawn as they pass. The digest of a block is taken in the order of the block, by who writes it, and
    that of rows for a sink as they pass.
    """

    def __init__(self, program: StageProgram, partition: int):
        self._program, self.started = program, time.perf_counter()
        self.digest = (Fingerprint if program.merges else StreamFingerprint)(program.schema)
        # named by the keys alone, so that boundaries don't depend on which stage holds the rows
        seed: tuple[int | str, ...] = (*map(str, program.sample), partition)
        self.sampler = KeySampler(program.sample, seed) if program.sample else None

    def sample(self) -> KeySample | None:
        return self.sampler.result() if self.sampler else None

    def passing(self, stream: Stream) -> Iterator[pa.Table | PartitionedTable]:
        for table in stream:
            if isinstance(table, PartitionedTable):
                yield self._partitioned(table)
                continue
            table = self._conforming(table)
            if self._program.sink is not None:
                self.digest.update(table)
            if self.sampler:
                self.sampler.update(table)
            if table.num_rows:
                yield table

    def _partitioned(self, rows: PartitionedTable) -> PartitionedTable:
        if self._program.exchange is None or self.sampler is not None:
            raise PlanError(
                f"stage {self._program.stage} ({self._program.label}) partitions rows that are to stay in order"
            )
        return PartitionedTable(self._conforming(rows.table), rows.offsets)

    def _conforming(self, table: pa.Table) -> pa.Table:
        schema = self._program.schema
        if table.schema.equals(schema, check_metadata=True):
            return table
        if table.schema.names != schema.names or table.schema.types != schema.types:
            raise PlanError(
                f"stage {self._program.stage} ({self._program.label}) promised\n{schema}\n"
                f"and gave\n{table.schema}"
            )
        if not schema.names:
            return table.replace_schema_metadata(schema.metadata)
        return pa.Table.from_arrays(table.columns, schema=schema)


def _blocks_leaf(step: Step) -> BlockLeaf | ShuffleLeaf | None:
    """The leaf under a step that is nothing but one of blocks."""
    leaf = step.inputs[0]
    return leaf if isinstance(leaf, BlockLeaf | ShuffleLeaf) else None


def _segments(task: Task) -> tuple[Segment, ...]:
    """All segments that a task's partitions read, in the order they are read."""
    return tuple(
        segment
        for given in task.partitions
        for what in given.slots.values()
        if not isinstance(what, Split)
        for segment in what
    )


def _relocate_shared(
    mailbox: Mailbox, shared: SharedBroadcast, lost: Sequence[Segment]
) -> tuple[Mapping[Segment, Segment], Mapping[str, Sequence[str]]]:
    """Wait for lost blocks of a broadcast, while those who wait for it learn why."""
    with shared.lacking(lost):
        return mailbox.relocate(lost)


def _phase(program: StageProgram) -> str:
    """The fault point that a stage's rows pass."""
    if program.sink is not None:
        return "sink"
    return "reduce" if any(isinstance(leaf, ShuffleLeaf) for leaf in all_leaves(program.operator)) else "map"
