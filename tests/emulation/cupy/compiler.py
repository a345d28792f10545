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
from collections import Counter
from pathlib import Path

import numpy as np

from .arrays import ndarray

HEADER = Path(__file__).with_name("emulator.h")
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\(([^)]*)\)\s+)?(\w+)\s*\(([^)]*)\)', re.S
)
_NUMBERS = {
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
#: bytes of all parameters of a kernel together
_PARAMETER_BYTES = 4096
#: most threads of a block, where a kernel doesn't say
_BLOCK_THREADS = 1024
_FLAGS = [
    "-O1",
    "-g",
    "-std=c++17",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fsanitize=alignment",
    "-fno-sanitize-recover=alignment",
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
        found = _KERNEL.findall(code)
        self.signatures = {name: _parameters(text) for _, name, text in found}
        bounds = {name: bound.split(",")[0] or str(_BLOCK_THREADS) for bound, name, _ in found}
        declared = len(re.findall(r"__global__", code))
        if declared != len(self.signatures):
            raise SyntaxError(f'{declared} kernels, of which {len(self.signatures)} are extern "C"')
        launchers = "\n".join(
            f'extern "C" void launch_{name}({", ".join(["const unsigned *shape", *parameters])}) {{\n'
            f"  emulator::run(dim3(shape[0], shape[1], shape[2]), dim3(shape[3], shape[4], shape[5]),\n"
            f"    [&] {{ {name}({', '.join(_name(p) for p in parameters)}); }});\n}}\n"
            f'extern "C" int threads_{name}() {{ return {bounds[name]}; }}\n'
            f'extern "C" void declared_{name}(emulator::Declared *to) {{ emulator::declared({name}, to); }}'
            for name, parameters in self.signatures.items()
        )
        macros = [option[2:].partition("=") for option in options if option.startswith("-D")]
        defines = "\n".join(f"#define {name} {value if given else 1}" for name, given, value in macros)
        self._library = ctypes.CDLL(str(_build(f'#include "{_header()}"\n{defines}\n{code}\n{launchers}')))

    @functools.cached_property
    def declared(self) -> dict[str, list[tuple[str, int]]]:
        """By kernel, for each parameter its kind ("f", "i", "u", "b"; "*" a pointer, "#" one to vectors) and its bytes,
        or those of what is pointed to."""
        found = {}
        for name, parameters in self.signatures.items():
            room = (ctypes.c_int * (2 * len(parameters)))()
            getattr(self._library, f"declared_{name}")(room)
            found[name] = [(chr(kind), size) for kind, size in zip(room[::2], room[1::2])]
            width = sum(8 if kind in "*#" else size for kind, size in found[name])
            if width > _PARAMETER_BYTES:
                raise SyntaxError(f"{name} takes {width} bytes of parameters, of {_PARAMETER_BYTES}")
        return found

    def launch(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: list[object]) -> None:
        """Run a kernel: device arrays as pointers, NumPy scalars as their own type, which is the declared one."""
        parameters = self.signatures[name]
        if len(args) != len(parameters):
            raise TypeError(f"{name} takes {len(parameters)} arguments, and got {len(args)}")
        most = getattr(self._library, f"threads_{name}")()
        if block[0] * block[1] * block[2] > most:
            raise ValueError(f"{name}: a block of {block}, of which there are at most {most} threads")
        function = getattr(self._library, f"launch_{name}")
        shape = (ctypes.c_uint * 6)(*grid, *block)
        twice = {key for key, times in Counter(map(id, args)).items() if times > 1}
        converted = [
            _converted(f"{name}: {parameter}", kind, size, arg, id(arg) in twice)
            for parameter, (kind, size), arg in zip(parameters, self.declared[name], args)
        ]
        function.restype = None
        with _alone:
            function(shape, *converted)


def _converted(name: str, kind: str, size: int, arg: object, twice: bool) -> object:
    """An argument as it is passed, if it is what is declared: a device takes the bits, whatever they are.

    An array that is given twice stands in one place for something that isn't read.
    """
    if isinstance(arg, ndarray):
        data = arg._data
        if kind not in "*#":
            raise TypeError(f"{name} got an array")
        fits = size % data.itemsize == 0 if kind == "#" else size == data.itemsize
        if data.size and not twice and not (fits and data.ctypes.data % size == 0):
            raise TypeError(f"{name} got {data.dtype} at {data.ctypes.data:#x}: elements have {size} bytes")
        return ctypes.c_void_p(data.ctypes.data)
    if kind in "*#":
        raise TypeError(f"{name} got {arg!r}, not an array of the device")
    if not isinstance(arg, np.generic):
        raise TypeError(f"{name} got {arg!r}, which is no NumPy scalar")
    if (arg.dtype.kind, arg.dtype.itemsize) != (kind, size):
        raise TypeError(f"{name} got {arg.dtype}")
    return _NUMBERS[arg.dtype](arg.item())


def _parameters(text: str) -> list[str]:
    parts = [" ".join(part.split()) for part in text.split(",")]
    return [part.replace("__restrict__", "").strip() for part in parts if part.strip()]


def _name(parameter: str) -> str:
    return re.findall(r"\w+", parameter)[-1]


def build_folder() -> Path:
    """Where what is built is kept."""
    folder = Path(os.environ.get("TMPDIR", tempfile.gettempdir())) / f"headwater-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def _header() -> Path:
    """The header in the folder of what is built, with its precompiled form beside it; that halves a build's time."""
    text = HEADER.read_text()
    header = build_folder() / f"emulator-{hashlib.sha256(repr((text, _FLAGS)).encode()).hexdigest()[:24]}.h"
    compiled = header.with_suffix(".h.gch")
    if not compiled.exists():
        part = build_folder() / f"emulator-{_own()}"
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
    key = hashlib.sha256(repr((code, HEADER.read_text(), _FLAGS)).encode()).hexdigest()[:24]
    folder = build_folder()
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
