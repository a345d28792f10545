"""Memory: the anonymous memory of this process, which, unlike mapped blocks, can't be taken back.

Resident size counts the pages of mapped files too, so it looks like a leak where there is none.
"""

from __future__ import annotations

import threading
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    """Return the anonymous resident memory of the process, in bytes.

    Example:
        >>> anonymous_bytes() > 1_000_000
        True
    """
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return psutil.Process().memory_full_info().uss  # not Linux


class PeakMemory:
    """Samples anonymous memory while a block of code runs.

    Args:
        seconds: between samples.

    Attributes:
        start: bytes at the beginning.
        peak: most bytes seen.

    Example:
        >>> with PeakMemory() as memory:
        ...     held = bytes(50_000_000)
        >>> memory.growth >= 0
        True
    """

    def __init__(self, seconds: float = 0.01):
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self.start = self.peak = 0

    @property
    def growth(self) -> int:
        """Most bytes above the beginning."""
        return self.peak - self.start

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_bytes())

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            self.peak = max(self.peak, anonymous_bytes())
