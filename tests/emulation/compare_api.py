"""Compares what stands for CuPy with CuPy: each name and each parameter of the one must be the other's, too.

    python tests/emulation/compare_api.py

It needs CuPy, and no device. Printed is what CuPy lacks; the exit status is 1 then, and 2 where CuPy isn't installed.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent
#: what tests ask the emulation for, and CuPy doesn't have
OWN = frozenset(
    {
        *("transfers", "wrap", "unwrap", "wrapped"),  # cupy
        *("MEMORY", "streams", "default_pool", "default_pinned_pool", "ipc", "TYPE_CHECKING"),  # cupy.cuda
        *("visible", "Iterator", "contextmanager"),  # cupy.cuda.runtime
        *("device_name", "freed", "under_way"),
        *("API", "annotations", "np", "Any"),
    }
)


def modules() -> dict[str, tuple[ModuleType, ModuleType]]:
    """The emulation's modules, and CuPy's of the same name."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != FOLDER.resolve()]
    names = ("cupy", "cupy.cuda", "cupy.cuda.runtime", "cupy.cuda.nccl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there may be no NCCL here
        real = {name: importlib.import_module(name) for name in names}
    for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
        del sys.modules[name]
    sys.path.insert(0, str(FOLDER))
    emulated = importlib.import_module("cupy")
    found = {"cupy": emulated, "cupy.cuda": emulated.cuda}
    found |= {"cupy.cuda.runtime": emulated.cuda.runtime, "cupy.cuda.nccl": sys.modules["cupy.cuda.nccl"]}
    return {name: (found[name], real[name]) for name in names}


def lacking(path: str, emulated: Any, real: Any) -> Iterator[str]:
    """What CuPy's module or class lacks of the emulation's."""
    for name, value in vars(emulated).items():
        if name.startswith("_") or name in OWN or isinstance(value, ModuleType):
            continue
        here = f"{path}.{name}"
        if not hasattr(real, name):
            yield f"{here} isn't there"
        elif inspect.isclass(value):
            yield from lacking(here, value, getattr(real, name))
            yield from other_parameters(here, value, getattr(real, name))
        elif callable(value) or isinstance(value, staticmethod):
            yield from other_parameters(here, value, getattr(real, name))


def other_parameters(path: str, emulated: Any, real: Any) -> Iterator[str]:
    """The parameters that CuPy's function lacks."""
    from list_api import parameters

    known = parameters(real)
    if any(name in ("*unknown", "*args") for name in known):
        return
    for name in parameters(emulated):
        if name not in ("*", "*unknown", "self") and name not in known:
            yield f"{path} has no parameter {name!r}: it has {', '.join(known)}"


def listed(real: ModuleType) -> Iterator[str]:
    """What `api.txt` has that CuPy hasn't."""
    from list_api import lines

    there = {name: rest for name, *rest in map(str.split, lines(real))}
    for line in (FOLDER / "cupy" / "api.txt").read_text().splitlines():
        name, *rest = line.split()
        if name == "#":
            continue
        if name not in there:
            yield f"cupy.{name} isn't there"
        elif set(rest) - set(there[name]):
            yield f"cupy.{name} has {' '.join(there[name])}, and not {' '.join(rest)}"


def main() -> int:
    try:
        pairs = modules()
    except ImportError as error:
        print(f"CuPy isn't installed here: {error}")
        return 2
    emulated, real = pairs["cupy"]
    if real.__version__.split(".")[0] != emulated.__version__.split(".")[0]:
        print(f"this is CuPy {real.__version__}; the emulation is of {emulated.__version__}: not compared")
        return 0
    problems = list(listed(real))
    for path, (mine, theirs) in pairs.items():
        if path == "cupy.cuda.nccl" and not theirs.available:
            print("there is no NCCL here: its names were not compared")
            continue
        problems += lacking(path, mine, theirs)
    print("\n".join(problems) or f"all that the emulation offers is in CuPy {real.__version__}")
    return len(problems) > 0


if __name__ == "__main__":
    sys.exit(main())
