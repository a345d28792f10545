"""The engines that the training benchmark compares: each runs the same training in processes that can be killed."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import mlp_job
import numpy as np
import psutil
from nodes import HERE, START_SECONDS, Nodes, surviving_workers_exist
from step_log import Kill, Step, StepLog, last_step, read_steps

import headwater as hw

#: seconds between two looks at the log
LOOK_SECONDS = 0.002
#: seconds from the beginning after which a run is given up
LIMIT_SECONDS = 900.0

Victim = Literal["member", "coordinator"]


class Order(NamedTuple):
    """To kill somebody once so many steps are finished, and the gang is whole."""

    step: int
    victim: Victim


@dataclass
class Run:
    """What became of a run: its log, the kills, the report's words on it."""

    steps: list[Step]
    kills: list[Kill] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)


class Killer:
    """Kills processes of a run by its log, in a thread. Use it in a ``with``.

    Args:
        log: of the run.
        orders: in order.
        whole: whether all processes take part.
        kill: what kills a victim, given the last step.
    """

    def __init__(
        self,
        log: Path,
        orders: Sequence[Order],
        whole: Callable[[], bool],
        kill: Callable[[Victim, Step], None],
    ):
        self.kills: list[Kill] = []
        self._log, self._orders, self._whole, self._kill = log, orders, whole, kill
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        for order in self._orders:
            while True:
                last = last_step(self._log)
                if last is not None and last.step >= order.step and self._whole():
                    break
                if self._over.wait(LOOK_SECONDS):
                    return
            last = last_step(self._log) or last
            self.kills.append(Kill(time.time(), last.step))
            self._kill(order.victim, last)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


class HeadwaterEngine:
    """Headwater on nodes of one thread. Use it in a ``with``.

    Args:
        folder: for all files.
        workers: that train.
        spares: more nodes, which wait.
    """

    def __init__(self, folder: Path, workers: int, spares: int = 0):
        self.folder, self.workers, self.count = folder, workers, workers + spares
        self.nodes = Nodes(folder / "nodes", self.count, surviving_workers_exist())
        journal = str(folder / "journals")
        self.session = hw.Session(self.nodes.address, progress=False, journal=journal).start()
        self._runs = 0

    def run(
        self, job: mlp_job.Job, steps: int, shards: int, orders: Sequence[Order] = (), numpy: bool = False
    ) -> Run:
        """Train once.

        Args:
            job: what.
            steps: how many.
            shards: into how many parts the rows are cut.
            orders: whom to kill when.
            numpy: the network in NumPy rather than PyTorch.
        """
        self.ready()
        self._runs += 1
        log, pids = self.folder / f"steps-{self._runs}.txt", self.folder / f"pids-{self._runs}.txt"
        for file in (log, pids):
            file.unlink(missing_ok=True)  # of an earlier benchmark
        noted = pids if orders else None
        model = mlp_job.in_headwater(job, steps, shards, StepLog(log), numpy, noted, self.workers)

        def training() -> dict[int, int]:
            """Process to position of the nodes that train, or have trained before a spare took over."""
            known = set(map(int, pids.read_text().split())) if pids.exists() else set()
            processes = {node.process.pid: i for i, node in enumerate(self.nodes.nodes)}
            return {pid: processes[pid] for pid in known & processes.keys()}

        def whole() -> bool:
            return len(training()) >= self.workers

        def kill(victim: Victim, last: Step) -> None:
            found = training()
            others = [position for pid, position in found.items() if pid != last.pid]
            self.nodes.kill(found[last.pid] if victim == "coordinator" else others[0])

        with Killer(log, orders, whole, kill) as killer:
            told = self._train(model)
        return Run(read_steps(log), killer.kills, told)

    def _train(self, model: hw.Model) -> dict[str, Any]:
        """Run a training; end the nodes, and so the run, if it takes too long."""
        limit = threading.Timer(LIMIT_SECONDS, self.nodes.close)
        limit.start()
        try:
            with self.session.run({"model": model}, name="training") as result:
                stages = result.report.to_dict()["stages"]
                return next(stage["training"] for stage in stages if stage.get("training"))
        finally:
            limit.cancel()

    def ready(self) -> None:
        """Replace sick nodes, and wait for all."""
        self.nodes.heal()
        deadline = time.monotonic() + START_SECONDS
        while True:
            warm_up(self.session, 8 * self.count)
            living = {worker.address for worker in self.session._executor.workers()}  # type: ignore[union-attr]
            if len(living) >= self.count:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(living)} of {self.workers} nodes came up; see {self.nodes.folder}/log.txt"
                )

    def __enter__(self) -> HeadwaterEngine:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(Exception):
            self.session.close()
        self.nodes.close()


