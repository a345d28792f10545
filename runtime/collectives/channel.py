"""Channel: a connection to one other member, which sends a message and receives one at the same time without blocking.

A message is a head, a body whose length the receiver knows, and a note of any length. The body is received straight
into the arrays where it belongs.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .errors import GroupBrokenError

#: magic, kind, number of the operation, its digest, bytes of the note, bytes of the body
_HEAD = struct.Struct("<HBxIIQQ")
_MAGIC = 0x4857
_MOST_BUFFERS = 64
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

#: kinds of messages
HELLO, DATA, DONE, ROOM, FAREWELL = 1, 2, 3, 4, 5
_KINDS = {HELLO: "the start", DATA: "data", DONE: "the end", ROOM: "shared memory", FAREWELL: "a farewell"}

Buffers = Sequence[Any]


class ClosedError(ConnectionError):
    """The other side closed the connection, or its process is gone."""


class FarewellError(Exception):
    """The other side says that it leaves; the argument is what it says, as bytes."""


class Channel:
    """A connection to one other member.

    Args:
        sock: a connected socket; the channel owns it from now on.
        rank: of the other member.

    Attributes:
        note: of the last message received.
        sending, receiving: whether a message is under way.
    """

    def __init__(self, sock: socket.socket, rank: int):
        sock.setblocking(False)
        self.sock, self.rank = sock, rank
        self.file = sock.fileno()
        self.secure = isinstance(sock, ssl.SSLSocket)
        self.note = b""
        self.sending = self.receiving = False
        self._out: list[memoryview] = []
        self._head = bytearray(_HEAD.size)
        self._head_due = False
        self._in: list[memoryview] = []
        self._body: list[memoryview] = []
        self._expected = (0, 0, 0, 0)
        self._note_room: bytearray | None = None

    def send(self, kind: int, number: int, digest: int, buffers: Buffers, note: bytes) -> bool:
        """Begin to send a message. Returns whether all of it is out already."""
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        body = sum(view.nbytes for view in views)
        head = _HEAD.pack(_MAGIC, kind, number, digest, len(note), body)
        self._out = [memoryview(head), *views]
        if note:
            self._out.append(memoryview(note))
        self.sending = True
        return self.push()

    def push(self) -> bool:
        """Send what goes without blocking. Returns whether the message is out."""
        out = self._out
        try:
            while out:
                if self.secure:
                    sent = self.sock.send(out[0])
                else:
                    sent = self.sock.sendmsg(out[:_MOST_BUFFERS])
                while out and sent >= out[0].nbytes:
                    sent -= out.pop(0).nbytes
                if sent:
                    out[0] = out[0][sent:]
        except _NOT_NOW:
            return False
        self.sending = False
        return True

    def receive(self, kind: int, number: int, digest: int, buffers: Buffers) -> None:
        """Begin to receive a message, its body into writable buffers of bytes."""
        self._body = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        self._expected = (kind, number, digest, sum(view.nbytes for view in self._body))
        self._in = [memoryview(self._head)]
        self._head_due = True
        self._note_room = None
        self.receiving = True

    def pull(self) -> bool:
        """Receive what is there. Returns whether the message is complete.

        Raises:
            ClosedError: the other side is gone.
            FarewellError: it leaves, and says why.
            GroupBrokenError: it is in another operation.
        """
        try:
            self._read()
            if self._head_due:
                self._head_due = False
                self._open(*_HEAD.unpack(self._head))
                self._read()
        except _NOT_NOW:
            return False
        except OSError as error:
            raise ClosedError(f"rank {self.rank}: {error}") from error
        self.note = b"" if self._note_room is None else bytes(self._note_room)
        self.receiving = False
        return True

    def _read(self) -> None:
        pending = self._in
        while pending:
            if self.secure:
                got = self.sock.recv_into(pending[0])
            else:
                got = self.sock.recvmsg_into(pending[:_MOST_BUFFERS])[0]
            if not got:
                raise ClosedError(f"rank {self.rank} closed its connection")
            while pending and got >= pending[0].nbytes:
                got -= pending.pop(0).nbytes
            if got:
                pending[0] = pending[0][got:]

    def _open(self, magic: int, kind: int, number: int, digest: int, note: int, body: int) -> None:
        if magic != _MAGIC:
            raise GroupBrokenError(f"rank {self.rank} sent something that is no message of a group")
        self._in = []
        if kind == FAREWELL:
            raise FarewellError(self._last_words(note))
        if (kind, number, digest, body) != self._expected:
            due, here, _, size = self._expected
            raise GroupBrokenError(
                f"rank {self.rank} sent {_KINDS.get(kind, kind)} of operation {number} with {body} bytes, where "
                f"{_KINDS[due]} of operation {here} with {size} bytes was due: all members must call the same "
                "operations in the same order, with arrays of the same lengths and types"
            )
        self._in = self._body
        if note:
            self._note_room = bytearray(note)
            self._in.append(memoryview(self._note_room))

    def _last_words(self, length: int) -> bytes:
        words = bytearray(length)
        with suppress(OSError):
            self._in = [memoryview(words)]
            self._read()
        return bytes(words)

    def look(self) -> bytes | None:
        """See whether the other side left, while no message of it is due.

        Returns:
            What it said as farewell; b"" if it is gone without one; None if it is there, or can't be looked at.
        """
        if self.secure:
            return None
        try:
            head = self.sock.recv(_HEAD.size, socket.MSG_PEEK)
            if head and (len(head) < _HEAD.size or _HEAD.unpack(head)[1] != FAREWELL):
                return None
            self.receive(FAREWELL, 0, 0, ())
            self.pull()
        except _NOT_NOW:
            return None
        except FarewellError as farewell:
            return farewell.args[0]
        except OSError:
            return b""
        return None

    def last_words(self) -> bytes | None:
        """Read whatever is there, to the end; nothing else can be received afterwards.

        Returns:
            What the other side said as farewell; b"" if it is gone without one; None if it is there.
        """
        try:
            if self.receiving:
                self.pull()
            while True:
                skipped = bytearray(_HEAD.size)
                self._in = [memoryview(skipped)]
                self._read()
                _, kind, _, _, note, body = _HEAD.unpack(skipped)
                if kind == FAREWELL:
                    return self._last_words(note)
                self._in = [memoryview(bytearray(note + body))] if note + body else []
                self._read()
        except FarewellError as farewell:
            return farewell.args[0]
        except (GroupBrokenError, *_NOT_NOW):
            return None
        except OSError:
            return b""

    def leave(self, words: bytes) -> None:
        """Say farewell if no message is under way, and close."""
        with suppress(OSError, ValueError):
            if not self.sending:
                self.send(FAREWELL, 0, 0, (), words)
            if not self.secure:
                self.sock.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            self.sock.close()
