"""ChaosCluster: a Dask scheduler and nodes of worker processes on this machine, made to be broken and mended.

A node is a scratch folder and the processes that share it, as on a machine of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed.core import connect, send_recv

from ..errors import ClusterError
from ..runtime.cluster import CONFIG
from ..runtime.fault_points import VARIABLE
from ..runtime.nodes.ledger import SpaceLedger
from ..runtime.nodes.node_store import read_identity
from .processes import ChildProcess, kill_all, marked, root_of

#: seconds for all processes to be up, and for runs' folders to be emptied
START_SECONDS = 60.0
CLEAN_SECONDS = 5.0
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 5.0


class Node:
    """A node: its scratch folder and worker processes.

    Attributes:
        name: for people.
        folder: all it has on disk.
        workers: its processes, one a place; a dead one stays until it is replaced.
    """

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.workers: list[ChildProcess] = []

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def id(self) -> str | None:
        """The identity that its scratch folder gives it; None before it has one."""
        try:
            return read_identity(self.scratch)
        except (OSError, ValueError):
            return None

    def lives(self) -> bool:
        """Whether any of its processes runs and isn't stopped."""
        return any(worker.lives() and not worker.stopped for worker in self.workers)

    def runs(self) -> list[str]:
        """What runs have left in its scratch folder, as paths relative to it."""
        with suppress(OSError):
            return sorted(
                path.relative_to(self.scratch).as_posix()
                for run in (self.scratch / "runs").iterdir()
                for path in ([run, *run.rglob("*")] if run.is_dir() else [run])
            )
        return []


