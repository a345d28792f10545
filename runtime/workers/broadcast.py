"""BroadcastCache: inputs that every partition reads whole, kept among the tasks of a process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from ...ops.kernel import Broadcast
from ..task import Segment

T = TypeVar("T")

#: whose blocks an input is: (run, stage)
Key = tuple[str, int]

#: how often a task that waits for another one's work looks how that one is doing
_LOOK_SECONDS = 0.1


@dataclass
class _Entry:
    bytes: int
    built: dict[Any, Any] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    #: what the task that builds lacks, while it waits for it
    lacking: Sequence[Segment] = ()


class SharedBroadcast(Broadcast):
    """A Broadcast that several threads read, and one builds.

    Args:
        load, schema: as in `Broadcast`.
        entry: what the threads share.
        waiting: called every now and then while another thread builds, with the blocks that it waits for itself.
    """

    def __init__(
        self,
        load: Callable[[], Iterator[pa.Table]],
        schema: pa.Schema,
        entry: _Entry,
        waiting: Callable[[Sequence[Segment]], None] | None = None,
    ):
        super().__init__(load, schema, entry.built)
        self._entry, self._waiting = entry, waiting

    def once(self, name: str, build: Callable[[], T]) -> T:
        while not self._entry.lock.acquire(timeout=_LOOK_SECONDS):
            if self._waiting is not None:
                self._waiting(self._entry.lacking)
        try:
            return super().once(name, build)
        finally:
            self._entry.lock.release()

    @contextmanager
    def lacking(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Let those that wait for this thread know what it waits for."""
        self._entry.lacking = segments
        try:
            yield
        finally:
            self._entry.lacking = ()


class BroadcastCache:
    """Remembers what was built of the inputs used last, up to a bound.

    Args:
        max_bytes: bytes of blocks whose tables may be remembered; one input always is.

    Example:
        >>> cache, schema = BroadcastCache(100), pa.schema([("x", pa.int64())])
        >>> rows = pa.table({"x": [1, 2]}, schema)
        >>> first = cache.get(("r1", 0), 16, lambda: iter([rows]), schema)
        >>> again = cache.get(("r1", 0), 16, lambda: iter([]), schema)
        >>> first.table() is again.table()
        True
    """

    def __init__(self, max_bytes: int = 512 << 20):
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self,
        key: Key,
        bytes: int,
        load: Callable[[], Iterator[pa.Table]],
        schema: pa.Schema,
        waiting: Callable[[Sequence[Segment]], None] | None = None,
    ) -> SharedBroadcast:
        """Return an input; it is loaded when it is first read.

        Args:
            key: run and stage whose blocks it is.
            bytes: size of those blocks.
            load: reads them, as tables in partition order.
            schema: of the rows.
            waiting: see `SharedBroadcast`.
        """
        with self._lock:
            entry = self._entries.pop(key, None) or _Entry(bytes)
            self._entries[key] = entry
            while len(self._entries) > 1 and sum(e.bytes for e in self._entries.values()) > self._max_bytes:
                self._entries.popitem(last=False)
        return SharedBroadcast(load, schema, entry, waiting)

    def forget(self, run: str) -> None:
        """Drop what belongs to a run."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == run]:
                del self._entries[key]
