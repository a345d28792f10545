"""WorkerRuntime: what the tasks of one worker share, and the RPC handlers that other processes call."""

from __future__ import annotations

import asyncio
import os
import platform
import threading
from collections import OrderedDict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cloudpickle
import psutil
from distributed import Worker
from distributed.comm import get_address_host
from tblib import pickling_support

from ...errors import HeadwaterError, SerializationError
from ..collectives.endpoint import Endpoint
from ..devices.device_info import DeviceInfo
from ..devices.worker_device import cache_of
from ..nodes.inventory import pack_inventory
from ..nodes.kept import Kept
from ..nodes.node_store import NodeStore
from ..nodes.resident import Resident
from ..task import StageProgram, Task, TaskResult
from ..training.network import DaskNetwork
from ..training.service import TrainingService
from ..training.stage import TrainingHost
from .admission import Admission
from .allocator import keep_freed_memory
from .beacon_keeper import BeaconKeeper
from .broadcast import BroadcastCache
from .comeback import let_nanny_replace
from .device_borrowing import DeviceBorrowing
from .device_lending import DeviceLending
from .direct_tasks import DirectTasks
from .fetch import Fetcher, FetchOptions
from .handover import RUNS_TOPIC, announce, room_bytes, watch_retirement
from .kept_service import KeptService
from .peers import Peers
from .relocation import Relocations, unpack_segments
from .results import Results
from .run_task import run_task
from .serve import serve_ranges
from .task_progress import ProgressBoard

_PACKAGES = ("headwater", "dask", "distributed", "pyarrow", "numpy")
_PROGRAMS_KEPT = 64


