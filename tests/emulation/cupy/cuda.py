"""The part of ``cupy.cuda`` that Headwater uses, for one emulated device."""

from __future__ import annotations

import itertools
import sys
import weakref
from typing import Any

from . import ipc
from . import nccl as _nccl
from . import runtime as runtime
from .kernels import Function as Function
from .kernels import Module as Module
from .kernels import compiler as compiler
from .kernels import nvrtc as nvrtc

#: no attribute of this module before somebody imports it, as in CuPy
sys.modules[f"{__name__}.nccl"] = _nccl

MEMORY = 1 << 40
#: what is called of the driver itself, by ctypes
_libcuda = ipc.Driver()


class Device:
    """The only device."""

    def __init__(self, device: int | None = None):
        self.id = device or 0
        self.compute_capability = "90"
        self.mem_info = (MEMORY, MEMORY)
        self.attributes = {"MultiProcessorCount": 4}

    @property
    def pci_bus_id(self) -> str:
        return f"0000:{runtime.visible()[self.id]}:00.0"

    def use(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id


_numbers = itertools.count(1)
#: by what stands for a pointer
streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()


class Stream:
    """A stream whose work is done at once, but for transfers between processes (see ``nccl``)."""

    null: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False):
        self.ptr = 0 if null else next(_numbers)
        #: transfers that may not be over
        self.under_way: list[Any] = []
        streams[self.ptr] = self

    def synchronize(self) -> None:
        self.record().synchronize()

    def wait_event(self, event: Event) -> None:
        event.synchronize()

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def use(self) -> Stream:
        return self

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass


Stream.null = Stream(null=True)


class Event:
    """An event that has happened once the transfers before it are over."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False):
        self._before: list[Any] = []

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or Stream.null
        stream.under_way = [transfer for transfer in stream.under_way if not transfer.over.is_set()]
        self._before = list(stream.under_way)

    @property
    def done(self) -> bool:
        return all(transfer.over.is_set() for transfer in self._before)

    def synchronize(self) -> None:
        for transfer in self._before:
            transfer.over.wait()


def get_current_stream(device_id: int = -1) -> Stream:
    return Stream.null


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    return 0.0


def alloc_pinned_memory(size: int) -> Any:
    return memoryview(bytearray(size))


class MemoryPool:
    """A pool that holds nothing, and counts how often it was freed."""

    def __init__(self, allocator: Any = None):
        self._limit = 0
        self.freed = 0

    def malloc(self, size: int) -> Any:
        raise NotImplementedError

    def free_all_blocks(self, stream: Any = None) -> None:
        self.freed += 1

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = size or 0

    def get_limit(self) -> int:
        return self._limit

    def used_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return 0

    def free_bytes(self) -> int:
        return 0


class PinnedMemoryPool(MemoryPool):
    """Likewise."""


default_pool = MemoryPool()
default_pinned_pool = PinnedMemoryPool()


class memory:
    """As ``cupy.cuda.memory``."""

    Memory = ipc.Memory

    class OutOfMemoryError(MemoryError):
        """What a device without room raises."""

        def __init__(self, size: int, total: int, limit: int = 0):
            if not all(isinstance(number, int) for number in (size, total, limit)):
                raise TypeError("an integer is required")
            super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


def set_allocator(allocator: Any = None) -> None:
    pass


def set_pinned_memory_allocator(allocator: Any = None) -> None:
    pass


class nvtx:
    """Marks nothing."""

    @staticmethod
    def RangePush(message: str, id_color: int = -1) -> None:
        pass

    @staticmethod
    def RangePop() -> None:
        pass


def is_available() -> bool:
    return True


__all__ = [name for name in dir() if not name.startswith("_") and name not in ("np", "Any")]
