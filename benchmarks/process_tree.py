"""A process and all that descend from it: the memory and CPU time that they use, sampled, and their end."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass

import psutil

#: seconds between two looks at memory, and at who is in the tree, which costs more
MEMORY_EVERY, MEMBERS_EVERY = 0.05, 0.5


@dataclass
class Usage:
    """What was used between two moments.

    Args:
        cpu_seconds: user and system time of all processes together.
        peak_rss_mb: the most that their resident memory added up to, in MB; pages that several share count for each.
    """

    cpu_seconds: float
    peak_rss_mb: float


class ProcessTree:
    """A process and its descendants, also those that outlive their parent, from the first time that they are seen.

    Args:
        pid: of the process; one that this process started.
    """

    def __init__(self, pid: int):
        self._members: dict[int, psutil.Process] = {}
        self._cpu: dict[tuple[int, float], float] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            self._members[pid] = psutil.Process(pid)

    def look(self) -> None:
        """Find new members, and read everyone's CPU time."""
        others = {p.pid: p for p in psutil.process_iter(["ppid"]) if p.pid not in self._members}
        while found := {pid: p for pid, p in others.items() if p.info["ppid"] in self._members}:
            self._members |= found
            others = {pid: p for pid, p in others.items() if pid not in found}
        for pid, member in list(self._members.items()):
            try:
                times = member.cpu_times()
                self._cpu[pid, member.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                del self._members[pid]

    def cpu_seconds(self) -> float:
        """CPU time of all members, the ended ones included, as of the last look."""
        return sum(self._cpu.values())

    def rss(self) -> int:
        """Resident bytes of all members."""
        total = 0
        for member in list(self._members.values()):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
        return total

    def end(self, patience: float = 10.0) -> None:
        """End all members: politely, and whoever is there after ``patience`` seconds by force."""
        self.look()
        alive = list(self._members.values())
        for member in alive:
            with contextlib.suppress(psutil.Error):
                member.terminate()
        _, alive = psutil.wait_procs(alive, timeout=patience)
        self.look()
        for member in {*alive, *self._members.values()}:
            with contextlib.suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(list(self._members.values()), timeout=patience)


class Meter:
    """Measures a tree from `start` to `stop`, in a thread.

    Example:
        >>> meter = Meter(ProcessTree(psutil.Process().pid))
        >>> meter.start()
        >>> meter.stop().peak_rss_mb > 0
        True
    """

    def __init__(self, tree: ProcessTree):
        self._tree = tree
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._peak = 0
        self._before = 0.0

    def start(self) -> None:
        """Begin to measure."""
        self._tree.look()
        self._before = self._tree.cpu_seconds()
        self._thread.start()

    def stop(self) -> Usage:
        """Stop, and tell what was used since the start."""
        self._stopped.set()
        self._thread.join()
        self._tree.look()
        self._peak = max(self._peak, self._tree.rss())
        return Usage(self._tree.cpu_seconds() - self._before, self._peak / 1e6)

    def _sample(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(MEMORY_EVERY):
            if time.monotonic() - looked > MEMBERS_EVERY:
                self._tree.look()
                looked = time.monotonic()
            self._peak = max(self._peak, self._tree.rss())
