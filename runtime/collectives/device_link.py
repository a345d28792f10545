"""Device link: bytes between the devices of a group's members, over NCCL, that end when a member is lost.

NCCL waits for a member that died for as long as it lives itself: in the making of a communicator, when connections
are opened at a first transfer, and on the device. So a communicator is made, and all its connections are opened, by a
thread of its own, and whoever waits for that, or later for the device, looks at the group meanwhile. When that breaks,
or time is over, the communicator is aborted, which ends what waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np

from .errors import GroupBrokenError, PeerTimeoutError

#: seconds between looks at a transfer, and between those at the group, of which each is a call of the system
_POLL_SECONDS, _LOOK_SECONDS = 20e-6, 2e-3
#: seconds for which a transfer is looked at without a pause
_SPIN_SECONDS = 100e-6
#: a transfer that takes longer than this, in seconds, is looked at less often
_PATIENT_SECONDS, _PATIENT_POLL_SECONDS = 0.02, 0.5e-3
#: seconds for the loss of a member to be known after NCCL has failed
_BLAME_SECONDS = 0.5

#: (array, rank): what is sent to, or received from, whom
Transfers = Sequence[tuple[Any, int]]


class LinkError(GroupBrokenError):
    """NCCL failed of itself; the same members may do without it."""


class DeviceLink:
    """A communicator of one generation of a group.

    Args:
        xp: CuPy; its current device is this member's.
        nccl: CuPy's binding of NCCL.
        size: of the group.
        rank: of this member.
        name: NCCL's unique id, that of rank 0.
        look: raises if the group is broken.
        deadline: in ``time.monotonic()``.

    Raises:
        LinkError: NCCL can't do it.
        GroupBrokenError: as ``look`` raises.
        PeerTimeoutError: it takes too long.
    """

    def __init__(
        self,
        xp: ModuleType,
        nccl: Any,
        size: int,
        rank: int,
        name: Any,
        look: Callable[[], None],
        deadline: float,
    ):
        self._xp, self._nccl, self._rank = xp, nccl, rank
        self._others = sorted(set(range(size)) - {rank})
        self._comm: Any = None
        self._ended = False
        self._stream: Any = None
        opening = _Call(lambda: self._open(size, name))
        threading.Thread(target=opening.run, name="headwater-nccl", daemon=True).start()
        with self._guarded(look):
            while not opening.returned.wait(_LOOK_SECONDS):
                look()
                self._check_time(deadline)
            self._wait(opening.result(), look, deadline)

    def exchange(
        self, sends: Transfers, receives: Transfers, look: Callable[[], None], deadline: float
    ) -> None:
        """Send and receive arrays, all at once, and wait until this member's are sent and received.

        Args:
            sends: arrays of the device without gaps.
            receives: likewise; what is received is written there. Between two members, both give the same
                lengths in the same order.
            look, deadline: as for the link.
        """
        sends, receives = _filled(sends), _filled(receives)
        if not sends and not receives:
            return
        before = self._xp.cuda.get_current_stream().record()
        with self._guarded(look):
            self._stream.wait_event(before)
            self._wait(self._move(sends, receives), look, deadline)

    def all_gather(self, chunk: Any, whole: Any, look: Callable[[], None], deadline: float) -> None:
        """Put chunks of one length together, by rank, in every member's ``whole``."""
        before = self._xp.cuda.get_current_stream().record()
        with self._guarded(look):
            self._stream.wait_event(before)
            self._wait(self._gather(chunk, whole), look, deadline)

    def close(self) -> None:
        """Let the communicator go, after the last transfer of all members."""
        if not self._ended:
            self._ended = True
            with suppress(Exception):
                self._comm.destroy()

    def abort(self) -> None:
        """End what is under way, from any thread, and let the communicator go."""
        if not self._ended:
            self._ended = True
            if self._comm is not None:
                with suppress(Exception):
                    self._comm.abort()

    # -- inside ---------------------------------------------------------------------------------------

    def _open(self, size: int, name: Any) -> Any:
        """Make the communicator, and open the connections that transfers will need."""
        xp, rank = self._xp, self._rank
        self._stream = xp.cuda.Stream(non_blocking=True)
        self._comm = self._nccl.NcclCommunicator(size, name, rank)
        if self._ended:  # it was given up meanwhile
            self._comm.abort()
            return None
        room = xp.zeros(2 * size + 1, dtype=np.uint8)
        xp.cuda.get_current_stream().synchronize()
        self._move(
            [(room[:1], other) for other in self._others], [(room[o : o + 1], o) for o in self._others]
        )
        self._room = room  # it is written to until the link is open
        return self._gather(room[2 * size :], room[size : 2 * size])

    def _move(self, sends: Transfers, receives: Transfers) -> Any:
        """Queue transfers; returns the event after them."""
        nccl, comm, stream = self._nccl, self._comm, self._stream.ptr
        nccl.groupStart()
        try:
            for array, rank in sends:
                comm.send(array.data.ptr, array.nbytes, nccl.NCCL_UINT8, rank, stream)
            for array, rank in receives:
                comm.recv(array.data.ptr, array.nbytes, nccl.NCCL_UINT8, rank, stream)
        finally:
            nccl.groupEnd()
        return self._stream.record()

    def _gather(self, chunk: Any, whole: Any) -> Any:
        self._comm.allGather(
            chunk.data.ptr, whole.data.ptr, chunk.nbytes, self._nccl.NCCL_UINT8, self._stream.ptr
        )
        return self._stream.record()

    def _wait(self, event: Any, look: Callable[[], None], deadline: float) -> None:
        """Wait until an event has happened."""
        begun = looked = time.monotonic()
        while not event.done:
            now = time.monotonic()
            if now - looked >= _LOOK_SECONDS:
                looked = now
                look()
                self._comm.check_async_error()
                self._check_time(deadline)
            if now - begun > _SPIN_SECONDS:
                time.sleep(_PATIENT_POLL_SECONDS if now - begun > _PATIENT_SECONDS else _POLL_SECONDS)

    def _check_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise PeerTimeoutError("a transfer between GPUs didn't end before its deadline", self._others)

    @contextmanager
    def _guarded(self, look: Callable[[], None]) -> Iterator[None]:
        """End the link when anything goes wrong; what NCCL raises is laid to a lost member, if there is one."""
        try:
            yield
        except GroupBrokenError:
            self.abort()
            raise
        except BaseException as error:
            self.abort()
            end = time.monotonic() + _BLAME_SECONDS
            while time.monotonic() < end:  # NCCL may have noticed sooner than the group
                look()
                time.sleep(_LOOK_SECONDS)
            raise LinkError(f"NCCL failed: {type(error).__name__}: {error}") from error


class _Call:
    """A call in a thread of its own."""

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self.returned = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        self.returned.set()

    def result(self) -> Any:
        """What it returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result


def _filled(transfers: Transfers) -> list[tuple[Any, int]]:
    return [(array, rank) for array, rank in transfers if array.nbytes]
