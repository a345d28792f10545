"""Executor: what the driver needs of the machinery that runs tasks; Dask and inline both give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import pyarrow as pa

from ..errors import DiskFullError, HeadwaterError
from ..planner.plan import Storage
from .devices.device_info import DeviceInfo
from .reuse import NodeKeeps
from .scheduler_events import BlocksFound, Event, FailureKind, Keep, Relocate, TaskFailed, WorkerJoined
from .task import (
    Block,
    CancelledTask,
    FetchFailedError,
    Segment,
    StageProgram,
    Task,
    TaskMovedError,
)

#: errors of the system that will be the same on every worker
_PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


class Channel(Protocol):
    """One run's line to the workers. Used by one thread, the driver's."""

    def prepare(self, program: StageProgram) -> None:
        """Make a stage's program available to the tasks that follow.

        Raises:
            SerializationError: it can't be pickled.
        """

    def launch(self, task: Task, worker: str) -> None:
        """Start an attempt, on this worker if it lives."""

    def cancel(self, name: str, worker: str) -> None:
        """Stop an attempt; whether it still answers doesn't matter."""

    def relocate(self, instruction: Relocate) -> None:
        """Tell a waiting attempt where its inputs are."""

    def expect(self, tasks: int, seconds: float) -> None:
        """Say how many tasks have no worker yet, and how long they will take, so that workers can be added."""

    def survey(self, node: str) -> None:
        """Ask a node which blocks of the run it has; `BlocksFound` comes with a later `wait`."""

    def inventory(self) -> list[BlocksFound]:
        """Ask all nodes which blocks of the run they have, and wait for the answers."""

    def fence(self) -> None:
        """Tell all workers that tasks of the run's older drivers count no more."""

    def keep(self, instruction: Keep) -> None:
        """Let nodes keep blocks beyond the run; before a `release` that follows, and before `close` deletes."""

    def kept(
        self, stages: Mapping[str, Sequence[int]], pinned: Mapping[str, Storage] | None = None
    ) -> list[NodeKeeps]:
        """Ask all nodes which blocks they keep of stages, which they then don't give up during the run.

        Args:
            stages: lineage keys of stages, and their ids.
            pinned: those of which they are to keep what they have for as long as this process lives, and how.

        Returns:
            (node, key to results) of each node, as the blocks describe themselves.
        """

    def drop(self, keys: Sequence[str]) -> None:
        """Have all nodes delete what they keep of stages, unless somebody else needs it."""

    def release(self, blocks: Sequence[Block]) -> None:
        """Delete blocks, soon; those that are gone already are passed over."""

    def wait(self, timeout: float) -> list[Event]:
        """Return the events since the last call, waiting for the first one at most ``timeout`` seconds.

        The first call returns the workers there are.

        Raises:
            ClusterError: the cluster is gone.
        """

    def read(self, segments: Sequence[Segment], schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows of segments, in order.

        Raises:
            FetchFailedError: some can't be read any more.
        """

    def stop(self, timeout: float = 5.0) -> None:
        """Stop every attempt and wait until none writes any more; tasks that don't notice are given up."""

    def close(self) -> None:
        """Stop what still runs and delete everything the run left on the nodes."""

    def abandon(self) -> None:
        """Close, but delete nothing: another driver has the run."""


class Executor(Protocol):
    """Runs tasks on workers, for one run after the other or several at once."""

    def open(self, run: str, epoch: int = 0) -> Channel:
        """Open a channel for a run, for the driver with this epoch."""

    def workers(self) -> list[WorkerJoined]:
        """The living workers, by address."""

    def devices(self) -> dict[str, DeviceInfo | None]:
        """The GPU of each worker, by address; None for those without one."""

    def gpu_workers(self) -> int:
        """How many workers have a GPU."""

    def await_gpu(self, seconds: float) -> None:
        """Wait until a worker has told that it has a GPU, or all have told what they have."""

    def describe_devices(self) -> str:
        """Write what GPU each worker has, or why it has none, a line for each."""

    def drop_kept(self, keys: Sequence[str]) -> int:
        """Let go of kept blocks, of which this process has pinned some.

        Args:
            keys: lineage keys of stages.

        Returns:
            The bytes set free; what others have pinned, or read, stays.
        """

    def close(self) -> None:
        """Let the workers go."""


def classify(error: BaseException) -> FailureKind:
    """Tell what an error that a task raised means for its next attempt.

    Example:
        >>> classify(ZeroDivisionError()), classify(MemoryError())
        (<FailureKind.USER: 'user'>, <FailureKind.OTHER: 'other'>)
    """
    if isinstance(error, FetchFailedError):
        return FailureKind.FETCH
    if isinstance(error, CancelledTask):
        return FailureKind.OTHER
    if isinstance(error, TaskMovedError):
        return FailureKind.MOVED
    if isinstance(error, DiskFullError) and error.scratch is not None:
        return FailureKind.DISK
    if isinstance(error, HeadwaterError):
        return FailureKind.USER
    if isinstance(error, MemoryError):
        return FailureKind.OTHER
    if isinstance(error, OSError) and not isinstance(error, _PERMANENT):
        return FailureKind.OTHER
    return FailureKind.USER


def failed(task: Task, worker: str, error: BaseException, kind: FailureKind | None = None) -> TaskFailed:
    """Make the event for an attempt that ended with an error."""
    lost = error.lost if isinstance(error, FetchFailedError) else ()
    return TaskFailed(task.stage, task.id, task.attempt, worker, kind or classify(error), error, lost)
