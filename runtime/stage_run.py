"""StageRun: how far one stage of a run has come, partition by partition. Arrays, no decisions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from enum import Enum
from typing import Any

import numpy as np
import pyarrow as pa

from ..lineage.stream_fingerprint import agree
from ..ops.training.train import TrainKernel
from ..planner.plan import BlockLeaf, BroadcastLeaf, ScanLeaf, ShuffleLeaf, Stage, all_kernels
from .stage_inputs import LeavesByPartition, leaf_ranges
from .task import Block, Metrics, PartitionInput, PartitionResult, Segment, Task


class StageState(Enum):
    """Where a stage stands.

    ::

        WAITING --parents finished--> RUNNING --last partition done--> FINISHED
                                         ^                                |
                                         +------ needed blocks lost ------+

    A stage is also FINISHED when blocks of it are gone that nobody needs.
    """

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class StageRun:
    """Results and progress of a stage.

    A partition is in at most one task at a time, so of `done`, `queued` and `running` at most one
    holds for it; if none does, it is pending. One that no output needs is `done` without a result.

    Args:
        stage: of the plan.
        is_output: whether the caller reads its blocks.
    """

    def __init__(self, stage: Stage, is_output: bool):
        count = stage.partitions
        self.stage = stage
        self.is_output = is_output
        self.state = StageState.WAITING
        self.ranges = tuple(leaf_ranges(stage.operator, count))
        self.reads = LeavesByPartition(self.ranges)
        self.parents = stage.parents
        self.exchange = stage.exchange
        #: whether its one task is a training, which takes long
        self.trains = any(isinstance(kernel, TrainKernel) for kernel in all_kernels(stage.operator))
        #: has a result that counts
        self.done = np.zeros(count, dtype=bool)
        #: its block can be read, or it is staged in a sink
        self.alive = np.zeros(count, dtype=bool)
        #: in a task that waits for a worker
        self.queued = np.zeros(count, dtype=bool)
        #: in a task that a worker has
        self.running = np.zeros(count, dtype=bool)
        #: the caller has read it and let it go; only of outputs
        self.taken = np.zeros(count, dtype=bool)
        #: number of the next attempt
        self.attempts = np.zeros(count, dtype=np.int64)
        #: partitions from here on are not to be computed yet
        self.limit = count
        #: the last result of each partition; kept when its block is lost
        self.results: list[PartitionResult | None] = [None] * count
        #: byte offsets of segments in each partition's block; shape (partitions, R + 1)
        self.offsets: np.ndarray | None = None
        self._lengths: np.ndarray | None = None
        #: blocks given up while a node still has them
        self.orphans: list[Block] = []
        #: other nodes' copies of readable blocks
        self.copies: dict[int, list[Block]] = {}
        #: first fingerprint of each partition; a later one must be equal
        self.fingerprints: list[str | None] = [None] * count
        #: whether workers can have its program
        self.announced = False
        self.metrics = Metrics()
        #: of a train stage: the figures of its last step, and, once it is done, what happened to its gang
        self.step_metrics: Mapping[str, float] = {}
        self.training: Mapping[str, Any] | None = None
        #: (weight, seconds) of each finished task
        self.finished_tasks: list[tuple[float, float]] = []
        self.tasks_cut = 0
        self.backups = self.backups_won = 0
        self.attempts_launched = 0

    @property
    def pending(self) -> np.ndarray:
        """Indices of partitions to put into tasks, ascending."""
        mask = ~(self.done | self.queued | self.running)
        mask[self.limit :] = False
        return np.flatnonzero(mask)

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each segment of each block; shape (partitions, R)."""
        if self._lengths is None:
            offsets = self.offsets
            empty = np.zeros((self.stage.partitions, 0), dtype=np.int64)
            self._lengths = empty if offsets is None else np.diff(offsets, axis=1)
        return self._lengths

    @property
    def filled(self) -> np.ndarray | None:
        """Bytes of each segment as `lengths`, or None as long as no partition tells how many there are.

        Segments of a partition without a result may hold something: they count as one byte.
        """
        if self.offsets is None:
            return None
        unknown = [p for p, result in enumerate(self.results) if result is None]
        if not unknown:
            return self.lengths
        filled = self.lengths.copy()
        filled[unknown] = 1
        return filled

    @property
    def block_bytes(self) -> np.ndarray:
        """Bytes of each block; shape (partitions,)."""
        return self.lengths.sum(axis=1)

    def block(self, partition: int) -> Block | None:
        """The block of a partition, whether it can still be read or not."""
        result = self.results[partition]
        return None if result is None else result.block

    def accept(self, result: PartitionResult, alive: bool) -> None:
        """Take a partition's result as the one that counts."""
        index, block = result.index, result.block
        if block is not None:
            if self.offsets is None:
                self.offsets = np.zeros((self.stage.partitions, len(block.offsets)), dtype=np.int64)
            self.offsets[index] = block.offsets
            self._lengths = None
            # the same numbers, held once; `dataclasses.replace` of both records would take most of this method's time
            object.__setattr__(block, "offsets", self.offsets[index])
            if self.orphans or self.copies:
                self._claim(block)
            self.attempts[index] = max(self.attempts[index], block.attempt + 1)
        self.results[index] = result
        self.fingerprints[index] = result.fingerprint
        self.done[index] = True
        self.running[index] = False
        self.alive[index] = alive or block is None

    def _claim(self, block: Block) -> None:
        """A block counts: it is neither given up nor a copy, and copies are of the same bytes."""
        self.orphans = [other for other in self.orphans if not is_same(other, block)]
        others = [copy for copy in self.copies.pop(block.partition, ()) if not is_same(copy, block)]
        same = [copy for copy in others if copy.fingerprint == block.fingerprint]
        self.orphans += [copy for copy in others if copy.fingerprint != block.fingerprint]
        if same:
            self.copies[block.partition] = same

    def has(self, block: Block) -> bool:
        """Whether a block is the one that counts, or a copy of it."""
        known = (self.block(block.partition), *self.copies.get(block.partition, ()))
        return any(other is not None and is_same(other, block) for other in known)

    def differs(self, result: PartitionResult) -> bool:
        """Whether a partition came out otherwise than the first time."""
        return not agree(self.fingerprints[result.index], result.fingerprint)

    def forget(self, partitions: np.ndarray) -> None:
        """Make partitions as if they had never been computed; their blocks are gone."""
        for mask in (self.done, self.alive, self.running):
            mask[partitions] = False
        self.orphans += self.take_copies(partitions.tolist())
        for partition in partitions.tolist():
            self.results[partition] = self.fingerprints[partition] = None
        if self.state is StageState.FINISHED:
            self.state = StageState.RUNNING

    def size(self, partition: int) -> int:
        """Bytes of a partition's last result; 0 if it has none."""
        result = self.results[partition]
        return 0 if result is None else result.bytes

    @property
    def resolved(self) -> bool:
        """Whether it is known how blocks are cut."""
        return self.exchange is None or getattr(self.exchange.partitioner, "boundaries", 0) is not None

    def resolve(self, boundaries: pa.Table) -> None:
        """Fill in the boundaries of a range exchange."""
        assert self.exchange is not None
        partitioner = replace(self.exchange.partitioner, boundaries=boundaries)  # type: ignore[type-var]
        self.exchange = self.exchange.resolved(partitioner)

    def lose_node(self, node: str, living: Collection[str]) -> np.ndarray:
        """A node is gone: read copies where there are some, and return the partitions that are lost."""
        for partition, copies in list(self.copies.items()):
            self.copies[partition] = [copy for copy in copies if copy.node != node]
        gone = [int(p) for p in self.on_node(node) if not self.use_copy(int(p), living)]
        self.alive[gone] = False
        return np.array(gone, dtype=np.int64)

    def add_copy(self, block: Block) -> None:
        """Another node has a partition's block, too; nothing happens if it isn't the same bytes."""
        current = self.block(block.partition)
        known = [current, *self.copies.get(block.partition, ())]
        same = current is not None and current.fingerprint == block.fingerprint
        if same and all(block.node != other.node for other in known if other is not None):
            self.orphans = [other for other in self.orphans if not is_same(other, block)]
            self.copies.setdefault(block.partition, []).append(block)

    def use_copy(self, partition: int, living: Collection[str]) -> bool:
        """Read a partition's copy from now on, if a living node has one."""
        copies = self.copies.get(partition, [])
        chosen = next((copy for copy in copies if copy.node in living), None)
        result = self.results[partition]
        if chosen is None or result is None:
            return False
        copies.remove(chosen)
        self.accept(replace(result, block=chosen), alive=True)
        return True

    def take_copies(self, partitions: Sequence[int]) -> list[Block]:
        """Forget the copies of partitions, and return them."""
        return [block for partition in partitions for block in self.copies.pop(partition, ())]

    def move(self, partition: int, attempt: int, source: str, target: str) -> bool:
        """A block lies on another node now; say whether it was the one that counts."""
        block, result = self.block(partition), self.results[partition]
        if block is None or result is None or (block.attempt, block.node) != (attempt, source):
            return False
        self.accept(replace(result, block=replace(block, node=target)), alive=True)
        return True

    def on_node(self, node: str) -> np.ndarray:
        """Indices of partitions whose readable block is on a node."""
        alive = np.flatnonzero(self.alive)
        return np.array(
            [p for p in alive if (b := self.block(int(p))) is not None and b.node == node], dtype=np.int64
        )

    def blocks_by_node(self) -> dict[str, np.ndarray]:
        """Indices of partitions with a readable block, by node."""
        found: dict[str, list[int]] = {}
        for partition in np.flatnonzero(self.alive).tolist():
            block = self.block(partition)
            if block is not None:
                found.setdefault(block.node, []).append(partition)
        return {node: np.array(partitions) for node, partitions in sorted(found.items())}

    def add_metrics(self, metrics: Metrics) -> None:
        """Add what a task of this stage did."""
        names = [f.name for f in fields(Metrics)]
        self.metrics = Metrics(**{n: getattr(self.metrics, n) + getattr(metrics, n) for n in names})


