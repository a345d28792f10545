"""Discovery: which devices this process sees, found out without CUDA, which a process may begin only once it is bound.

A look takes microseconds where there is no driver. CUDA isn't initialised by it, and CuPy isn't imported.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

#: what NVIDIA's driver puts there when it is loaded; the last one is that of Windows' Linux
_DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
#: NVIDIA's management library, which comes with the driver
_NVML = "libnvidia-ml.so.1"


def has_driver() -> bool:
    """Whether NVIDIA's driver is loaded here."""
    return any(os.path.exists(path) for path in _DRIVER)


def has_cupy() -> bool:
    """Whether CuPy is installed, without importing it."""
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec("cupy") is not None
    return False


def visible_devices(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the devices that CUDA would show to a process, as ``CUDA_VISIBLE_DEVICES`` names them.

    Args:
        environment: of the process; None is this one's.

    Returns:
        Numbers or identifiers, in CUDA's order; empty if there is no driver. With ``HEADWATER_BACKEND=cupy`` the
        variable is believed even without a driver, and one device where it isn't set.

    Example:
        >>> visible_devices({"HEADWATER_BACKEND": "cupy", "CUDA_VISIBLE_DEVICES": "2,GPU-1f"})
        ['2', 'GPU-1f']
        >>> visible_devices({"HEADWATER_BACKEND": "numpy"})
        []
    """
    given = os.environ if environment is None else environment
    forced = given.get("HEADWATER_BACKEND", "")
    if forced == "numpy" or (forced != "cupy" and not has_driver()):
        return []
    listed = given.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return _listed(listed)
    return [str(number) for number in range(max(count_devices(), forced == "cupy"))]


def count_devices() -> int:
    """Return how many GPUs the driver has, whatever the environment says; 0 without one."""
    with suppress(OSError, AttributeError):
        library, count = ctypes.CDLL(_NVML), ctypes.c_uint(0)
        if library.nvmlInit_v2() == 0:
            try:
                if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
                    return count.value
            finally:
                library.nvmlShutdown()
    with suppress(OSError):
        return len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    with suppress(OSError):
        return sum(re.fullmatch(r"nvidia\d+", name) is not None for name in os.listdir("/dev"))
    return 0


def _listed(text: str) -> list[str]:
    """Read the variable as CUDA does: what follows an entry that names nothing is not seen."""
    found: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", entry) or entry in found:
            break
        found.append(entry)
    return found
