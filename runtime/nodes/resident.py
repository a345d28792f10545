"""Resident: kept blocks whose pages a node holds in memory, as far as the system allows.

Each file is mapped, its pages are read in, and locked there up to RLIMIT_MEMLOCK. What can't be locked
stays mapped: its pages are in the system's cache, which gives them up when others need the memory.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

_PAGE = mmap.PAGESIZE


@dataclass
class _Held:
    """A mapped file, what it is a map of, and whether its pages are locked."""

    map: mmap.mmap
    file: tuple[int, int]
    bytes: int
    locked: bool


class Resident:
    """The blocks that one process holds in memory for its node.

    Args:
        most_bytes: bound of all together, asked each time; None is half of the memory that is free.

    Example:
        >>> block = getfixture("tmp_path") / "p0.arrow"
        >>> _ = block.write_bytes(b"rows" * 1000)
        >>> resident = Resident()
        >>> resident.hold("4f2a", [block]), resident.bytes
        (4000, 4000)
        >>> resident.release(["4f2a"])
        >>> resident.bytes
        0
    """

    def __init__(self, most_bytes: Callable[[], int] | None = None):
        self._most_bytes = most_bytes
        self._held: dict[str, dict[Path, _Held]] = {}
        self._lock = threading.Lock()

    def hold(self, key: str, paths: Sequence[Path]) -> int:
        """Hold files in memory until their key is released.

        Args:
            key: lineage key of the stage that they are blocks of.
            paths: of the files; those that are gone, or would exceed the bound, are left out.

        Returns:
            The bytes held of the key now.
        """
        with self._lock:
            files = self._held.setdefault(key, {})
            for path in paths:
                with suppress(OSError, ValueError):  # it is gone, or empty
                    self._hold(files, path)
            if not files:
                del self._held[key]
            return sum(held.bytes for held in files.values())

    def release(self, keys: Collection[str]) -> None:
        """Let go of all blocks of these keys."""
        with self._lock:
            for key in keys:
                for held in self._held.pop(key, {}).values():
                    _let_go(held)

    def keys(self) -> list[str]:
        """The keys of which something is held."""
        with self._lock:
            return sorted(self._held)

    @property
    def bytes(self) -> int:
        """Bytes of all files held."""
        return sum(held.bytes for files in self._held.values() for held in files.values())

    @property
    def locked_bytes(self) -> int:
        """Bytes of those that the system can't take out of memory."""
        return sum(held.bytes for files in self._held.values() for held in files.values() if held.locked)

    def _hold(self, files: dict[Path, _Held], path: Path) -> None:
        with path.open("rb") as file:
            map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        stat = path.stat()
        mark = (stat.st_ino, stat.st_mtime_ns)
        known = files.get(path)
        if known is not None and known.file == mark:
            map.close()
            return
        if known is not None:
            _let_go(files.pop(path))
        if self.bytes + len(map) > self._bound():
            map.close()
            return
        files[path] = _Held(map, mark, len(map), _lock_pages(map))

    def _bound(self) -> int:
        if self._most_bytes is not None:
            return self._most_bytes()
        return (psutil.virtual_memory().available + self.locked_bytes) // 2


def _lock_pages(map: mmap.mmap) -> bool:
    """Read a map's pages in and lock them; False if they could only be read in."""
    pages = np.frombuffer(map, np.uint8)
    with suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlock(ctypes.c_void_p(pages.ctypes.data), ctypes.c_size_t(len(map))) == 0:
            return True
    pages[::_PAGE].max()
    return False


def _let_go(held: _Held) -> None:
    held.map.close()  # takes the lock off, too
