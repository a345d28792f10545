"""All that a machine with a GPU is asked for, one thing after another, within a time: tests, then benchmarks.

Each step is a process of its own, which is ended when its time is over; what fails is told of, and the others go on.
A summary is printed last; the exit status is 1 if a step failed.

    python benchmarks/gpu_all.py --rows 20000000 --seconds 570
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import markdown

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        name: what it does.
        command: of Python.
        share: of the time that is left when it begins, after which it is ended.
    """

    name: str
    command: Sequence[str]
    share: float


def steps(rows: int) -> list[Step]:
    """What is done, in order. Tests take most of their time to compile hundreds of kernels, where none is kept yet."""
    tests = ["-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--durations=10"]
    if importlib.util.find_spec("xdist") is not None:  # what is compiled takes most of the time
        tests += ["-n", str(min(8, os.cpu_count() or 1))]
    benchmarks = ROOT / "benchmarks"
    return [
        Step("tests", [*tests, str(ROOT / "tests" / "gpu")], 0.4),
        Step("times of kernels", [str(benchmarks / "gpu_kernels.py"), "--rows", str(int(2.5 * rows))], 0.35),
        Step("rates for the planner", [str(benchmarks / "device_costs.py")], 0.35),
        Step("training", [str(benchmarks / "gpu_training.py"), "--rows", str(rows)], 0.55),
        Step("a pipeline", [str(benchmarks / "gpu_pipeline.py"), "--rows", str(rows), "--kill"], 0.95),
    ]


def run(step: Step, seconds: float) -> str:
    """Run a step; says how it ended. Its process and all that it started are ended when its time is over."""
    process = subprocess.Popen([sys.executable, *step.command], cwd=ROOT, start_new_session=True)
    try:
        status = process.wait(seconds)
        return "done" if status == 0 else f"failed, with status {status}"
    except subprocess.TimeoutExpired:
        return "ended, as its time was over"
    finally:
        for kind in (signal.SIGINT, signal.SIGKILL):  # asked first, so that it prints what it has
            if process.poll() is None:
                os.killpg(process.pid, kind)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    continue


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000_000, help="of trainings and pipelines")
    parser.add_argument("--seconds", type=float, default=570.0, help="for all of it")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what runs is ended then, too
    end = time.monotonic() + options.seconds
    ends = []
    for step in steps(options.rows):
        begun = time.monotonic()
        limit = step.share * max(0.0, end - begun)
        print(f"== {step.name}, {limit:.0f} s at most", flush=True)
        benchmark = step.command[0].endswith(".py") and "device_costs" not in step.command[0]
        limited = [*step.command, "--seconds", str(0.8 * limit)] if benchmark else step.command
        how = run(Step(step.name, limited, step.share), limit)
        ends.append([step.name, time.monotonic() - begun, how])
    print(markdown.table(["step", "s", "how it ended"], ends))
    return int(any(how != "done" for _, _, how in ends))


if __name__ == "__main__":
    sys.exit(main())
