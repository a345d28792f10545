"""A stand-in for ``cupy.cuda.nccl``: processes of a machine exchange bytes over local sockets, as NCCL's would.

What matters is as there: a communicator is made when all are there; two members may not share a device; transfers are
queued within a group and done behind the caller's back; one with a member that died never ends, until it is aborted.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

available = True
NCCL_INT8 = NCCL_CHAR = 0
NCCL_UINT8 = 1
NCCL_INT32 = NCCL_INT = 2
NCCL_UINT32, NCCL_INT64, NCCL_UINT64, NCCL_FLOAT16 = 3, 4, 5, 6
NCCL_FLOAT32, NCCL_FLOAT64 = 7, 8
_SIZES = {0: 1, 1: 1, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8}
_GREETING = struct.Struct("<I256s")
_MAKING_SECONDS = 60.0
_queued = threading.local()


class NcclError(RuntimeError):
    """What NCCL reports."""


def get_version() -> int:
    return 22_000


def get_build_version() -> int:
    return 22_000


def get_unique_id() -> bytes:
    return secrets.token_bytes(128)


def device_name() -> str:
    """Names the device that a process uses."""
    from . import runtime

    return f"{platform.node()}/{runtime.visible()[0]}"


def groupStart() -> None:
    if getattr(_queued, "calls", None) is not None:
        raise NcclError("groups within groups aren't emulated")
    _queued.calls = []


def groupEnd() -> None:
    calls, _queued.calls = _queued.calls, None
    for call in calls:
        call()


class _Transfer:
    """One message; over once it is sent or received."""

    def __init__(self) -> None:
        self.over = threading.Event()


class _Peer:
    """A connection, with a thread that sends and one that receives, each in order."""

    def __init__(self, sock: socket.socket):
        self._sock = sock
        self.sends: SimpleQueue[tuple[_Transfer, bytes]] = SimpleQueue()
        self.receives: SimpleQueue[tuple[_Transfer, int, int]] = SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()
        threading.Thread(target=self._receive, daemon=True).start()

    def _send(self) -> None:
        while True:
            transfer, data = self.sends.get()
            try:
                self._sock.sendall(data)
            except OSError:
                return  # as on a device: it is never over
            transfer.over.set()

    def _receive(self) -> None:
        while True:
            transfer, pointer, size = self.receives.get()
            room, at = memoryview(bytearray(size)), 0
            while at < size:
                try:
                    got = self._sock.recv_into(room[at:])
                except OSError:
                    return
                if not got:
                    return
                at += got
            ctypes.memmove(pointer, bytes(room), size)
            transfer.over.set()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class NcclCommunicator:
    """A communicator."""

    def __init__(self, ndev: int, commId: bytes, rank: int, config: Any = None):
        if not isinstance(commId, bytes) or len(commId) != 128 or not 0 <= rank < ndev:
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: invalid argument")
        self._rank, self._size = rank, ndev
        self._name = "nccl-" + commId[:16].hex()
        self._under_way: list[_Transfer] = []
        self._peers = self._meet()

    def _meet(self) -> dict[int, _Peer]:
        devices, peers = {self._rank: device_name()}, {}
        end = time.monotonic() + _MAKING_SECONDS
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0{self._name}-{self._rank}")
        listener.listen(64)
        listener.settimeout(_MAKING_SECONDS)
        with listener:
            for other in range(self._rank):
                sock = socket.socket(socket.AF_UNIX)
                while True:
                    try:
                        sock.connect(f"\0{self._name}-{other}")
                        break
                    except OSError:
                        if time.monotonic() > end:
                            raise NcclError("NCCL_ERROR_SYSTEM_ERROR: unhandled system error") from None
                        time.sleep(0.005)
                sock.sendall(_GREETING.pack(self._rank, devices[self._rank].encode()))
                devices[other] = self._greeted(sock)[1]
                peers[other] = sock
            for _ in range(self._rank + 1, self._size):
                sock, _ = listener.accept()
                other, device = self._greeted(sock)
                sock.sendall(_GREETING.pack(self._rank, devices[self._rank].encode()))
                devices[other], peers[other] = device, sock
        if len(set(devices.values())) < len(devices):
            raise NcclError("NCCL_ERROR_INVALID_USAGE: invalid usage")  # Duplicate GPU detected
        return {other: _Peer(sock) for other, sock in peers.items()}

    def _greeted(self, sock: socket.socket) -> tuple[int, str]:
        rank, device = _GREETING.unpack(sock.recv(_GREETING.size, socket.MSG_WAITALL))
        return rank, device.rstrip(b"\0").decode()

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        transfer, size = self._begun(stream), count * _SIZES[datatype]
        _now_or_later(lambda: self._peers[peer].sends.put((transfer, ctypes.string_at(sendbuf, size))))

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        transfer, size = self._begun(stream), count * _SIZES[datatype]
        _now_or_later(lambda: self._peers[peer].receives.put((transfer, recvbuf, size)))

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        size = count * _SIZES[datatype]
        ctypes.memmove(recvbuf + self._rank * size, ctypes.string_at(sendbuf, size), size)
        for peer in self._peers:
            self.send(sendbuf, count, datatype, peer, stream)
            self.recv(recvbuf + peer * size, count, datatype, peer, stream)

    def _begun(self, stream: int) -> _Transfer:
        from . import cuda

        transfer = _Transfer()
        self._under_way = [other for other in self._under_way if not other.over.is_set()] + [transfer]
        cuda.streams[stream].under_way.append(transfer)
        return transfer

    def check_async_error(self) -> None:
        pass

    def abort(self) -> None:
        self._end()
        for transfer in self._under_way:
            transfer.over.set()

    def destroy(self) -> None:
        self._end()

    def _end(self) -> None:
        for peer in self._peers.values():
            peer.close()

    def size(self) -> int:
        return self._size

    def rank_id(self) -> int:
        return self._rank

    def device_id(self) -> int:
        return 0


def _now_or_later(call: Callable[[], None]) -> None:
    calls = getattr(_queued, "calls", None)
    call() if calls is None else calls.append(call)
