"""Mesh: connections to all other members, and rounds in which messages go both ways at once, until a deadline.

A member that fails says farewell to all others and closes its connections, so that nobody waits for anybody any more:
one death ends the round of every member within milliseconds, and all of them name the same ranks.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn

from .channel import Buffers, Channel, ClosedError, FarewellError
from .errors import GroupBrokenError, PeerLostError, PeerTimeoutError, ranks_text

_IN, _OUT = select.POLLIN, select.POLLOUT
_GONE = getattr(select, "POLLRDHUP", 0)
_CLOSED = "closed"


class Mesh:
    """The connections of one member.

    Args:
        rank: of this member.
        channels: to the others, by rank.

    Attributes:
        number: of the operation in progress.
        digest: of what the operation is about; all members must have the same.
        waiting: ranks whose messages the round in progress still needs, or that still have to take its messages.
    """

    def __init__(self, rank: int, channels: Mapping[int, Channel]):
        self.rank, self.channels = rank, dict(channels)
        self.number = self.digest = 0
        self.waiting: frozenset[int] | set[int] = frozenset()
        self._by_file = {channel.file: channel for channel in self.channels.values()}
        self._poll = select.poll()
        self._mask: dict[int, int] = {}  # what is listened to, by file
        self._wake, self._waker = socket.socketpair()
        self._poll.register(self._wake, _IN)
        self._lock = threading.RLock()
        self._abandoned: str | None = None
        self._broken: BaseException | None = None

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Run one operation; others from other threads wait. What goes wrong in it ends the group for everyone."""
        with self._lock:
            self._check()
            try:
                yield
                self._check()
            except BaseException as error:
                self._end(error)
                raise
            finally:
                self.waiting = frozenset()

    def round(
        self,
        kind: int,
        sends: Mapping[int, tuple[Buffers, bytes]],
        receives: Mapping[int, Buffers],
        deadline: float,
    ) -> None:
        """Send at most one message to each other member, and receive at most one of each.

        Args:
            kind: of the messages.
            sends: body and note by rank.
            receives: where the bodies go, by rank. Notes are then in the channels.
            deadline: in ``time.monotonic()``.

        Raises:
            PeerLostError: a member is gone.
            PeerTimeoutError: members didn't send or take their messages in time.
            GroupBrokenError: the group was abandoned, or a member is in another operation.
        """
        channels = self.channels
        ingoing, outgoing = set(receives), set()
        for rank, (buffers, note) in sends.items():
            with self._naming(channel := channels[rank]):
                if not channel.send(kind, self.number, self.digest, buffers, note):
                    outgoing.add(rank)
        for rank, body in receives.items():
            channel = channels[rank]
            channel.receive(kind, self.number, self.digest, body)
            if channel.secure:  # what TLS has already taken off the socket doesn't wake anybody
                with self._naming(channel):
                    if channel.pull():
                        ingoing.discard(rank)
        for rank in channels:
            self._listen(rank, ingoing, outgoing)
        while ingoing or outgoing:
            self.waiting = ingoing | outgoing
            left = deadline - time.monotonic()
            events = self._poll.poll(max(0.0, left * 1000.0))
            if not events and left <= 0.0:
                self._late(ingoing | outgoing)
            for file, event in events:
                if file not in self._by_file:  # somebody woke this thread
                    self._check()
                    continue
                channel = self._by_file[file]
                rank = channel.rank
                with self._naming(channel):
                    if rank in outgoing and event & ~_IN and channel.push():
                        outgoing.discard(rank)
                        self._listen(rank, ingoing, outgoing)
                    if rank in ingoing:
                        if event & ~_OUT and channel.pull():
                            ingoing.discard(rank)
                            self._listen(rank, ingoing, outgoing)
                    elif event & ~(_IN | _OUT):
                        self._left(channel)

    def look(self) -> None:
        """See, between rounds and without waiting, whether the group still stands. For an operation in progress.

        Raises:
            PeerLostError: a member is gone.
            GroupBrokenError: the group was abandoned, here or by another member.
        """
        for rank in self.channels:
            self._listen(rank, set(), set())
        for file, event in self._poll.poll(0):
            if file not in self._by_file:
                self._check()
            elif event & ~(_IN | _OUT):
                with self._naming(channel := self._by_file[file]):
                    self._left(channel)

    def abandon(self, why: str) -> None:
        """End the group, from any thread: the round in progress here and at all others fails at once."""
        self._abandoned = why
        with suppress(OSError):
            self._waker.send(b"x")
        if self._lock.acquire(blocking=False):  # otherwise the thread that holds it wakes up, and does it
            try:
                self._end(GroupBrokenError(why))
            finally:
                self._lock.release()

    def close(self) -> None:
        """Leave politely; the others notice only if they still need something of this member."""
        with self._lock:
            self._end(GroupBrokenError("the group was closed"), _CLOSED)

    def _listen(self, rank: int, ingoing: set[int], outgoing: set[int]) -> None:
        mask = (_IN if rank in ingoing else 0) | (_OUT if rank in outgoing else 0) | _GONE
        file = self.channels[rank].file
        if self._mask.get(file) != mask:
            self._mask[file] = mask
            self._poll.register(file, mask)

    def _check(self) -> None:
        if self._broken is not None:
            missing = getattr(self._broken, "missing", ())
            text = f"the group is broken: {self._broken}"
            raise PeerLostError(text, missing) if missing else GroupBrokenError(text)
        if self._abandoned is not None:
            raise GroupBrokenError(self._abandoned)

    @contextmanager
    def _naming(self, channel: Channel) -> Iterator[None]:
        """Turn what a connection says at its end into an error that names ranks."""
        try:
            yield
        except FarewellError as farewell:
            self._told(channel.rank, farewell.args[0])
        except GroupBrokenError:
            raise
        except OSError as error:
            self._lost(channel, error)

    def _left(self, channel: Channel) -> None:
        """A member hung up from which nothing is due in this round."""
        words = channel.look()
        if words is None or _polite(words):
            self._poll.unregister(channel.file)  # or it would be reported again at once
            del self._mask[channel.file]
        elif words:
            self._told(channel.rank, words)
        else:
            self._lost(channel, ClosedError(f"rank {channel.rank} closed its connection"))

    def _told(self, rank: int, words: bytes) -> NoReturn:
        if _polite(words):
            raise PeerLostError(f"rank {rank} closed the group while others still need it", [rank])
        why, missing = _understand(words)
        if missing:
            raise PeerLostError(why, missing)
        raise GroupBrokenError(why or f"rank {rank} left")

    def _lost(self, channel: Channel, error: OSError) -> NoReturn:
        """Name who is gone: those whose connections are closed without a word, or those that others name."""
        missing = {channel.rank}
        for other in self.channels.values():
            words = other.last_words()
            if words and (other is channel or not _polite(words)):
                self._told(other.rank, words)
            if words == b"":
                missing.add(other.rank)
        verb = "is" if len(missing) == 1 else "are"
        raise PeerLostError(f"{ranks_text(missing)} of the group {verb} gone ({error})", missing) from error

    def _late(self, ranks: Iterable[int]) -> NoReturn:
        ranks = set(ranks)
        raise PeerTimeoutError(
            f"{ranks_text(ranks)} didn't answer before the deadline of the operation", ranks
        )

    def _end(self, error: BaseException, why: str | None = None) -> None:
        if self._broken is not None:
            return
        self._broken = error
        text = why or f"rank {self.rank} left: {error}"
        missing = getattr(error, "missing", ())
        if missing:
            text = str(error)
        words = json.dumps({"why": text, "missing": list(missing)}).encode()
        for channel in self.channels.values():
            channel.leave(words)
        self._wake.close()
        self._waker.close()


def _understand(words: bytes) -> tuple[str, list[int]]:
    try:
        told = json.loads(words)
        return str(told["why"]), [int(rank) for rank in told["missing"]]
    except (ValueError, KeyError, TypeError):
        return "", []


def _polite(words: bytes) -> bool:
    return bool(words) and _understand(words)[0] == _CLOSED
