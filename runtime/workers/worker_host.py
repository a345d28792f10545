"""WorkerHost: a process that is a Dask worker, outlives its scheduler, and leaves politely.

A plain ``dask worker`` ends with its scheduler, and forgets what it ran. A host makes a new Dask worker as soon
as a scheduler answers at the address again. The scratch folder, the blocks in it, and running tasks stay.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed import Worker
from distributed.comm import connect
from distributed.core import Status
from distributed.security import Security

from ...errors import ParameterError
from ..cluster import CONFIG, _address
from ..nodes.node_store import default_scratch
from .handover import Handover, announce, hand_over, one_at_a_time
from .worker_plugin import HeadwaterWorkerPlugin, runtime_of
from .worker_runtime import WorkerRuntime

#: exit code of a host that found no scheduler within its grace
NO_SCHEDULER = 3
#: seconds between looks for a scheduler, for one to answer, for a worker to register, and to close
_LOOK_SECONDS = 0.3
_LOOK_ANSWER_SECONDS = 1.0
_REGISTER_SECONDS = 15.0
_CLOSE_SECONDS = 10.0
_IDLE_POLL_SECONDS = 0.05
#: a signal may reach a supervised process twice: by its supervisor, and as a member of a group (systemd)
_ECHO_SECONDS = 1.0
_LEAST_BYTES = 32 << 20


@dataclass(frozen=True)
class HostOptions:
    """What a host is told.

    Attributes:
        scheduler: address of Dask's scheduler, as "tcp://10.0.0.1:8786".
        threads: how many tasks it runs at once.
        scratch: the node's scratch folder; None is HEADWATER_SCRATCH, or one under the temporary folder.
        quota_bytes: most bytes of it to use.
        name: for Dask; None is the worker's address.
        host: address to listen on; None finds one that the scheduler can reach.
        memory_limit: a plan's measure, in bytes or as "8 GB"; "auto" is a share of the machine's by threads.
        grace_seconds: how long to look for a scheduler; 0 looks forever.
        drain_seconds: how long a host that leaves waits for its running tasks.
        parent: process id of what started it, and takes it along when it dies; None stands alone.
        verbose: show Dask's own log.
    """

    scheduler: str
    threads: int = 1
    scratch: str | None = None
    quota_bytes: int | None = None
    name: str | None = None
    host: str | None = None
    memory_limit: int | str = "auto"
    grace_seconds: float = 0.0
    drain_seconds: float = 60.0
    parent: int | None = None
    verbose: bool = False


def host_options(
    address: str,
    workers: int = 1,
    nthreads: int | None = None,
    scratch: str | None = None,
    quota: str | None = None,
    name: str | None = None,
    host: str | None = None,
    memory_limit: str = "auto",
    grace: float = 0.0,
    drain_timeout: float = 60.0,
    parent: int | None = None,
    verbose: bool = False,
) -> HostOptions:
    """Check what the command line says, and fill in what it leaves out; names as there.

    Raises:
        ParameterError: the address, or a size, isn't one.
    """
    return HostOptions(
        _address(address),
        nthreads or max(1, CPU_COUNT // workers),
        scratch,
        None if quota is None else _size("--quota", quota),
        name,
        host,
        memory_limit if memory_limit == "auto" else _size("--memory-limit", memory_limit),
        grace,
        drain_timeout,
        parent,
        verbose,
    )


def serve(options: HostOptions) -> int:
    """Be a worker until told to leave by SIGTERM or SIGINT. Call in the main thread.

    Returns:
        0 it left, politely; 3 no scheduler was found in time.
    """
    if options.parent is not None:
        die_with(options.parent)
    dask.config.set(CONFIG)
    logging.getLogger("distributed").setLevel(logging.INFO if options.verbose else logging.CRITICAL)
    code = asyncio.run(WorkerHost(options, tell).run())
    sys.stderr.flush()
    os._exit(code)  # a task that was given up on may run in a thread still


class HostedWorker(Worker):
    """A Dask worker that doesn't take its process along."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        #: set as soon as it begins to close
        self.gone = asyncio.Event()

    async def close(
        self,
        timeout: float = 30,
        executor_wait: bool = True,
        nanny: bool = True,
        reason: str = "worker-close",
    ) -> str | None:
        """Close without waiting for running tasks: they go on."""
        self.gone.set()
        return await super().close(timeout, executor_wait=False, nanny=nanny, reason=reason)


