"""TaskProgress: the share of its input that a running attempt has read, for the driver to spot stragglers."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from ...ops.source import Split
from ..task import PartitionInput, Task

#: what is said of a partition whose input is all read: what follows takes time, too
_MOST_OF_A_PARTITION = 0.95


class TaskProgress:
    """How far one attempt is. Written by its thread, read by any.

    Partitions count the same. Within one, inputs count by their bytes: segments by the rows read of them, splits by
    rows where their number is known, and else by bytes.

    Args:
        partitions: how many the task has.

    Example:
        >>> progress = TaskProgress(2)
        >>> progress.begin(PartitionInput(0, {0: Split(0, 100, 800)}))
        >>> progress.advance(0, 50, 400)
        >>> progress.share
        0.25
        >>> progress.end()
        >>> progress.share
        0.5
    """

    def __init__(self, partitions: int):
        self._partitions, self._done = max(partitions, 1), 0
        self.share = 0.0
        #: figures of the last step of a train stage
        self.metrics: dict[str, float] = {}
        self._parts: dict[int, _Part] = {}

    def begin(self, given: PartitionInput) -> None:
        """A partition begins."""
        self._parts = {slot: _Part(what) for slot, what in given.slots.items()}

    def advance(self, slot: int, rows: int, bytes: int) -> None:
        """A table was read from a slot of the partition."""
        part = self._parts.get(slot)
        if part is not None:
            part.rows += rows
            part.bytes += bytes
            whole = sum(part.weight for part in self._parts.values())
            read = sum(part.weight * part.share for part in self._parts.values()) / whole
            self._rise(self._done + min(read, _MOST_OF_A_PARTITION))

    def tell(self, share: float, metrics: dict[str, float]) -> None:
        """So much of the partition is done, and these are the figures."""
        self.metrics = metrics
        self._rise(self._done + min(share, _MOST_OF_A_PARTITION))

    def end(self) -> None:
        """The partition is done."""
        self._done, self._parts = self._done + 1, {}
        self._rise(self._done)

    def _rise(self, done: float) -> None:
        self.share = max(self.share, min(done / self._partitions, 1.0))


class _Part:
    """What one slot of a partition reads, and how much of it was read."""

    def __init__(self, what: Split | tuple) -> None:  # type: ignore[type-arg]
        self.rows = self.bytes = 0
        if isinstance(what, Split):
            self._rows, self._bytes = what.rows, what.bytes
        else:
            self._rows, self._bytes = sum(s.rows for s in what), sum(s.length for s in what)
        self.weight = max(self._bytes, 1)

    @property
    def share(self) -> float:
        if self._rows is not None:
            return min(self.rows / self._rows, 1.0) if self._rows else 1.0
        return min(self.bytes / self.weight, 1.0)


class ProgressBoard:
    """The progress of all attempts that run in one process."""

    def __init__(self) -> None:
        self._running: defaultdict[str, dict[str, TaskProgress]] = defaultdict(dict)
        self._lock = threading.Lock()

    @contextmanager
    def follow(self, task: Task) -> Iterator[TaskProgress]:
        """Show an attempt while it runs."""
        progress = TaskProgress(len(task.partitions))
        with self._lock:
            self._running[task.run][task.name] = progress
        try:
            yield progress
        finally:
            with self._lock:
                del self._running[task.run][task.name]
                if not self._running[task.run]:
                    del self._running[task.run]

    def of(self, run: str) -> dict[str, float]:
        """Return the share of each running attempt of a run, by `Task.name`."""
        with self._lock:
            return {name: progress.share for name, progress in self._running.get(run, {}).items()}

    def metrics_of(self, run: str) -> dict[str, dict[str, float]]:
        """Return the figures of each running attempt of a run that has any, by `Task.name`."""
        with self._lock:
            return {name: p.metrics for name, p in self._running.get(run, {}).items() if p.metrics}
