"""Device link: bytes between the devices of a group's members, over NCCL, that end when a member is lost.

NCCL waits for a member that died for as long as it lives itself: in the making of a communicator, when connections are
opened at the first transfer, and on the device. So its calls are made by a thread of the link's own, and whoever waits
looks at the group meanwhile. When that breaks, or time is over, the communicator is aborted, which ends what waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from .errors import GroupBrokenError, PeerTimeoutError

#: seconds between looks at a transfer, and between those at the group, of which each is a call of the system
_POLL_SECONDS, _LOOK_SECONDS = 20e-6, 2e-3
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
        self._others = set(range(size)) - {rank}
        self._comm: Any = None
        self._ended = False
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._serve, name="headwater-nccl", daemon=True).start()
        self._wait(self._start(lambda: self._open(size, name, rank)), look, deadline)

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
        nccl, before = self._nccl, self._xp.cuda.get_current_stream().record()
        bytes_ = nccl.NCCL_UINT8

        def move() -> Any:
            stream = self._stream
            stream.wait_event(before)
            nccl.groupStart()
            try:
                for array, rank in sends:
                    self._comm.send(array.data.ptr, array.nbytes, bytes_, rank, stream.ptr)
                for array, rank in receives:
                    self._comm.recv(array.data.ptr, array.nbytes, bytes_, rank, stream.ptr)
            finally:
                nccl.groupEnd()
            return stream.record()

        self._wait(self._start(move), look, deadline)

    def all_gather(self, chunk: Any, whole: Any, look: Callable[[], None], deadline: float) -> None:
        """Put chunks of one length together, by rank, in every member's ``whole``."""
        before = self._xp.cuda.get_current_stream().record()

        def move() -> Any:
            self._stream.wait_event(before)
            self._comm.allGather(
                chunk.data.ptr, whole.data.ptr, chunk.nbytes, self._nccl.NCCL_UINT8, self._stream.ptr
            )
            return self._stream.record()

        self._wait(self._start(move), look, deadline)

    def close(self) -> None:
        """Let the communicator go, after the last transfer of all members."""
        if not self._ended:
            self._ended = True
            self._start(lambda: self._comm.destroy())
            self._calls.put(None)

    def abort(self) -> None:
        """End what is under way, and let the communicator go."""
        if not self._ended:
            self._ended = True
            comm = self._comm
            if comm is not None:  # from this thread: the link's own may be in a call that waits
                with suppress(Exception):
                    comm.abort()
            self._calls.put(None)

    # -- calls ----------------------------------------------------------------------------------------

    def _open(self, size: int, name: Any, rank: int) -> None:
        self._stream = self._xp.cuda.Stream(non_blocking=True)
        self._comm = self._nccl.NcclCommunicator(size, name, rank)
        if self._ended:  # it was given up meanwhile
            self._comm.abort()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _start(self, function: Callable[[], Any]) -> _Call:
        call = _Call(function)
        self._calls.put(call.run)
        return call

    def _wait(self, call: _Call, look: Callable[[], None], deadline: float) -> None:
        """Wait until a call has returned, and what it has queued is done."""
        begun = looked = time.monotonic()
        try:
            while not call.done():
                now = time.monotonic()
                if now - looked >= _LOOK_SECONDS:
                    looked = now
                    look()
                    if self._comm is not None and call.returned:
                        self._comm.check_async_error()
                if now > deadline:
                    raise PeerTimeoutError(
                        "a transfer between GPUs didn't end before its deadline", self._others
                    )
                patient = now - begun > _PATIENT_SECONDS
                time.sleep(_PATIENT_POLL_SECONDS if patient else _POLL_SECONDS)
        except GroupBrokenError:
            self.abort()
            raise
        except BaseException as error:
            self.abort()
            end = time.monotonic() + _BLAME_SECONDS
            while time.monotonic() < end:  # it may have noticed sooner that a member is gone
                look()
                time.sleep(_LOOK_SECONDS)
            raise LinkError(f"NCCL failed: {type(error).__name__}: {error}") from error


class _Call:
    """A call in the link's thread, and the event that what it queued is followed by."""

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self._returned = threading.Event()
        self._event: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._event = self._function()
        except BaseException as error:
            self._error = error
        self._returned.set()

    @property
    def returned(self) -> bool:
        return self._returned.is_set()

    def done(self) -> bool:
        """Whether all of it is over; raises what the call raised."""
        if not self.returned:
            return False
        if self._error is not None:
            raise self._error
        return self._event is None or bool(self._event.done)


def _filled(transfers: Transfers) -> list[tuple[Any, int]]:
    return [(array, rank) for array, rank in transfers if array.nbytes]
