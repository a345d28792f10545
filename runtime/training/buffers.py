"""Buffers: where batches are put together, so that equal rows lie alike in memory, and how they get to a GPU."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from ...ops.device.crossing import count_crossing
from ...ops.training.aligned import ALIGNMENT, aligned_empty
from ...ops.training.program import Batch

#: bytes that go to the device without a detour over pinned memory, and bytes of such a detour at a time
_SMALL, _STAGED = 256 << 10, 32 << 20


def aligned(size: int) -> int:
    """Round a number of bytes up to the alignment.

    Example:
        >>> aligned(65)
        128
    """
    return -(-size // ALIGNMENT) * ALIGNMENT


def empty(shape: tuple[int, ...], dtype: Any, xp: ModuleType = np) -> np.ndarray:
    """Return a new aligned array on the host; for CuPy it is pinned, so that it copies fast to the device."""
    if xp is np or 0 in shape:
        return aligned_empty(shape, dtype)
    count = int(np.prod(shape, dtype=np.int64))
    memory = xp.cuda.alloc_pinned_memory(count * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def to_device(arrays: Mapping[str, np.ndarray], xp: ModuleType, pinned: bool = False) -> Batch:
    """Give arrays of the host as arrays of a namespace; NumPy's stay what they are.

    Under CuPy the copy runs on a stream of its own, beside kernels, and is done when this returns, so that the host's
    memory may be used again. Memory is taken from the stream that kernels run on, and the copy waits for what
    was begun there before: memory that a kernel still reads is never written to.

    Args:
        arrays: name to array.
        xp: the namespace.
        pinned: whether the arrays are of `empty`; others go through pinned memory, a part at a time.
    """
    if xp is np:
        return arrays
    kernels, copies = xp.cuda.get_current_stream(), _copy_stream(xp)
    moved = {name: xp.empty(array.shape, array.dtype) for name, array in arrays.items()}
    copies.wait_event(kernels.record())
    for name, array in arrays.items():
        if array.size:
            count_crossing(to_device=array.nbytes)
            _copy(np.ascontiguousarray(array), moved[name], copies, xp, pinned)
    done = copies.record()
    kernels.wait_event(done)
    done.synchronize()
    return moved


def _copy(array: np.ndarray, out: Any, copies: Any, xp: ModuleType, pinned: bool) -> None:
    """Copy an array to the device; parts are brought to pinned memory while the part before crosses."""
    if pinned or array.nbytes <= _SMALL:
        out.set(array, stream=copies)
        return
    flat, target = array.reshape(-1), out.reshape(-1)
    step = max(1, _STAGED // array.itemsize)
    rooms = [empty((min(step, flat.size),), array.dtype, xp) for _ in range(2)]
    crossed: list[Any] = [None, None]
    for i, start in enumerate(range(0, flat.size, step)):
        part = flat[start : start + step]
        if crossed[i % 2] is not None:
            crossed[i % 2].synchronize()
        room = rooms[i % 2][: part.size]
        np.copyto(room, part)
        target[start : start + part.size].set(room, stream=copies)
        crossed[i % 2] = copies.record()
    for event in crossed:
        if event is not None:
            event.synchronize()


@functools.cache
def _copy_stream(xp: ModuleType) -> Any:
    return xp.cuda.Stream(non_blocking=True)