def is_same(a: Block, b: Block) -> bool:
    """Whether two records are of one file."""
    return (a.partition, a.attempt, a.node, a.path) == (b.partition, b.attempt, b.node, b.path)


def input_sizes(
    run: StageRun, runs: list[StageRun], hosts: dict[str, list[str]]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Measure what each partition of a stage reads, and where it lies.

    Args:
        run: the stage.
        runs: all stages, by id.
        hosts: ids of the nodes on each host.

    Returns:
        Bytes that each partition reads, shape (partitions,), and for each node the bytes that it
        holds of them. Broadcast inputs don't count, as every task reads them.
    """
    count = run.stage.partitions
    total = np.zeros(count)
    by_node: dict[str, np.ndarray] = {}

    def add(node: str, start: int, sizes: np.ndarray) -> None:
        local = by_node.setdefault(node, np.zeros(count))
        local[start : start + len(sizes)] += sizes

    for leaves in run.ranges:
        leaf, start, size = leaves.leaf, leaves.start, leaves.stop - leaves.start
        if isinstance(leaf, ScanLeaf):
            splits = run.stage.splits[leaf.slot]
            total[start : start + size] += [split.bytes for split in splits]
            for index, split in enumerate(splits):
                for node in {node for host in split.hosts for node in hosts.get(host, ())}:
                    add(node, start + index, np.array([float(split.bytes)]))
        elif isinstance(leaf, BlockLeaf):
            source = runs[leaf.stage]
            sizes = source.block_bytes
            total[start : start + size] += sizes
            for node, partitions in source.blocks_by_node().items():
                add(node, start, np.where(np.isin(np.arange(size), partitions), sizes, 0))
        elif isinstance(leaf, ShuffleLeaf):
            source = runs[leaf.stage]
            if source.offsets is None:
                continue
            total[start : start + size] += source.lengths.sum(axis=0)
            for node, partitions in source.blocks_by_node().items():
                add(node, start, source.lengths[partitions].sum(axis=0))
    return total, by_node


def fan_in(run: StageRun, runs: list[StageRun]) -> int:
    """Count the segments that a partition of a stage reads, on average."""
    segments = len(run.ranges)
    for leaves in run.ranges:
        if isinstance(leaves.leaf, ShuffleLeaf):
            segments += int(np.count_nonzero(runs[leaves.leaf.stage].lengths))
    return max(1, segments // max(1, run.stage.partitions))


def partition_input(run: StageRun, partition: int, runs: list[StageRun]) -> PartitionInput:
    """Name the splits and segments that a partition reads; segments in map order, empty ones left out."""
    slots: dict[int, object] = {}
    for leaves in run.reads.of(partition):
        leaf, local = leaves.leaf, partition - leaves.start
        if isinstance(leaf, ScanLeaf):
            slots[leaf.slot] = run.stage.splits[leaf.slot][local]
        elif isinstance(leaf, BlockLeaf):
            slots[leaf.slot] = _whole_blocks(runs[leaf.stage], [local])
        elif isinstance(leaf, ShuffleLeaf):
            slots[leaf.slot] = _segments(runs[leaf.stage], local)
    return PartitionInput(partition, slots)  # type: ignore[arg-type]


def broadcast_inputs(
    run: StageRun, partitions: np.ndarray, runs: list[StageRun]
) -> dict[int, tuple[Segment, ...]]:
    """Name the segments of the broadcast inputs that some of these partitions read."""
    found: dict[int, tuple[Segment, ...]] = {}
    for leaves in run.ranges:
        if isinstance(leaves.leaf, BroadcastLeaf) and any(leaves.holds(int(p)) for p in partitions):
            source = runs[leaves.leaf.stage]
            found[leaves.leaf.slot] = _whole_blocks(source, range(source.stage.partitions))
    return found


def new_places(
    record: Task, lacks: Iterable[tuple[int, int]], runs: list[StageRun]
) -> dict[Segment, Segment]:
    """Say where the inputs are now that an attempt was told at its launch, and can't read there.

    Args:
        record: what the attempt was told.
        lacks: (stage, partition) of the blocks.
        runs: all stages, by id.

    Returns:
        Old segment to new one.
    """
    wanted = set(lacks)
    stage = runs[record.stage]
    pairs: list[tuple[Sequence[Segment], Sequence[Segment]]] = []
    for given in record.partitions:
        now = partition_input(stage, given.index, runs)
        for slot, old in given.slots.items():
            if isinstance(old, tuple):
                pairs.append((old, now.slots[slot]))  # type: ignore[arg-type]
    indices = np.array([given.index for given in record.partitions])
    broadcast = broadcast_inputs(stage, indices, runs)
    pairs += [(old, broadcast[slot]) for slot, old in record.broadcast.items()]
    found: dict[Segment, Segment] = {}
    for told, new in pairs:
        there = {(segment.stage, segment.partition): segment for segment in new}
        for segment in told:
            part = (segment.stage, segment.partition)
            if part in wanted and part in there:
                found[segment] = there[part]
    return found


def _whole_blocks(source: StageRun, partitions: object) -> tuple[Segment, ...]:
    blocks = (source.block(partition) for partition in partitions)  # type: ignore[attr-defined]
    segments = (block.whole() for block in blocks if block is not None)
    return tuple(segment for segment in segments if segment.length)


def _segments(source: StageRun, index: int) -> tuple[Segment, ...]:
    if source.offsets is None:
        return ()
    filled = np.flatnonzero(source.lengths[:, index])
    starts = source.offsets[filled, index].tolist()
    lengths = source.lengths[filled, index].tolist()
    found = []
    for partition, start, length in zip(filled.tolist(), starts, lengths):
        block = source.block(partition)
        assert block is not None
        rows = int(block.segment_rows[index])
        found.append(
            Segment(block.stage, partition, block.attempt, block.node, block.path, start, length, rows)
        )
    return tuple(found)
