"""The part of ``cupy.cuda.runtime`` that Headwater uses."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from . import ipc

memcpyDeviceToDevice = 3
cudaIpcMemLazyEnablePeerAccess = 1


_ERRORS = {
    1: "cudaErrorInvalidValue: invalid argument",
    2: "cudaErrorMemoryAllocation: out of memory",
    201: "cudaErrorDeviceUninitialized: invalid device context",
    208: "cudaErrorAlreadyMapped: resource already mapped",
    217: "cudaErrorPeerAccessUnsupported: peer access is not supported between these two devices",
    400: "cudaErrorInvalidResourceHandle: invalid resource handle",
    801: "cudaErrorNotSupported: operation not supported",
}


class CUDARuntimeError(RuntimeError):
    """What the driver reports, by its number."""

    def __init__(self, status: int):
        self.status = status
        super().__init__(_ERRORS.get(status, f"error {status}"))


def visible() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names; without it, device 0."""
    return [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",") if part]


def getDeviceCount() -> int:
    return len(visible())


def getDevice() -> int:
    return 0


def runtimeGetVersion() -> int:
    return 13000


def deviceSynchronize() -> None:
    pass


def memGetInfo() -> tuple[int, int]:
    return 1 << 40, 1 << 40


def getDeviceProperties(device: int) -> dict[str, object]:
    return {
        "name": b"emulated",
        "multiProcessorCount": 4,
        "totalGlobalMem": 1 << 40,
        "pciBusID": 0,
        "uuid": b"0" * 16,
    }


def ipcGetMemHandle(devPtr: int) -> bytes:
    with _refusing():
        return ipc.export(devPtr)


def ipcOpenMemHandle(handle: bytes, flags: int = cudaIpcMemLazyEnablePeerAccess) -> int:
    with _refusing():
        return ipc.open(handle)


def ipcCloseMemHandle(devPtr: int) -> None:
    with _refusing():
        ipc.close(devPtr)


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    if kind != memcpyDeviceToDevice:
        raise NotImplementedError("only copies within devices are emulated")
    ctypes.memmove(dst, src, size)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except ipc.RefusedError as error:
        raise CUDARuntimeError(error.args[0]) from error
