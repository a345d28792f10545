"""Crossing: how arrays come to a device and back, and how many bytes do.

Bytes cross through page-locked buffers of fixed size, in turn: while the device copies out of one, the next is
filled. So a transfer needs no page-locked memory of its own size, and reads the host's memory once. What crosses is
counted for the task.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

import numpy as np

from ..backend import Array

#: bytes of each page-locked buffer, of which there are two for each direction
BUFFER_BYTES = 8 << 20
#: arrays smaller than this cross as CuPy does it
STAGED_BYTES = 256 << 10


@dataclass
class Traffic:
    """Bytes that crossed between host and device; several threads may add to them.

    Attributes:
        to_device, to_host: bytes, by direction.
    """

    to_device: int = 0
    to_host: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, to_device: int = 0, to_host: int = 0) -> None:
        """Add what has crossed."""
        with self._lock:
            self.to_device += to_device
            self.to_host += to_host


_traffic: ContextVar[Traffic | None] = ContextVar("headwater_traffic", default=None)


@contextmanager
def counted(traffic: Traffic | None = None) -> Iterator[Traffic]:
    """Count what crosses in this thread or task, and in threads that work in a copy of its context.

    Args:
        traffic: to add to; None is a new one.

    Example:
        >>> with counted() as traffic:
        ...     _ = staged(np, np.zeros(4))
        >>> traffic
        Traffic(to_device=0, to_host=0)
    """
    traffic = traffic or Traffic()
    token = _traffic.set(traffic)
    try:
        yield traffic
    finally:
        _traffic.reset(token)


def count_crossing(to_device: int = 0, to_host: int = 0) -> None:
    """Add bytes to what is `counted` here, if anything counts."""
    if (traffic := _traffic.get()) is not None:
        traffic.add(to_device, to_host)


def staged(xp: ModuleType, array: Array) -> Array:
    """Bring an array to the device, through page-locked memory.

    Args:
        xp: NumPy, which leaves it as it is, or CuPy.
        array: numbers or booleans, any shape; one that is there already stays as it is.

    Returns:
        An array of the same shape and dtype; a copy has no gaps. ``array`` may be changed as soon as it is there.
    """
    if xp is np or isinstance(array, xp.ndarray):
        return array
    count_crossing(to_device=array.nbytes)
    lanes = _lanes(xp) if array.nbytes >= STAGED_BYTES else None
    return xp.asarray(array) if lanes is None else lanes.send(np.ascontiguousarray(array))


def fetched(array: Array) -> np.ndarray:
    """Bring an array to the host, through page-locked memory.

    Args:
        array: of either namespace, any shape.

    Returns:
        An array of the same shape and dtype; the same one if it was NumPy's.
    """
    if isinstance(array, np.ndarray):
        return array
    count_crossing(to_host=int(array.nbytes))
    large = array.nbytes >= STAGED_BYTES and array.flags.c_contiguous
    lanes = _lanes(_cupy()) if large else None
    return array.get() if lanes is None else lanes.fetch(array)


class _Lanes:
    """Two page-locked buffers for each direction."""

    def __init__(self, xp: ModuleType):
        self._xp = xp
        self._out = [_Buffer(xp) for _ in range(2)]
        self._back = [_Buffer(xp) for _ in range(2)]
        self._sending, self._fetching = threading.Lock(), threading.Lock()

    def send(self, array: np.ndarray) -> Array:
        there = self._xp.empty(array.shape, array.dtype)
        source, target = array.reshape(-1), there.reshape(-1)
        stream = self._xp.cuda.get_current_stream()
        with self._sending:
            for number, part in enumerate(_parts(source)):
                buffer = self._out[number % 2]
                buffer.event.synchronize()  # until the device has read what was in it before
                view = buffer.view(source[part])
                np.copyto(view, source[part])
                target[part].set(view, stream)
                buffer.event.record(stream)
        return there

    def fetch(self, array: Array) -> np.ndarray:
        here = np.empty(array.shape, array.dtype)
        source, target = array.reshape(-1), here.reshape(-1)
        stream = self._xp.cuda.get_current_stream()
        with self._fetching:
            under_way: tuple[_Buffer, np.ndarray, slice] | None = None
            for number, part in enumerate(_parts(target)):
                buffer = self._back[number % 2]
                view = buffer.view(target[part])
                source[part].get(stream=stream, out=view, blocking=False)
                buffer.event.record(stream)
                if under_way is not None:
                    _land(under_way, target)
                under_way = buffer, view, part
            if under_way is not None:
                _land(under_way, target)
        return here


class _Buffer:
    def __init__(self, xp: ModuleType):
        self.bytes = np.frombuffer(xp.cuda.alloc_pinned_memory(BUFFER_BYTES), np.uint8, BUFFER_BYTES)
        self.event = xp.cuda.Event(disable_timing=True)

    def view(self, like: np.ndarray) -> np.ndarray:
        """Room for an array of a length and dtype."""
        return self.bytes[: like.nbytes].view(like.dtype)


def _parts(array: np.ndarray) -> Iterator[slice]:
    """Cut an array into pieces that fit a buffer."""
    step = BUFFER_BYTES // array.itemsize
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))


def _land(transfer: tuple[_Buffer, np.ndarray, slice], target: np.ndarray) -> None:
    buffer, view, part = transfer
    buffer.event.synchronize()
    np.copyto(target[part], view)


@cache
def _lanes(xp: ModuleType) -> _Lanes | None:
    """The process's buffers; None if the system gives no page-locked memory."""
    with suppress(Exception):
        return _Lanes(xp)
    return None


def _cupy() -> ModuleType:
    import cupy

    return cupy
