"""Modules: the CUDA sources in ``cuda/``, compiled once a process for the device at hand, and how they are launched.

Sources include nothing, take no C++ templates by name, and declare each kernel ``extern "C" __global__ void``.
What differs between uses is a macro; the sets of macros that are used stand in the first lines of a source, as
``// build: -DT=double -DI=int``, so that all of them can be compiled where there is no device. Multiplications and
additions aren't contracted, and tiny floats aren't taken for zero, so that floats have the bits that NumPy gives them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .compilation import load

#: threads of a block, where a kernel doesn't ask for another number
THREADS = 256
#: of the compiler, in any use
OPTIONS = ("-std=c++17", "--fmad=false")

_FOLDER = Path(__file__).with_name("cuda")


def on_device(xp: ModuleType) -> bool:
    """Whether arrays of a namespace lie on a device."""
    return xp is not np


def sources() -> dict[str, str]:
    """Return every source by its name, without ``.cu``."""
    return {path.stem: path.read_text() for path in sorted(_FOLDER.glob("*.cu"))}


def builds(code: str) -> list[tuple[str, ...]]:
    """Return the sets of macros that a source says it is built with; one empty set if it names none.

    Example:
        >>> builds("// build: -DT=double\\n// build: -DT=int -DWIDE")
        [('-DT=double',), ('-DT=int', '-DWIDE')]
    """
    return [tuple(line.split()) for line in re.findall(r"^// build:(.*)$", code, re.M)] or [()]


def kernel(xp: ModuleType, source: str, name: str, **macros: Any) -> Any:
    """Return a kernel of a source in ``cuda/``, compiled at the first use.

    Args:
        xp: CuPy.
        source: the file's name, without ``.cu``.
        name: of the kernel.
        macros: by name; each value is put into the source as text.

    Returns:
        A function of a grid, a block and arguments: arrays, and NumPy scalars of exactly the declared types.
    """
    return _module(
        xp, source, tuple(sorted(f"-D{key}={value}" for key, value in macros.items()))
    ).get_function(name)


def generated(xp: ModuleType, code: str, name: str) -> Any:
    """Return a kernel of a source that was made for a plan, compiled at the first use of the same text."""
    return _compiled(xp, code, ()).get_function(name)


def launch(function: Any, items: int, args: Sequence[Any], threads: int = THREADS, each: int = 1) -> None:
    """Launch a kernel over items in one dimension; nothing happens for no items.

    Args:
        function: from `kernel` or `generated`.
        items: how many there are.
        args: arrays of the device, without gaps, and NumPy scalars.
        threads: of a block.
        each: items that one thread takes.
    """
    if items:
        function(((items + threads * each - 1) // (threads * each),), (threads,), tuple(args))


@cache
def _module(xp: ModuleType, source: str, macros: tuple[str, ...]) -> Any:
    return _compiled(xp, (_FOLDER / f"{source}.cu").read_text(), macros)


@cache
def _compiled(xp: ModuleType, code: str, macros: tuple[str, ...]) -> Any:
    return load(xp, code, (*OPTIONS, *macros))
