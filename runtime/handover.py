"""Handover: a worker that leaves says so and, if it is the last of its node, gives the blocks there to other nodes.

What it tells, as Dask events (``Client.subscribe_topic``):

    headwater-workers   {"kind": "draining", "worker": address}
    headwater-RUN       {"kind": "blocks moved", "source": node, "target": node,
                         "parts": [[stage, partition, attempt], ...]}
    headwater-workers   {"kind": "left", "worker": address}
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from distributed import Worker
from distributed.core import send_recv

from .node_store import NodeStore, StoredBlock

WORKERS_TOPIC = "headwater-workers"
#: seconds for a worker that Dask retires: its process may be killed soon
RETIRE_SECONDS = 20.0
#: seconds to reach a process, and for its answer to a question; an answer to a copy comes with the bytes
_CONNECT_SECONDS = 2.0
_ANSWER_SECONDS = 3.0
_COPY_SECONDS = 120.0
#: a target is asked for at most this much at once, so that each success is told soon
_BATCH_BYTES = 256 << 20
_BATCH_FILES = 64
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


def share_out(
    blocks: Iterable[StoredBlock], room: Mapping[str, int]
) -> tuple[dict[str, list[StoredBlock]], list[StoredBlock]]:
    """Decide which node gets which block: large ones first, each to the node that has got least so far.

    Args:
        blocks: to be shared out.
        room: node id to the bytes it can take.

    Returns:
        Node id to its blocks; and those that fit nowhere.

    Example:
        >>> blocks = [StoredBlock(0, p, 0, f"b{p}", size) for p, size in enumerate((5, 3, 2, 9))]
        >>> shares, rest = share_out(blocks, {"n1": 6, "n2": 8})
        >>> {node: [block.path for block in share] for node, share in shares.items()}
        {'n1': ['b0'], 'n2': ['b1', 'b2']}
        >>> [block.path for block in rest]
        ['b3']
    """
    given = dict.fromkeys(sorted(room), 0)
    shares: dict[str, list[StoredBlock]] = {node: [] for node in given}
    rest = []
    for block in sorted(blocks, key=lambda block: (-block.bytes, block.path)):
        fitting = [node for node in given if given[node] + block.bytes <= room[node]]
        if not fitting:
            rest.append(block)
            continue
        node = min(fitting, key=lambda node: (given[node], node))
        given[node] += block.bytes
        shares[node].append(block)
    return shares, rest


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

    Each batch that arrived is told at once on the topic of its run. The files stay here, too.

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
    waiting = await asyncio.to_thread(lambda: [b for run in store.runs() for b in store.blocks(run)])
    addresses: dict[str, list[str]] = {}
    room: dict[str, int] = {}
    for other in others:
        if not other.draining:
            addresses.setdefault(other.node, []).append(other.address)
            room[other.node] = other.room_bytes
    while waiting and room:
        shares, rest = share_out(waiting, room)
        gifts = [
            _Gift(worker, store, node, addresses[node], share, result)
            for node, share in shares.items()
            if share
        ]
        if not gifts:
            break
        await asyncio.gather(*(gift.give() for gift in gifts))
        waiting = [*rest, *(block for gift in gifts for block in gift.refused)]
        for gift in gifts:
            if gift.refused:  # the others get what it couldn't take
                del room[gift.node]
            else:
                room[gift.node] -= sum(block.bytes for block in gift.blocks)
        if not any(gift.refused for gift in gifts):
            break  # the rest fits nowhere
    result.left_behind = [block.path for block in waiting]
    return result


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
    blocks: Sequence[StoredBlock]
    result: Handover
    refused: list[StoredBlock] = field(default_factory=list)

    async def give(self) -> None:
        for number, batch in enumerate(_batches(self.blocks)):
            arrived = await self._offer(batch, number)
            taken = [block for block in batch if block.path in arrived]
            self.refused += [block for block in batch if block.path not in arrived]
            self.result.moved += len(taken)
            self.result.moved_bytes += sum(block.bytes for block in taken)
            await self._tell(taken)

    async def _offer(self, batch: Sequence[StoredBlock], number: int) -> set[str]:
        """Offer a batch to the node's workers in turn; returns the paths that it has now."""
        for turn in range(len(self.addresses)):
            address = self.addresses[(number + turn) % len(self.addresses)]
            with suppress(OSError, TimeoutError):
                return await _replicate(self.worker, address, self.store.node, batch)
        return set()

    async def _tell(self, blocks: Sequence[StoredBlock]) -> None:
        runs: dict[str, list[list[int]]] = {}
        for block in blocks:
            runs.setdefault(block.path.split("/")[1], []).append(
                [block.stage, block.partition, block.attempt]
            )
        for run, parts in runs.items():
            message = {
                "kind": "blocks moved",
                "source": self.store.node,
                "target": self.node,
                "parts": parts,
            }
            await _log(self.worker, f"headwater-{run}", message)


async def _replicate(worker: Worker, target: str, node: str, blocks: Sequence[StoredBlock]) -> set[str]:
    """Have a worker copy blocks of this node to its own; returns the paths of those it has now."""
    reply = await _call(
        worker,
        target,
        "headwater_replicate",
        _COPY_SECONDS,
        source=worker.address,
        files=[(block.path, block.bytes) for block in blocks],
    )
    return set(reply["paths"])


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


def _batches(blocks: Sequence[StoredBlock]) -> Iterator[list[StoredBlock]]:
    batch: list[StoredBlock] = []
    size = 0
    for block in blocks:
        if batch and (size + block.bytes > _BATCH_BYTES or len(batch) == _BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(block)
        size += block.bytes
    if batch:
        yield batch
