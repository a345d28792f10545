"""Jobs of this process timed, in seconds and in CPU seconds, and told in a line."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil


def cpu_seconds() -> float:
    """CPU time that this process and the ones it started have used."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def timed(run: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Run a job: its answer, and the seconds and CPU seconds it took."""
    start, used = time.perf_counter(), cpu_seconds()
    answer = run()
    seconds = time.perf_counter() - start
    return answer, (seconds, cpu_seconds() - used)


def medians(by_system: dict[str, list[tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Median seconds and CPU seconds of each system."""
    return {
        name: tuple(statistics.median(column) for column in zip(*values))
        for name, values in by_system.items()
    }


def row(job: str, by_system: dict[str, list[tuple[float, float]]]) -> str:
    """One line: what each system took, and Headwater's ratio to the others, in seconds and in CPU seconds."""
    found = medians(by_system)
    cells = [f"{name} {seconds:.2f} s, {cpu:.2f} CPU s" for name, (seconds, cpu) in found.items()]
    if ours := found.get("headwater"):
        cells += [
            f"headwater/{name} {ours[0] / seconds:.2f}, CPU {ours[1] / max(cpu, 0.01):.2f}"
            for name, (seconds, cpu) in found.items()
            if name != "headwater"
        ]
    return f"  {job:8}" + "   ".join(cells)
