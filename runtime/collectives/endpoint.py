"""Endpoint: where a process can be reached by other members, and how they come together to a mesh.

Each pair of members shares one connection; the higher rank makes it. Its first words are the run's token, the
generation and its rank. Strangers and members of an older generation are turned away; a newer generation ends the
forming of an older one.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

from ...errors import ParameterError
from .channel import Channel
from .errors import GroupBrokenError, PeerLostError, PeerTimeoutError, ranks_text
from .mesh import Mesh

_LENGTH = struct.Struct("<I")
_MOST_WORDS = 4096
#: a stranger that says nothing is let go after these seconds
_PATIENCE = 5.0
_RETRY_SECONDS = 0.02
_WELCOME, _STRANGER, _OLD, _LATER = "welcome", "stranger", "old", "later"


class Endpoint:
    """Listen for other members. One for a process is enough for all generations.

    Args:
        node: name of the node; processes with the same name must be able to share memory.
        host: the address to listen at, as other nodes reach it.
        server_context, client_context: TLS contexts, as those of Dask's `Security`. None: no TLS.

    Attributes:
        address: what others need, as a text.

    Example:
        >>> with Endpoint("here") as endpoint:
        ...     endpoint.address.startswith("tcp://127.0.0.1:")
        True
    """

    def __init__(
        self,
        node: str,
        host: str = "127.0.0.1",
        *,
        server_context: ssl.SSLContext | None = None,
        client_context: ssl.SSLContext | None = None,
    ):
        if (server_context is None) != (client_context is None):
            raise ParameterError(
                "an endpoint needs both TLS contexts, server_context and client_context, or none"
            )
        self.node = node
        self.server_context, self.client_context = server_context, client_context
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listeners = [socket.create_server((host, 0), family=family, backlog=128)]
        query = {"node": node}
        if hasattr(os, "memfd_create"):  # Linux: sockets within a node that have no file
            query["local"] = f"headwater-{secrets.token_hex(8)}"
            local = socket.socket(socket.AF_UNIX)
            local.bind("\0" + query["local"])
            local.listen(128)
            self.listeners.append(local)
        port = self.listeners[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.address = f"tcp://{shown}:{port}?{urlencode(query)}"

    def close(self) -> None:
        """Stop to listen. Groups that were formed stay."""
        for listener in self.listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes a thread that forms a group
            listener.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def node_of(address: str) -> str:
    """Return the node in an endpoint's address.

    Raises:
        ParameterError: it isn't an endpoint's address.
    """
    try:
        return parse_qs(urlsplit(address).query)["node"][0]
    except (KeyError, ValueError) as error:
        raise ParameterError(f"address={address!r}: not the address of an Endpoint") from error


def connect_all(
    endpoint: Endpoint, rank: int, addresses: Sequence[str], generation: int, token: str, deadline: float
) -> Mesh:
    """Connect to all other members.

    Args:
        endpoint: of this process.
        rank: of this member.
        addresses: of all members' endpoints, by rank.
        generation: number of this constellation; counts up.
        token: a secret text that all members of the run know.
        deadline: in ``time.monotonic()``.

    Raises:
        PeerLostError: nobody listens at an address, or a member went while the others came together.
        PeerTimeoutError: members didn't come before the deadline.
        GroupBrokenError: members form another generation, or have another token.
    """
    return _Forming(endpoint, rank, list(addresses), generation, token, deadline).run()


@dataclass
class _Forming:
    endpoint: Endpoint
    rank: int
    addresses: list[str]
    generation: int
    token: str
    deadline: float
    connected: dict[int, socket.socket] = field(default_factory=dict)
    superseded: int | None = None
    ended: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def run(self) -> Mesh:
        bell, ringer = socket.socketpair()
        accepting = threading.Thread(target=self._accept, args=(bell,), daemon=True, name="headwater-accept")
        try:
            accepting.start()
            for peer in range(self.rank):
                self._keep(peer, self._connect(peer))
            self._wait()
            with self.changed:
                self.ended = True
                return Mesh(self.rank, {peer: Channel(sock, peer) for peer, sock in self.connected.items()})
        except BaseException:
            with self.changed:
                self.ended = True
                for sock in self.connected.values():
                    sock.close()
            raise
        finally:
            ringer.close()
            accepting.join(_PATIENCE)
            bell.close()

    def _wait(self) -> None:
        with self.changed:
            while True:
                missing = set(range(len(self.addresses))) - {self.rank} - set(self.connected)
                self._check()
                if not missing:
                    return
                left = self.deadline - time.monotonic()
                if left <= 0:
                    raise PeerTimeoutError(
                        f"{ranks_text(missing)} didn't join generation {self.generation} in time", missing
                    )
                if gone := [peer for peer, sock in self.connected.items() if _hung_up(sock)]:
                    raise PeerLostError(f"{ranks_text(gone)} left while the group was formed", gone)
                self.changed.wait(min(left, _RETRY_SECONDS))

    def _check(self) -> None:
        if self.superseded is not None:
            raise GroupBrokenError(f"generation {self.generation} is over: {self.superseded} is being formed")
        if self.endpoint.listeners[0].fileno() < 0:
            raise GroupBrokenError("the endpoint was closed while a group was formed")

    def _keep(self, peer: int, sock: socket.socket) -> None:
        with self.changed:
            if self.ended:
                sock.close()
                return
            if old := self.connected.pop(peer, None):
                old.close()
            self.connected[peer] = sock
            self.changed.notify_all()

    # connecting to lower ranks

    def _connect(self, peer: int) -> socket.socket:
        while True:
            with self.changed:
                self._check()
            sock = self._reach(peer)
            try:
                sock.settimeout(max(0.01, self.deadline - time.monotonic()))
                hello = {"token": self.token, "generation": self.generation, "rank": self.rank, "to": peer}
                _say(sock, hello)
                answer = _hear(sock)["answer"]
            except (OSError, ValueError, KeyError) as error:
                sock.close()
                if time.monotonic() >= self.deadline:
                    text = f"rank {peer} didn't join generation {self.generation} in time"
                    raise PeerTimeoutError(text, [peer]) from error
                if not isinstance(error, ConnectionError):
                    raise PeerLostError(f"rank {peer} at {self.addresses[peer]}: {error}", [peer]) from error
                answer = _LATER  # it gave up an older group with this connection in the queue, or died
            if answer == _WELCOME:
                return sock
            sock.close()
            if answer != _LATER:
                raise GroupBrokenError(
                    f"rank {peer} at {self.addresses[peer]} turned rank {self.rank} away: "
                    + (
                        "it is in a newer generation"
                        if answer == _OLD
                        else "another token, or another constellation"
                    )
                )
            if time.monotonic() >= self.deadline:
                text = f"rank {peer} didn't join generation {self.generation} in time"
                raise PeerTimeoutError(text, [peer])
            time.sleep(_RETRY_SECONDS)

    def _reach(self, peer: int) -> socket.socket:
        """Open a connection: a local one within a node, if that works, or TCP."""
        parts = urlsplit(self.addresses[peer])
        query = parse_qs(parts.query)
        left = max(0.01, self.deadline - time.monotonic())
        if node_of(self.addresses[peer]) == self.endpoint.node and "local" in query:
            local = socket.socket(socket.AF_UNIX)
            try:
                local.settimeout(left)
                local.connect("\0" + query["local"][0])
                return local
            except OSError:  # the other one is in a container of its own, or gone
                local.close()
        try:
            sock = socket.create_connection((parts.hostname, parts.port), timeout=left)
        except TimeoutError as error:
            raise PeerTimeoutError(
                f"rank {peer} can't be reached at {self.addresses[peer]}", [peer]
            ) from error
        except OSError as error:
            raise PeerLostError(
                f"nobody listens for rank {peer} at {self.addresses[peer]} ({error})", [peer]
            ) from error
        _tune(sock)
        if self.endpoint.client_context is None:
            return sock
        try:
            return self.endpoint.client_context.wrap_socket(sock, server_hostname=parts.hostname)
        except OSError as error:
            sock.close()
            if time.monotonic() >= self.deadline:
                raise PeerTimeoutError(f"rank {peer} didn't answer in time", [peer]) from error
            raise PeerLostError(f"rank {peer} at {self.addresses[peer]}: {error}", [peer]) from error

    # being connected to by higher ranks

    def _accept(self, bell: socket.socket) -> None:
        poll = select.poll()
        files = {listener.fileno(): listener for listener in self.endpoint.listeners}
        if -1 in files:
            return
        for file in (*files, bell.fileno()):
            poll.register(file, select.POLLIN)
        while not self.ended:
            for file, event in poll.poll():
                if file not in files or event & ~select.POLLIN:
                    return
                try:
                    sock, _ = files[file].accept()
                except OSError:
                    continue
                threading.Thread(
                    target=self._welcome, args=(sock,), daemon=True, name="headwater-welcome"
                ).start()

    def _welcome(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(min(_PATIENCE, max(0.01, self.deadline - time.monotonic())))
            if sock.family != socket.AF_UNIX:
                _tune(sock)
                if self.endpoint.server_context is not None:
                    sock = self.endpoint.server_context.wrap_socket(sock, server_side=True)
            hello = _hear(sock)
            answer = self._judge(hello)
            _say(sock, {"answer": answer})
            if answer == _WELCOME:
                self._keep(int(hello["rank"]), sock)
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass
        sock.close()

    def _judge(self, hello: dict) -> str:
        if not hmac.compare_digest(str(hello["token"]).encode(), self.token.encode()):
            return _STRANGER
        generation = int(hello["generation"])
        if generation < self.generation:
            return _OLD
        if generation > self.generation:
            with self.changed:
                self.superseded = generation
                self.changed.notify_all()
            return _LATER
        expected = self.rank < int(hello["rank"]) < len(self.addresses) and int(hello["to"]) == self.rank
        return _LATER if self.ended else _WELCOME if expected else _STRANGER


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def _say(sock: socket.socket, words: dict) -> None:
    text = json.dumps(words).encode()
    sock.sendall(_LENGTH.pack(len(text)) + text)


def _hear(sock: socket.socket) -> dict:
    (length,) = _LENGTH.unpack(_read(sock, _LENGTH.size))
    if length > _MOST_WORDS:
        raise ValueError("that is no greeting of a group")
    return json.loads(_read(sock, length))


def _read(sock: socket.socket, length: int) -> bytes:
    text = b""
    while len(text) < length:
        if not (part := sock.recv(length - len(text))):
            raise ConnectionResetError("closed during the greeting")
        text += part
    return text
