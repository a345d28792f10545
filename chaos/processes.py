"""Processes: started, followed by pid with all their children, stopped, and found again if somebody forgot them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

#: every process of a chaos cluster carries this variable, with the cluster's folder
MARK = "HEADWATER_CHAOS"
_GONE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class ChildProcess:
    """One process that was started here, and what it has started itself.

    Args:
        command: what to run.
        mark: folder of the cluster it belongs to.
        log: file that its output and errors are appended to.
        env: further variables.
        pipes: whether to talk to it over standard input and output.
    """

    def __init__(
        self,
        command: Sequence[str],
        mark: Path,
        log: Path,
        env: Mapping[str, str] | None = None,
        pipes: bool = False,
    ):
        with open(log, "ab") as out:
            self.popen = subprocess.Popen(
                command,
                env={**os.environ, MARK: str(mark), **(env or {})},
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is for the harness alone
                preexec_fn=_die_with_parent,
            )
        self.stopped = False

    @property
    def pid(self) -> int:
        return self.popen.pid

    def lives(self) -> bool:
        """Whether it runs, or is stopped."""
        return self.popen.poll() is None

    def pids(self) -> list[int]:
        """It and its descendants."""
        return _tree(self.pid) if self.lives() else []

    def signal(self, number: int, whole: bool = False) -> None:
        """Send a signal to it, or to its descendants as well."""
        if not self.lives():
            return
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self.stopped = number == signal.SIGSTOP
        for pid in self.pids() if whole else [self.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End it and its descendants at once, and wait until they are gone."""
        pids = self.pids()
        kill_all(pids)
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def kill_all(pids: Sequence[int]) -> None:
    """SIGKILL processes and wait until they run no more."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(pids)


def wait_until_gone(pids: Sequence[int], seconds: float = _GONE_SECONDS) -> bool:
    """Wait until none of the processes runs, and tell whether that came in time."""
    deadline = time.monotonic() + seconds
    while any(map(_runs, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def marked(mark: Path) -> Iterator[int]:
    """Yield the processes that belong to a cluster, whoever their parent is now."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(mark):
                yield process.pid


def root_of(pid: int, roots: Sequence[int]) -> int | None:
    """Return which of some processes a process is, or descends from; None if it is none of theirs."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for candidate in [process, *process.parents()]:
            if candidate.pid in roots:
                return candidate.pid
    return None


def _tree(pid: int) -> list[int]:
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _die_with_parent() -> None:
    """In the child: be killed if the harness's thread that started it ends, however it ends."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
