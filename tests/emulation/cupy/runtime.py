"""The part of ``cupy.cuda.runtime`` that Headwater uses."""

import os


class CUDARuntimeError(RuntimeError):
    """What the driver reports."""


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
