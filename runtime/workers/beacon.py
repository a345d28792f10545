"""Beacon: a small process beside a worker that tells how its parent fares, whatever the parent is busy with.

Started as ``python -I -S -E beacon.py PARENT HOST``, with a token on standard input; it prints the port that it
listens on. It shares no interpreter lock with its parent, reads the parent's state from ``/proc`` some twenty times a
second, and sends each connected client a line four times a second: the state's letter, and seconds since the parent was
last seen alive. A client begins with the token, and may send ``kill SECONDS``: the parent is killed if it has been
stopped for that long at that moment, and is left alone otherwise; the answer is ``killed`` or ``alive``.

It ends when its parent does, however that dies: by the parent's id, which it looks at with each sample. (The kernel's
own death signal goes by the thread that started it, which may end before the process does.)

Only what Python has ready in some 20 ms is imported, and nothing of Headwater.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from _operator import _compare_digest as same

#: seconds between lines to a client
LINE_SECONDS = 0.25
#: a pause between samples that is longer than this says that the beacon itself was held up
GAP_SECONDS = 1.0
#: a client that hasn't shown the token by then is dropped
HELLO_SECONDS = 5.0
#: the shortest stop, in seconds, for which anybody may have the parent killed
LEAST_KILL_SECONDS = 1.0
#: clients at once, and bytes of an unfinished line
_MOST_CLIENTS, _MOST_PENDING = 256, 256

_STOPPED = b"T"  # by a signal; "t" is a debugger's stop


class Pulse:
    """When a process was last seen alive, from samples of it. Holds no clock.

    Alive is a sample with a state other than stopped, or processor time used since the sample before.

    Args:
        now: seconds on any clock that only goes forward; counts as a sign of life.
    """

    def __init__(self, now: float):
        self.state = b"?"
        self._alive = self._sampled = now
        self._used: tuple[bytes, ...] = ()

    def sample(self, now: float, state: bytes, used: tuple[bytes, ...]) -> None:
        """Take in a sample.

        Args:
            now: when it was taken.
            state: letter of the process's state.
            used: figures that change whenever the process runs.
        """
        if state != _STOPPED or used != self._used or now - self._sampled > GAP_SECONDS:
            self._alive = now
        self.state, self._used, self._sampled = state, used, now

    def idle(self, now: float) -> float:
        """Seconds since the process was last seen alive."""
        return now - self._alive


class Proc:
    """What the kernel tells about a process; its files are held open, so that a reused id isn't mistaken for it."""

    def __init__(self, pid: int):
        self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:  # nanoseconds that the main thread ran; one that is only continued and stopped again runs, too
            self._runs = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a kernel without it counts at least the main thread's switches
            self._runs = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> tuple[bytes, tuple[bytes, ...]]:
        """Return state and usage, as `Pulse.sample` takes them."""
        fields = os.pread(self._stat, 1024, 0).rpartition(b")")[2].split()
        runs = os.pread(self._runs, 8192, 0).splitlines()[-2:]
        return fields[0], (fields[11], fields[12], *runs)


class Beacon:
    """Tells clients of one process.

    Args:
        parent: id of the process, the parent of this one.
        token: what clients have to show.
        listener: where they connect.
    """

    def __init__(self, parent: int, token: bytes, listener: socket.socket):
        self._parent, self._token, self._listener = parent, token, listener
        self._proc = Proc(parent)
        self._pulse = Pulse(time.monotonic())
        #: when a client came, until it has shown the token; then None
        self._since: dict[socket.socket, float | None] = {}
        self._pending: dict[socket.socket, bytes] = {}

    def run(self) -> None:
        """Sample and tell until the parent is gone, or has closed its end of the pipe."""
        line_due = 0.0
        while os.getppid() == self._parent:
            self._sample()
            now = time.monotonic()
            if now >= line_due:
                line_due = now + LINE_SECONDS
                self._drop_silent(now)
                for client in [c for c, since in self._since.items() if since is None]:
                    self._send(client, self._line(now))
            # irregular, so that no rhythm of stopping and going on hides between samples
            pause = 0.04 + os.urandom(1)[0] / 255 * 0.02
            sources: list[int | socket.socket] = [0, self._listener, *self._since]
            ready = set(select.select(sources, [], [], pause)[0])
            if 0 in ready:
                return
            if self._listener in ready:
                self._accept(now)
            for client in [c for c in self._since if c in ready]:
                self._receive(client)

    def _sample(self) -> None:
        state, used = self._proc.read()
        self._pulse.sample(time.monotonic(), state, used)

    def _line(self, now: float) -> bytes:
        return b"%s %.3f\n" % (self._pulse.state, self._pulse.idle(now))

    def _accept(self, now: float) -> None:
        try:
            client = self._listener.accept()[0]
        except OSError:
            return
        if len(self._since) >= _MOST_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._since[client], self._pending[client] = now, b""

    def _receive(self, client: socket.socket) -> None:
        try:
            data = client.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, rest = (self._pending[client] + data).split(b"\n")
        self._pending[client] = rest
        if not data or len(rest) > _MOST_PENDING:
            self._drop(client)
            return
        for line in lines:
            if self._since.get(client, 0.0) is None:
                self._send(client, self._obey(line))
            elif client in self._since and same(line, self._token):
                self._since[client] = None
                self._send(client, self._line(time.monotonic()))
            else:
                self._drop(client)
                return

    def _obey(self, line: bytes) -> bytes:
        word, _, seconds = line.partition(b" ")
        try:
            least = max(float(seconds), LEAST_KILL_SECONDS)
        except ValueError:
            return b"unknown\n"
        if word != b"kill":
            return b"unknown\n"
        self._sample()
        stopped = self._pulse.state == _STOPPED and self._pulse.idle(time.monotonic()) >= least
        if not stopped or os.getppid() != self._parent:
            return b"alive\n"
        os.kill(self._parent, signal.SIGKILL)
        return b"killed\n"

    def _send(self, client: socket.socket, line: bytes) -> None:
        try:
            sent = client.send(line)
        except OSError:
            sent = 0
        if sent < len(line):  # gone, or it doesn't read
            self._drop(client)

    def _drop_silent(self, now: float) -> None:
        for client, since in list(self._since.items()):
            if since is not None and now - since > HELLO_SECONDS:
                self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        self._since.pop(client, None)
        self._pending.pop(client, None)
        client.close()


def main(parent: int, host: str) -> None:
    """Be the beacon of a parent process, at a host's interface."""
    token = os.read(0, 1024).strip()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=64)
    listener.setblocking(False)
    beacon = Beacon(parent, token, listener)
    os.write(1, b"%d\n" % listener.getsockname()[1])
    os.close(1)
    beacon.run()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), sys.argv[2])
    except ProcessLookupError:  # the parent died between two looks at it
        sys.exit(0)
