"""Sections: parts of a benchmark, of which one that fails is told of while the others go on, within a time."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Sections:
    """Runs the parts of a benchmark.

    Args:
        seconds: after which no further part is begun; None is never.
    """

    def __init__(self, seconds: float | None = None):
        self._end = None if seconds is None else time.monotonic() + seconds
        self.failed: list[str] = []
        self.left_out: list[str] = []

    def run(self, name: str, part: Callable[[], T]) -> T | None:
        """Run a part; None if it failed, which is printed, or if time is over, which an interrupt says as well.

        Example:
            >>> Sections(60).run("sum", lambda: 1 + 1)
            2
        """
        if self._end is not None and time.monotonic() > self._end:
            self.left_out.append(name)
            return None
        try:
            return part()
        except KeyboardInterrupt:
            self._end = 0.0
            self.left_out.append(name)
            return None
        except Exception:
            self.failed.append(name)
            print(f"{name}: failed", flush=True)
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            return None

    def status(self) -> int:
        """Say what failed and what was left out; returns the exit status, 1 if anything failed."""
        if self.left_out:
            print(f"no time was left for: {', '.join(self.left_out)}")
        if self.failed:
            print(f"failed: {', '.join(self.failed)}")
        return int(bool(self.failed))
