"""Region: where the segments of one fetch land, in memory or, if they are many, in an unnamed file."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..nodes.scratch_file import Space
from ..task import Segment

_ALIGNMENT = 64


@dataclass(frozen=True)
class RegionOptions:
    memory_bytes: int
    folder: Path | None
    space: Space | None
    quota_bytes: int | None


class Region:
    """Where remote segments land: a place for each, 64-byte aligned, in memory or in an unnamed file."""

    def __init__(self, segments: Sequence[Segment], options: RegionOptions):
        ends = np.cumsum([-(-segment.length // _ALIGNMENT) * _ALIGNMENT for segment in segments])
        self._start = dict(zip(segments, [0, *ends[:-1].tolist()]))
        self._space = options.space
        self.memory_bytes = options.memory_bytes
        total = int(ends[-1])
        self.file_bytes = total if total > options.memory_bytes else 0
        self._memory: Any = self._map_file(options) if self.file_bytes else pa.allocate_buffer(total)
        self._buffer = pa.py_buffer(self._memory)
        self._bytes = np.frombuffer(self._memory, dtype=np.uint8)

    def write(self, segment: Segment, at: int, data: np.ndarray) -> None:
        start = self._start[segment] + at
        np.copyto(self._bytes[start : start + len(data)], data)

    def buffer(self, segment: Segment) -> pa.Buffer:
        return self._buffer.slice(self._start[segment], segment.length)

    @property
    def held_bytes(self) -> int:
        """Its size, if it lies in memory."""
        return 0 if self.file_bytes else len(self._bytes)

    def release(self) -> None:
        """Give the file's bytes back to the ledger; its pages go when the last table does."""
        if self._space is not None and self.file_bytes:
            self._space.ledger.release(self.file_bytes)
            self._space = None

    def _map_file(self, options: RegionOptions) -> mmap.mmap:
        if self._space is not None:
            self._space.reserve(self.file_bytes, options.quota_bytes)
        try:
            with (
                self._space.full_disk_explained() if self._space else nullcontext(),
                tempfile.TemporaryFile(prefix="fetch-", dir=options.folder) as file,
            ):
                # a full disk must fail here, not in a page fault
                os.posix_fallocate(file.fileno(), 0, self.file_bytes)
                return mmap.mmap(file.fileno(), self.file_bytes)
        except BaseException:
            self.release()
            raise


class Frames:
    """Reads frames as if they were one string of bytes."""

    def __init__(self, frames: Sequence[Any]):
        self._frames = [np.frombuffer(frame, dtype=np.uint8) for frame in frames if len(frame)]

    def take(self, length: int) -> Iterator[np.ndarray]:
        while length:
            head = self._frames[0]
            if len(head) > length:
                self._frames[0] = head[length:]
                yield head[:length]
                return
            self._frames.pop(0)
            length -= len(head)
            yield head
