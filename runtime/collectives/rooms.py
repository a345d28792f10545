"""Rooms: the shared memory of a node's members, as one of them sees it, and how all of it grows at once.

Every member has room for two operations, used in turn: while a slow member still reads the results of one, a fast
one writes for the next. Nobody can be further ahead, since every operation begins with a word from all members.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

from .arena import Arena, map_arena
from .channel import DONE, ROOM
from .errors import GroupBrokenError
from .layout import Layout
from .mesh import Mesh

_SLOTS = 2


class Rooms:
    """The memory that a member and its neighbours on the node exchange through.

    Args:
        mesh: to the other members.
        layout: of the group.
        folder: where files of shared memory go, on systems without anonymous ones.

    Attributes:
        stride: bytes of one piece that there is room for.
    """

    def __init__(self, mesh: Mesh, layout: Layout, folder: str | None):
        self.mesh, self.layout, self.folder = mesh, layout, folder
        self.neighbours: Sequence[int] = layout.neighbours(mesh.rank)
        self.stride = 0
        self._rooms: dict[int, np.ndarray] = {}

    def piece(self, rank: int, number: int, slot: int, size: int) -> np.ndarray:
        """The bytes of one piece of a member of this node."""
        start = (slot * len(self.layout.pieces[rank]) + number) * self.stride
        return self._rooms[rank][start : start + size]

    def grow(self, stride: int, deadline: float, *, strict: bool = True) -> bool:
        """Make all rooms of the node larger; all its members do so at once.

        Args:
            stride: bytes of a piece that there must be room for.
            deadline: in ``time.monotonic()``.
            strict: raise if it can't be done.

        Returns:
            Whether all that this member needs is mapped.

        Raises:
            GroupBrokenError: there is no room.
        """
        self.stride = -(-stride // mmap.PAGESIZE) * mmap.PAGESIZE
        trouble: OSError | None = None
        arena = None
        try:
            arena = Arena(self._size(self.mesh.rank), shared=bool(self.neighbours), folder=self.folder)
            self._rooms = {self.mesh.rank: arena.bytes}
        except OSError as error:
            trouble = error
        try:
            if self.neighbours:
                path = arena.path.encode() if arena else b""
                self._tell(ROOM, path, deadline)
                try:
                    for rank in self.neighbours:
                        self._rooms[rank] = map_arena(
                            self.mesh.channels[rank].note.decode(), self._size(rank)
                        )
                except OSError as error:
                    trouble = trouble or error
                self._tell(DONE, b"", deadline)
        finally:
            if arena:
                arena.release()
        if trouble and strict:
            raise GroupBrokenError(
                f"this node has no room for {self._size(self.mesh.rank)} bytes that its processes share: {trouble}"
            ) from trouble
        return trouble is None

    def _size(self, rank: int) -> int:
        return _SLOTS * len(self.layout.pieces[rank]) * self.stride

    def _tell(self, kind: int, note: bytes, deadline: float) -> None:
        self.mesh.round(
            kind,
            dict.fromkeys(self.neighbours, ((), note)),
            dict.fromkeys(self.neighbours, ()),
            deadline,
        )