class ChaosCluster:
    """A cluster of real processes on this machine; use it in a ``with``, from one thread.

    Args:
        nodes: how many.
        workers: processes of each.
        folder: for scratch, logs and journals; None makes one that is removed at the end.
        device: what of its runs may use GPUs, as in `Session`.

    Attributes:
        address: of the scheduler, the same for all its lives.
        nodes: those that are meant to be there, dead ones included.
        faults: folder of tokens, see `runtime.fault_points`.
    """

    def __init__(self, nodes: int = 4, workers: int = 1, folder: Path | None = None, device: str = "auto"):
        self.device = device
        self._own = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="headwater-chaos-")) if folder is None else folder
        self.faults, self.journal, self.logs = (self.folder / n for n in ("faults", "journal", "logs"))
        for path in (self.faults, self.journal, self.logs, self.folder / "nodes"):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        self.size, self.workers_per_node = nodes, workers
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler: ChildProcess | None = None
        self.nodes: list[Node] = []
        self._named = 0
        self._filled: dict[str, int] = {}

    # -- life --------------------------------------------------------------------------------------

    def __enter__(self) -> ChaosCluster:
        try:
            self.mend()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def mend(self) -> None:
        """Make the cluster whole: as many nodes as at first, all their processes up, and their scratch empty.

        Raises:
            ClusterError: the processes don't come up.
        """
        self.resume_stopped()
        for name in os.listdir(self.faults):
            (self.faults / name).unlink(missing_ok=True)
        if self.scheduler is None or not self.scheduler.lives():
            self.start_scheduler()
        for node in self.nodes[self.size :]:
            self.remove_node(node)
        while len(self.nodes) < self.size:
            self.add_node()
        for node in self.nodes:
            self.empty(node)
            for place, worker in enumerate(node.workers):
                if not worker.lives():
                    self.start_worker(node, place)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until the scheduler knows all worker processes and no others.

        Raises:
            ClusterError: that takes too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while (missing := self._missing()) is not None:
            if time.monotonic() > deadline:
                raise ClusterError(f"the chaos cluster isn't whole after {START_SECONDS:g} s: {missing}.")
            for node in self.nodes:
                for place, worker in enumerate(node.workers):
                    if not worker.lives():
                        self.start_worker(node, place)
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Kill every process and remove the folder if it was made here. Idempotent."""
        known = [w for node in self.nodes for w in node.workers]
        for process in [*known, *([self.scheduler] if self.scheduler else [])]:
            process.kill()
        kill_all(list(marked(self.folder)))
        self.nodes, self.scheduler = [], None
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- processes ---------------------------------------------------------------------------------

    def start_scheduler(self) -> None:
        """Start the scheduler, at the address it always has."""
        command = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port)]
        self.scheduler = self._start("scheduler", [*command, "--no-dashboard", "--dashboard-address", ":0"])

    def add_node(self) -> Node:
        """Start a node with an empty disk."""
        self._named += 1
        node = Node(f"n{self._named}", self.folder / "nodes" / f"n{self._named}")
        node.folder.mkdir()
        self.nodes.append(node)
        for place in range(self.workers_per_node):
            self.start_worker(node, place)
        return node

    def start_worker(self, node: Node, place: int) -> None:
        """Start one process of a node in its place; the one before it must be dead."""
        node.folder.mkdir(parents=True, exist_ok=True)
        name = f"{node.name}.{place}"
        node.workers[place : place + 1] = [
            self._start(name, worker_command(self.address, node.scratch, name))
        ]

    def kill_node(self, node: Node, keep_scratch: bool = False) -> None:
        """Kill all processes of a node and, as they go with a machine, its files."""
        kill_all([pid for worker in node.workers for pid in worker.pids()])
        for worker in node.workers:
            worker.kill()
        if not keep_scratch:
            shutil.rmtree(node.folder, ignore_errors=True)

    def remove_node(self, node: Node) -> None:
        """Kill a node that isn't to come back."""
        self.kill_node(node)
        self.nodes.remove(node)

    def resume_stopped(self) -> None:
        """Let everything that was stopped go on, and give filled disks their space back."""
        for node in self.nodes:
            for worker in node.workers:
                if worker.stopped:
                    worker.signal(signal.SIGCONT, whole=True)
            if promised := self._filled.pop(node.name, 0):
                with suppress(OSError):
                    SpaceLedger(node.scratch).release(promised)

    def fill(self, node: Node, bytes: int) -> None:
        """Use up a node's quota, as if somebody else had filled its disk; until `resume_stopped`."""
        node.scratch.mkdir(parents=True, exist_ok=True)
        SpaceLedger(node.scratch).reserve(bytes, None)
        self._filled[node.name] = self._filled.get(node.name, 0) + bytes

    def node_of(self, pid: int) -> Node | None:
        """The node that a process belongs to."""
        roots = {worker.pid: node for node in self.nodes for worker in node.workers if worker.lives()}
        root = root_of(pid, list(roots))
        return None if root is None else roots[root]

    # -- what is left ------------------------------------------------------------------------------

    def orphans(self) -> list[int]:
        """Processes of this cluster that belong to none of those it knows."""
        known = [w.pid for node in self.nodes for w in node.workers]
        known += [self.scheduler.pid] if self.scheduler else []
        return [pid for pid in marked(self.folder) if root_of(pid, known) is None]

    def settle(self, nodes: Sequence[Node]) -> tuple[list[int], dict[str, list[str]]]:
        """Wait a little for an ended run to leave nothing, and return what it left all the same.

        Args:
            nodes: those that were there when it ended.

        Returns:
            Orphaned processes, and files by node.
        """
        deadline = time.monotonic() + CLEAN_SECONDS
        while True:
            orphans = self.orphans()
            left = {node.name: files for node in nodes if (files := node.runs())}
            if not (orphans or left) or time.monotonic() > deadline:
                return orphans, left
            time.sleep(_POLL_SECONDS)

    def empty(self, node: Node) -> None:
        """Remove what runs have left on a node."""
        runs = node.scratch / "runs"
        for path in runs.iterdir() if runs.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)

    # -- inside ------------------------------------------------------------------------------------

    def _start(self, name: str, command: Sequence[str]) -> ChildProcess:
        env = {VARIABLE: str(self.faults), "HEADWATER_HOME": str(self.folder), **_dask_variables()}
        return ChildProcess([sys.executable, *command], self.folder, self.logs / f"{name}.log", env)

    def _missing(self) -> str | None:
        """What keeps the cluster from being whole; None if nothing does."""
        try:
            known = asyncio.run(_identity(self.address))
        except (OSError, TimeoutError) as error:
            return f"the scheduler doesn't answer ({type(error).__name__})"
        names = {str(worker["name"]) for worker in known["workers"].values()}
        wanted = {f"{node.name}.{place}" for node in self.nodes for place in range(len(node.workers))}
        if names == wanted and all(worker.lives() for node in self.nodes for worker in node.workers):
            return None
        return f"workers known: {', '.join(sorted(names)) or 'none'}; wanted: {', '.join(sorted(wanted))}"


def worker_command(address: str, scratch: Path, name: str) -> list[str]:
    """Return how a worker process is started, after the interpreter."""
    command = ["-m", "headwater.cli", "worker", address, "--scratch", str(scratch), "--name", name]
    return [*command, "--nthreads", "1", "--host", "127.0.0.1"]


async def _identity(address: str) -> dict[str, Any]:
    comm = await asyncio.wait_for(connect(address, timeout=_ANSWER_SECONDS), _ANSWER_SECONDS)
    try:
        return await asyncio.wait_for(send_recv(comm, op="identity", n_workers=-1), _ANSWER_SECONDS)
    finally:
        comm.abort()


def _dask_variables() -> dict[str, str]:
    """Dask's configuration for clusters made for Headwater, as variables of the environment."""
    return {f"DASK_{key.replace('.', '__').replace('-', '_').upper()}": str(v) for key, v in CONFIG.items()}


def free_port() -> int:
    """Return a port of this machine that stays free while whoever has it is dead.

    It lies below those that systems give to whoever asks for any, outgoing connections above all.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ClusterError("none of 100 ports that were tried on 127.0.0.1 is free.")
