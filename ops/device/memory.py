"""Memory of a device: how much of it a process takes, how bytes come there and back, and what to do when it is full.

Bytes cross through page-locked buffers of fixed size, in turn: while the device copies out of one, the next is
filled. So a transfer needs no page-locked memory of its own size, and reads the host's memory once. What crosses is
counted for the task.
"""

from __future__ import annotations

import gc
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from weakref import WeakMethod

import numpy as np

from ..backend import Array

if TYPE_CHECKING:
    from .table import DeviceTable

#: share of a device's memory that the processes which have it use for arrays; the rest is for CUDA, modules and NCCL
POOL_SHARE = 0.85
#: bytes of each page-locked buffer, of which there are two for each direction
BUFFER_BYTES = 8 << 20
#: arrays smaller than this cross as CuPy does it
STAGED_BYTES = 256 << 10
#: CUDA's number of "out of memory", of a launch or of an allocation that doesn't go by CuPy's pool
_CUDA_FULL = 2
#: a table of so many rows isn't halved any further
LEAST_ROWS = 1024

_P = ParamSpec("_P")
_R = TypeVar("_R")


class DeviceMemoryError(MemoryError):
    """A device is full, and what was to be done can't be done in smaller pieces."""


# -- the pool ------------------------------------------------------------------------------------------


def set_up_pool(xp: ModuleType, sharers: int = 1) -> int:
    """Bound what CuPy's pool of this process takes of the device.

    Args:
        xp: CuPy.
        sharers: processes that have the same device.

    Returns:
        The bound in bytes; that of CUPY_GPU_MEMORY_LIMIT if it is set, which then stays.
    """
    if os.environ.get("CUPY_GPU_MEMORY_LIMIT"):
        return int(xp.get_default_memory_pool().get_limit())
    total = int(xp.cuda.runtime.getDeviceProperties(0)["totalGlobalMem"])
    limit = int(total * POOL_SHARE) // max(1, sharers)
    xp.get_default_memory_pool().set_limit(size=limit)
    return limit


#: references to what is called when the device is full; those of a cache that is gone are empty
_releasers: list[Callable[[], Callable[[], int] | None]] = []


def on_low_memory(release: Callable[[], int]) -> None:
    """Have a method called when the device is full: it lets go of what can be made again, and returns its bytes.

    Its object isn't kept alive by that.
    """
    _releasers.append(WeakMethod(release))


def free_memory(xp: ModuleType, everything: bool = False) -> None:
    """Give the pool's unused blocks back to the device.

    Args:
        xp: CuPy.
        everything: let caches go before.
    """
    if everything:
        for reference in list(_releasers):
            release = reference()
            if release is None:
                _releasers.remove(reference)
            else:
                release()
    xp.get_default_memory_pool().free_all_blocks()
    xp.get_default_pinned_memory_pool().free_all_blocks()


# -- what to do when it is full ----------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of CuPy, PyTorch or CUDA itself says that a device, rather than this process's host, is full."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"CUDARuntimeError", "CUDADriverError"}:
        return getattr(error, "status", None) == _CUDA_FULL
    return "OutOfMemoryError" in kinds


def make_room_after(error: BaseException) -> None:
    """Free what can be freed if something failed because the device is full, as it may be tried again.

    What failed lets go of its arrays, although somebody keeps the error; unused memory and caches go, too.
    """
    if is_out_of_memory(error) or isinstance(error, DeviceMemoryError):
        traceback.clear_frames(error.__traceback__)
        gc.collect()  # generators that were under way, and their arrays
        free_memory(_cupy(), everything=True)


def retried(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call a function again if the device is full: after its unused memory is freed, then after caches are let go too.

    Args:
        function: leaves nothing half done when it fails.
        args, kwargs: its own.

    Raises:
        DeviceMemoryError: it is full even so.

    Example:
        >>> retried(max, 1, 2)
        2
    """
    problem = ""
    for attempt in range(3):
        if attempt:
            free_memory(_cupy(), everything=attempt > 1)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # not the error itself: its traceback would hold what is to be freed
            problem = str(error).rstrip(".")
    raise DeviceMemoryError(
        f"the GPU is full: {problem}. Make partitions smaller, as PlanOptions(partition_bytes=16 << 20), let fewer "
        "workers share the GPU, or run it with Session(device='cpu')."
    )


def split_on_oom(table: DeviceTable, function: Callable[[DeviceTable], _R]) -> Iterator[_R]:
    """Apply a row-wise function to a table, in one piece if the device has room, else in halves, and halves of these.

    Args:
        table: rows.
        function: gives each row the same result whatever rows are beside it.

    Yields:
        The results, in the order of the rows.

    Raises:
        DeviceMemoryError: there is no room for `LEAST_ROWS` rows.
    """

    def of(start: int, stop: int) -> _R:
        return function(table if stop - start == table.rows else table.slice(start, stop))

    return halved_on_oom(table.rows, of)


def halved_on_oom(rows: int, function: Callable[[int, int], _R]) -> Iterator[_R]:
    """Apply a function to ranges of rows: to all of them if the device has room, else to halves, and halves of these.

    Args:
        rows: how many there are.
        function: takes the first row of a range and the end.

    Yields:
        The results, in order.

    Raises:
        DeviceMemoryError: there is no room for `LEAST_ROWS` rows.

    Example:
        >>> list(halved_on_oom(5, lambda start, stop: stop - start))
        [5]
    """
    waiting = [(0, rows)]
    while waiting:
        start, stop = waiting.pop()
        result: list[_R] = []
        try:
            result.append(retried(function, start, stop))
        except DeviceMemoryError:
            if stop - start <= LEAST_ROWS:
                raise
        if result:
            yield result.pop()
            continue
        middle = (start + stop) // 2
        waiting += [(middle, stop), (start, middle)]


# -- what crosses --------------------------------------------------------------------------------------


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
        An array of the same shape and dtype, without gaps. ``array`` may be changed as soon as it is there.
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
