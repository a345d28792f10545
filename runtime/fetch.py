"""Fetch: read segments of blocks, from this node by memory map, from others over Dask's comms.

A task's remote segments are fetched together: one conversation a node, all nodes at once within
bounds, in messages of bounded size. They land in one region, of memory or, if they are many, of a
file; the tables made of them point into it. Streams come in the order they are asked for, whatever
arrives first.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from distributed.comm import CommClosedError
from distributed.core import ConnectionPool, send_recv

from .blocks import map_range, read_segment
from .node_store import NodeStore
from .region import Frames, Region, RegionOptions
from .scratch_file import Space
from .task import CancelledTask, FetchFailedError, Segment

_POLL_SECONDS = 0.1
#: bytes of a message that even a task with little memory asks for
_LEAST_MESSAGE = 1 << 20


@dataclass(frozen=True)
class FetchOptions:
    """How patient and how greedy a fetch is.

    Attributes:
        connect_seconds: to reach a worker.
        reply_seconds: to get one message of a worker that was reached.
        message_bytes: most bytes of rows in a message; less if the task's memory is small.
        nodes_at_once: with how many nodes to talk at the same time.
    """

    connect_seconds: float = 2.0
    reply_seconds: float = 30.0
    message_bytes: int = 16 << 20
    nodes_at_once: int = 4


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
        self.roots, self.rpc, self.loop, self.space = roots, rpc, loop, space
        self.options = options or FetchOptions()

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
    ) -> Inputs:
        """Begin to fetch segments. Call from a thread that isn't the event loop's.

        Args:
            segments: all that will be read; may repeat. Asked for sooner comes sooner.
            nodes: node id to the addresses of living workers of the node.
            memory_bytes: remote bytes to hold in memory; more go to a file.
            spill_folder: where that file lies; None is the system's temporary folder.
            cancelled: stops waiting when it is set.
            quota_bytes: of the scratch folder; None is the store's own.

        Returns:
            The inputs, to be used in a ``with``.

        Raises:
            FetchFailedError: a block of this node is gone.
            DiskFullError: the file doesn't fit.
        """
        region = RegionOptions(memory_bytes, spill_folder, self.space, quota_bytes)
        return Inputs(self, segments, nodes, region, cancelled or threading.Event())


class Inputs:
    """Segments on their way in.

    Attributes:
        local_bytes, remote_bytes: bytes of the distinct segments that are here, or came from elsewhere.
        spilled_bytes: the part of the remote ones that was put on disk.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        segments: Iterable[Segment],
        nodes: Mapping[str, tuple[str, ...]],
        region: RegionOptions,
        cancelled: threading.Event,
    ):
        self._fetcher, self._cancelled = fetcher, cancelled
        distinct = [segment for segment in dict.fromkeys(segments) if segment.length]
        local = [segment for segment in distinct if segment.node in fetcher.roots]
        remote = [segment for segment in distinct if segment.node not in fetcher.roots]
        self.local_bytes = sum(segment.length for segment in local)
        self.remote_bytes = sum(segment.length for segment in remote)
        lost = list(self._not_here(local))
        unreachable = {s.node for s in remote if fetcher.rpc is None or not nodes.get(s.node)}
        lost += [segment for segment in remote if segment.node in unreachable]
        if lost:
            raise _fetch_failed(lost, unreachable)
        self._transfer = None
        self._region = None
        if remote:
            self._region = Region(remote, region)
            self._transfer = _Transfer(fetcher, self._region, remote, nodes)
        self.spilled_bytes = self._region.file_bytes if self._region else 0

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what is under way. Tables that were read stay valid."""
        if self._transfer:
            self._transfer.stop()
        if self._region:
            self._region.release()

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
                raise _fetch_failed([segment]) from error

    def _buffer(self, segment: Segment) -> pa.Buffer:
        if segment.node not in self._fetcher.roots:
            assert self._transfer is not None
            assert self._region is not None
            self._transfer.wait(segment, self._cancelled)
            return self._region.buffer(segment)
        try:
            return map_range(self._path(segment), segment.offset, segment.length)
        except (OSError, EOFError) as error:
            raise _fetch_failed([segment]) from error

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


@dataclass(frozen=True)
class _Piece:
    """A part of a segment that fits into a message; ``at`` counts from the segment's start."""

    segment: Segment
    at: int
    length: int

    @property
    def range(self) -> tuple[str, int, int]:
        return self.segment.path, self.segment.offset + self.at, self.length


