"""Fault points: named moments at which a process lets a test do something to it, and waits meanwhile.

Nothing happens unless HEADWATER_FAULTS named a folder when the process started. A *token* is a file ``PHASE@NUMBER``
there. Whoever reaches that phase first takes the token, by renaming it to ``PHASE@NUMBER~PID``, and waits until the
file is gone. So a fault happens at its moment exactly, in one process, and no more often than there are tokens.

Source:
    The "chaos budget" of Apache DataFusion Ballista, which counts injected faults by files that are created once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: variable that names the folder of tokens
VARIABLE = "HEADWATER_FAULTS"
#: moments in the life of a run, in the order of a task; "between-stages" is the driver's, the rest are the workers'
PHASES = ("scan", "map", "shuffle-write", "shuffle-read", "reduce", "sink", "between-stages")

#: each step of a training, on each member, as "train-step:17"; not among those that every pipeline has
TRAIN_STEP = "train-step"

_FOLDER = os.environ.get(VARIABLE)
_POLL_SECONDS = 0.005
#: a token that nobody removes holds a process no longer than this
_MOST_SECONDS = 60.0


def reach(phase: str) -> None:
    """Say that a phase is reached, and wait if somebody has planned a fault for it.

    Args:
        phase: one of `PHASES`, or a step of a training.
    """
    if _FOLDER is not None:
        _stop_at(Path(_FOLDER), phase)


def reaching(phase: str, stream: Iterable[T]) -> Iterator[T]:
    """Pass a stream through; the phase is reached after each of its items.

    Example:
        >>> list(reaching("scan", [1, 2]))
        [1, 2]
    """
    return iter(stream) if _FOLDER is None else _tapped(phase, stream)


def _tapped(phase: str, stream: Iterable[T]) -> Iterator[T]:
    for item in stream:
        yield item
        reach(phase)


def _stop_at(folder: Path, phase: str) -> None:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith(f"{phase}@") and "~" not in name:
            taken = folder / f"{name}~{os.getpid()}"
            with suppress(FileNotFoundError):  # another process was first
                os.rename(folder / name, taken)
                _wait_until_gone(taken)
                return


def _wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + _MOST_SECONDS
    while path.exists() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