class _HostPlugin(HeadwaterWorkerPlugin):
    """Gives every Dask worker of the process the same runtime."""

    def __init__(self, scratch: str, quota_bytes: int | None):
        super().__init__(scratch, quota_bytes)
        self.runtime: WorkerRuntime | None = None

    async def setup(self, worker: Worker) -> None:
        if self.runtime is not None:
            self.runtime.attach(worker)
        await super().setup(worker)
        self.runtime = runtime_of(worker)
        self.runtime.outlives_worker = True


class WorkerHost:
    """The loop of a host.

    Args:
        options: see there.
        tell: takes lines for whoever watches.
    """

    def __init__(self, options: HostOptions, tell: Callable[[str], None]):
        self.options, self._tell = options, tell
        self._scratch = Path(options.scratch or default_scratch()).absolute()
        self._plugin = _HostPlugin(str(self._scratch), options.quota_bytes)
        self._told_to_leave = asyncio.Event()
        self._told_at = 0.0

    async def run(self) -> int:
        """Join the scheduler, again and again, until told to leave, retired, or alone for too long.

        Returns:
            The exit code, as `serve`.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave, number)
        watch = asyncio.ensure_future(_watch_parent(self.options.parent))
        try:
            while True:
                worker = await self._join()
                if worker is None:
                    return 0 if self._told_to_leave.is_set() else NO_SCHEDULER
                await _first(worker.gone.wait(), self._told_to_leave.wait())
                if not worker.gone.is_set():
                    await self._drain(worker)
                    return 0
                if await self._was_retired(worker):
                    self._tell("Retired by the scheduler; left.")
                    return 0
                self._tell(f"The scheduler at {self.options.scheduler} is gone, or has dropped this worker.")
        finally:
            watch.cancel()

    async def _join(self) -> HostedWorker | None:
        """Become a worker of the scheduler once it answers; None if that takes too long, or isn't wanted."""
        clock, grace, told = asyncio.get_running_loop().time, self.options.grace_seconds, False
        since = clock()
        while not self._told_to_leave.is_set():
            if await self._answers():
                worker = await self._register()
                if worker is not None:
                    self._tell(self._greeting(worker))
                    return worker
            if grace and clock() - since >= grace:
                self._tell(f"No scheduler at {self.options.scheduler} for {grace:g} seconds; giving up.")
                return None
            if not told:
                self._tell(f"Waiting for a scheduler at {self.options.scheduler}.")
                told = True
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told_to_leave.wait(), _LOOK_SECONDS)
        return None

    async def _answers(self) -> bool:
        """Whether a Dask server speaks at the scheduler's address; finding out is quicker than to register."""
        arguments = Security().get_connection_args("worker")
        try:
            comm = await asyncio.wait_for(
                connect(self.options.scheduler, timeout=_LOOK_ANSWER_SECONDS, **arguments),
                2 * _LOOK_ANSWER_SECONDS,
            )
        except (OSError, TimeoutError):
            return False
        comm.abort()
        return True

    async def _register(self) -> HostedWorker | None:
        options = self.options
        worker = HostedWorker(
            options.scheduler,
            nthreads=options.threads,
            name=options.name,
            host=options.host,
            memory_limit=options.memory_limit,
            local_directory=str(self._scratch / "dask"),
            dashboard=False,
            plugins=(self._plugin,),
        )
        try:
            await asyncio.wait_for(worker.start(), _REGISTER_SECONDS)
            return worker
        except Exception as error:  # it went again, or still knows this name
            self._tell(f"Can't register with {options.scheduler}: {error}")
            with suppress(Exception):
                await asyncio.wait_for(worker.close(nanny=False), _CLOSE_SECONDS)
            return None

    async def _was_retired(self, worker: HostedWorker) -> bool:
        """Whether it was Dask's wish that the worker goes; then wait until it has handed over and closed."""
        if not runtime_of(worker).retiring:
            return False
        await worker.finished()
        return True

    async def _drain(self, worker: HostedWorker) -> None:
        """Leave politely: finish what runs, hand over the blocks, say so, close."""
        runtime = runtime_of(worker)
        runtime.draining = True
        await announce(worker, "draining")
        self._tell(f"Leaving after {len(runtime.running())} running tasks; a second signal leaves at once.")
        if not await self._until_idle(worker, runtime):
            self._tell(f"Tasks still run after {self.options.drain_seconds:g} seconds; they are given up.")
            runtime.stop()
        if worker.gone.is_set():
            self._tell("The scheduler is gone; the blocks stay on this node.")
            return
        async with one_at_a_time(runtime.store):
            try:
                self._tell(_handed_over(await hand_over(worker, runtime.store)))
            except (OSError, TimeoutError) as error:
                self._tell(f"The scheduler doesn't answer, so the blocks stay on this node: {error}")
            await announce(worker, "left")
            runtime.left = True
            with suppress(Exception):  # Dask moves the results it holds to other workers
                await asyncio.wait_for(worker.close_gracefully(reason="headwater-drain"), _CLOSE_SECONDS)

    async def _until_idle(self, worker: HostedWorker, runtime: WorkerRuntime) -> bool:
        """Wait until nothing runs or is about to; then nothing new begins. False if it took too long."""
        clock = asyncio.get_running_loop().time
        end = clock() + self.options.drain_seconds
        while not worker.gone.is_set():
            state = worker.state
            if not (state.ready or state.constrained or worker.status != Status.running):
                worker.status = Status.paused
            busy = runtime.running() or state.executing or runtime.training.is_training
            if worker.status == Status.paused and not busy:
                return True
            if clock() >= end:
                return False
            await asyncio.sleep(_IDLE_POLL_SECONDS)
        return True

    def _leave(self, number: int) -> None:
        now = asyncio.get_running_loop().time()
        if not self._told_to_leave.is_set():
            self._told_to_leave.set()
            self._told_at = now
        elif self.options.parent is None or now - self._told_at > _ECHO_SECONDS:
            os._exit(128 + number)

    def _greeting(self, worker: HostedWorker) -> str:
        node = runtime_of(worker).store.node
        return (
            f"Worker {worker.address} of node {node[:8]} joined {self.options.scheduler}; "
            f"threads {self.options.threads}, scratch {self._scratch}."
        )


def die_with(parent: int) -> None:
    """Have this process killed when its parent dies, where the system can do that."""
    with suppress(Exception):  # Linux only; elsewhere `_watch_parent` sees it within a second
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


async def _watch_parent(parent: int | None) -> None:
    while parent is not None:
        if os.getppid() != parent:
            os._exit(1)
        await asyncio.sleep(1.0)


async def _first(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _handed_over(handover: Handover) -> str:
    if not handover.last:
        return "Other workers of this node live; its blocks stay."
    text = f"Handed over {handover.moved} blocks ({handover.moved_bytes:,} bytes)"
    if handover.left_behind:
        text += f"; {len(handover.left_behind)} fit on no other node, and have to be made again if needed"
    return f"{text}."


def _size(option: str, text: str) -> int:
    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise ParameterError(f"{option} {text!r}: write bytes, or a size as '100 GB'.") from error
    if size < _LEAST_BYTES:
        raise ParameterError(f"{option} {text!r} is {size:,} bytes; a worker needs at least 32 MiB.")
    return size


def tell(line: str) -> None:
    """Print a line for whoever watches a worker."""
    print(f"headwater worker {os.getpid()}: {line}", file=sys.stderr, flush=True)
