"""Modules and kernels, as CuPy has them: what it would refuse, or what would read rubbish on a device, is refused.

A compiled source is its text and options here; the CPU's code is built when a module is loaded.
"""

from __future__ import annotations

import json
import os
from typing import Any

from .arrays import ndarray
from .compiler import Library, build_folder

#: most blocks by dimension
GRID = ((1 << 31) - 1, 65535, 65535)


class CompileException(Exception):
    """What the compiler says."""


class Function:
    """A kernel: called with a grid, a block and arguments."""

    def __init__(self, module: Any, funcname: str):
        self._library: Library = module._library
        if funcname not in self._library.signatures:
            raise AttributeError(f"no kernel {funcname!r}; there are {sorted(self._library.signatures)}")
        self._name = funcname

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Any,
        *,
        shared_mem: int = 0,
        stream: Any = None,
    ) -> None:
        if shared_mem or stream is not None:
            raise NotImplementedError(
                "shared memory of a size known at launch isn't emulated, nor are streams"
            )
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError("the grid and the block are tuples")
        shape = [(*sizes, 1, 1)[:3] for sizes in (grid, block)]
        if min(*shape[0], *shape[1]) < 1:
            raise ValueError(f"a grid of {grid}, a block of {block}: there is at least one block and thread")
        if any(size > most for size, most in zip(shape[0], GRID)):
            raise ValueError(f"a grid of {grid}: there are at most {GRID} blocks")
        self._library.launch(self._name, shape[0], shape[1], [_plain(self._name, arg) for arg in args])


class Module:
    """Compiled kernels."""

    _library: Library

    def load(self, cubin: bytes) -> None:
        if not isinstance(cubin, bytes):
            raise TypeError("load() takes bytes")
        made = json.loads(cubin)
        self._library = Library(made["source"], tuple(made["options"]))

    def get_function(self, name: str) -> Function:
        return Function(self, name)


class RawModule:
    """Compiles a source and finds its kernels."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
    ):
        if code is None or path is not None or not isinstance(options, tuple):
            raise TypeError("a module is made of code, and its options are a tuple")
        self._library = Library(code, options)

    def get_function(self, name: str) -> Function:
        return Function(self, name)


class compiler:
    """As ``cupy.cuda.compiler``."""

    CompileException = CompileException

    @staticmethod
    def compile_using_nvrtc(
        source: str,
        options: tuple[str, ...] = (),
        arch: str | None = None,
        filename: str = "kern.cu",
        name_expressions: Any = None,
        log_stream: Any = None,
        cache_in_memory: bool = False,
    ) -> tuple[bytes, None]:
        if not isinstance(options, tuple) or not all(isinstance(option, str) for option in options):
            raise TypeError("options are a tuple of strings")
        return json.dumps({"source": source, "options": options}).encode(), None

    @staticmethod
    def get_cache_dir() -> str:
        return os.environ.get("CUPY_CACHE_DIR", str(build_folder()))


class nvrtc:
    """As ``cupy.cuda.nvrtc``."""

    @staticmethod
    def getVersion() -> tuple[int, int]:
        return 12, 9


def _plain(name: str, arg: Any) -> Any:
    """An argument for the CPU: the array of the host that a device's is."""
    if not isinstance(arg, ndarray):
        return arg
    if not arg._data.flags.c_contiguous:
        raise TypeError(f"{name} got an array with gaps")
    return arg
