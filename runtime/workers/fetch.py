"""Fetch: read segments of blocks, from this node by memory map, from others over Dask's comms.

A task's remote segments are fetched together: one conversation a node, all nodes at once within
bounds, in messages of bounded size. They land in one region, of memory or, if they are many, of a
file; the tables made of them point into it. Streams come in the order they are asked for, whatever
arrives first. What is lost on the way can be fetched from new places, in another round; what has arrived stays.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from distributed.core import ConnectionPool

from ..nodes.blocks import map_range, read_segment
from ..nodes.node_store import NodeStore
from ..nodes.scratch_file import Space
from ..task import CancelledTask, Segment
from .peers import FetchOptions, Peers
from .region import Region, RegionOptions
from .transfer import Transfer, fetch_failed

#: takes segments that are lost; waits until the driver has told where they are now. Gives the new segments, and
#: the addresses of living workers of their nodes
Relocate = Callable[[Sequence[Segment]], tuple[Mapping[Segment, Segment], Mapping[str, Sequence[str]]]]

#: how often one place is tried before it is given up, and how long to wait before it is tried again
_MOST_TRIES = 4
_AGAIN_SECONDS = 0.2

_NOTHING = pa.py_buffer(b"")


class Fetcher:
    """Opens inputs for tasks.

    Args:
        roots: node id to scratch folder, of the nodes whose files can be read from here.
        rpc: Dask's connection pool; None if there are no other nodes.
        loop: the event loop that the pool lives in.
        space: where to count what has to be put on disk.
        options: see `FetchOptions`.
    """

    def __init__(
        self,
        roots: Mapping[str, Path],
        rpc: ConnectionPool | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        space: Space | None = None,
        options: FetchOptions | None = None,
    ):
        self.roots, self.space, self.options = roots, space, options or FetchOptions()
        self._peers: Peers | None = None
        if rpc is not None:
            assert loop is not None
            self.attach(rpc, loop)
        self._transfers: weakref.WeakSet[Transfer] = weakref.WeakSet()
        self._lock = threading.Lock()

    def attach(self, rpc: ConnectionPool, loop: asyncio.AbstractEventLoop) -> None:
        """From now on, reach other nodes by this connection pool; what is under way keeps its own."""
        self._peers = Peers(rpc, loop, self.options)

    @classmethod
    def local(cls, store: NodeStore) -> Fetcher:
        """A fetcher for a node that stands alone."""
        return cls({store.node: store.root}, space=store.space)

    def open(
        self,
        segments: Iterable[Segment],
        nodes: Mapping[str, tuple[str, ...]],
        memory_bytes: int = 64 << 20,
        spill_folder: Path | None = None,
        cancelled: threading.Event | None = None,
        quota_bytes: int | None = None,
        relocate: Relocate | None = None,
    ) -> Inputs:
        """Begin to fetch segments. Call from a thread that isn't the event loop's.

        Args:
            segments: all that will be read; may repeat. Asked for sooner comes sooner.
            nodes: node id to the addresses of living workers of the node.
            memory_bytes: remote bytes to hold in memory; more go to a file.
            spill_folder: where that file lies; None is the system's temporary folder.
            cancelled: stops waiting when it is set.
            quota_bytes: of the scratch folder; None is the store's own.
            relocate: called by the reading thread, when it comes to a lost segment, with all that are known to be
                lost, that one first. It waits, and gives where they are now; those it leaves out are asked for
                again. None: a loss is an error.

        Returns:
            The inputs, to be used in a ``with``.

        Raises:
            FetchFailedError: a block of this node is gone, or a node has no workers, and there is no ``relocate``.
            DiskFullError: the file doesn't fit.
        """
        region = RegionOptions(memory_bytes, spill_folder, self.space, quota_bytes)
        return Inputs(self, segments, nodes, region, cancelled or threading.Event(), relocate)

    def abandon(self, nodes: Mapping[str, Sequence[str]] | Sequence[str]) -> None:
        """Wait for these nodes no longer. Call in the event loop.

        Args:
            nodes: ids of dead nodes; as a mapping, with the addresses of the workers they had. Then a transfer
                that asks newer workers of the node goes on.
        """
        if self._peers is None:
            return
        with self._lock:
            transfers = list(self._transfers)
        for node in nodes:
            known = list(nodes[node]) if isinstance(nodes, Mapping) else []
            asked = [address for transfer in transfers for address in transfer.abandon(node, known)]
            self._peers.bury([*known, *asked])

    def transfer(
        self, segments: Sequence[Segment], nodes: Mapping[str, tuple[str, ...]], region: Region, go_on: bool
    ) -> Transfer:
        """Begin a round."""
        assert self._peers is not None
        transfer = Transfer(self._peers, region, segments, nodes, go_on)
        with self._lock:
            self._transfers.add(transfer)  # before it starts, so that no death is missed
        transfer.start()
        return transfer

    def reaches(self, node: str, nodes: Mapping[str, tuple[str, ...]]) -> bool:
        """Whether there is somebody to ask for a node's blocks."""
        return self._peers is not None and bool(nodes.get(node))

    def revive(self, nodes: Mapping[str, Sequence[str]]) -> None:
        """The driver has just named these nodes' living workers."""
        if self._peers is not None:
            living = [address for addresses in nodes.values() for address in addresses]
            self._peers.loop.call_soon_threadsafe(self._peers.revive, living)


