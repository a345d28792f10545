"""Compiles every CUDA source for the two architectures that count, with every set of macros it is used with.

    python tests/emulation/compile_sources.py
    python tests/emulation/compile_sources.py --nvrtc FOLDER

The compiler is nvcc; where there is none it says so, and that is no failure. With ``--nvrtc`` it is the one that CuPy
uses, with the options that it is given there; and what tests left in a folder that was their CUPY_CACHE_DIR is
compiled as well: kernels that are made for a plan, and sets of macros that no source names. Nothing is run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from headwater.ops.device.modules import OPTIONS, builds, sources

ARCHITECTURES = ("sm_80", "sm_90")
#: compiles a source with options for an architecture; returns what the compiler complains of
Compiler = Callable[[str, str, tuple[str, ...], str], str | None]


def by_nvcc(nvcc: str, folder: Path, name: str, code: str, options: tuple[str, ...], arch: str) -> str | None:
    """Compile one source one way."""
    source = folder / f"{name}-{abs(hash((options, arch)))}.cu"
    source.write_text(code)
    command = [
        nvcc,
        "-cubin",
        f"-arch={arch}",
        *options,
        "-o",
        str(source.with_suffix(".cubin")),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr if done.returncode else None


def by_nvrtc(nvrtc: Any, name: str, code: str, options: tuple[str, ...], arch: str) -> str | None:
    """Compile one source as CuPy does."""
    program = nvrtc.createProgram(code, f"{name}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*options, f"-arch={arch}", "--device-as-default-execution-space"))
        return None if nvrtc.getCUBIN(program) else "nothing came out"
    except nvrtc.NVRTCError:
        return nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


def kept(folder: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """What tests compiled, as the emulation keeps it: after a digest, the source and its options."""
    found = []
    for path in sorted(folder.glob("headwater-*.cubin")):
        made = json.loads(path.read_bytes()[32:])
        found.append((path.stem, made["source"], tuple(made["options"])))
    return found


def compiled(compiler: Compiler, programs: list[tuple[str, str, tuple[str, ...]]]) -> int:
    """Compile programs, given as name, source and options, and tell of those that don't; returns the status."""

    def one(job: tuple[tuple[str, str, tuple[str, ...]], str]) -> str | None:
        (name, code, options), arch = job
        problem = compiler(name, code, options, arch)
        return problem and f"{name} {' '.join(options)} {arch}:\n{problem}"

    jobs = [(program, arch) for program in programs for arch in ARCHITECTURES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [problem for problem in pool.map(one, jobs) if problem]
    print("\n".join(problems) or f"{len(jobs)} CUDA programs compiled, for {' and '.join(ARCHITECTURES)}")
    return int(bool(problems))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nvrtc", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    named = [(name, code, (*OPTIONS, *macros)) for name, code in sources().items() for macros in builds(code)]
    if options.nvrtc is not None:
        sys.path.pop(0)  # this folder has what stands for CuPy
        from cupy.cuda import nvrtc

        known = {(code, frozenset(flags)) for _, code, flags in named}
        others = [(name, code, flags) for name, code, flags in kept(options.nvrtc)]
        new = [program for program in others if (program[1], frozenset(program[2])) not in known]
        return compiled(partial(by_nvrtc, nvrtc), named + new)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("there is no nvcc here: the CUDA sources were not compiled")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return compiled(partial(by_nvcc, nvcc, Path(folder)), named)


if __name__ == "__main__":
    sys.exit(main())
