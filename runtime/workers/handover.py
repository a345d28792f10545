"""Handover: a worker that leaves says so and, if it is the last of its node, gives the blocks there to other nodes.

What it tells, as Dask events (``Client.subscribe_topic``):

    headwater-workers   {"kind": "draining", "worker": address}
    headwater-runs      {"kind": "blocks moved", "run": run, "source": node, "target": node,
                         "parts": [[stage, partition, attempt], ...]}
    headwater-workers   {"kind": "kept moved", "source": node, "target": node, "paths": ["kept/KEY/p0.arrow", ...]}
    headwater-workers   {"kind": "left", "worker": address}
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from distributed import Worker
from distributed.core import send_recv

from ..nodes.node_store import NodeStore
from .parcels import Parcel, batches, collect, owner_record, pins, share_out, users

WORKERS_TOPIC = "headwater-workers"
#: what workers say of runs. One topic for all runs, as neither Dask's client nor its scheduler forgets a topic
RUNS_TOPIC = "headwater-runs"
#: seconds for a worker that Dask retires: its process may be killed soon
RETIRE_SECONDS = 20.0
#: seconds to reach a process, and for its answer to a question; an answer to a copy comes with the bytes
_CONNECT_SECONDS = 2.0
_ANSWER_SECONDS = 3.0
_COPY_SECONDS = 120.0
_LOCK_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Neighbour:
    """Another worker, as it tells of itself.

    Attributes:
        address, node: its own.
        room_bytes: what its node's scratch folder can still take.
        draining: it is about to leave, too.
    """

    address: str
    node: str
    room_bytes: int
    draining: bool


@dataclass
class Handover:
    """What became of a node's blocks.

    Attributes:
        last: whether the worker was the last of its node; if not, the blocks stay where they are.
        moved: blocks that other nodes have now.
        moved_bytes: the bytes of their files.
        left_behind: blocks that no other node could take.
    """

    last: bool = True
    moved: int = 0
    moved_bytes: int = 0
    left_behind: list[str] = field(default_factory=list)


def room_bytes(store: NodeStore) -> int:
    """Return how many bytes a scratch folder can still take: what is left of its quota, and of its disk."""
    free = shutil.disk_usage(store.root).free
    quota = store.space.quota_bytes
    return free if quota is None else max(0, min(free, quota - store.space.used_bytes()))


async def announce(worker: Worker, kind: str) -> None:
    """Tell all drivers that a worker is ``draining``, or has ``left``; silent if the scheduler is gone."""
    await _log(worker, WORKERS_TOPIC, {"kind": kind, "worker": worker.address})


@asynccontextmanager
async def one_at_a_time(store: NodeStore) -> AsyncIterator[None]:
    """Let the workers of a node leave one after the other, so that exactly one of them is the last.

    Stay inside until the scheduler has forgotten the worker.
    """
    descriptor = os.open(store.root / "leaving.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


async def hand_over(worker: Worker, store: NodeStore) -> Handover:
    """Give the blocks of a worker's node to other nodes, unless other workers of the node live.

    What arrived is told at once. The files stay here, too.

    Args:
        worker: that leaves; it must still answer fetches.
        store: its node's.

    Returns:
        What was moved.

    Raises:
        OSError: the scheduler doesn't answer.
    """
    others = await neighbours(worker)
    if any(other.node == store.node for other in others):
        return Handover(last=False)
    result = Handover()
    targets = _Targets([other for other in others if not other.draining])
    for group in await asyncio.to_thread(collect, store):
        waiting = group
        while waiting:
            shares, rest = share_out(waiting, targets.room)
            gifts = [
                _Gift(worker, store, node, targets.addresses[node], share, result)
                for node, share in shares.items()
            ]
            await asyncio.gather(*(gift.give() for gift in gifts))
            for gift in gifts:
                targets.gave(gift.node, gift.parcels, refused=bool(gift.refused))
            waiting = [parcel for gift in gifts for parcel in gift.refused]  # the other nodes may take it
            result.left_behind += [parcel.path for parcel in rest]
    return result


class _Targets:
    """The nodes that can take something."""

    def __init__(self, workers: Sequence[Neighbour]):
        self.addresses: dict[str, list[str]] = {}
        self.room: dict[str, int] = {}
        for worker in workers:
            self.addresses.setdefault(worker.node, []).append(worker.address)
            self.room[worker.node] = worker.room_bytes

    def gave(self, node: str, parcels: Sequence[Parcel], refused: bool) -> None:
        """Count what a node was given; one that refused something gets no more."""
        self.room[node] -= sum(parcel.bytes for parcel in parcels)
        if refused:
            del self.room[node]


async def leave(worker: Worker, store: NodeStore, seconds: float = RETIRE_SECONDS) -> None:
    """What a worker does that Dask retires: hand over what it can in time, and say that it has left.

    Dask's scheduler has forgotten the worker by now, or does so without waiting.
    """
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds), one_at_a_time(store):
            await hand_over(worker, store)
    await announce(worker, "left")


def watch_retirement(worker: Worker, tell: Callable[[bool], None]) -> None:
    """Call ``tell`` when Dask's scheduler begins to retire a worker (True), or thinks better of it (False)."""
    known = worker.stream_handlers["worker-status-change"]

    def changed(status: str, **rest: Any) -> Any:
        tell(status == "closing_gracefully")
        return known(status=status, **rest)

    worker.stream_handlers["worker-status-change"] = changed


