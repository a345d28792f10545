"""A log of training steps: when each one was completed, in which process; and what kills of processes cost there.

Any process can write it, one line a step, so it outlives the death of the one that wrote last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

#: a pause of so many median steps is a stall
STALL_STEPS = 3.0


class Step(NamedTuple):
    """A line: seconds since the epoch, the number of finished steps, the process that says so, its CPU seconds."""

    time: float
    step: int
    pid: int
    cpu: float


class Kill(NamedTuple):
    """A SIGKILL: when, and how many steps were finished by the log."""

    time: float
    step: int


class StepLog:
    """Writes a line after each step; a callback for ``hw.train``, which may be sent to any process of the machine."""

    def __init__(self, path: Path | str):
        self.path = str(path)
        self._file: int | None = None

    def __call__(self, metrics: Mapping[str, float]) -> None:
        self.write(int(metrics["step"]))

    def write(self, step: int) -> None:
        """Put down that a step was completed just now."""
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(self._file, f"{time.time():.6f} {step} {os.getpid()} {time.process_time():.6f}\n".encode())

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None}


def read_steps(path: Path | str) -> list[Step]:
    """Read a log, as far as it was written."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    return list(map(_parsed, lines))


def last_step(path: Path | str) -> Step | None:
    """Read the last line that is complete."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 256))
            lines = file.read().decode().rpartition("\n")[0].splitlines()
    except FileNotFoundError:
        return None
    return _parsed(lines[-1]) if lines else None


def _parsed(line: str) -> Step:
    when, step, pid, cpu = line.split()
    return Step(float(when), int(step), int(pid), float(cpu))


def step_seconds(steps: Sequence[Step], skipped: int = 0) -> float:
    """Return the mean seconds of a step, the first ``skipped`` ones left out."""
    kept = steps[min(skipped, len(steps) - 2) :]
    return (kept[-1].time - kept[0].time) / (len(kept) - 1)


def step_cpu(steps: Sequence[Step], skipped: int = 0) -> float:
    """Return the mean CPU seconds of a step, of all threads of the process that writes the log."""
    kept = steps[min(skipped, len(steps) - 2) :]
    return (kept[-1].cpu - kept[0].cpu) / (len(kept) - 1)


@dataclass
class Cost:
    """What kills did to a run.

    Attributes:
        stalls: of each kill, the seconds until the next step was completed that needed those who were left, or all
            who began again. A step that was as good as done when the kill came isn't counted as that.
        lost: of each kill, finished steps that were made again, and the one that was under way.
        kept_seconds: in which steps were made that count, at whatever speed, stalls left out.
        seconds: from the first step's end to the last one's.
        steps: how many there were in these.
    """

    stalls: list[float]
    lost: list[int]
    kept_seconds: float
    seconds: float
    steps: int


def cost_of(steps: Sequence[Step], kills: Sequence[Kill], clean: float) -> Cost:
    """Tell what kills cost.

    Args:
        steps: the log.
        kills: in order.
        clean: seconds of a step in a run without kills.
    """
    long = max(STALL_STEPS * clean, clean + 0.02)
    stalls, lost = [], []
    for number, kill in enumerate(kills):
        end = kills[number + 1].time if number + 1 < len(kills) else float("inf")
        before = [step for step in steps if step.time <= kill.time]
        after = [step for step in steps if kill.time < step.time <= end]
        if not after:
            continue
        pairs = list(zip([*before[-1:], *after], after)) if before else list(zip(after, after[1:]))
        paused = [(a, b) for a, b in pairs if b.time - a.time > long and a.time < kill.time + long]
        first, resumed = paused[0] if paused else (after[0], after[0])
        stalls.append(resumed.time - kill.time)
        done = max([step.step for step in before] + [first.step if paused else 0])
        lost.append(max(0, done - resumed.step + 1) + 1)
    newest: dict[int, tuple[float, float]] = {}
    for a, b in zip(steps, steps[1:]):
        if b.step > a.step:
            newest[b.step] = (a.time, b.time)
        else:
            newest.pop(b.step, None)
    stalled = sum(stalls)
    kept = sum(b - a for a, b in newest.values())
    seconds = steps[-1].time - steps[0].time
    return Cost(stalls, lost, max(0.0, min(kept, seconds - stalled)), seconds, steps[-1].step - steps[0].step)
