"""Keeper of a beacon: starts it beside this process, starts it again should it die alone, and ends it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from pathlib import Path

_SCRIPT = Path(__file__).with_name("beacon.py")
#: a beacon that keeps dying is given up
_MOST_STARTS = 5


class BeaconKeeper:
    """The beacon of this process. Without Linux, or where it can't start, there is none.

    Args:
        host: name or address of the interface that the beacon listens on.

    Attributes:
        token: what a client of the beacon has to show.
        port: where the beacon listens; None while there is none.
    """

    def __init__(self, host: str):
        self.host = host
        self.token = secrets.token_hex(16)
        self.port: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()
        self._stopping = False
        self._lock = threading.Lock()

    def start(self, timeout: float = 5.0) -> None:
        """Start the beacon and wait until it listens; blocks, so not for an event loop's thread.

        Args:
            timeout: seconds to wait; a beacon that takes longer still comes.
        """
        if sys.platform != "linux" or not sys.executable:
            return
        threading.Thread(target=self._keep, name="headwater-beacon", daemon=True).start()
        self._ready.wait(timeout)

    def stop(self) -> None:
        """End the beacon. Idempotent."""
        with self._lock:
            self._stopping = True
            if self.process is not None:
                self.process.kill()

    def _keep(self) -> None:
        try:
            for _ in range(_MOST_STARTS):
                process = self._launch()
                if process is None:
                    return
                line = process.stdout.readline() if process.stdout else b""
                self.port = int(line) if line.strip().isdigit() else None
                if self.port is None:  # it couldn't listen; its next one couldn't either
                    process.kill()
                    self._reap(process)
                    return
                self._ready.set()
                self._reap(process)
        except OSError:  # no process can be started
            return
        finally:
            self.port = None
            self._ready.set()

    def _launch(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping:
                return None
            # A process group of its own is spared the terminal's signals, and wakes the beacon, should it be
            # stopped, when the parent dies. The token goes through a pipe: others can read a command line.
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-E", str(_SCRIPT), str(os.getpid()), self.host],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,
                cwd="/",
            )
            assert self.process.stdin is not None
            self.process.stdin.write(self.token.encode() + b"\n")
            self.process.stdin.flush()
            return self.process

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self.port = None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
