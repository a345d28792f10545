"""Compiles every CUDA source with nvcc, for the two architectures that count, with every set of macros it is used with.

    python tests/emulation/compile_sources.py

Nothing is run. Where there is no nvcc it says so, and that is no failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headwater.ops.device.modules import OPTIONS, builds, sources

ARCHITECTURES = ("sm_80", "sm_90")


def compiled(nvcc: str, folder: Path, name: str, code: str, macros: tuple[str, ...], arch: str) -> str | None:
    """Compile one source one way; return what the compiler complains of."""
    source = folder / f"{name}.cu"
    source.write_text(code)
    output = folder / f"{name}-{abs(hash((macros, arch)))}.cubin"
    command = [nvcc, "-cubin", f"-arch={arch}", *OPTIONS, *macros, "-o", str(output), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"{name} {' '.join(macros)} {arch}:\n{done.stderr}" if done.returncode else None


def main() -> int:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("there is no nvcc here: the CUDA sources were not compiled")
        return 0
    jobs = [
        (name, code, macros, arch)
        for name, code in sources().items()
        for macros in builds(code)
        for arch in ARCHITECTURES
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda job: compiled(nvcc, Path(folder), *job), jobs)
        problems = [problem for problem in found if problem]
    print("\n".join(problems) or f"{len(jobs)} CUDA programs compiled, for {' and '.join(ARCHITECTURES)}")
    return len(problems) > 0


if __name__ == "__main__":
    sys.exit(main())
