"""Compilation: CUDA sources become modules of the device, by NVRTC, and what it made is kept on disk.

CuPy's own `RawModule` compiles with ``-ftz=true``, whatever else it is told: floats of 32 bits below 2**-126 would
count as zero, as keys, in comparisons and when they are widened. So the compiler is called here, and CuPy loads its
output. Sources compile in 0.1 to 1 second each, once a machine, CuPy and kind of device.
"""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

#: bytes of the digest that a kept file begins with
_DIGEST_BYTES = 32


def load(xp: ModuleType, code: str, options: tuple[str, ...]) -> Any:
    """Return the module of a source for the current device.

    Args:
        xp: CuPy.
        code: CUDA C.
        options: NVRTC's.

    Returns:
        An object with ``get_function(name)``; a function takes a grid, a block and arguments, as tuples.

    Raises:
        cupy.cuda.compiler.CompileException: the source doesn't compile; the text is NVRTC's.
    """
    path = _path(xp, code, options)
    binary = _read(path)
    if binary is None:
        binary = xp.cuda.compiler.compile_using_nvrtc(
            code, options, filename="headwater.cu", cache_in_memory=True
        )[0]
        _write(path, binary)
    module = xp.cuda.Module()
    module.load(binary)
    return module


def _path(xp: ModuleType, code: str, options: tuple[str, ...]) -> Path:
    """Where the output is kept: in CuPy's cache, by everything that it depends on."""
    compiler = (xp.__version__, xp.cuda.nvrtc.getVersion(), xp.cuda.Device().compute_capability)
    name = hashlib.sha256(repr((compiler, options, code)).encode()).hexdigest()
    return Path(xp.cuda.compiler.get_cache_dir()) / f"headwater-{name[:40]}.cubin"


def _read(path: Path) -> bytes | None:
    """What is kept, if it is whole: a machine may have lost power when it was written."""
    with suppress(OSError):
        kept = path.read_bytes()
        if hashlib.sha256(kept[_DIGEST_BYTES:]).digest() == kept[:_DIGEST_BYTES]:
            return kept[_DIGEST_BYTES:]
    return None


def _write(path: Path, binary: bytes) -> None:
    """Keep an output, if there is a place; other processes see all of it or nothing."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(binary).digest() + binary)
        Path(file.name).replace(path)
