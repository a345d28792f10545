"""What a Dask worker becomes part of Headwater by: its plugin, and the body of a task.

What a worker needs beyond that is imported there, and not by a driver that only sends the plugin.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from distributed import Worker, WorkerPlugin, get_worker

from ...errors import ClusterError, SerializationError
from ...ops.pickling import dumps
from ..task import StageProgram, Task, TaskResult

if TYPE_CHECKING:
    from ..devices.device_info import DeviceInfo
    from ..nodes.node_store import NodeStore
    from .fetch import FetchOptions
    from .worker_runtime import WorkerRuntime


def execute(task: Task, payload: bytes) -> TaskResult:
    """Run a task on the worker that Dask calls this on; the body of every Dask task of Headwater.

    Args:
        task: what to do.
        payload: the stage's StageProgram, pickled by `pack_program`.

    Returns:
        The task's result.

    Raises:
        As `run_task`; and SerializationError if the program can't be loaded here.
    """
    return runtime_of(get_worker()).execute(task, payload)


def pack_program(program: StageProgram) -> bytes:
    """Pickle a stage's program, user functions included.

    Raises:
        SerializationError: something in it can't be sent to workers.
    """
    try:
        return dumps(program)
    except Exception as error:
        raise SerializationError(
            f"stage {program.stage} ({program.label}) can't be sent to the workers: {error}. "
            "Open files, locks and connections don't travel: make them inside the function."
        ) from error


def runtime_of(worker: Worker) -> WorkerRuntime:
    """Return what the plugin attached to a worker.

    Raises:
        ClusterError: the plugin isn't there.
    """
    runtime = getattr(worker, "headwater", None)
    if runtime is None:
        raise ClusterError(
            f"worker {worker.address} has no Headwater plugin. "
            "Register HeadwaterWorkerPlugin with the client first."
        )
    return runtime


class HeadwaterWorkerPlugin(WorkerPlugin):
    """Makes Dask workers able to run Headwater's tasks.

    Args:
        scratch: the node's scratch folder, the same for all its workers; None reads HEADWATER_SCRATCH on the
            worker, and else takes a folder under its temporary one.
        quota_bytes: most bytes of scratch a node may use.
        keep_seconds: how long what a dead driver left is kept.
        options: for fetches.
        arrow_threads: of Arrow's own pools in each worker process; 0 leaves them as they are.
        kept_bytes: most bytes of blocks that a node keeps beyond their runs; None is half of its quota, or,
            without one, half of what its disk has for it.
    """

    name = "headwater"

    def __init__(
        self,
        scratch: str | None = None,
        quota_bytes: int | None = None,
        keep_seconds: float = 86_400.0,
        options: FetchOptions | None = None,
        arrow_threads: int = 1,
        kept_bytes: int | None = None,
    ):
        self.scratch, self.quota_bytes, self.keep_seconds = scratch, quota_bytes, keep_seconds
        self.options, self.arrow_threads, self.kept_bytes = options, arrow_threads, kept_bytes

    async def setup(self, worker: Worker) -> None:
        """Attach a runtime, unless another session of the cluster has already, and tidy the scratch folder."""
        multiprocessing.current_process().daemon = False  # user functions may start processes
        if self.arrow_threads:
            pa.set_cpu_count(self.arrow_threads)
            pa.set_io_thread_count(max(2, self.arrow_threads))
        if getattr(worker, "headwater", None) is None:
            store = await asyncio.to_thread(self._open_store)
            kind = await asyncio.to_thread(
                _runtime_class
            )  # imports for a while; the worker is to answer meanwhile
            device = await asyncio.to_thread(_device, worker)
            runtime = kind(worker, store, self.options, kept_bytes=self.kept_bytes, device=device)
            await runtime.start_beacon()
            if getattr(worker, "headwater", None) is None:
                runtime.install()
            else:  # a session that came at the same moment was first
                runtime.stop_beacon()
        await asyncio.to_thread(runtime_of(worker).store.purge_orphans, self.keep_seconds)
        await asyncio.to_thread(runtime_of(worker).kept.purge)

    async def teardown(self, worker: Worker) -> None:
        """Stop the tasks of a worker that closes, and hand over its blocks if it is retired.

        A plugin that is only replaced leaves them running.
        """
        runtime = getattr(worker, "headwater", None)
        if runtime is None or worker.status.name not in ("closing", "closed", "failed"):
            return
        if runtime.retiring or not runtime.outlives_worker:
            runtime.stop()
        if runtime.retiring:
            from .handover import leave

            await leave(worker, runtime.store)
        if runtime.retiring or not runtime.outlives_worker:
            runtime.stop_beacon()

    def _open_store(self) -> NodeStore:
        from ..nodes.node_store import NodeStore, default_scratch

        return NodeStore(Path(self.scratch) if self.scratch else default_scratch(), self.quota_bytes)


def _device(worker: Worker) -> tuple[DeviceInfo | None, str]:
    """Bind the process to a device, unless it is, and look at it."""
    from ..devices.worker_device import bind_process, describe_device

    resources = dict(worker.state.total_resources)
    if not worker.address.startswith("inproc"):
        bind_process(resources)
    return describe_device(resources)


def _runtime_class() -> type[WorkerRuntime]:
    from .worker_runtime import WorkerRuntime

    return WorkerRuntime
