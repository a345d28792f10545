"""DaskExecutor: runs tasks as Dask futures, one an attempt; the driver owns placement and recovery.

Dask is given tasks with no edges between them, pinned loosely, under a key for each attempt. Blocks
stay on the nodes; what travels through Dask are task descriptions and block indices.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import dask
import pyarrow as pa
from distributed import Client, Future, KilledWorker

from ..errors import ClusterError
from .collect import fetch_segments
from .executor import failed
from .membership import Membership
from .scheduler_events import Event, FailureKind, TaskFinished, WorkerJoined
from .task import Block, Segment, StageProgram, Task
from .worker_plugin import HeadwaterWorkerPlugin, execute, pack_program

#: programs up to this many bytes travel with each task
EMBEDDED_BYTES = 64 << 10
#: seconds to give running tasks to notice that they are cancelled
STOP_SECONDS = 5.0
#: seconds to give nodes for deleting what a run left
_CLOSE_SECONDS = 10.0


class DaskExecutor:
    """Runs tasks on the workers of a Dask cluster.

    Args:
        client: connected to the cluster, not asynchronous.
        scratch: the nodes' scratch folder; None lets each worker find its own (see `HeadwaterWorkerPlugin`).
        quota_bytes: bound of each scratch folder.
        owned: what `close` closes too, in order: client, then cluster.

    Raises:
        ClusterError: the workers can't be made to run Headwater.
    """

    def __init__(
        self,
        client: Client,
        scratch: str | None = None,
        quota_bytes: int | None = None,
        owned: Sequence[Any] = (),
    ):
        self.client = client
        self._owned = tuple(owned)
        try:
            self.membership = Membership(client, HeadwaterWorkerPlugin(scratch, quota_bytes))
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"the cluster at {client.scheduler.address} doesn't answer: {error}"
            ) from error

    @property
    def owns_cluster(self) -> bool:
        """Whether the cluster was started for this executor, and ends with it."""
        return len(self._owned) > 1

    def workers(self) -> list[WorkerJoined]:
        """The workers that can take tasks."""
        return self.membership.workers()

    def open(self, run: str) -> DaskChannel:
        """Open a channel for a run; several may be open at once."""
        return DaskChannel(self, run)

    def close(self) -> None:
        """Stop following the cluster; close the client and cluster if they are owned."""
        self.membership.close()
        for resource in self._owned:
            resource.close()
        self._owned = ()


class DaskChannel:
    """One run's tasks on a cluster.

    Methods are called by the driver's thread. Results are awaited in the client's event loop, which
    passes events on through a queue.
    """

    def __init__(self, executor: DaskExecutor, run: str):
        self._client = executor.client
        self._membership = executor.membership
        self._address = executor.client.scheduler.address
        self._run = run
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._futures: dict[str, Future] = {}
        self._payloads: dict[int, bytes | Future] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._watches: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._membership.listen(self._events.put)

    def prepare(self, program: StageProgram) -> None:
        payload: bytes | Future = pack_program(program)
        if len(payload) > EMBEDDED_BYTES:
            key = f"headwater-{self._run}-s{program.stage}-program"
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
                payload = self._client.submit(_carry, payload, key=key, pure=False, retries=3)
        self._payloads[program.stage] = payload

    def launch(self, task: Task, worker: str) -> None:
        future = self._client.submit(
            execute,
            task,
            self._payloads[task.stage],
            key=f"headwater-{self._run}-{task.name}",
            workers=[worker],
            allow_other_workers=True,
            pure=False,
            retries=0,
        )
        self._futures[task.name] = future
        self._spawn(self._watch, future, task, worker, into=self._watches)

    def cancel(self, name: str, worker: str) -> None:
        future = self._futures.get(name)
        if future is not None and any(joined.address == worker for joined in self._membership.workers()):
            self._spawn(self._tell, [worker], "cancel", names=[name])
        elif future is not None:  # or Dask would run it again elsewhere
            self._spawn(self._forget, [future])

    def release(self, blocks: Sequence[Block]) -> None:
        by_node: dict[str, list[str]] = {}
        for block in blocks:
            by_node.setdefault(block.node, []).append(block.path)
        nodes = self._membership.nodes()
        for node, paths in by_node.items():
            self._spawn(self._tell, nodes.get(node, ()), "release", paths=paths)

    def wait(self, timeout: float) -> list[Event]:
        self._require_scheduler()
        events: list[Event] = []
        with suppress(queue.Empty):
            events.append(self._events.get(timeout=timeout) if timeout > 0 else self._events.get_nowait())
            while True:
                events.append(self._events.get_nowait())
        self._require_scheduler()
        return events

    def read(self, segments: Sequence[Segment], schema: pa.Schema) -> Iterator[pa.Table]:
        return fetch_segments(self._client, segments, self._membership.nodes(), schema)

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        if self._client.status == "running":
            with suppress(OSError, TimeoutError):
                self._client.sync(self._stop, timeout)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._membership.unlisten(self._events.put)
        if self._client.status == "running":
            with suppress(OSError, TimeoutError):
                self._client.sync(self._clean_up, callback_timeout=STOP_SECONDS + _CLOSE_SECONDS)
        self._futures.clear()
        self._payloads.clear()

    # -- in the event loop ----------------------------------------------------------------------

    def _spawn(
        self,
        work: Callable[..., Awaitable[None]],
        *args: Any,
        into: set[asyncio.Task[Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Start a coroutine in the client's event loop, and hold on to it until it ends."""
        held = self._background if into is None else into

        def start() -> None:
            task = asyncio.ensure_future(work(*args, **kwargs))
            held.add(task)
            task.add_done_callback(held.discard)

        self._client.loop.asyncio_loop.call_soon_threadsafe(start)

    async def _watch(self, future: Future, task: Task, worker: str) -> None:
        """Wait for an attempt and turn what became of it into an event."""
        try:
            result = await self._client.gather(future, asynchronous=True)
            event: Event = TaskFinished(result)
        except KilledWorker as error:
            if error.last_worker is not None:
                self._membership.left(error.last_worker.address)
            event = failed(task, worker, error, FailureKind.LOST)
        except (CancelledError, asyncio.CancelledError) as error:
            event = failed(task, worker, error, FailureKind.LOST)
        except Exception as error:
            event = failed(task, worker, error)
        if self._closed:
            if isinstance(event, TaskFinished):  # it came after the run's folder was removed
                await self._tell([event.result.worker], "release")
            return
        self._futures.pop(task.name, None)
        future.release()
        self._events.put(event)

    async def _tell(self, addresses: Sequence[str], operation: str, **arguments: Any) -> None:
        """Call a handler of the first worker that answers."""
        for address in addresses:
            with suppress(Exception):
                call = getattr(self._client.rpc(address), f"headwater_{operation}")
                await asyncio.wait_for(call(run=self._run, **arguments), _CLOSE_SECONDS)
                return

    async def _forget(self, futures: list[Future]) -> None:
        with suppress(Exception):
            await self._client.cancel(futures, asynchronous=True, force=True)

    async def _stop(self, timeout: float) -> None:
        """Raise the flags of all attempts, and wait for them to end; forget those that don't."""
        names = list(self._futures)
        workers = [worker.address for worker in self._membership.workers()] if names else []
        await asyncio.gather(*(self._tell([address], "cancel", names=names) for address in workers))
        if self._watches:
            await asyncio.wait(self._watches, timeout=timeout)
        if self._futures:
            await self._forget(list(self._futures.values()))

    async def _clean_up(self) -> None:
        await self._stop(STOP_SECONDS)
        workers = [worker.address for worker in self._membership.workers()]
        await asyncio.gather(*(self._tell([address], "release") for address in workers))

    def _require_scheduler(self) -> None:
        if self._client.status != "running":
            raise ClusterError(
                f"the connection to the Dask scheduler at {self._address} is lost, and with it the "
                "queue of tasks. Start the run again once a scheduler is up."
            )


def _carry(payload: bytes) -> bytes:
    """Hold a large program in the cluster, so that it travels to each worker once."""
    return payload
