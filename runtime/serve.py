"""Serve: answer another process that asks for byte ranges of this node's blocks."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from distributed.protocol import to_serialize

from ..errors import HeadwaterError
from .node_store import NodeStore

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
    maps: dict[str, memoryview] = {}
    missing = {path for path in check if not _exists(store, path)}
    for path, offset, length in ranges:
        try:
            if path not in maps:
                maps[path] = _map(store, path)
            if len(maps[path]) < offset + length:
                missing.add(path)
        except (OSError, ValueError, HeadwaterError):
            missing.add(path)
    if missing:
        return {"status": "OK", "missing": sorted(missing), "frames": []}
    views = (maps[path][offset : offset + length] for path, offset, length in ranges)
    return {"status": "OK", "missing": [], "frames": [to_serialize(frame) for frame in _frames(views)]}


def _exists(store: NodeStore, path: str) -> bool:
    try:
        return store.resolve(path).is_file()
    except HeadwaterError:
        return False


def _map(store: NodeStore, path: str) -> memoryview:
    with open(store.resolve(path), "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _frames(views: Iterable[memoryview]) -> Iterator[memoryview | bytes]:
    shared = bytearray()
    for view in views:
        if len(view) < _OWN_FRAME_BYTES:
            shared += view
        if shared and (len(view) >= _OWN_FRAME_BYTES or len(shared) >= _SHARED_FRAME_BYTES):
            yield bytes(shared)
            shared = bytearray()
        if len(view) >= _OWN_FRAME_BYTES:
            _touch(view)
            yield view
    if shared:
        yield bytes(shared)


def _touch(view: memoryview) -> None:
    """Read a byte of each page, so that a slow disk stalls this thread and not the event loop."""
    np.frombuffer(view, dtype=np.uint8)[:: mmap.PAGESIZE].max()
