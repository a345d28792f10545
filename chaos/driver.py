"""DriverHandle: the driver's process of a run, seen from the harness."""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from ..runtime.fault_points import VARIABLE
from .cluster import ChaosCluster
from .driver_process import DriverSpec
from .processes import ChildProcess


class DriverHandle:
    """Starts a driver process and takes in what it tells.

    Args:
        spec: what it is to run.
        cluster: on which.

    Attributes:
        was_killed: whether `kill` ended it.
    """

    def __init__(self, spec: DriverSpec, cluster: ChaosCluster):
        env = {VARIABLE: str(cluster.faults), "HEADWATER_HOME": str(cluster.folder)}
        command = [sys.executable, "-m", "headwater.chaos.driver_process"]
        self._process = ChildProcess(command, cluster.folder, cluster.logs / "driver.log", env, pipes=True)
        self.was_killed = False
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="driver-lines", daemon=True)
        self._reader.start()
        assert self._process.popen.stdin is not None
        with suppress(BrokenPipeError):
            self._process.popen.stdin.write(spec.to_json().encode() + b"\n")
            self._process.popen.stdin.flush()

    def next(self, seconds: float) -> dict[str, Any] | None:
        """Return the next thing it tells, or None if it tells nothing for so long, or has ended."""
        with suppress(queue.Empty):
            return self._lines.get(timeout=seconds)
        return None

    def lives(self) -> bool:
        """Whether it runs, or has told what wasn't taken in yet."""
        return self._process.lives() or self._reader.is_alive() or not self._lines.empty()

    def dump(self, seconds: float = 0.5) -> None:
        """Let it write to its log where its threads are."""
        self._process.signal(signal.SIGUSR1)
        time.sleep(seconds)

    def kill(self) -> None:
        """SIGKILL it, and wait until it and what it started are gone."""
        self.was_killed |= self._process.lives()
        self._process.kill()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.popen.stdout is not None
        with suppress(ValueError, OSError):
            for line in self._process.popen.stdout:
                with suppress(json.JSONDecodeError):
                    self._lines.put(json.loads(line))
