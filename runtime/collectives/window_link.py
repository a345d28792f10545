"""Window link: bytes between the devices of members on one machine, through windows that the others look through.

It stands for NCCL where that refuses: members that share a device. A member copies what it sends into its window, tells
the others where it lies there, and they copy it out. Nobody uses what he has copied before all have said that they are
done: so a member that dies or gives up while others read its window ends the operation for all of them.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from .device_link import LinkError, Transfers
from .errors import GroupBrokenError

#: arrays begin at multiples of so many bytes
_ALIGNED = 256
#: bytes of the first window
_LEAST_BYTES = 1 << 20
#: seconds for which a window stays that others may be reading when the link breaks, and to wait for an operation's end
_KEPT_SECONDS, _ABORT_SECONDS = 10.0, 5.0
#: of a section in a window
_OFFSET = struct.Struct("<q")


class Window(Protocol):
    """Memory of this member that others may map; see `ops.device.windows`."""

    size: int
    address: int
    handle: bytes


class Mapped(Protocol):
    """Another member's window."""

    addresses: list[int]

    def close(self) -> None: ...


class Windows(Protocol):
    """Makes windows, and looks through those of others, as `ops.device.windows.Windows` does."""

    def make(self, size: int) -> Window: ...

    def map(self, handle: bytes) -> Mapped: ...

    def copy(self, target: int, source: int, size: int) -> None: ...

    def finish(self) -> None: ...


#: sends words to each other member, and returns theirs, by a deadline
Tell = Callable[[Mapping[int, bytes], float], Mapping[int, bytes]]


class WindowLink:
    """The windows of one generation of a group. Operations are as `DeviceLink`'s, of all members at once.

    Args:
        windows: of this member's device.
        size: of the group.
        rank: of this member.
        tell: see `Tell`.
    """

    def __init__(self, windows: Windows, size: int, rank: int, tell: Tell):
        self._windows, self._tell = windows, tell
        self._others = [other for other in range(size) if other != rank]
        self._window: Window | None = None
        #: by rank
        self._mapped: dict[int, tuple[bytes, Mapped]] = {}
        self._ended = False
        self._busy = threading.Lock()

    def exchange(
        self, sends: Transfers, receives: Transfers, look: Callable[[], None], deadline: float
    ) -> None:
        """Send and receive arrays, all at once, and wait until all members have received theirs.

        Args:
            sends: arrays of the device without gaps.
            receives: likewise; what is received is written there. Between two members, both give the same
                lengths in the same order.
            look: raises if the group is broken.
            deadline: in ``time.monotonic()``.
        """
        with self._guarded():
            look()
            places, end = _laid_out(sends)
            kept = self._make_room(end)
            starts = dict.fromkeys(self._others, 0)
            for (array, rank), place in reversed(list(zip(sends, places))):
                self._put(array, place)
                starts[rank] = place
            self._deliver(starts, receives, deadline)
            del kept

    def all_gather(self, chunk: Any, whole: Any, look: Callable[[], None], deadline: float) -> None:
        """Put chunks of one length together, by rank, in every member's ``whole``."""
        length, size = len(chunk), len(self._others) + 1
        (mine,) = set(range(size)) - set(self._others)
        with self._guarded():
            look()
            kept = self._make_room(chunk.nbytes)
            self._put(chunk, 0)
            whole[mine * length : (mine + 1) * length] = chunk
            parts = [(whole[rank * length : (rank + 1) * length], rank) for rank in self._others]
            self._deliver(dict.fromkeys(self._others, 0), parts, deadline)
            del kept

    def close(self) -> None:
        """Let the windows go, after the last operation of all members."""
        with self._busy:
            self._end()

    def abort(self) -> None:
        """Let the windows go, from any thread, once an operation that is under way has noticed that it is over."""
        if self._busy.acquire(timeout=_ABORT_SECONDS):
            try:
                self._end()
            finally:
                self._busy.release()

    def __del__(self) -> None:
        with suppress(Exception):  # the process may be about to end
            self._end()

    # -- inside ---------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> Window | None:
        """Have a window of a size; returns the one before, which others look through until they know of this one."""
        before = self._window
        if before is None or before.size < size:
            self._window = self._windows.make(max(size, _LEAST_BYTES, 2 * (before.size if before else 0)))
        return before

    def _put(self, array: Any, place: int) -> None:
        assert self._window is not None
        self._windows.copy(self._window.address + place, array.data.ptr, array.nbytes)

    def _deliver(self, starts: Mapping[int, int], receives: Transfers, deadline: float) -> None:
        """Tell all where their sections begin, take what they have for this member, and wait until all have done so."""
        assert self._window is not None
        self._windows.finish()
        words = {rank: _OFFSET.pack(start) + self._window.handle for rank, start in starts.items()}
        told = self._tell(words, deadline)
        for rank in self._others:
            arrays = [array for array, source in receives if source == rank]
            places, _ = _laid_out([(array, rank) for array in arrays])
            address = (
                self._look_through(rank, told[rank][_OFFSET.size :]) + _OFFSET.unpack_from(told[rank])[0]
            )
            for array, place in zip(arrays, places):
                self._windows.copy(array.data.ptr, address + place, array.nbytes)
        self._windows.finish()
        self._tell({}, deadline)

    def _look_through(self, rank: int, handle: bytes) -> int:
        """The address of another member's window, which may be a new one."""
        known, mapped = self._mapped.get(rank, (b"", None))
        if mapped is None or known != handle:
            if mapped is not None:
                del self._mapped[rank]
                mapped.close()
            mapped = self._windows.map(handle)
            self._mapped[rank] = handle, mapped
        return mapped.addresses[0]

    def _end(self) -> None:
        self._ended = True
        for _, mapped in self._mapped.values():
            mapped.close()
        self._mapped.clear()
        self._window = None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """End the link when anything goes wrong."""
        with self._busy:
            if self._ended:
                raise GroupBrokenError("the link between the GPUs has ended")
            try:
                yield
            except BaseException as error:
                keeper = threading.Timer(_KEPT_SECONDS, id, [self._window])  # others may still be reading it
                keeper.daemon = True
                keeper.start()
                with suppress(Exception):
                    self._windows.finish()  # nothing may be read any more that is unmapped
                self._end()
                if isinstance(error, Exception) and not isinstance(error, GroupBrokenError):
                    raise LinkError(f"CUDA IPC failed: {type(error).__name__}: {error}") from error
                raise


def _laid_out(transfers: Transfers) -> tuple[list[int], int]:
    """Where arrays lie in a window, those for one member together and in order; and the end of the last."""
    at = 0
    places = [0] * len(transfers)
    for number in sorted(range(len(transfers)), key=lambda number: transfers[number][1]):
        places[number] = at
        at += -(-transfers[number][0].nbytes // _ALIGNED) * _ALIGNED
    return places, at
