"""What the driver sends to a worker, and what comes back. Plain records; no Dask, no I/O.

A task is one attempt at a slice of a stage's partitions. It may carry several small ones; blocks,
lineage and fingerprints stay per partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..errors import HeadwaterError
from ..lineage.owner import Owner, this_process
from ..ops.partitioner import KeySample
from ..ops.sink import Sink, StagedFile
from ..ops.sort import SortKey
from ..ops.source import Split
from ..planner.plan import Exchange, Operator

#: (stage, partition): what a block is a result of
Part = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """One partition's result, on a node's disk: an Arrow IPC file, its batches grouped by segment.

    Attributes:
        stage, partition, attempt: whose result it is.
        node: id of the node that holds it.
        path: of the file, relative to the node's scratch folder.
        offsets: byte offset of each segment in the file, and the end of the last; shape (R + 1,), int64.
        segment_rows: rows of each segment; shape (R,), int64.
        bytes: size of the file.
        fingerprint: content digest (see lineage/fingerprint.py), hexadecimal.
    """

    stage: int
    partition: int
    attempt: int
    node: str
    path: str
    offsets: np.ndarray
    segment_rows: np.ndarray
    bytes: int
    fingerprint: str

    @property
    def rows(self) -> int:
        return int(self.segment_rows.sum())

    @property
    def is_kept(self) -> bool:
        """Whether it belongs to the node's kept store, rather than to the run."""
        return self.path.startswith("kept/")

    def segment(self, index: int) -> Segment:
        """Return where one segment lies."""
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        rows = int(self.segment_rows[index])
        return Segment(
            self.stage, self.partition, self.attempt, self.node, self.path, start, stop - start, rows
        )

    def whole(self) -> Segment:
        """Return where all segments together lie."""
        start, stop = int(self.offsets[0]), int(self.offsets[-1])
        return Segment(
            self.stage, self.partition, self.attempt, self.node, self.path, start, stop - start, self.rows
        )


class Segment(NamedTuple):
    """A byte range of a block's file that holds whole record batch messages; empty if length is 0.

    A tuple, as tasks carry thousands, which are made, pickled and compared in a third of a dataclass's time.
    """

    stage: int
    partition: int
    attempt: int
    node: str
    path: str
    offset: int
    length: int
    rows: int


@dataclass(frozen=True)
class StageProgram:
    """What every task of a stage needs; pickled once a stage, user functions included.

    Attributes:
        run: the run's id.
        stage: the stage's id.
        key: the stage's lineage key.
        label: for errors and progress.
        operator: the tree that computes a partition.
        schema: of the rows it leaves.
        exchange: with boundaries filled in.
        sink, sample: as in `planner.plan.Stage`.
        merges: whether fingerprints must merge over partitions, as an output's do; else a much cheaper kind will do.
        device: "gpu" if the tree has operators of a device, else "cpu".
        owner: the driver's process; by default the one that makes the record.
    """

    run: str
    stage: int
    key: str
    label: str
    operator: Operator
    schema: pa.Schema
    exchange: Exchange | None = None
    sink: Sink | None = None
    sample: tuple[SortKey, ...] = ()
    merges: bool = True
    device: str = "cpu"
    owner: Owner = field(default_factory=this_process)


@dataclass(frozen=True)
class PartitionInput:
    """What one partition reads: for each slot a split, or segments in map order."""

    index: int
    slots: Mapping[int, Split | tuple[Segment, ...]]


@dataclass(frozen=True)
class Task:
    """One attempt at a slice of partitions of one stage.

    Attributes:
        run, stage: which stage of which run.
        id: number of the task in the run; an attempt keeps its task's id.
        attempt: counts from 0; makes block and file names unique and fences late results.
        partitions: what to compute, in order.
        broadcast: for each broadcast slot, the segments of the whole input, in order.
        nodes: node id to the addresses of living workers that can serve its blocks.
        memory_bytes: how much memory the task may hold before it spills.
        quota_bytes: bound of the node's scratch folder; None is the disk's own.
        epoch: number of the driver; a worker refuses tasks of an older one.
    """

    run: str
    stage: int
    id: int
    attempt: int
    partitions: tuple[PartitionInput, ...]
    broadcast: Mapping[int, tuple[Segment, ...]] = field(default_factory=dict)
    nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    memory_bytes: int = 256 << 20
    quota_bytes: int | None = None
    epoch: int = 0

    @property
    def name(self) -> str:
        """Unique in the run, as ``s2-t17#1``; Dask's key is ``headwater-RUN-`` and this."""
        return f"s{self.stage}-t{self.id}#{self.attempt}"


@dataclass(frozen=True)
class PartitionResult:
    """What a task made of one partition: a block, or staged files of a sink.

    ``fingerprint`` is of the rows, also for sinks. ``run`` made it, if that isn't the one it is reported to.
    """

    index: int
    rows: int
    fingerprint: str
    block: Block | None = None
    files: tuple[StagedFile, ...] = ()
    sample: KeySample | None = None
    run: str = ""

    @property
    def bytes(self) -> int:
        """Size of its block or files."""
        return sum(file.bytes for file in self.files) + (self.block.bytes if self.block is not None else 0)


@dataclass(frozen=True)
class Metrics:
    """What a task did; sums over its partitions. Seconds are wall-clock, bytes are of Arrow data.

    Of the input, ``device_bytes`` lay on the worker's GPU already, and ``peer_device_bytes`` on those of the node's
    other workers.
    """

    seconds: float = 0.0
    rows_in: int = 0
    rows_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    local_bytes: int = 0
    remote_bytes: int = 0
    spilled_bytes: int = 0
    to_device_bytes: int = 0
    to_host_bytes: int = 0
    device_bytes: int = 0
    peer_device_bytes: int = 0


@dataclass(frozen=True)
class TaskResult:
    """What a finished attempt reports to the driver."""

    stage: int
    id: int
    attempt: int
    node: str
    worker: str
    partitions: tuple[PartitionResult, ...]
    metrics: Metrics
    #: what happened to the gang of a train stage; see `training.job.TrainingLog`
    training: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """`Task.name` of the attempt."""
        return f"s{self.stage}-t{self.id}#{self.attempt}"


class FetchFailedError(HeadwaterError):
    """Some inputs can't be read any more.

    Attributes:
        lost: the (stage, partition, attempt) of each block that is gone or out of reach.
        nodes: ids of nodes none of whose workers answered.
    """

    def __init__(self, lost: tuple[tuple[int, int, int], ...], nodes: tuple[str, ...] = ()):
        super().__init__(f"{len(lost)} blocks can't be fetched; nodes out of reach: {list(nodes)}")
        self.lost = lost
        self.nodes = nodes

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return (FetchFailedError, (self.lost, self.nodes))


class CancelledTask(HeadwaterError):
    """The driver no longer wants this attempt; it stopped early, and left only partitions that it had finished."""


class TaskMovedError(HeadwaterError):
    """The worker is about to leave, and this long task is to go on elsewhere; nothing is lost."""
