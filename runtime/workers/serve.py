"""Serve: answer another process that asks for byte ranges of this node's blocks."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Sequence
from io import FileIO
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from distributed.protocol import to_serialize

from ...errors import HeadwaterError
from ..nodes.node_store import NodeStore

#: a range smaller than this, in bytes, is copied into a frame with others: a frame costs about 0.1 ms
_OWN_FRAME_BYTES = 256 << 10
_SHARED_FRAME_BYTES = 4 << 20

Range = tuple[str, int, int]


async def serve_ranges(
    store: NodeStore, ranges: Sequence[Range], check: Sequence[str] = ()
) -> dict[str, Any]:
    """Read ranges of blocks, for the handler ``headwater_fetch``.

    Args:
        store: this node's.
        ranges: path relative to the scratch folder, offset and length in bytes.
        check: paths to look up without reading.

    Returns:
        ``missing``: the paths asked for that aren't there, or are too short. If there are none,
        ``frames``: the ranges' bytes one after the other; where one frame ends means nothing.
    """
    return await asyncio.to_thread(_read, store, ranges, check)


def _read(store: NodeStore, ranges: Sequence[Range], check: Sequence[str]) -> dict[str, Any]:
    missing = {path for path in check if not _exists(store, path)}
    frames = _Frames()
    for path, parts in groupby(ranges, key=itemgetter(0)):
        try:
            with open(store.resolve(path), "rb", buffering=0) as file:
                for _, offset, length in parts:
                    frames.add(file, offset, length)
        except (OSError, EOFError, HeadwaterError):
            missing.add(path)
    found = [] if missing else [to_serialize(frame) for frame in frames.all()]
    return {"status": "OK", "missing": sorted(missing), "frames": found}


def _exists(store: NodeStore, path: str) -> bool:
    try:
        return store.resolve(path).is_file()
    except HeadwaterError:
        return False


class _Frames:
    """Byte ranges on their way out: large ones mapped, small ones copied together."""

    def __init__(self) -> None:
        self._done: list[memoryview | bytearray] = []
        self._shared = bytearray()

    def add(self, file: FileIO, offset: int, length: int) -> None:
        """Append a range of a file; EOFError if the file is too short."""
        if length < _OWN_FRAME_BYTES:
            data = os.pread(file.fileno(), length, offset)
            if len(data) < length:
                raise EOFError
            self._shared += data
            if len(self._shared) >= _SHARED_FRAME_BYTES:
                self._flush()
            return
        self._flush()
        if os.fstat(file.fileno()).st_size < offset + length:
            raise EOFError
        whole = mmap.mmap(file.fileno(), offset + length, access=mmap.ACCESS_READ)
        view = memoryview(whole)[offset:]
        _touch(view)
        self._done.append(view)

    def all(self) -> list[memoryview | bytearray]:
        self._flush()
        return self._done

    def _flush(self) -> None:
        if self._shared:
            self._done.append(self._shared)
            self._shared = bytearray()


def _touch(view: memoryview) -> None:
    """Read a byte of each page, so that a slow disk stalls this thread and not the event loop."""
    np.frombuffer(view, dtype=np.uint8)[:: mmap.PAGESIZE].max()
