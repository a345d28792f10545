"""DaskChannel: one run's tasks as Dask futures, one an attempt; the driver owns placement and recovery.

Dask is given tasks with no edges between them, pinned loosely, under a key for each attempt. Blocks
stay on the nodes; what travels through Dask are task descriptions and block indices. What must be quick
(cancelling, new places, fences, progress) goes to the workers' own handlers, past Dask's scheduler.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import dask
import pyarrow as pa
from distributed import Client, Future, KilledWorker

from ..errors import ClusterError
from ..planner.plan import Storage
from .collect import fetch_segments
from .direct_launch import DirectLaunch
from .executor import failed
from .kept_client import KeptClient
from .nodes.inventory import unpack_inventory
from .reuse import NodeKeeps
from .scheduler_events import (
    BlocksFound,
    BlocksMoved,
    Cause,
    Event,
    FailureKind,
    InputsLost,
    Keep,
    Progress,
    Relocate,
    TaskFinished,
    WorkerJoined,
    WorkerLeft,
)
from .short_batches import send_tasks_sooner
from .task import Block, Segment, StageProgram, Task, TaskResult
from .workers.relocation import pack_segments
from .workers.results import unpack_outcome
from .workers.worker_plugin import execute, pack_program

if TYPE_CHECKING:
    from .dask_executor import DaskExecutor

#: programs up to this many bytes travel with each task
EMBEDDED_BYTES = 64 << 10
#: seconds to give running tasks to notice that they are cancelled
STOP_SECONDS = 5.0
#: seconds to wait for a scheduler at the old address
RECONNECT_SECONDS = 120.0
#: seconds to wait at the end for a scheduler that died just before
RETURN_SECONDS = 10.0
#: seconds to give nodes for deleting what a run left, for a short answer, and for a list of blocks
_CLOSE_SECONDS = 5.0
_ANSWER_SECONDS = 2.0
_SURVEY_SECONDS = 30.0
#: seconds for a worker to hold a question for results; and most workers that are asked at once, each over a
#: connection of its own, of which a client has 512
_LISTEN_SECONDS = 20.0
_MOST_LISTENING = 256
_LISTEN_AGAIN_SECONDS = 0.05
#: seconds between two questions how far tasks are
PROGRESS_SECONDS = 0.5


class DaskChannel:
    """One run's tasks on a cluster.

    Methods are called by the driver's thread. Results are awaited in the client's event loop, which
    passes events on through a queue.

    Args:
        executor: the cluster.
        run: the run's id.
        epoch: of the driver.
    """

    def __init__(self, executor: DaskExecutor, run: str, epoch: int = 0):
        self._executor = executor
        self._run, self._epoch = run, epoch
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._futures: dict[str, Future] = {}
        self._programs: dict[int, StageProgram] = {}
        self._payloads: dict[int, bytes | Future] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._watches: set[asyncio.Task[Any]] = set()
        #: results that come straight from the workers, by `Task.name`, and who asks for them
        self._early: dict[str, asyncio.Future[TaskResult]] = {}
        self._listening: set[asyncio.Task[Any]] = set()
        #: sends tasks past Dask's scheduler, where nobody else needs it to know of them
        self._direct: DirectLaunch | None = None
        #: what nodes are asked to keep, and to copy
        self._keeping: set[asyncio.Task[Any]] = set()
        self._closed = False
        #: nodes that had a worker and weren't lost since
        self._seen: set[str] = set()
        #: living workers: address to node
        self._nodes: dict[str, str] = {}
        #: addresses of workers that are gone, by node
        self._gone: dict[str, list[str]] = {}
        #: attempts of an old scheduler, which their workers may still run
        self._stale: list[str] = []
        self._lost_since: float | None = None
        #: tasks without a worker that the scheduler was told of
        self._expecting = 0
        #: what nodes must do one after the other
        self._turns: dict[str, asyncio.Lock] = {}
        self._kept = KeptClient(run, self._ask, lambda: self._membership.nodes(), self._hear_found)
        self._connect()

    # -- the driver's side ----------------------------------------------------------------------

    def prepare(self, program: StageProgram) -> None:
        payload: bytes | Future = pack_program(program)
        self._programs[program.stage] = program
        if self._direct is not None:
            self._direct.prepare(program.stage, payload)
            return
        if len(payload) > EMBEDDED_BYTES:
            key = f"headwater-{self._run}-s{program.stage}-program-{self._generation}"
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
                payload = self._client.submit(_carry, payload, key=key, pure=False, retries=3)
        self._payloads[program.stage] = payload

    def launch(self, task: Task, worker: str) -> None:
        if self._direct is not None:
            self._direct.launch(task, worker)
            return
        with dask.annotate(span=self._executor.span):
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
        self._spawn(self._watch, future, task, worker, self._generation, into=self._watches)

    def cancel(self, name: str, worker: str) -> None:
        future = self._futures.get(name)
        if worker in self._nodes:
            self._spawn(self._tell, [worker], "cancel", names=[name])
        elif future is not None:  # or Dask would run it again elsewhere
            self._spawn(self._forget, [future])

    def relocate(self, instruction: Relocate) -> None:
        self._spawn(
            self._tell,
            [instruction.worker],
            "relocate",
            name=instruction.name,
            segments=pack_segments(instruction.segments),
            nodes={node: list(addresses) for node, addresses in instruction.nodes.items()},
        )

    def expect(self, tasks: int, seconds: float) -> None:
        if self._direct is None and (tasks or self._expecting):  # else nobody could start more workers
            self._expecting = tasks
            self._spawn(self._tell_scheduler, tasks, seconds)

    def survey(self, node: str) -> None:
        self._spawn(self._survey, node)

    def inventory(self) -> list[BlocksFound]:
        return self._client.sync(self._inventories)

    def fence(self) -> None:
        self._client.sync(self._tell_all, "fence", epoch=self._epoch)

    def release(self, blocks: Sequence[Block]) -> None:
        by_node: dict[str, list[str]] = {}
        for block in blocks:
            by_node.setdefault(block.node, []).append(block.path)
        for node, paths in by_node.items():
            self._spawn(self._release_in_turn, node, paths)

    def keep(self, instruction: Keep) -> None:
        by_node: dict[str, list[Block]] = {}
        for block in instruction.blocks:
            by_node.setdefault(block.node, []).append(block)
        for node, blocks in by_node.items():
            self._spawn(self._keep_in_turn, node, blocks, instruction.storage, into=self._keeping)

    def kept(
        self, stages: Mapping[str, Sequence[int]], pinned: Mapping[str, Storage] | None = None
    ) -> list[NodeKeeps]:
        return self._client.sync(self._kept.use, dict(stages), dict(pinned or {}))

    def drop(self, keys: Sequence[str]) -> None:
        self._client.sync(self._kept.drop, list(keys))

    def wait(self, timeout: float) -> list[Event]:
        if self._is_lost():
            return self._find_scheduler(timeout)
        events: list[Event] = []
        with suppress(queue.Empty):
            events.append(self._events.get(timeout=timeout) if timeout > 0 else self._events.get_nowait())
            while True:
                events.append(self._events.get_nowait())
        for event in events:
            self._note(event)
        return events

    def read(self, segments: Sequence[Segment], schema: pa.Schema) -> Iterator[pa.Table]:
        members = self._membership
        return fetch_segments(self._client, segments, members.nodes(), schema, scratch=members.scratch)

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        if self._client.status == "running":
            with suppress(OSError, TimeoutError):
                self._client.sync(self._stop_keeping)
                self._client.sync(self._stop, timeout)

    def close(self) -> None:
        if self._closed:
            return
        for _ in range(2):  # the scheduler may go while nodes are told
            self._return_to_clean_up()
            if self._client.status != "running":
                break
            with suppress(OSError, TimeoutError):
                if self._keeping:
                    self._client.sync(self._finish_keeping)
                self._client.sync(self._clean_up, callback_timeout=STOP_SECONDS + _CLOSE_SECONDS)
            if not self._is_lost():
                break
        self._detach()
        self._forget_all()

    def abandon(self) -> None:
        """Let go without deleting anything: the run belongs to another driver."""
        if not self._closed:
            self._detach()
            self._client.loop.asyncio_loop.call_soon_threadsafe(self._stop_listening)
            if self._client.status == "running":
                with suppress(OSError, TimeoutError):
                    self._client.sync(self._forget, list(self._futures.values()))
            self._forget_all()

    # -- the connection -------------------------------------------------------------------------

    def _return_to_clean_up(self) -> None:
        """If the scheduler has just gone, wait a little for the next one, and for the nodes with the run's files."""
        deadline = time.monotonic() + RETURN_SECONDS
        while self._is_lost() and not (self._executor.owns_cluster or self._executor.closed):
            if self._executor.reconnect(self._generation):
                with suppress(ValueError):
                    self._membership.unlisten(self._events.put)
                self._forget_all()
                self._connect()
            elif time.monotonic() > deadline:
                return
            while not self._seen <= self._membership.nodes().keys() and time.monotonic() < deadline:
                time.sleep(0.05)

    def _connect(self) -> None:
        self._client, self._membership = self._executor.client, self._executor.membership
        self._generation = self._executor.generation
        self._comm = self._client.scheduler_comm
        send_tasks_sooner(self._client)
        self._broken = False
        self._turns = {}  # locks belong to the event loop of their client
        self._events = queue.SimpleQueue()
        self._membership.hear(self._run, self._hear)
        self._membership.listen(self._events.put)
        if self._executor.direct:
            loop = self._client.loop.asyncio_loop
            self._direct = DirectLaunch(self._run, loop, self._call_raw, self._events.put)
        self._spawn(self._follow_progress, self._generation)

    def _is_lost(self) -> bool:
        """Whether the scheduler that knew the run's tasks is gone, even if another one answers already."""
        return (
            self._broken
            or self._client.status != "running"
            or self._client.scheduler_comm is not self._comm
            or self._executor.generation != self._generation
        )

    def _find_scheduler(self, timeout: float) -> list[Event]:
        now = time.monotonic()
        if self._lost_since is None:
            self._lost_since = now
            with suppress(ValueError):
                self._membership.unlisten(self._events.put)
            self._stale = [*self._stale, *self._futures]
            self._forget_all()
            gone, self._nodes = self._nodes, {}
            return [WorkerLeft(address, Cause.SCHEDULER) for address in gone]
        if self._executor.reconnect(self._generation):
            self._lost_since = None
            self._connect()
            for program in self._programs.values():
                self.prepare(program)
            return []
        if now - self._lost_since > RECONNECT_SECONDS:
            raise ClusterError(
                f"the Dask scheduler at {self._executor.address} is gone, and none came in its place for "
                f"{RECONNECT_SECONDS:.0f} seconds. Once there is one, there or elsewhere, go on with "
                f"`headwater resume {self._run}`, or with --scheduler ADDRESS."
            )
        time.sleep(min(timeout, 0.1))
        return []

    def _note(self, event: Event) -> None:
        if isinstance(event, WorkerJoined):
            self._nodes[event.address] = event.node
            self._seen.add(event.node)
            if self._stale:
                self._spawn(self._tell, [event.address], "cancel", names=list(self._stale))
            if self._epoch:
                self._spawn(self._tell, [event.address], "fence", epoch=self._epoch)
            self._spawn(self._listen, event.address, self._generation, into=self._listening)
        elif isinstance(event, WorkerLeft):
            node = self._nodes.pop(event.address, None)
            if self._direct is not None:
                self._direct.left(event.address)
            if node is not None:
                self._gone.setdefault(node, []).append(event.address)
                if node not in self._nodes.values():
                    self._seen.discard(node)
                if node not in self._nodes.values() and event.cause is not Cause.LEFT:
                    self._spawn(self._bury, {node: self._gone[node]})

    def _detach(self) -> None:
        self._closed = True
        with suppress(ValueError):
            self._membership.unlisten(self._events.put)
        self._membership.unhear(self._run)

    def _forget_all(self) -> None:
        self._futures.clear()
        self._payloads.clear()

    def _workers_of(self, node: str) -> list[str]:
        return [address for address, other in self._nodes.items() if other == node]

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

    async def _watch(self, future: Future, task: Task, worker: str, generation: int) -> None:
        """Wait for an attempt and turn what became of it into an event."""
        client = self._client
        try:
            result = await self._result(client, future, task.name)
            event: Event = TaskFinished(result)
        except KilledWorker as error:
            if error.last_worker is not None:
                self._membership.left(error.last_worker.address)
            event = failed(task, worker, error, FailureKind.LOST)
        except (CancelledError, asyncio.CancelledError) as error:
            if getattr(error, "reason", "") == "scheduler-connection-lost" or client.status != "running":
                self._broken |= generation == self._generation
                return
            event = failed(task, worker, error, FailureKind.LOST)
        except Exception as error:
            event = failed(task, worker, error)
        if generation != self._generation:
            return
        if self._closed:
            if isinstance(event, TaskFinished):  # it came after the run's folder was removed
                await self._tell([event.result.worker], "release", epoch=self._epoch)
            return
        self._futures.pop(task.name, None)
        future.release()
        self._events.put(event)

    async def _result(self, client: Client, future: Future, name: str) -> TaskResult:
        """What an attempt returned, by whichever way it comes first."""
        early = self._early[name] = asyncio.get_running_loop().create_future()
        ended = asyncio.ensure_future(
            future._state.wait()
        )  # what `distributed.wait` waits for, of any client
        try:
            await asyncio.wait([early, ended], return_when=asyncio.FIRST_COMPLETED)
            return early.result() if early.done() else await client.gather(future, asynchronous=True)
        finally:
            ended.cancel()
            self._early.pop(name, None)

    async def _listen(self, worker: str, generation: int) -> None:
        """Ask a worker for results as long as the run goes on; without an answer, they come by way of Dask."""
        if self._executor.listening >= _MOST_LISTENING:
            return
        self._executor.listening += 1
        try:
            over, last = False, 0
            while (
                not (over or self._closed or self._executor.closed)
                and generation == self._generation
                and worker in self._nodes
            ):
                asked = {"run": self._run, "seconds": _LISTEN_SECONDS, "after": last}
                call = self._call_raw(worker, "collect", **asked)
                try:
                    reply = await asyncio.wait_for(call, _LISTEN_SECONDS + _ANSWER_SECONDS)
                except Exception:  # it is gone, or hangs, or is of a version that doesn't do this
                    if self._direct is None:
                        return
                    await asyncio.sleep(_LISTEN_AGAIN_SECONDS)
                    continue
                over = reply["over"]
                for number, outcome in reply["outcomes"]:
                    if number > last:
                        last = number
                        self._take_outcome(*unpack_outcome(outcome))
        finally:
            self._executor.listening -= 1

    def _take_outcome(self, name: str, outcome: TaskResult | BaseException) -> None:
        waiting = self._early.get(name)
        if self._direct is not None:
            self._direct.outcome(name, outcome)
        elif waiting is not None and not waiting.done() and isinstance(outcome, TaskResult):
            waiting.set_result(outcome)

    def _hear(self, message: dict[str, Any]) -> None:
        """A worker says something of the run, or of kept blocks."""
        if message.get("kind") == "inputs lost":
            lost = tuple((int(s), int(p), int(a)) for s, p, a in message["lost"])
            self._events.put(InputsLost(message["stage"], message["id"], message["attempt"], lost))
        elif message.get("kind") == "blocks moved":
            parts = tuple((int(s), int(p), int(a)) for s, p, a in message["parts"])
            self._events.put(BlocksMoved(message["source"], message["target"], parts))
        elif message.get("kind") == "kept moved" and self._kept.reads(message["paths"]):
            self._spawn(self._kept.look, message["target"], message["paths"])

    def _hear_found(self, found: BlocksFound) -> None:
        self._events.put(found)

    async def _follow_progress(self, generation: int) -> None:
        while not self._closed and generation == self._generation and self._client.status == "running":
            await asyncio.sleep(PROGRESS_SECONDS)
            if self._attempts():
                answers = await self._tell_all("progress")
                shares = {name: share for answer in answers for name, share in answer.get("done", {}).items()}
                metrics = {n: found for answer in answers for n, found in answer.get("metrics", {}).items()}
                self._events.put(Progress(shares, metrics))

    async def _tell_scheduler(self, tasks: int, seconds: float) -> None:
        with suppress(Exception):  # one without Headwater can't be told
            call = self._client.scheduler.headwater_demand(run=self._run, tasks=tasks, seconds=seconds)
            await asyncio.wait_for(call, _ANSWER_SECONDS)

    async def _survey(self, node: str) -> None:
        found = await self._inventory_of(node)
        if found is not None:
            self._events.put(found)

    async def _inventories(self) -> list[BlocksFound]:
        nodes = list(self._membership.nodes())
        answers = await asyncio.gather(*(self._inventory_of(node) for node in nodes))
        return [answer for answer in answers if answer is not None]

    async def _inventory_of(self, node: str) -> BlocksFound | None:
        for address in self._membership.nodes().get(node, ()):
            reply = await self._call(address, "inventory", _SURVEY_SECONDS)
            if reply is not None:
                return BlocksFound(*unpack_inventory(reply))
        return None

    async def _tell(self, addresses: Sequence[str], operation: str, **arguments: Any) -> None:
        """Call a handler of the first worker that answers."""
        for address in addresses:
            if await self._call(address, operation, _CLOSE_SECONDS, **arguments) is not None:
                return

    async def _release_in_turn(self, node: str, paths: list[str]) -> None:
        async with self._turns.setdefault(node, asyncio.Lock()):
            await self._tell(self._workers_of(node), "release", paths=paths, epoch=self._epoch)

    async def _keep_in_turn(self, node: str, blocks: list[Block], storage: Storage | None) -> None:
        async with self._turns.setdefault(node, asyncio.Lock()):
            kept = await self._kept.keep(node, blocks, storage)
        if storage is not None:
            await self._kept.copy(node, kept, storage)

    async def _tell_all(self, operation: str, **arguments: Any) -> list[dict[str, Any]]:
        """Call a handler of all workers, and return the answers of those that give one."""
        addresses = [worker.address for worker in self._membership.workers()]
        calls = (self._call(address, operation, _ANSWER_SECONDS, **arguments) for address in addresses)
        return [answer for answer in await asyncio.gather(*calls) if answer is not None]

    async def _bury(self, nodes: dict[str, list[str]]) -> None:
        """Keep the workers from waiting for the workers of nodes that are gone."""
        addresses = [worker.address for worker in self._membership.workers()]
        await asyncio.gather(*(self._ask(at, "dead", _ANSWER_SECONDS, nodes=nodes) for at in addresses))

    async def _call(
        self, address: str, operation: str, seconds: float, **arguments: Any
    ) -> dict[str, Any] | None:
        """Call a handler for this run; None if the worker doesn't answer in time."""
        return await self._ask(address, operation, seconds, run=self._run, **arguments)

    async def _ask(
        self, address: str, operation: str, seconds: float, **arguments: Any
    ) -> dict[str, Any] | None:
        try:
            return await asyncio.wait_for(self._call_raw(address, operation, **arguments), seconds)
        except Exception:  # it is gone, or will be soon
            return None

    async def _call_raw(self, address: str, operation: str, **arguments: Any) -> Any:
        return await getattr(self._client.rpc(address), f"headwater_{operation}")(**arguments)

    def _attempts(self) -> list[str]:
        """`Task.name` of the attempts that are under way."""
        return list(self._futures) if self._direct is None else self._direct.names()

    async def _forget(self, futures: list[Future]) -> None:
        with suppress(Exception):
            await self._client.cancel(futures, asynchronous=True, force=True)

    async def _stop(self, timeout: float) -> None:
        """Raise the flags of all attempts, and wait for them to end; forget those that don't."""
        names = self._attempts()
        workers = [worker.address for worker in self._membership.workers()] if names else []
        await asyncio.gather(*(self._tell([address], "cancel", names=names) for address in workers))
        if self._direct is not None:
            await self._direct.ended(timeout)
        if self._watches:
            await asyncio.wait(self._watches, timeout=timeout)
        if self._futures:
            await self._forget(list(self._futures.values()))

    def _stop_listening(self) -> None:
        for task in list(self._listening):
            task.cancel()

    async def _finish_keeping(self) -> None:
        """Wait until nodes have kept and copied what they were asked to."""
        while self._keeping:
            await asyncio.wait(set(self._keeping))

    async def _stop_keeping(self) -> None:
        for task in list(self._keeping):
            task.cancel()

    async def _clean_up(self) -> None:
        await self._stop(STOP_SECONDS)
        for turn in self._turns.values():
            async with turn:
                pass
        workers = [worker.address for worker in self._membership.workers()]
        await asyncio.gather(*(self._tell([address], "release", epoch=self._epoch) for address in workers))


def _carry(payload: bytes) -> bytes:
    """Hold a large program in the cluster, so that it travels to each worker once."""
    return payload
