"""What the scheduler is told (events), and what it asks for (instructions). Plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pyarrow as pa

from ..planner.plan import Storage
from .task import Block, PartitionResult, Segment, StageProgram, Task, TaskResult


class FailureKind(Enum):
    """Why an attempt failed; decides whether another one is made."""

    #: the user's code, data or disk: it would fail again, so the run fails at once
    USER = "user"
    #: inputs can't be read: they are made again, then the task
    FETCH = "fetch"
    #: the worker died or the cluster dropped the task
    LOST = "lost"
    #: the system refused (memory, sockets): may pass on another attempt
    OTHER = "other"
    #: the node's scratch folder is full: another node may have room
    DISK = "disk"
    #: the worker is about to leave, and the task goes on elsewhere: nobody's fault
    MOVED = "moved"


class Cause(Enum):
    """Why a worker is gone."""

    #: its connection closed: a crash, a kill, a machine that went down
    DIED = "died"
    #: its process was stopped and used no processor time
    HUNG = "hung"
    #: nothing of it, nor of its beacon, could be heard
    UNREACHABLE = "unreachable"
    #: it said that it would go, and handed over what it had
    LEFT = "left"
    #: the Dask scheduler is gone, and its workers with it
    SCHEDULER = "scheduler died"


@dataclass(frozen=True)
class WorkerJoined:
    """A worker process can take tasks.

    Attributes:
        address: unique for the life of the process.
        node: id of the node whose scratch folder it shares.
        threads: how many tasks it runs at once.
        host: host name or address, to match the hosts of splits.
        gpu: whether it has a GPU.
    """

    address: str
    node: str
    threads: int = 1
    host: str = ""
    gpu: bool = False


@dataclass(frozen=True)
class WorkerLeft:
    """A worker process is gone and won't come back under this address.

    Attributes:
        address: of the worker.
        cause: why.
        silent: seconds between the last sign of life and now; how long it took to notice.
    """

    address: str
    cause: Cause = Cause.DIED
    silent: float = 0.0


@dataclass(frozen=True)
class WorkerDraining:
    """A worker is about to leave: it finishes what it runs and takes nothing new."""

    address: str


@dataclass(frozen=True)
class BlocksFound:
    """A node told which results of the run it has, whoever made them.

    Attributes:
        node: id of the node.
        results: one for each block found, as the block describes itself; several attempts at a partition may be there.
    """

    node: str
    results: tuple[PartitionResult, ...]


@dataclass(frozen=True)
class Restore:
    """An earlier driver of the run has got somewhere; `BlocksFound` events follow, before anything starts.

    Attributes:
        fingerprints: of each (stage, partition) that was ever computed.
        finished: bytes of each (stage, partition) whose result the journal counts as there, or as lost.
        staged: (stage, result) of each partition of a sink whose staged files are there.
        boundaries: of range exchanges, by stage.
    """

    fingerprints: Mapping[tuple[int, int], str]
    finished: Mapping[tuple[int, int], int]
    staged: tuple[tuple[int, PartitionResult], ...]
    boundaries: Mapping[int, pa.Table]


@dataclass(frozen=True)
class BlocksMoved:
    """A node that leaves gave blocks to another one, under the same paths.

    Attributes:
        source, target: ids of the nodes.
        parts: (stage, partition, attempt) of each block.
    """

    source: str
    target: str
    parts: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class InputsLost:
    """A running attempt lacks inputs, keeps what it has, and waits for new places.

    Attributes:
        stage, id, attempt: which one.
        lost: (stage, partition, attempt) of each block that it could not read.
    """

    stage: int
    id: int
    attempt: int
    lost: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Progress:
    """How far running attempts are.

    Attributes:
        done: `Task.name` to the share of its input that it has read, 0 to 1; 0 for one that hasn't begun.
        metrics: `Task.name` to the figures of the last step, of those that train.
    """

    done: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tick:
    """Time passes.

    Attributes:
        now: seconds since the run began.
    """

    now: float


@dataclass(frozen=True)
class TaskFinished:
    """An attempt reports its result."""

    result: TaskResult


@dataclass(frozen=True)
class TaskFailed:
    """An attempt failed.

    Attributes:
        stage, id, attempt: which one.
        worker: where it ran, or was to run.
        kind: what to do about it.
        error: the exception, for the report.
        lost: (stage, partition, attempt) of each block that could not be read.
    """

    stage: int
    id: int
    attempt: int
    worker: str
    kind: FailureKind
    error: BaseException
    lost: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class BlocksLost:
    """Somebody other than a task could not read these (stage, partition, attempt) blocks."""

    lost: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Demand:
    """The caller wants the partitions of an output below ``upto``, and none beyond for now."""

    stage: int
    upto: int


@dataclass(frozen=True)
class OutputTaken:
    """The caller has read a partition of an output and won't ask for it again."""

    stage: int
    partition: int


