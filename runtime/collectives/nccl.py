"""The same sums between GPUs: partial sums go by chunks over NCCL, and are added in the order of the fixed tree.

NCCL's own all-reduce adds in an order that depends on how many take part, so it only moves bytes here. Written against
CuPy's documented interface (``cupy.cuda.nccl``) and not yet run on GPUs; tests replace the transfers.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import PeerTimeoutError
from .group import Group
from .layout import chunk_span
from .tree import schedule

_POLL_SECONDS = 50e-6


class NcclGroup:
    """A group whose arrays live on GPUs, one for each member.

    Args:
        group: of the same members. It carries notes, and ends the members' operations when one of them is lost.

    Attributes:
        notes: of the last operation, by rank.
    """

    def __init__(self, group: Group):
        self.group = group
        self.notes: list[bytes] = []
        self._xp = importlib.import_module("cupy")
        self._nccl = importlib.import_module("cupy.cuda.nccl")
        mine = [np.array(self._nccl.get_unique_id(), np.int64)] if group.rank == 0 else None
        name = tuple(int(part) for part in group.broadcast(mine, 0)[0])
        self._comm = self._nccl.NcclCommunicator(group.size, name, group.rank)

    def all_reduce(
        self, parts: Mapping[int, Sequence[Any]], note: bytes = b"", *, timeout: float | None = None
    ) -> tuple[list[Any], list[bytes]]:
        """Add up as `Group.all_reduce` does, on 1-d CuPy arrays."""
        deadline = self._begin(note, timeout)
        chunks = self._reduce(parts, deadline)
        lengths = [len(array) for array in next(iter(parts.values()))]
        return self._gather(chunks, lengths, deadline), self.notes

    def reduce_scatter(
        self, parts: Mapping[int, Sequence[Any]], note: bytes = b"", *, timeout: float | None = None
    ) -> list[Any]:
        """Add up, and return this member's chunk of each sum."""
        return self._reduce(parts, self._begin(note, timeout))

    def all_gather(
        self,
        chunks: Sequence[Any],
        lengths: Sequence[int],
        note: bytes = b"",
        *,
        timeout: float | None = None,
    ) -> list[Any]:
        """Put vectors together of which each member has its chunk."""
        return self._gather(chunks, lengths, self._begin(note, timeout))

    def close(self) -> None:
        """Free the communicator. The group stays."""
        self._comm.destroy()

    def _begin(self, note: bytes, timeout: float | None) -> float:
        seconds = self.group.timeout if timeout is None else timeout
        self.notes = self.group.barrier(note, timeout=seconds)
        return time.monotonic() + seconds

    def _reduce(self, parts: Mapping[int, Sequence[Any]], deadline: float) -> list[Any]:
        group, places = self.group, self.group.places
        own = [
            self._add(span, {(i, i + 1): parts[i] for i in range(*span)})
            for span in places.pieces[group.rank]
        ]
        lengths = [len(array) for array in own[0]]
        pieces: dict[Any, list[Any]] = {}

        def move() -> None:
            for rank in range(group.size):
                for number, span in enumerate(places.pieces[rank]):
                    pieces[span] = []
                    for array, length in zip(own[0], lengths):
                        mine = chunk_span(length, group.rank, group.size)
                        room = self._xp.empty(mine.stop - mine.start, array.dtype)
                        pieces[span].append(
                            own[number][len(pieces[span])][mine] if rank == group.rank else room
                        )
                        if rank != group.rank:
                            self._receive(room, rank)
                if rank != group.rank:
                    for arrays in own:
                        for array, length in zip(arrays, lengths):
                            self._send(array[chunk_span(length, rank, group.size)], rank)

        self._together(move, deadline)
        return self._add((0, places.total), pieces)

    def _gather(self, chunks: Sequence[Any], lengths: Sequence[int], deadline: float) -> list[Any]:
        group = self.group
        whole = [self._xp.empty(length, chunk.dtype) for chunk, length in zip(chunks, lengths)]

        def move() -> None:
            for array, chunk in zip(whole, chunks):
                for rank in range(group.size):
                    part = array[chunk_span(len(array), rank, group.size)]
                    if rank == group.rank:
                        part[...] = chunk
                    else:
                        self._receive(part, rank)
                        self._send(chunk, rank)

        self._together(move, deadline)
        return whole

    def _add(self, span: Any, pieces: Mapping[Any, Sequence[Any]]) -> list[Any]:
        """Finish the tree over a range from arrays by range."""
        spans = tuple(sorted(pieces))
        sums = []
        for arrays in zip(*(pieces[part] for part in spans)):
            places = dict(enumerate(arrays))
            last = 0
            for target, left, right in schedule(span, spans).steps:
                places[last := target] = places[left] + places[right]
            sums.append(places[last])
        return sums

    def _send(self, array: Any, rank: int) -> None:
        if len(array):
            stream = self._xp.cuda.get_current_stream().ptr
            self._comm.send(array.data.ptr, array.nbytes, self._nccl.NCCL_UINT8, rank, stream)

    def _receive(self, array: Any, rank: int) -> None:
        if len(array):
            stream = self._xp.cuda.get_current_stream().ptr
            self._comm.recv(array.data.ptr, array.nbytes, self._nccl.NCCL_UINT8, rank, stream)

    def _together(self, move: Callable[[], None], deadline: float) -> None:
        """Queue transfers as one, and wait for them until the deadline; a lost peer would make them wait for ever."""
        self._nccl.groupStart()
        try:
            move()
        finally:
            self._nccl.groupEnd()
        done = self._xp.cuda.Event(disable_timing=True)
        done.record()
        while not done.done:
            if time.monotonic() > deadline:
                self._comm.abort()
                others = set(range(self.group.size)) - {self.group.rank}
                error = PeerTimeoutError("a transfer between GPUs didn't end before its deadline", others)
                self.group.abandon(str(error))
                raise error
            time.sleep(_POLL_SECONDS)
