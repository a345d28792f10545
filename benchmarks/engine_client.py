"""The other end of an engine's process: starts it, has it do jobs within a time limit, and leaves nothing of it."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from pathlib import Path
from typing import IO, Any

from engines.protocol import Inputs
from process_tree import Meter, ProcessTree, Usage

PROCESS = Path(__file__).with_name("engine_process.py")
#: seconds for starting, and for ending politely
STARTUP, FAREWELL = 120.0, 30.0


class EngineError(Exception):
    """An engine failed, took too long, or ended; the message says why."""


class OverLimitError(EngineError):
    """An engine took longer than it may."""


class EngineClient:
    """An engine in a process of its own.

    Args:
        name: of the engine.
        python: the interpreter in which it is installed.
        cores: how many processors it may use.
        scratch: a folder of its own, where its log is, too.
        limit: seconds that a job may take.

    Attributes:
        workloads: what it can do.
        missing: why it can't do the others.
        versions: of its packages.
        startup_seconds: from the import of the engine until it was up, the last time, beside those that start with it.
    """

    def __init__(self, name: str, python: str, cores: int, scratch: Path, limit: float):
        self.name = name
        self.workloads: list[str] = []
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.startup_seconds = 0.0
        self._command = [python, str(PROCESS), name, "--cores", str(cores), "--scratch", str(scratch)]
        self._scratch = scratch
        self._limit = limit
        self._process: subprocess.Popen[str] | None = None

    def open(self) -> None:
        """Start the engine.

        Raises:
            EngineError: it doesn't start.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._log = self._scratch / "log.txt"
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._tree = ProcessTree(self._process.pid)
        self._replies: queue.Queue[str] = queue.Queue()
        assert self._process.stdout is not None
        threading.Thread(target=self._listen, args=(self._process.stdout, self._replies), daemon=True).start()
        try:
            hello = self._reply(STARTUP)
        except EngineError:
            self.kill()
            raise
        self.workloads, self.missing, self.versions = hello["workloads"], hello["missing"], hello["versions"]
        self.startup_seconds = float(hello["seconds"])

    def run(self, workload: str, inputs: Inputs, folder: Path, answer: Path) -> tuple[float, Usage]:
        """Have a job done. After a failure the engine is ended; the next job starts it anew.

        Args:
            workload: its name.
            inputs: the files it reads.
            folder: an empty folder to write to.
            answer: the file that is to hold the returned table.

        Returns:
            The seconds that it took, and what it used.

        Raises:
            EngineError: it failed.
        """
        if self._process is None:
            self.open()
        assert self._process is not None
        assert self._process.stdin is not None
        paths = {name: str(path) for name, path in vars(inputs).items()}
        request = {"workload": workload, "inputs": paths, "folder": str(folder), "answer": str(answer)}
        meter = Meter(self._tree)
        meter.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            reply = self._reply(self._limit)
        except EngineError:
            self.kill()
            raise
        except (OSError, ValueError) as error:
            self.kill()
            raise EngineError(f"{type(error).__name__}: {error}"[:300]) from error
        finally:
            usage = meter.stop()
        if "error" in reply:
            self.kill()
            raise EngineError(reply["error"].split("\n")[0][:300])
        return float(reply["seconds"]), usage

    def close(self) -> None:
        """End the engine, politely at first; nothing that it started is left."""
        if self._process is not None:
            self._tree.look()
            assert self._process.stdin is not None
            try:
                self._process.stdin.close()
                self._process.wait(FAREWELL)
            except (OSError, subprocess.TimeoutExpired):
                pass
            self.kill()

    def kill(self) -> None:
        """End the engine and all that it started; the next job starts it anew."""
        if self._process is not None:
            self._tree.end()
            self._process.wait()
            self._process = None

    @staticmethod
    def _listen(stdout: IO[str], replies: queue.Queue[str]) -> None:
        for line in stdout:
            replies.put(line)
        replies.put("")

    def _reply(self, limit: float) -> dict[str, Any]:
        try:
            line = self._replies.get(timeout=limit)
        except queue.Empty:
            raise OverLimitError(f"took more than {limit:g} s") from None
        if not line:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise EngineError(f"its process ended: {lines[-1] if lines else 'without a word'}"[:300])
        reply: dict[str, Any] = json.loads(line)
        return reply