class Inputs:
    """Segments on their way in. Used by one thread.

    A segment is asked for by the place it had when the inputs were opened, wherever it is now.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        segments: Iterable[Segment],
        nodes: Mapping[str, tuple[str, ...]],
        region: RegionOptions,
        cancelled: threading.Event,
        relocate: Relocate | None = None,
    ):
        self._fetcher, self._nodes, self._region = fetcher, dict(nodes), region
        self._cancelled, self._relocate = cancelled, relocate
        #: what is asked for, to where it is as far as is known
        self._places = {segment: segment for segment in segments if segment.length}
        self._transfers: list[Transfer] = []
        #: by place: the round that brings it
        self._rounds: dict[Segment, Transfer] = {}
        #: places, of this node or of nodes without workers, that don't exist
        self._lost: set[Segment] = set()
        self._tries: Counter[Segment] = Counter()
        self._fetch(self._places)

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def local_bytes(self) -> int:
        """Bytes of the distinct segments that are on this node, or are now."""
        return sum(place.length for place in self._places.values() if self._is_local(place))

    @property
    def remote_bytes(self) -> int:
        """Bytes of the distinct segments that come from other nodes."""
        return sum(place.length for place in self._places.values() if not self._is_local(place))

    @property
    def spilled_bytes(self) -> int:
        """Remote bytes, of all rounds so far, that were put on disk."""
        return sum(transfer.spilled_bytes for transfer in self._transfers)

    def close(self) -> None:
        """Stop what is under way. Tables that were read stay valid."""
        for transfer in self._transfers:
            transfer.close()

    def tables(self, segments: Sequence[Segment], schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows of segments, in the order given, a table for each record batch.

        Raises:
            FetchFailedError: some can't be had; it names all that are known to be lost.
            CancelledTask: the task was cancelled while waiting.
        """
        for segment in segments:
            if not segment.length:
                continue
            buffer = self._buffer(segment)
            try:
                yield from read_segment(buffer, schema)
            except (
                pa.ArrowInvalid,
                EOFError,
                OSError,
            ) as error:  # as a power failure leaves it
                raise fetch_failed([self._places[segment]]) from error

    def _buffer(self, segment: Segment) -> pa.Buffer:
        """Wait for a segment, through as many rounds as it takes."""
        self._places.setdefault(segment, segment)
        while True:
            place = self._places[segment]
            buffer = self._bring(place)
            if buffer is not None:
                return buffer
            self._ask_again(place)

    def _bring(self, place: Segment) -> pa.Buffer | None:
        """Get the bytes of a place; None if they are lost, and there is somebody to ask about it."""
        if not place.length:
            return _NOTHING
        if place in self._lost:
            return None
        if not self._is_local(place):
            return self._rounds[place].wait(place, self._cancelled)
        try:
            return map_range(self._path(place), place.offset, place.length)
        except (OSError, EOFError) as error:
            if self._relocate is None:
                raise fetch_failed([place]) from error
            self._lost.add(place)
            return None

    def _ask_again(self, needed: Segment) -> None:
        """Learn where lost segments are now, and fetch them from there."""
        assert self._relocate is not None
        lost = [needed, *(p for p in self._places.values() if p != needed and self._is_lost(p))]
        told, nodes = self._relocate(lost)
        if self._cancelled.is_set():
            raise CancelledTask("cancelled while fetching")
        self._nodes.update({node: tuple(addresses) for node, addresses in nodes.items()})
        self._fetcher.revive(nodes)
        moved = {old: told[old] for old in lost if old in told}
        self._tries.update(moved.values())
        tries = max((self._tries[place] for place in moved.values()), default=2)
        if tries > _MOST_TRIES:
            raise fetch_failed(moved.values())
        if tries > 1:
            self._cancelled.wait(_AGAIN_SECONDS * (tries - 1))
        self._lost.difference_update(moved)
        for segment, place in self._places.items():
            self._places[segment] = moved.get(place, place)
        self._fetch(dict.fromkeys(moved.values()))

    def _fetch(self, places: Iterable[Segment]) -> None:
        """Begin a round for the remote ones of these, and look for the local ones."""
        wanted = [place for place in places if place.length]
        remote = [place for place in wanted if not self._is_local(place)]
        lost = list(self._not_here([place for place in wanted if self._is_local(place)]))
        unreachable = {p.node for p in remote if not self._fetcher.reaches(p.node, self._nodes)}
        lost += [place for place in remote if place.node in unreachable]
        if lost and self._relocate is None:
            raise fetch_failed(lost, unreachable)
        self._lost.update(lost)
        remote = [place for place in remote if place.node not in unreachable]
        if remote:
            held = sum(transfer.held_bytes for transfer in self._transfers)
            room = max(0, self._region.memory_bytes - held)
            region = Region(remote, replace(self._region, memory_bytes=room))
            transfer = self._fetcher.transfer(remote, self._nodes, region, self._relocate is not None)
            self._transfers.append(transfer)
            self._rounds.update((place, transfer) for place in remote)

    def _is_lost(self, place: Segment) -> bool:
        transfer = self._rounds.get(place)
        return place in self._lost or (transfer is not None and transfer.has_lost(place))

    def _is_local(self, place: Segment) -> bool:
        return place.node in self._fetcher.roots

    def _not_here(self, local: Sequence[Segment]) -> Iterator[Segment]:
        sizes: dict[str, int] = {}
        for segment in local:
            path = self._path(segment)
            if path not in sizes:
                try:
                    sizes[path] = os.stat(path).st_size
                except OSError:
                    sizes[path] = -1
            if sizes[path] < segment.offset + segment.length:
                yield segment

    def _path(self, segment: Segment) -> str:
        return f"{self._fetcher.roots[segment.node]}/{segment.path}"
