"""The same sums between GPUs: partial sums go by chunks over NCCL, and are added in the order of the fixed tree.

NCCL's own all-reduce adds in an order that depends on how many take part, so it only moves bytes here. What is added is
added by a kernel that knows the order. A member reads and writes what a reduce-scatter and an all-gather must: of n
bytes, with p members, it sends and receives 2 n (p - 1) / p. Nothing crosses to the host but words of a few bytes.
"""

from __future__ import annotations

import importlib
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import ParameterError
from .device_link import DeviceLink, Transfers
from .group import Group
from .layout import chunk_span
from .plans import is_small
from .shape import Shape, check_device_arrays, check_parts, shape_of
from .tree import Span, schedule
from .window_link import WindowLink, Windows

#: adds vectors in the order of a schedule's steps
Adder = Callable[[Sequence[tuple[int, int, int]], Sequence[Any], ModuleType], Any]
#: seconds to wait for the others before a communicator is let go
_CLOSE_SECONDS = 30.0
#: seconds that a member has to notice that the group was abandoned
_ABANDON_SECONDS = 1.0


class NcclGroup:
    """A group whose arrays live on GPUs, one for each member; a `Group` carries words, and tells who is lost.

    Operations are as `Group`'s, on 1-d arrays of the device. Results are new arrays; ``out`` and ``borrow`` are taken
    for the sake of those who don't know which kind of group they have, and change nothing.

    Args:
        group: of the same members; it is closed, and abandoned, with this one.
        xp: CuPy.
        add: adds vectors in a given order.
        timeout: seconds to open connections in.

    Raises:
        LinkError: NCCL can't do it. The group is then broken.
        GroupBrokenError: a member is lost.
    """

    on_device = True
    transport = "nccl"

    def __init__(self, group: Group, xp: ModuleType, add: Adder, timeout: float = 30.0):
        self.group, self._xp, self._add = group, xp, add
        self._link: DeviceLink | WindowLink | None = None
        if group.size > 1:  # else there is nobody to send to
            self._link = self._opened(timeout)

    def _opened(self, timeout: float) -> DeviceLink | WindowLink:
        """Open the link between the members' devices."""
        group = self.group
        nccl: Any = importlib.import_module("cupy.cuda.nccl")
        mine = pickle.dumps(nccl.get_unique_id()) if group.rank == 0 else b""
        (packed,) = group.broadcast([np.frombuffer(mine, np.uint8)], 0, timeout=timeout)
        name = pickle.loads(packed.tobytes())
        with group.together("nccl", timeout=timeout) as deadline:
            return DeviceLink(self._xp, nccl, group.size, group.rank, name, group.look, deadline)

    # -- as the group -----------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Of this member."""
        return self.group.rank

    @property
    def size(self) -> int:
        """How many members there are."""
        return self.group.size

    @property
    def generation(self) -> int:
        """Of the constellation."""
        return self.group.generation

    @property
    def layout(self) -> tuple[Span, ...]:
        """The range of indices of each rank."""
        return self.group.layout

    @property
    def waiting(self) -> tuple[int, ...]:
        """The ranks that the operation in progress waits for at this moment."""
        return self.group.waiting

    @property
    def notes(self) -> list[bytes]:
        """Of the last operation, by rank."""
        return self.group.notes

    def chunk(self, length: int, rank: int | None = None) -> slice:
        """Return the part of a vector that a member owns."""
        return self.group.chunk(length, rank)

    def barrier(self, note: bytes = b"", *, timeout: float | None = None) -> list[bytes]:
        """Wait until all members are here."""
        return self.group.barrier(note, timeout=timeout)

    def broadcast(
        self,
        arrays: Sequence[np.ndarray] | None,
        root: int,
        note: bytes = b"",
        *,
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        """Give everyone the arrays of one member; NumPy's, as they are rare and travel as words do."""
        return self.group.broadcast(arrays, root, note, timeout=timeout)

    def all_to_all(
        self, payloads: Sequence[bytes], note: bytes = b"", *, timeout: float | None = None
    ) -> list[bytes]:
        """Send some bytes to each member, and get some of each."""
        return self.group.all_to_all(payloads, note, timeout=timeout)

    # -- on the device -----------------------------------------------------------------------------

    def all_reduce(
        self,
        parts: Mapping[int, Sequence[Any]],
        note: bytes = b"",
        *,
        out: Any = None,
        borrow: bool = False,
        timeout: float | None = None,
    ) -> tuple[list[Any], list[bytes]]:
        """Add up the parts of all indices, in the order of the fixed tree. Everyone gets the sums."""
        shape = self._shape(parts, "all_reduce")
        with self.group.together("all_reduce", shape, note, timeout=timeout) as deadline:
            if is_small(self.group.places, shape):
                return self._sum_everywhere(parts, deadline), self.notes
            chunks = self._reduce(parts, shape, deadline)
            return self._gather(chunks, shape.lengths, deadline), self.notes

    def reduce_scatter(
        self,
        parts: Mapping[int, Sequence[Any]],
        note: bytes = b"",
        *,
        out: Any = None,
        borrow: bool = False,
        timeout: float | None = None,
    ) -> list[Any]:
        """Add up, and return this member's chunk of each sum."""
        shape = self._shape(parts, "reduce_scatter")
        with self.group.together("reduce_scatter", shape, note, timeout=timeout) as deadline:
            return self._reduce(parts, shape, deadline)

    def all_gather(
        self,
        chunks: Sequence[Any],
        lengths: Sequence[int],
        note: bytes = b"",
        *,
        out: Any = None,
        borrow: bool = False,
        timeout: float | None = None,
    ) -> list[Any]:
        """Put vectors together of which each member has its chunk."""
        got = [len(chunk) for chunk in chunks]
        due = [(part := self.chunk(length)).stop - part.start for length in lengths]
        if got != due:
            raise ParameterError(
                f"all_gather: rank {self.rank} owns chunks of {due} elements, and gave {got}"
            )
        shape = shape_of(tuple(lengths), tuple(np.dtype(chunk.dtype).str for chunk in chunks))
        with self.group.together("all_gather", shape, note, timeout=timeout) as deadline:
            return self._gather(chunks, lengths, deadline)

    def shift(
        self,
        arrays: Sequence[Any],
        lengths: Sequence[int],
        note: bytes = b"",
        *,
        timeout: float | None = None,
    ) -> list[Any]:
        """Give arrays to the next rank, the first one after the last, and get those of the rank before.

        Args:
            arrays: of any lengths; all members give as many, of the same types.
            lengths: of those that come.
            note, timeout: see the class.
        """
        kinds = ",".join(np.dtype(array.dtype).str for array in arrays)
        with self.group.together(f"shift {kinds}", None, note, timeout=timeout) as deadline:
            if self.size == 1:
                return list(arrays)
            given = [self._xp.ascontiguousarray(array) for array in arrays]
            got = [self._xp.empty(length, array.dtype) for array, length in zip(arrays, lengths)]
            after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
            self._exchange([(array, after) for array in given], [(array, before) for array in got], deadline)
            return got

    def abandon(self, why: str = "") -> None:
        """End the group from any thread; whoever waits for the device notices within milliseconds."""
        self.group.abandon(why)
        if self._link is not None:  # whoever is in an operation ends it, unless NCCL keeps it
            later = threading.Timer(_ABANDON_SECONDS, self._link.abort)
            later.daemon = True
            later.start()

    def close(self) -> None:
        """Leave the group, after the last operation."""
        if self._link is not None:
            try:
                self.group.barrier(timeout=_CLOSE_SECONDS)  # nobody may still be receiving
            except Exception:
                self._link.abort()
            else:
                self._link.close()
        self.group.close()

    # -- inside ------------------------------------------------------------------------------------

    def _shape(self, parts: Mapping[int, Sequence[Any]], what: str) -> Shape:
        """Check what a caller gave."""
        return check_parts(dict(parts), *self.layout[self.rank], what, check_device_arrays)

    def _own(self, parts: Mapping[int, Sequence[Any]]) -> list[list[Any]]:
        """This member's partial sums: for each of its pieces, the arrays."""
        pieces = self.group.places.pieces[self.rank]
        return [
            self._finish(span, {(index, index + 1): parts[index] for index in range(*span)})
            for span in pieces
        ]

    def _sum_everywhere(self, parts: Mapping[int, Sequence[Any]], deadline: float) -> list[Any]:
        """All partial sums to all members, who add them up for themselves: one exchange in place of two."""
        places, own = self.group.places, self._own(parts)
        pieces = dict(zip(places.pieces[self.rank], own))
        receives: list[tuple[Any, int]] = []
        for rank in self._others:
            for span in places.pieces[rank]:
                pieces[span] = [self._xp.empty(len(array), array.dtype) for array in own[0]]
                receives += [(array, rank) for array in pieces[span]]
        sends = [(array, rank) for rank in self._others for arrays in own for array in arrays]
        self._exchange(sends, receives, deadline)
        return self._finish((0, places.total), pieces, fresh=True)

    def _reduce(self, parts: Mapping[int, Sequence[Any]], shape: Shape, deadline: float) -> list[Any]:
        """Partial sums of each chunk to its owner, who adds them up."""
        places, own = self.group.places, self._own(parts)
        cuts = [[chunk_span(n, rank, self.size) for n in shape.lengths] for rank in range(self.size)]
        mine = cuts[self.rank]
        pieces: dict[Span, list[Any]] = {
            span: [array[cut] for array, cut in zip(arrays, mine)]
            for span, arrays in zip(places.pieces[self.rank], own)
        }
        receives: list[tuple[Any, int]] = []
        for rank in self._others:
            for span in places.pieces[rank]:
                pieces[span] = [
                    self._xp.empty(cut.stop - cut.start, dtype) for cut, dtype in zip(mine, shape.dtypes)
                ]
                receives += [(array, rank) for array in pieces[span]]
        sends = [
            (array[cut], rank)
            for rank in self._others
            for arrays in own
            for array, cut in zip(arrays, cuts[rank])
        ]
        self._exchange(sends, receives, deadline)
        return self._finish((0, places.total), pieces, fresh=True)

    def _gather(self, chunks: Sequence[Any], lengths: Sequence[int], deadline: float) -> list[Any]:
        whole, sends, receives = [], [], []
        for chunk, length in zip(chunks, lengths):
            array = self._xp.empty(length, chunk.dtype)
            whole.append(array)
            cuts = [chunk_span(length, rank, self.size) for rank in range(self.size)]
            if self._link is not None and length and len({cut.stop - cut.start for cut in cuts}) == 1:
                self._link.all_gather(self._xp.ascontiguousarray(chunk), array, self.group.look, deadline)
                continue
            array[cuts[self.rank]] = chunk
            part = array[cuts[self.rank]]  # a view without gaps, whatever the chunk is
            sends += [(part, rank) for rank in self._others]
            receives += [(array[cuts[rank]], rank) for rank in self._others]
        self._exchange(sends, receives, deadline)
        return whole

    def _finish(self, span: Span, pieces: Mapping[Span, Sequence[Any]], fresh: bool = False) -> list[Any]:
        """Finish the tree over a range from arrays by range; ``fresh`` ones are none that a caller gave."""
        spans = tuple(sorted(pieces))
        steps = schedule(span, spans).steps
        sums = [self._add(steps, arrays, self._xp) for arrays in zip(*(pieces[part] for part in spans))]
        return [array.copy() for array in sums] if fresh and not steps else sums

    @property
    def _others(self) -> list[int]:
        """The other ranks, from the next one round: so not all send to the same one at first."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]

    def _exchange(self, sends: Transfers, receives: Transfers, deadline: float) -> None:
        if self._link is not None:
            self._link.exchange(sends, receives, self.group.look, deadline)


class IpcGroup(NcclGroup):
    """The same between members on one machine for whom NCCL isn't to be had, as those that share a device: by CUDA IPC.

    Args:
        group, xp, add: as for `NcclGroup`.
        windows: of this member's device.
        timeout: seconds to open the windows in.

    Raises:
        LinkError: CUDA refuses it to a member. The group is then broken.
        GroupBrokenError: a member is lost.
    """

    transport = "ipc"

    def __init__(self, group: Group, xp: ModuleType, add: Adder, windows: Windows, timeout: float = 30.0):
        self._windows = windows
        super().__init__(group, xp, add, timeout)

    def _opened(self, timeout: float) -> WindowLink:
        link = WindowLink(self._windows, self.group.size, self.group.rank, self.group.tell)
        room = self._xp.zeros(self.group.size, dtype=np.uint8)
        with self.group.together(
            "windows", timeout=timeout
        ) as deadline:  # a byte to each, to see that it works
            arrays = [(room[rank : rank + 1], rank) for rank in self._others]
            link.exchange(arrays, arrays, self.group.look, deadline)
        return link