class DdpEngine:
    """PyTorch's DistributedDataParallel over gloo, started, watched and started again by torchrun."""

    def __init__(self, folder: Path, workers: int):
        self.folder, self.workers = folder, workers
        self._runs = 0

    def run(self, job: mlp_job.Job, steps: int, orders: Sequence[Order] = (), every: int = 0) -> Run:
        """Train once.

        Args:
            job: what.
            steps: how many.
            orders: whom to kill when; the coordinator is the rank that writes checkpoints.
            every: steps between checkpoints; 0 writes none.
        """
        self._runs += 1
        folder = fresh(self.folder / f"ddp-{self._runs}")
        log, pids = folder / "steps.txt", folder / "pids.txt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        command += ["--nproc-per-node", str(self.workers), "--max-restarts", str(len(orders))]
        command += [str(HERE / "ddp_worker.py"), *job_options(job, steps, log), "--pids", str(pids)]
        command += ["--checkpoint", str(folder / "checkpoint.pt"), "--every", str(every)]
        killed: set[int] = set()

        def members() -> list[tuple[int, int]]:
            lines = pids.read_text().splitlines() if pids.exists() else []
            return [(int(pid), int(rank)) for pid, rank in map(str.split, lines)][-self.workers :]

        def whole() -> bool:
            found = members()
            return len(found) == self.workers and killed.isdisjoint(pid for pid, _ in found)

        def kill(victim: Victim, last: Step) -> None:
            found = members()
            killed.update(pid for pid, _ in found)  # all of them are started again
            os.kill(
                next(pid for pid, rank in found if (rank == 0) == (victim == "coordinator")), signal.SIGKILL
            )

        with Killer(log, orders, whole, kill) as killer:
            run_all([command], folder)
        return Run(read_steps(log), killer.kills)


def run_bare(folder: Path, job: mlp_job.Job, steps: int, shards: int, workers: int) -> Run:
    """Train once with Headwater's program and collectives in plain processes; see `bare_gang`."""
    fresh(folder)
    log = folder / "steps.txt"
    rest = [
        *job_options(job, steps, log),
        "--folder",
        str(folder),
        "--size",
        str(workers),
        "--shards",
        str(shards),
    ]
    script = [sys.executable, str(HERE / "bare_gang.py")]
    run_all([[*script, "--rank", str(rank), *rest] for rank in range(workers)], folder)
    return Run(read_steps(log))


def run_all(commands: Sequence[Sequence[str]], folder: Path) -> None:
    """Run commands side by side to their end, on the loopback interface and with one thread each.

    Raises:
        RuntimeError: one failed, or they took too long.
    """
    given = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": python_path()}
    given["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = (
        "1"  # else gloo finds addresses of dead processes after a restart
    )
    with open(folder / "log.txt", "ab") as file:
        processes = [
            subprocess.Popen(c, env=given, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
            for c in commands
        ]
    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline or any(process.poll() for process in processes):
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            end(process)
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a process failed; see {folder / 'log.txt'}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs, and what it has started."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
    process.wait()


def job_options(job: mlp_job.Job, steps: int, log: Path) -> list[str]:
    """What the scripts of the baselines are told of a job."""
    told = {"data": job.folder, "rows": job.rows, "batch": job.batch, "optimizer": job.optimizer}
    told |= {"steps": steps, "trace": log}
    return [text for name, value in told.items() for text in (f"--{name}", str(value))]


def python_path() -> str:
    """PYTHONPATH by which the benchmarks' modules are found."""
    return os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])


def fresh(folder: Path) -> Path:
    """Make an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def warm_up(session: hw.Session, partitions: int) -> None:
    """Run a small job on all workers."""
    hw.range(1000, partitions=partitions).agg(total=hw.sum("id")).compute(session)


def versions() -> str:
    """Name the versions that ran."""
    import distributed
    import torch

    return (
        f"Headwater {hw.__version__}, PyTorch {torch.__version__}, Dask {distributed.__version__}, "
        f"NumPy {np.__version__}, Python {platform.python_version()}"
    )
