"""BroadcastCache: inputs that every partition reads whole, kept among the tasks of a process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from ..ops.kernel import Broadcast

T = TypeVar("T")

#: whose blocks an input is: (run, stage)
Key = tuple[str, int]


@dataclass
class _Entry:
    bytes: int
    built: dict[Any, Any] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


class SharedBroadcast(Broadcast):
    """A Broadcast that several threads read, and one builds."""

    def __init__(self, load: Callable[[], Iterator[pa.Table]], schema: pa.Schema, entry: _Entry):
        super().__init__(load, schema, entry.built)
        self._lock = entry.lock

    def once(self, name: str, build: Callable[[], T]) -> T:
        with self._lock:
            return super().once(name, build)


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
        self, key: Key, bytes: int, load: Callable[[], Iterator[pa.Table]], schema: pa.Schema
    ) -> SharedBroadcast:
        """Return an input; it is loaded when it is first read.

        Args:
            key: run and stage whose blocks it is.
            bytes: size of those blocks.
            load: reads them, as tables in partition order.
            schema: of the rows.
        """
        with self._lock:
            entry = self._entries.pop(key, None) or _Entry(bytes)
            self._entries[key] = entry
            while len(self._entries) > 1 and sum(e.bytes for e in self._entries.values()) > self._max_bytes:
                self._entries.popitem(last=False)
        return SharedBroadcast(load, schema, entry)

    def forget(self, run: str) -> None:
        """Drop what belongs to a run."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == run]:
                del self._entries[key]
