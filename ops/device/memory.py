"""Memory of a device: how much of it a process takes, and what to do when it is full."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from weakref import WeakMethod

if TYPE_CHECKING:
    from .table import DeviceTable

#: share of a device's memory that the processes which have it use for arrays; the rest is for CUDA, modules and NCCL
POOL_SHARE = 0.85
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


def _cupy() -> ModuleType:
    import cupy

    return cupy