class WorkerRuntime:
    """What the tasks of one worker share.

    Args:
        worker: the Dask worker; it gets the handlers.
        store: the scratch folder of the worker's node.
        options: for fetches.
        broadcast_bytes: how much of broadcast inputs to remember.
        kept_bytes: most bytes of blocks that the node keeps beyond their runs; None as in `Kept`.
        device: the process's GPU; or None, and in words why there is none.
    """

    def __init__(
        self,
        worker: Worker,
        store: NodeStore,
        options: FetchOptions | None = None,
        broadcast_bytes: int = 512 << 20,
        kept_bytes: int | None = None,
        device: tuple[DeviceInfo | None, str] = (None, ""),
    ):
        self.worker, self.store = worker, store
        self.device, self.device_problem = device
        #: blocks that lie on the device, too; None without one
        self.device_cache = cache_of(self.device)
        self.lending = DeviceLending(self.device_cache)
        self.borrowing = DeviceBorrowing()
        roots = {store.node: store.root}
        self.fetcher = Fetcher(roots, worker.rpc, worker.loop.asyncio_loop, store.space, options)
        self.broadcasts = BroadcastCache(broadcast_bytes)
        self.kept = Kept(store, kept_bytes)
        self.resident = Resident(self._resident_bytes)
        #: the process's; None for a worker that lives in its scheduler's process
        self.beacon: BeaconKeeper | None = None
        self._programs: OrderedDict[bytes, StageProgram] = OrderedDict()
        #: which attempts may run, how far they are, and where those wait that lack inputs
        self.admission = Admission()
        self._board = ProgressBoard()
        self._relocations = Relocations(
            lambda run, message: self.worker.log_event(RUNS_TOPIC, {"run": run, **message})
        )
        self.training = TrainingService(
            store,
            self.fetcher,
            self._new_endpoint,
            worker.state.nthreads,
            lambda: self.draining,
            lambda run: self.admission.is_over(run),
        )
        self._lock = threading.Lock()
        #: whether the process goes on when its Dask worker closes
        self.outlives_worker = False
        #: it is about to leave; it is Dask that retires it; it has handed over what it had
        self.draining = self.retiring = self.left = False

    def install(self) -> None:
        """Attach to the worker."""
        self.worker.headwater = self
        self.results = Results(self.worker.loop.asyncio_loop)
        self.direct = DirectTasks(self.worker, self._run, self.results)
        let_nanny_replace(self.worker)
        watch_retirement(self.worker, self._retire)
        for operation in (
            self.fetch,
            self.dead,
            self.relocate,
            self.progress,
            self.cancel,
            self.fence,
            self.release,
            self.blocks,
            self.inventory,
            self.info,
            self.results.collect,
            self.direct.launch,
        ):
            self.worker.handlers[f"headwater_{operation.__name__}"] = operation
        kept = KeptService(
            self.kept, self.worker.rpc, self.fetcher.options, self.resident, self.admission.is_over
        )
        self.worker.handlers.update(kept.handlers())
        self.worker.handlers.update(self.training.handlers())
        self.worker.handlers.update(self.lending.handlers())
        peers = Peers(self.worker.rpc, self.worker.loop.asyncio_loop, self.fetcher.options)
        self.borrowing.attach(peers, self.worker.address)

    def attach(self, worker: Worker) -> None:
        """Go on with a new Dask worker of the same process; what runs still belongs to the old one."""
        self.worker = worker
        self.draining = self.retiring = self.left = False
        self.fetcher.attach(worker.rpc, worker.loop.asyncio_loop)
        self.install()

    def execute(self, task: Task, payload: bytes) -> TaskResult:
        """Run a task in the calling thread.

        Raises:
            CancelledTask: it may not run; see `Admission`.
        """
        result = self._run(task, payload)
        self.results.post(task.run, result)
        return result

    def _run(self, task: Task, payload: bytes) -> TaskResult:
        try:
            return self._execute(task, payload)
        finally:
            if self.admission.is_over(task.run):  # it may have begun just when the run's files were deleted
                self.store.remove_run(task.run)

    def _execute(self, task: Task, payload: bytes) -> TaskResult:
        with (
            self.admission.enter(task) as flag,
            self._relocations.mailbox(task, flag) as mailbox,
            self._board.follow(task) as progress,
        ):
            program, name = self.program(payload), str(self.worker.address)
            training = TrainingHost(
                self.training,
                lambda known: DaskNetwork(lambda: self.worker, self.training, known),
                lambda: self.draining,
            )
            shared = (self.broadcasts, mailbox, progress, training, self.device_cache, self.borrowing)
            try:
                return run_task(task, program, self.store, self.fetcher, name, flag, *shared)
            except HeadwaterError as error:
                _make_portable(error)
                raise

    def program(self, payload: bytes) -> StageProgram:
        """Unpickle a stage's program, or take it from the last ones used."""
        with self._lock:
            program = self._programs.pop(payload, None) or _load(payload)
            self._programs[payload] = program
            while len(self._programs) > _PROGRAMS_KEPT:
                self._programs.popitem(last=False)
            return program

    async def fetch(self, ranges: Any, check: Any = ()) -> dict[str, Any]:
        """Answer another worker's, or the driver's, `Fetcher`."""
        return await serve_ranges(self.store, ranges, check)

    async def cancel(self, run: str, names: Any) -> dict[str, Any]:
        """Stop tasks, by `Task.name`: those that run at their next table, those that come when they begin."""
        self.admission.cancel(run, list(names))
        return {"status": "OK"}

    async def dead(self, nodes: Any) -> dict[str, Any]:
        """Wait for these nodes no longer: a list of ids, or a mapping to the addresses they had."""
        self.fetcher.abandon(nodes)
        return {"status": "OK"}

    async def relocate(self, run: str, name: str, segments: bytes, nodes: Any) -> dict[str, Any]:
        """Tell a waiting attempt where lost inputs are now; ``segments`` is made by `pack_segments`."""
        moved = await asyncio.to_thread(unpack_segments, segments)
        return {"status": "OK", "known": self._relocations.fill(run, name, moved, nodes)}

    async def progress(self, run: str) -> dict[str, Any]:
        """Tell how far the attempts of a run are that run here, by `Task.name`: shares from 0 to 1."""
        return {"status": "OK", "done": self._board.of(run), "metrics": self._board.metrics_of(run)}

    async def fence(self, run: str, epoch: int) -> dict[str, Any]:
        """A driver with this epoch has the run now. The answer's ``epoch`` is the highest seen."""
        return {"status": "OK", "epoch": self.admission.fence(run, epoch)}

    async def release(self, run: str, paths: Any = None, epoch: int | None = None) -> dict[str, Any]:
        """Delete blocks by path, or all that a run left on this node and in this process.

        A run of which all is deleted is over: tasks of it are refused from now on. A driver that was replaced,
        by its ``epoch``, deletes nothing.
        """
        if not self.admission.counts(run, epoch):
            return {"status": "OK", "freed_bytes": 0, "replaced": True}
        if paths is not None:
            freed = await asyncio.to_thread(self.store.delete_blocks, list(paths))
        else:
            self.admission.close(run, epoch)
            self._forget(run)
            freed = await asyncio.to_thread(self.store.remove_run, run)
        return {"status": "OK", "freed_bytes": freed}

    async def blocks(self, run: str) -> dict[str, Any]:
        """List the blocks of a run that this node has, as (stage, partition, attempt)."""
        found = await asyncio.to_thread(self.store.blocks, run)
        return {"status": "OK", "blocks": [(b.stage, b.partition, b.attempt) for b in found]}

    async def inventory(self, run: str, keys: Any = None) -> dict[str, Any]:
        """Tell what the blocks of a run that this node has say of themselves; see `unpack_inventory`."""
        found = await asyncio.to_thread(self.store.inventory, run, keys)
        return pack_inventory(self.store.node, found)

    async def info(self) -> dict[str, Any]:
        """Tell who this worker is, and what it runs."""
        memory = getattr(self.worker.memory_manager, "memory_limit", None)
        return {
            "status": "OK",
            "node": self.store.node,
            "scratch": str(self.store.root),
            "used_bytes": self.store.space.used_bytes(),
            "room_bytes": room_bytes(self.store),
            "resident_bytes": self.resident.bytes,
            "draining": self.draining,
            "running": self.running(),
            "address": self.worker.address,
            "host": platform.node(),
            "pid": os.getpid(),
            "threads": self.worker.state.nthreads,
            "memory_limit": memory,
            "device": self.device and self.device.record(),
            "device_problem": self.device_problem,
            "device_sharing": {**self.lending.counts, **self.borrowing.counts},
            "beacon": self.beacon and self.beacon.port and [self.beacon.host, self.beacon.port],
            "beacon_token": self.beacon and self.beacon.token,
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        }

    def running(self) -> list[str]:
        """Tasks that run in this process, as "RUN/NAME", those of its earlier Dask workers included."""
        return self.admission.running()

    async def start_beacon(self) -> None:
        """Start what tells clients that this process lives, and let it keep memory, if it is the worker's own."""
        if not self.worker.address.startswith("inproc"):
            keep_freed_memory()
            self.beacon = BeaconKeeper(get_address_host(self.worker.address))
            await asyncio.to_thread(self.beacon.start)

    def stop_beacon(self) -> None:
        """End it; the process is about to."""
        if self.beacon is not None:
            self.beacon.stop()

    def stop(self) -> None:
        """Cancel all that runs; the worker is closing."""
        self.admission.stop()

    def _new_endpoint(self) -> Endpoint:
        """What a member of a gang listens with, secured as Dask's own connections are."""
        security, address = self.worker.security, self.worker.address
        host = "127.0.0.1" if address.startswith("inproc") else get_address_host(address)
        return Endpoint(
            self.store.node,
            host,
            server_context=security.get_listen_args("worker").get("ssl_context"),
            client_context=security.get_connection_args("worker").get("ssl_context"),
        )

    def _resident_bytes(self) -> int:
        """How much kept blocks may take of the memory: half of what is free, and of what Dask allows the worker."""
        most = (psutil.virtual_memory().available + self.resident.locked_bytes) // 2
        limit = getattr(self.worker.memory_manager, "memory_limit", None)
        return min(most, limit // 2) if limit else most

    def _retire(self, retiring: bool) -> None:
        """Dask begins to retire the worker, or thinks better of it."""
        if self.left or retiring == self.retiring:
            return
        if retiring and not self.draining:
            self._announcement = asyncio.ensure_future(announce(self.worker, "draining"))
        self.draining = self.retiring = retiring

    def _forget(self, run: str) -> None:
        self.results.forget(run)
        self.direct.forget(run)
        self.broadcasts.forget(run)
        if self.device_cache is not None:
            self.device_cache.forget(run)
        self.lending.forget(run)
        self.borrowing.forget(run)
        self.training.forget(run)
        with self._lock:
            for payload in [key for key, program in self._programs.items() if program.run == run]:
                del self._programs[payload]


def _load(payload: bytes) -> StageProgram:
    try:
        return cloudpickle.loads(payload)
    except HeadwaterError:
        raise
    except Exception as error:
        raise SerializationError(
            f"worker {platform.node()} can't load a stage's program: {type(error).__name__}: {error}. "
            "Modules that user functions import must be installed on every worker."
        ) from error


def _make_portable(error: HeadwaterError) -> None:
    """Drop the cause of an error if it can't be pickled, or Dask would drop the error's type."""
    cause = error.__cause__
    try:
        pickling_support.install(error, *([] if cause is None else [cause]))  # with tracebacks, as Dask does
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        error.__cause__ = error.__context__ = None


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
