"""Device tests run on a GPU where there is one, and otherwise on the CPU, by `tests/emulation`.

Marked ``gpu`` is only what needs a real device. Without g++ the emulation is skipped as well.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from headwater.ops.backend import use_backend

EMULATION = Path(__file__).parents[1] / "emulation"


@cache
def real_cupy() -> Any:
    """CuPy with a device, or None. Asked for the first time before anything stands in for it."""
    try:
        import cupy

        return cupy if cupy.cuda.runtime.getDeviceCount() else None
    except Exception:
        return None


@cache
def emulated_cupy() -> dict[str, ModuleType]:
    """The modules that stand for CuPy, by name; loaded once, and not left where others find them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EMULATION))
        importlib.import_module("cupy.cuda")
        names = [name for name in sys.modules if name.split(".")[0] == "cupy"]
        return {name: sys.modules.pop(name) for name in names}


@pytest.fixture(scope="module")
def xp() -> Iterator[ModuleType]:
    """CuPy, or what stands for it; it is also the backend meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        if real_cupy() is None:
            if shutil.which("g++") is None:
                pytest.skip("neither a GPU with CuPy nor g++ to run kernels on the CPU")
            for name, module in emulated_cupy().items():
                patch.setitem(sys.modules, name, module)
            patch.syspath_prepend(str(EMULATION))
        with use_backend("cupy") as module:
            yield module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if real_cupy() is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip("there is no GPU with CuPy here"))
