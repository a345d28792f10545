"""Numerics: what the bits of a float computation depend on, in this process, beside what runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from threadpoolctl import threadpool_info

from ...ops.backend import stage_backend


@lru_cache(maxsize=2)
def numerics(device: str = "cpu") -> Mapping[str, str]:
    """Return the kind of processor, the kernels that BLAS chose for it, PyTorch's version, and the device.

    Members of a gang must have the same, or a shard would add other bits on one than on another. NumPy's version is
    compared when a session joins a cluster.

    Args:
        device: where the planner has put the stage, "cpu" or "gpu".

    Example:
        >>> sorted(numerics())
        ['blas', 'device', 'machine', 'torch']
    """
    libraries = [found for found in threadpool_info() if found["user_api"] == "blas"]
    kernels = {str(found.get("architecture")) for found in libraries if "numpy" in found["filepath"]}
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "none"
    return {
        "machine": platform.machine(),
        "blas": ", ".join(sorted(kernels)),
        "torch": torch,
        "device": _device(device),
    }


def _device(device: str) -> str:
    """The device that a stage runs on in this process, and the libraries that compute there; "none" is the CPU.

    cuBLAS gives a product the same bits each time for the same shapes, on one stream, for one version and kind of GPU.
    """
    with stage_backend(device) as xp:
        if xp is np:
            return "none"
        runtime = xp.cuda.runtime
        name = runtime.getDeviceProperties(xp.cuda.Device().id)["name"]
        name = name.decode() if isinstance(name, bytes) else str(name)
        short = ", products in TF32" if os.environ.get("CUPY_TF32", "0") == "1" else ""
        return f"{name} with CuPy {xp.__version__} and CUDA {runtime.runtimeGetVersion()}{short}"


def differences(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Write what differs, as "torch 2.12 (here 2.13)"; empty if nothing does.

    Example:
        >>> differences({"torch": "2.13"}, {"torch": "2.12"})
        'torch 2.12 (here 2.13)'
    """
    return ", ".join(
        f"{name} {theirs.get(name, 'unknown')} (here {known})"
        for name, known in mine.items()
        if theirs.get(name) != known
    )