Event = (
    WorkerJoined
    | WorkerLeft
    | WorkerDraining
    | TaskFinished
    | TaskFailed
    | InputsLost
    | BlocksLost
    | BlocksFound
    | BlocksMoved
    | Restore
    | Demand
    | OutputTaken
    | Progress
    | Tick
)


@dataclass(frozen=True)
class Record:
    """Write these records to the journal before anything that follows takes effect."""

    records: Sequence[list[Any]]


@dataclass(frozen=True)
class StageReady:
    """Tasks of this stage may follow; they all share this program."""

    program: StageProgram


@dataclass(frozen=True)
class Launch:
    """Start an attempt on a worker."""

    task: Task
    worker: str


@dataclass(frozen=True)
class Cancel:
    """Stop an attempt whose result can't count any more; it may be gone already."""

    name: str
    worker: str


@dataclass(frozen=True)
class Release:
    """Delete these blocks: nobody will read them again."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Keep:
    """Let the nodes keep these blocks beyond the run, in the order of instructions: before they are released.

    Attributes:
        blocks: of one stage.
        storage: how a user asked for it; None if it is just for reuse, as long as there is room.
    """

    blocks: Sequence[Block]
    storage: Storage | None = None


@dataclass(frozen=True)
class Survey:
    """Ask a node which results of the run it has; `BlocksFound` answers."""

    node: str


@dataclass(frozen=True)
class Relocate:
    """Tell a waiting attempt where the inputs that it lacks are now.

    Attributes:
        name: `Task.name` of the attempt.
        worker: that runs it.
        segments: what it was told first, to what holds now.
        nodes: node id to the addresses of living workers that can serve its blocks.
    """

    name: str
    worker: str
    segments: Mapping[Segment, Segment]
    nodes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class StageFinished:
    """All partitions of a stage are there."""

    stage: int


@dataclass(frozen=True)
class Finished:
    """All outputs are there."""


@dataclass(frozen=True)
class Failed:
    """The run can't succeed."""

    error: BaseException


Instruction = (
    Record
    | StageReady
    | Launch
    | Cancel
    | Relocate
    | Keep
    | Release
    | Survey
    | StageFinished
    | Finished
    | Failed
)


@dataclass
class RecoveryStats:
    """What failures cost a run.

    Attributes:
        workers_lost: addresses, in the order of their loss.
        nodes_lost: ids of nodes that lost their last worker.
        blocks_lost: how many blocks were lost with nodes or could not be read.
        partitions_rerun: (stage, partition) whose finished result had to be made again.
        tasks_retried: attempts that were repeated because a worker died or an input was lost.
        adopted: partitions whose results were found on a node.
    """

    workers_lost: list[str] = field(default_factory=list)
    nodes_lost: list[str] = field(default_factory=list)
    blocks_lost: int = 0
    partitions_rerun: list[tuple[int, int]] = field(default_factory=list)
    tasks_retried: int = 0
    adopted: int = 0
