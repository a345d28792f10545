"""Owner: the process that something on a node's disk belongs to, and whether it still lives."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

#: seconds by which two processes may disagree on when a third started
_CLOCK_SLACK = 2.0


@dataclass(frozen=True)
class Owner:
    """A process, named so that neither a reused process id nor another machine can be taken for it.

    Attributes:
        host: name of the machine, for people.
        machine: this boot of this machine, and the namespace that process ids belong to.
        pid: process id.
        started: when the process started, in seconds since the epoch.
    """

    host: str
    machine: str
    pid: int
    started: float

    def is_alive(self) -> bool | None:
        """Tell whether the process still runs; None if only its own machine could tell."""
        if self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            return (
                abs(process.create_time() - self.started) < _CLOCK_SLACK
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False

    def record(self) -> dict[str, Any]:
        """Return the fields, to be written as JSON and read back by ``Owner(**record)``."""
        return asdict(self)


def this_process() -> Owner:
    """Return the owner that stands for the calling process.

    Example:
        >>> this_process().is_alive()
        True
    """
    return _owner_of(os.getpid())


@lru_cache(maxsize=4)
def _owner_of(pid: int) -> Owner:
    return Owner(platform.node(), _machine(), pid, psutil.Process(pid).create_time())


@lru_cache(maxsize=1)
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{platform.node()} {psutil.boot_time():.0f}"
