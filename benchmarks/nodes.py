"""Nodes: a Dask scheduler and worker processes, each with folders of its own, to kill, stop and replace.

A node is one worker process of one thread. What it would lose with its machine lies in one folder: Headwater's
scratch and Dask's local directory. A node that is killed loses the folder; its replacement gets a new one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from distributed import Client

HERE = Path(__file__).parent
#: seconds for a process to show that it is up
START_SECONDS = 90.0


@dataclass
class Node:
    """A worker process and the folder that goes with it."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def block_bytes(self) -> int:
        """Bytes of Headwater's published blocks in its scratch folder."""
        total = 0
        for path in (self.folder / "scratch").rglob("*.arrow"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size if path.name.startswith("s") else 0
        return total


class Nodes:
    """A scheduler on a fixed port of the loopback interface, and nodes that join it.

    Args:
        folder: for all that the processes write; removed at the end.
        count: how many nodes.
        surviving: start nodes by ``headwater worker``, which outlives its scheduler; else by ``dask worker``.

    Attributes:
        address: of the scheduler.
        nodes: the living ones, by position.
        lost_bytes: bytes of Headwater's blocks that killed nodes have taken with them.
    """

    def __init__(self, folder: Path, count: int = 4, surviving: bool = False):
        self.folder, self.count, self.surviving = folder.absolute(), count, surviving
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._port = _free_port()
        self.address = f"tcp://127.0.0.1:{self._port}"
        self.lost_bytes = 0
        self._started = 0
        self._stopped: set[int] = set()
        self.scheduler = self._start_scheduler()
        self.nodes = [self._start_node() for _ in range(count)]
        try:
            with Client(self.address, set_as_default=False, timeout=START_SECONDS) as client:
                client.wait_for_workers(count, timeout=START_SECONDS)
        except BaseException:
            self.close()
            raise

    # -- what can happen to it -------------------------------------------------------------------

    def kill(self, position: int, replace: bool = True) -> None:
        """Kill a node without warning, and its folder with it; start another in its place right away."""
        node = self.nodes[position]
        with suppress(ProcessLookupError):
            os.kill(node.process.pid, signal.SIGKILL)
        node.process.wait()
        self._stopped.discard(node.process.pid)
        self.lost_bytes += node.block_bytes
        shutil.rmtree(node.folder, ignore_errors=True)
        if replace:
            self.nodes[position] = self._start_node()

    def stop(self, position: int) -> None:
        """Stop a node's process, as swapping or a debugger would: it keeps its connections and says nothing."""
        pid = self.nodes[position].process.pid
        self._stopped.add(pid)
        os.kill(pid, signal.SIGSTOP)

    @contextmanager
    def slow(self, position: int, factor: float = 10.0, after: float = 0.0) -> Iterator[None]:
        """Let a node's process run only a part of each tenth of a second.

        Args:
            position: of the node.
            factor: how many times slower.
            after: seconds to wait before that.
        """
        pid, over = self.nodes[position].process.pid, threading.Event()
        run = 0.1 / factor

        def cycle() -> None:
            over.wait(after)
            with suppress(ProcessLookupError):
                while not over.is_set():
                    os.kill(pid, signal.SIGSTOP)
                    over.wait(0.1 - run)
                    os.kill(pid, signal.SIGCONT)
                    over.wait(run)
                os.kill(pid, signal.SIGCONT)

        thread = threading.Thread(target=cycle, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def kill_scheduler(self) -> None:
        """Kill the scheduler and start another at the same address."""
        self.scheduler.kill()
        self.scheduler.wait()
        self.scheduler = self._start_scheduler()

    def heal(self) -> int:
        """Replace the nodes whose process has ended or is stopped.

        Returns:
            How many were replaced.
        """
        sick = [
            position
            for position, node in enumerate(self.nodes)
            if node.process.poll() is not None or node.process.pid in self._stopped
        ]
        for position in sick:
            self.kill(position)
        return len(sick)

    # -- processes -------------------------------------------------------------------------------

    def _start_scheduler(self) -> subprocess.Popen[bytes]:
        deadline = time.monotonic() + START_SECONDS
        while True:
            process = self._start(
                [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
                + ["--port", str(self._port), "--no-dashboard", "--no-show"],
                {},
            )
            while process.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                    return process
                if time.monotonic() > deadline:
                    process.kill()
                    raise TimeoutError(f"the scheduler does not start; see {self.folder / 'log.txt'}")
                time.sleep(0.02)
            if time.monotonic() > deadline:  # the port may be held for a moment by the one before
                raise RuntimeError(f"the scheduler ends at once; see {self.folder / 'log.txt'}")
            time.sleep(0.1)

    def _start_node(self) -> Node:
        self._started += 1
        folder = self.folder / f"node-{self._started}"
        (folder / "scratch").mkdir(parents=True)
        local = ["--local-directory", str(folder / "dask")]
        if self.surviving:
            command = [sys.executable, "-m", "headwater.cli", "worker", self.address]
            command += ["--scratch", str(folder / "scratch"), "--nthreads", "1"]
        else:
            command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address]
            command += ["--host", "127.0.0.1", "--no-nanny", "--nthreads", "1", "--no-dashboard", *local]
        return Node(self._start(command, {"HEADWATER_SCRATCH": str(folder / "scratch")}), folder)

    def _start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        given = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),  # so that functions of the benchmarks can be sent by name
            "DASK_DISTRIBUTED__DASHBOARD__ENABLED": "false",
            **environment,
        }
        with open(self.folder / "log.txt", "ab") as log:
            return subprocess.Popen(command, env=given, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def close(self) -> None:
        """End all processes and remove the folder."""
        processes = [*(node.process for node in self.nodes), self.scheduler]
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
        for process in processes:
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def surviving_workers_exist() -> bool:
    """Whether this Headwater has the command ``headwater worker``."""
    from headwater import cli

    return hasattr(cli, "worker")


def end_on_terminate() -> None:
    """Make SIGTERM end this process as an error would, so that the processes it started end too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