async def neighbours(worker: Worker) -> list[Neighbour]:
    """Ask the other workers of the cluster who they are; those that don't answer are left out.

    Raises:
        OSError: the scheduler doesn't answer.
    """
    identity = await asyncio.wait_for(worker.scheduler.identity(n_workers=-1), _ANSWER_SECONDS)
    others = [address for address in identity["workers"] if address != worker.address]
    answers = await asyncio.gather(*(_who(worker, address) for address in others))
    return [answer for answer in answers if answer is not None]


@dataclass
class _Gift:
    """One node's share on its way; ``refused`` is what it didn't take."""

    worker: Worker
    store: NodeStore
    node: str
    addresses: list[str]
    parcels: Sequence[Parcel]
    result: Handover
    refused: list[Parcel] = field(default_factory=list)

    async def give(self) -> None:
        await self._pin({parcel.key for parcel in self.parcels if parcel.key and not parcel.run})
        for batch in batches(self.parcels):
            reply = await self._ask(
                "replicate",
                files=[(parcel.path, parcel.bytes) for parcel in batch],
                source=self.worker.address,
                owner=owner_record(self.store, batch[0].run) if batch[0].run else None,
            )
            arrived = set(reply["paths"]) if reply else set()
            taken = [parcel for parcel in batch if parcel.path in arrived]
            self.refused += [parcel for parcel in batch if parcel.path not in arrived]
            self.result.moved += len(taken)
            self.result.moved_bytes += sum(parcel.bytes for parcel in taken)
            await self._tell(taken)
            await self._keep([parcel for parcel in taken if parcel.key])

    async def _keep(self, parcels: Sequence[Parcel]) -> None:
        """Have what arrived kept for whoever wants it kept here."""
        keys = {parcel.key for parcel in parcels}
        if of_runs := [parcel for parcel in parcels if parcel.run]:
            await self._ask("keep", paths=[parcel.path for parcel in of_runs])
            await self._pin({parcel.key for parcel in of_runs})
        for run in sorted({run for key in keys for run in users(self.store, key)}):
            read = [key for key in sorted(keys) if run in users(self.store, key)]
            await self._ask("use", run=run, keys=read, owner=owner_record(self.store, run))

    async def _pin(self, keys: set[str]) -> None:
        """Pin what is pinned here; before it comes, so that it isn't given up at once."""
        for key in sorted(keys):
            for owner in pins(self.store, key):
                await self._ask("pin", keys=[key], owner=owner)

    async def _ask(self, operation: str, **request: Any) -> Any:
        """Ask the node's workers in turn; None if no one does it."""
        for address in list(self.addresses):
            try:
                return await _call(self.worker, address, f"headwater_{operation}", _COPY_SECONDS, **request)
            except Exception:  # dead, hung, or of another version
                self.addresses.remove(address)
        return None

    async def _tell(self, parcels: Sequence[Parcel]) -> None:
        """Tell the driver of the run; kept blocks are told to all drivers."""
        message: dict[str, Any] = {"source": self.store.node, "target": self.node}
        if parts := [parcel.part for parcel in parcels if parcel.part]:
            await _log(
                self.worker,
                RUNS_TOPIC,
                {"kind": "blocks moved", "run": parcels[0].run, **message, "parts": parts},
            )
        elif parcels:
            paths = [parcel.path for parcel in parcels]
            await _log(self.worker, WORKERS_TOPIC, {"kind": "kept moved", **message, "paths": paths})


async def _who(worker: Worker, address: str) -> Neighbour | None:
    try:
        info = await _call(worker, address, "headwater_info", _ANSWER_SECONDS)
    except Exception:  # dead, hung, or without the plugin
        return None
    return Neighbour(address, info["node"], info["room_bytes"], info["draining"])


async def _call(worker: Worker, address: str, operation: str, seconds: float, **request: Any) -> Any:
    connect = worker.rpc.connect(address, timeout=_CONNECT_SECONDS)
    comm = await asyncio.wait_for(connect, 2 * _CONNECT_SECONDS)
    try:
        return await asyncio.wait_for(send_recv(comm, op=operation, **request), seconds)
    except BaseException:
        comm.abort()
        raise
    finally:
        worker.rpc.reuse(address, comm)


async def _log(worker: Worker, topic: str, message: dict[str, Any]) -> None:
    """Log an event by a call, as the stream of a worker that is retired has ended already."""
    with suppress(OSError, TimeoutError):
        await asyncio.wait_for(worker.scheduler.log_event(topic=topic, msg=message), _ANSWER_SECONDS)
