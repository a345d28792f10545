"""Compiles CUDA C for the CPU with g++, and calls its kernels."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("emulator.h")
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(([^)]*)\)', re.S
)
_SCALARS = {
    np.dtype(name): getattr(ctypes, kind)
    for name, kind in {
        "bool": "c_bool",
        "int8": "c_int8",
        "uint8": "c_uint8",
        "int16": "c_int16",
        "uint16": "c_uint16",
        "int32": "c_int32",
        "uint32": "c_uint32",
        "int64": "c_int64",
        "uint64": "c_uint64",
        "float32": "c_float",
        "float64": "c_double",
    }.items()
}
_FLAGS = [
    "-O1",
    "-g",
    "-std=c++17",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-w",
    "-U_FORTIFY_SOURCE",
]
#: a device's threads are fibers of the one thread that launches
_alone = threading.Lock()


class Library:
    """One compiled source.

    Args:
        code: CUDA C whose kernels are declared ``extern "C" __global__ void name(...)``.
        options: of the compiler; only ``-D`` counts here.
    """

    def __init__(self, code: str, options: tuple[str, ...] = ()):
        code = re.sub(r"//[^\n]*", "", code)
        self.signatures = {name: _parameters(text) for name, text in _KERNEL.findall(code)}
        declared = len(re.findall(r"__global__", code))
        if declared != len(self.signatures):
            raise SyntaxError(f'{declared} kernels, of which {len(self.signatures)} are extern "C"')
        launchers = "\n".join(
            f'extern "C" void launch_{name}({", ".join(["const unsigned *shape", *parameters])}) {{\n'
            f"  emulator::run(dim3(shape[0], shape[1], shape[2]), dim3(shape[3], shape[4], shape[5]),\n"
            f"    [&] {{ {name}({', '.join(_name(p) for p in parameters)}); }});\n}}"
            for name, parameters in self.signatures.items()
        )
        macros = [option[2:].partition("=") for option in options if option.startswith("-D")]
        defines = "\n".join(f"#define {name} {value if given else 1}" for name, given, value in macros)
        self._library = ctypes.CDLL(str(_build(f'#include "{_header()}"\n{defines}\n{code}\n{launchers}')))

    def launch(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: list[object]) -> None:
        """Run a kernel: arrays as pointers, NumPy scalars as their own type."""
        if len(args) != len(self.signatures[name]):
            raise TypeError(f"{name} takes {len(self.signatures[name])} arguments, and got {len(args)}")
        function = getattr(self._library, f"launch_{name}")
        shape = (ctypes.c_uint * 6)(*_three(grid), *_three(block))
        converted = [
            self._convert(name, parameter, arg) for parameter, arg in zip(self.signatures[name], args)
        ]
        function.restype = None
        with _alone:
            function(shape, *converted)

    def _convert(self, name: str, parameter: str, arg: object) -> object:
        if isinstance(arg, np.ndarray) and arg.ndim:
            if "*" not in parameter:
                raise TypeError(f"{name}: {parameter} got an array")
            return ctypes.c_void_p(arg.ctypes.data)
        if "*" in parameter:
            raise TypeError(f"{name}: {parameter} got {arg!r}, not an array")
        if isinstance(arg, bool | int | float):
            arg = np.asarray(arg)[()]  # as CuPy passes them: int64 and float64
        kind = _SCALARS[arg.dtype]  # type: ignore[attr-defined]
        return kind(arg.item())  # type: ignore[attr-defined]


def _parameters(text: str) -> list[str]:
    parts = [" ".join(part.split()) for part in text.split(",")]
    return [part.replace("__restrict__", "").strip() for part in parts if part.strip()]


def _name(parameter: str) -> str:
    return re.findall(r"\w+", parameter)[-1]


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    full = (*shape, 1, 1, 1)
    if min(full[:3]) < 1:
        raise ValueError(f"a grid or block of {shape}: a launch needs at least one block and thread")
    return full[:3]  # type: ignore[return-value]


def _folder() -> Path:
    folder = Path(os.environ.get("TMPDIR", tempfile.gettempdir())) / f"headwater-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def _header() -> Path:
    """The header in the folder of what is built, with its precompiled form beside it; that halves a build's time."""
    text = HEADER.read_text()
    header = _folder() / f"emulator-{hashlib.sha256(text.encode()).hexdigest()[:24]}.h"
    compiled = header.with_suffix(".h.gch")
    if not compiled.exists():
        part = _folder() / f"emulator-{_own()}"
        part.write_text(text)
        part.rename(header)
        subprocess.run(
            ["g++", *_FLAGS, "-x", "c++-header", "-o", str(part), str(header)],
            capture_output=True,
            check=True,
        )
        part.rename(compiled)
    return header


def _own() -> str:
    """A part of file names that no other process or thread has."""
    return f"{os.getpid()}-{threading.get_ident()}"


def _build(code: str) -> Path:
    key = hashlib.sha256((code + HEADER.read_text()).encode()).hexdigest()[:24]
    folder = _folder()
    built = folder / f"{key}.so"
    if not built.exists():
        own = f"{key}-{_own()}"  # others may compile the same
        source, output = folder / f"{own}.cpp", folder / f"{own}.so"
        source.write_text(code)
        done = subprocess.run(
            ["g++", *_FLAGS, "-shared", "-o", str(output), str(source)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SyntaxError(f"the kernel doesn't compile:\n{done.stderr[:4000]}")
        source.unlink()
        output.rename(built)
    return built