class _Transfer:
    """The conversations with all nodes that one task fetches from; runs in the event loop."""

    def __init__(
        self,
        fetcher: Fetcher,
        region: Region,
        segments: Sequence[Segment],
        nodes: Mapping[str, tuple[str, ...]],
    ):
        assert fetcher.rpc is not None
        assert fetcher.loop is not None
        self._rpc, self._options, self._region = fetcher.rpc, fetcher.options, region
        share = region.memory_bytes // (2 * self._options.nodes_at_once)
        self._message_bytes = min(self._options.message_bytes, max(_LEAST_MESSAGE, share))
        self._arrived = threading.Condition()
        self._missing = {segment: segment.length for segment in segments}
        self._ended = False
        self._lost: dict[Segment, None] = {}
        self._unreachable: set[str] = set()
        #: why workers didn't answer; and what else went wrong, which nothing should
        self._causes: list[BaseException] = []
        self._broken: BaseException | None = None
        by_node: dict[str, list[Segment]] = {}
        for segment in segments:
            by_node.setdefault(segment.node, []).append(segment)
        self._future = asyncio.run_coroutine_threadsafe(self._run(by_node, nodes), fetcher.loop)

    def wait(self, segment: Segment, cancelled: threading.Event) -> None:
        """Return when a segment is in its place, or raise why it will not be."""
        with self._arrived:
            while self._missing[segment]:
                if cancelled.is_set():
                    raise CancelledTask("cancelled while fetching")
                if self._ended:
                    self._raise()
                self._arrived.wait(_POLL_SECONDS)

    def stop(self) -> None:
        self._future.cancel()

    def _raise(self) -> None:
        if self._lost:
            cause = self._causes[-1] if self._causes else None
            raise _fetch_failed(self._lost, self._unreachable) from cause
        if self._broken is not None:
            raise self._broken
        raise CancelledTask("the fetch was stopped")

    async def _run(self, by_node: dict[str, list[Segment]], nodes: Mapping[str, tuple[str, ...]]) -> None:
        slots = asyncio.Semaphore(self._options.nodes_at_once)

        async def converse(node: str, segments: list[Segment]) -> None:
            async with slots:
                await self._converse(node, segments, list(nodes[node]))

        try:
            await asyncio.gather(*(converse(node, segments) for node, segments in by_node.items()))
        except Exception as error:
            self._broken = error
        finally:
            with self._arrived:
                self._ended = True
                self._arrived.notify_all()

    async def _converse(self, node: str, segments: list[Segment], addresses: list[str]) -> None:
        """Fetch all of one node's segments; with the first message, ask whether all files are there.

        After a loss anywhere only that question is asked, so that the error is complete and soon.
        """
        loop, landing = asyncio.get_running_loop(), None  # one message is put in place while the next comes
        messages = list(_messages(segments, self._message_bytes))
        check = sorted({segment.path for segment in segments})
        for number, pieces in enumerate(messages):
            if self._lost and number:
                return
            wanted = [] if self._lost else [piece.range for piece in pieces]
            reply = await self._ask(addresses, ranges=wanted, check=[] if number else check)
            if reply is None:
                self._lose(segments)
                self._unreachable.add(node)
                return
            if gone := set(reply["missing"]):
                self._lose(segment for segment in segments if segment.path in gone)
                return
            if landing is not None:
                await landing
            if wanted:
                landing = loop.run_in_executor(None, self._land, pieces, reply["frames"])
        if landing is not None:
            await landing

    async def _ask(self, addresses: list[str], **request: Any) -> dict[str, Any] | None:
        """Ask the node's workers in turn, forgetting those that fail; None if no one answers."""
        while addresses:
            for _ in range(2):
                try:
                    return await self._call(addresses[0], **request)
                except CommClosedError as error:  # an old connection may be dead though the worker lives
                    self._causes.append(error)
                except Exception as error:
                    self._causes.append(error)
                    break
            addresses.pop(0)
        return None

    async def _call(self, address: str, **request: Any) -> dict[str, Any]:
        connect = self._rpc.connect(address, timeout=self._options.connect_seconds)
        comm = await asyncio.wait_for(connect, self._options.connect_seconds * 2)
        try:
            call = send_recv(comm, op="headwater_fetch", **request)
            return await asyncio.wait_for(call, self._options.reply_seconds)
        except BaseException:
            comm.abort()
            raise
        finally:
            self._rpc.reuse(address, comm)

    def _land(self, pieces: list[_Piece], frames: Sequence[Any]) -> None:
        """Copy a reply, which is the asked ranges one after the other, to where the rows belong."""
        reply = Frames(frames)
        for piece in pieces:
            at = piece.at
            for data in reply.take(piece.length):
                self._region.write(piece.segment, at, data)
                at += len(data)
        with self._arrived:
            for piece in pieces:
                self._missing[piece.segment] -= piece.length
            self._arrived.notify_all()

    def _lose(self, segments: Iterable[Segment]) -> None:
        self._lost.update((segment, None) for segment in segments if self._missing[segment])


def _messages(segments: Sequence[Segment], message_bytes: int) -> Iterator[list[_Piece]]:
    """Divide segments into messages of at most so many bytes, in order."""
    pieces: list[_Piece] = []
    room = message_bytes
    for segment in segments:
        at = 0
        while at < segment.length:
            length = min(room, segment.length - at)
            pieces.append(_Piece(segment, at, length))
            at, room = at + length, room - length
            if not room:
                yield pieces
                pieces, room = [], message_bytes
    if pieces:
        yield pieces


def _fetch_failed(segments: Iterable[Segment], nodes: Iterable[str] = ()) -> FetchFailedError:
    lost = sorted({(segment.stage, segment.partition, segment.attempt) for segment in segments})
    return FetchFailedError(tuple(lost), tuple(sorted(nodes)))
