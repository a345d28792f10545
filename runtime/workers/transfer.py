"""Transfer: one round of fetching; the conversations with all nodes that a set of segments comes from."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..task import CancelledTask, FetchFailedError, Segment
from .peers import Peers
from .region import Frames, Region

_POLL_SECONDS = 0.1
#: bytes of a message that even a task with little memory asks for
_LEAST_MESSAGE = 1 << 20


@dataclass(frozen=True)
class _Piece:
    """A part of a segment that fits into a message; ``at`` counts from the segment's start."""

    segment: Segment
    at: int
    length: int

    @property
    def range(self) -> tuple[str, int, int]:
        return self.segment.path, self.segment.offset + self.at, self.length


class Transfer:
    """Segments of other nodes on their way into a region.

    The conversations run in the event loop of the peers. `abandon` is called there, the rest by the task's
    thread.

    Args:
        peers: who is asked.
        region: has a place for each segment.
        segments: what to fetch. Those asked for sooner come sooner.
        nodes: node id to the addresses of its workers; at least one for each node of the segments.
        go_on: whether the rest is still wanted when some segments are lost. If not, a loss ends the transfer, once
            all nodes have told whether they have their files.
    """

    def __init__(
        self,
        peers: Peers,
        region: Region,
        segments: Sequence[Segment],
        nodes: Mapping[str, tuple[str, ...]],
        go_on: bool = False,
    ):
        self._peers, self._region, self._go_on = peers, region, go_on
        options = peers.options
        share = region.memory_bytes // (2 * options.nodes_at_once)
        self._message_bytes = min(options.message_bytes, max(_LEAST_MESSAGE, share))
        self._arrived = threading.Condition()
        self._missing = {segment: segment.length for segment in segments}
        self._ended = False
        self._lost: dict[Segment, None] = {}
        self._unreachable: set[str] = set()
        #: why workers didn't answer; and what else went wrong, which nothing should
        self._causes: list[BaseException] = []
        self._broken: BaseException | None = None
        self._by_node: dict[str, list[Segment]] = {}
        for segment in segments:
            self._by_node.setdefault(segment.node, []).append(segment)
        self._addresses = {node: tuple(nodes[node]) for node in self._by_node}
        self._conversations: dict[str, asyncio.Task[None]] = {}
        self._future: concurrent.futures.Future[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._future = asyncio.run_coroutine_threadsafe(self._run(), self._peers.loop)

    @property
    def spilled_bytes(self) -> int:
        """The part of the region that lies on disk."""
        return self._region.file_bytes

    @property
    def held_bytes(self) -> int:
        """The part of the region that lies in memory."""
        return self._region.held_bytes

    def wait(self, segment: Segment, cancelled: threading.Event) -> pa.Buffer | None:
        """Return a segment's bytes when they are here; None if they are lost and the transfer goes on.

        Raises:
            FetchFailedError: segments are lost, and the transfer doesn't go on; it names all that are.
            CancelledTask: the flag was set, or the transfer was stopped.
        """
        with self._arrived:
            while self._missing[segment]:
                if cancelled.is_set():
                    raise CancelledTask("cancelled while fetching")
                if self._go_on and segment in self._lost:
                    return None
                if self._ended or self._broken is not None:
                    self._raise()
                self._arrived.wait(_POLL_SECONDS)
        return self._region.buffer(segment)

    def has_lost(self, segment: Segment) -> bool:
        """Whether a segment can't be had any more, as far as is known."""
        with self._arrived:
            return segment in self._lost and self._missing[segment] > 0

    def close(self) -> None:
        """Stop what is under way, and give the room back. Tables that were read stay valid."""
        if self._future is not None:
            self._future.cancel()
        self._region.release()

    def abandon(self, node: str, addresses: Collection[str] = ()) -> Sequence[str]:
        """Wait for a node no longer; what has yet to come from it is lost.

        Args:
            node: its id.
            addresses: of its dead workers, where they are known. Nothing happens if others are asked, too.

        Returns:
            The addresses that were asked.
        """
        conversation, asked = self._conversations.get(node), self._addresses.get(node, ())
        if not asked or (conversation is not None and conversation.done()):
            return ()
        if addresses and not set(asked) <= set(addresses):
            return ()
        self._causes.append(ConnectionAbortedError(f"node {node} was declared dead"))
        self._lose(self._by_node[node], node)
        if conversation is not None:
            conversation.cancel()
        return asked

    def _raise(self) -> None:
        if self._lost:
            cause = self._causes[-1] if self._causes else None
            raise fetch_failed(self._lost, self._unreachable) from cause
        if self._broken is not None:
            raise self._broken
        raise CancelledTask("the fetch was stopped")

    async def _run(self) -> None:
        slots = asyncio.Semaphore(self._peers.options.nodes_at_once)

        async def converse(node: str) -> None:
            async with slots:
                try:
                    await self._converse(node, self._by_node[node], list(self._addresses[node]))
                except Exception as error:
                    self._broken = error

        wanted = [node for node in self._by_node if node not in self._unreachable]
        self._conversations = {node: asyncio.ensure_future(converse(node)) for node in wanted}
        try:
            await asyncio.gather(*self._conversations.values(), return_exceptions=True)
        finally:
            with self._arrived:
                self._ended = True
                self._arrived.notify_all()

    async def _converse(self, node: str, segments: list[Segment], addresses: list[str]) -> None:
        """Fetch all of one node's segments; with the first message, ask whether all files are there.

        If a loss ends the transfer, only that question is asked after it, so that the error is complete and soon.
        """
        loop, landing = asyncio.get_running_loop(), None  # one message is put in place while the next comes
        messages = deque(_messages(segments, self._message_bytes))
        check = sorted({segment.path for segment in segments})
        while messages:
            given_up = bool(self._lost) and not self._go_on
            pieces = [] if given_up else [piece for piece in messages[0] if piece.segment not in self._lost]
            if not pieces and not check:
                messages.popleft()
                continue
            ranges = [piece.range for piece in pieces]
            reply = await self._peers.ask(addresses, self._causes, ranges=ranges, check=check)
            if landing is not None:
                await landing
                landing = None
            if reply is None:
                self._lose(segments, node)
                return
            gone = set(reply["missing"])
            check = [path for path in check if path not in gone] if gone else []
            if gone:
                self._lose(segment for segment in segments if segment.path in gone)
                if not self._go_on:
                    return
                continue
            messages.popleft()
            if pieces:
                landing = loop.run_in_executor(None, self._land, pieces, reply["frames"])
        if landing is not None:
            await landing

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

    def _lose(self, segments: Iterable[Segment], node: str | None = None) -> None:
        with self._arrived:
            self._lost.update((segment, None) for segment in segments if self._missing[segment])
            if node is not None:
                self._unreachable.add(node)
            self._arrived.notify_all()


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


def fetch_failed(segments: Iterable[Segment], nodes: Iterable[str] = ()) -> FetchFailedError:
    """Make the error that names the blocks of lost segments, and the nodes that don't answer."""
    lost = sorted({(segment.stage, segment.partition, segment.attempt) for segment in segments})
    return FetchFailedError(tuple(lost), tuple(sorted(nodes)))
