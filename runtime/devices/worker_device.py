"""The device of this process: it is bound to one before it uses any, and tells which it has."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping

from ...ops.backend import device_backend
from ...ops.device.cache import DeviceCache
from ...ops.device.discovery import has_cupy, visible_devices
from ...ops.device.memory import on_low_memory, set_up_pool
from .assignment import SHARERS, VISIBLE, Binding
from .claim import claim
from .device_info import DeviceInfo

#: share of a process's part of a device's memory that is used for blocks between stages
CACHE_SHARE = 0.25
#: lets CuPy use a stream for each thread; ours hand each other arrays in the order of one stream
STREAM_A_THREAD = "CUPY_CUDA_PER_THREAD_DEFAULT_STREAM"


def bind_process(resources: Mapping[str, float] | None = None) -> None:
    """Choose a device for a process that sees several and was given none. Before anything in it uses CUDA.

    Args:
        resources: that Dask was told the worker has; one with ``GPU`` 0 gets no device.
    """
    if (resources or {}).get("GPU", 1) == 0:
        os.environ["HEADWATER_BACKEND"] = "numpy"
    if VISIBLE in os.environ or "cupy" in sys.modules or os.environ.get("HEADWATER_BACKEND") == "numpy":
        return
    devices = visible_devices()
    if len(devices) > 1:
        device, before = claim(devices)
        os.environ.update(Binding(device, before + 1).environment)


def describe_device(resources: Mapping[str, float] | None = None) -> tuple[DeviceInfo | None, str]:
    """Look what device this process has, and bound what its arrays take of it.

    Args:
        resources: that Dask was told the worker has.

    Returns:
        The device; or None, and in words why there is none, which may be empty where nobody expects one.
    """
    promised = (resources or {}).get("GPU", 0) > 0
    try:
        if device_backend() == "cupy":
            if os.environ.get(STREAM_A_THREAD, "0") != "0":
                return (
                    None,
                    f"{STREAM_A_THREAD} is set there, and threads wouldn't wait for each other's kernels: unset it",
                )
            return _described(), ""
    except Exception as error:  # CuPy isn't there after all, or doesn't fit the driver
        return None, str(error)
    if not promised and not visible_devices():
        return None, ""
    if not has_cupy():
        return None, "CuPy isn't installed there: install headwater[gpu]"
    return None, "CUDA shows no device there"


def _described() -> DeviceInfo:
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    name = properties["name"]
    return DeviceInfo(
        name.decode() if isinstance(name, bytes) else str(name),
        int(properties["totalGlobalMem"]),
        f"{platform.node()}/{cupy.cuda.Device(0).pci_bus_id}",
        runtime.getDeviceCount(),
        sharers(),
        set_up_pool(cupy, sharers()),
    )


def cache_of(device: DeviceInfo | None) -> DeviceCache | None:
    """Make the cache of blocks on this process's device, which goes when the device is full; None without one."""
    if device is None:
        return None
    cache = DeviceCache(int((device.pool_bytes or device.memory_bytes) * CACHE_SHARE))
    on_low_memory(cache.clear)
    return cache


def sharers() -> int:
    """Among how many processes this process's device is divided."""
    text = os.environ.get(SHARERS, "1")
    return max(1, int(text)) if text.isdigit() else 1
