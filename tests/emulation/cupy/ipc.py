"""CUDA's handles of memory for other processes, as ``cupy.cuda.runtime`` gives and takes them.

An exported allocation is copied into a nameless file of memory, which another process maps by way of ``/proc``. What
CUDA refuses is refused: a handle of one's own, one that is open already, and one whose allocation is gone. The owner
scribbles over the copy when it frees the allocation, so that whoever still reads it gets something wrong.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
import struct
import threading
import weakref

import numpy as np

_HANDLE = struct.Struct("<qqq16s24x")
_FREED = b"\xdb"
#: tells one's own handles; threads that stand for processes change it
own_pid = os.getpid
#: by address that was handed out: the array that owns the memory there
_owners: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
#: by the address of an allocation
_exported: dict[int, bytes] = {}
_exporting = threading.RLock()
#: by the address where it is mapped: the handle, the mapping, and the array that holds its address
_opened: dict[int, tuple[bytes, mmap.mmap, np.ndarray]] = {}


class RefusedError(RuntimeError):
    """Carries an error code; `runtime` raises it as its own."""


def remember(array: np.ndarray) -> int:
    """Return an array's address, and know from now on in which allocation it lies."""
    address = array.ctypes.data
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    _owners[address] = _owners[owner.ctypes.data] = owner
    return address


def export(pointer: int) -> bytes:
    with _exporting:  # a handle is told only when what it names is there
        return _export(pointer)


def _export(pointer: int) -> bytes:
    if pointer in _exported:
        return _exported[pointer]
    owner = _owners.get(pointer)
    if owner is None or not owner.nbytes:
        raise RefusedError(1)
    base = owner.ctypes.data
    if base not in _exported:
        file, _exported[base] = _file(owner.nbytes)
        _write(file, bytes((ctypes.c_char * owner.nbytes).from_address(base)))
        weakref.finalize(owner, _free, base, file, owner.nbytes).atexit = False
    return _exported[base]


class Memory:
    """As ``cupy.cuda.memory.Memory``: an allocation outside of any pool. Others see what is written to it."""

    def __init__(self, size: int):
        file, handle = _file(size)
        self.size, self._mapping = size, mmap.mmap(file, size)
        self._view = np.frombuffer(self._mapping, np.uint8)
        self.ptr = self._view.ctypes.data
        _exported[self.ptr] = handle
        weakref.finalize(self, _free, self.ptr, file, size).atexit = False


def open(handle: bytes) -> int:
    pid, number, size, token = _HANDLE.unpack(handle)
    if pid == own_pid():
        raise RefusedError(201)
    if any(known == handle for known, *_ in _opened.values()):
        raise RefusedError(208)
    path = f"/proc/{pid}/fd/{number}"
    try:
        if token.decode() not in os.readlink(path):
            raise OSError("another file")
        file = os.open(path, os.O_RDWR)
    except OSError as error:
        raise RefusedError(400) from error
    mapping = mmap.mmap(file, size)
    os.close(file)
    view = np.frombuffer(mapping, np.uint8)
    _opened[view.ctypes.data] = handle, mapping, view
    return view.ctypes.data


def close(pointer: int) -> None:
    if pointer not in _opened:
        raise RefusedError(1)
    _, mapping, view = _opened.pop(pointer)
    del view
    mapping.close()


class Driver:
    """The part of ``libcuda`` that is called by its C names."""

    @staticmethod
    def cuMemGetAddressRange_v2(base: object, size: object, pointer: ctypes.c_ulonglong) -> int:
        owner = _owners.get(pointer.value)
        if owner is None:
            return 1
        base._obj.value, size._obj.value = owner.ctypes.data, owner.nbytes  # type: ignore[attr-defined]
        return 0


def _file(size: int) -> tuple[int, bytes]:
    """A file of memory, and the handle that names it."""
    token = secrets.token_bytes(8).hex()
    file = os.memfd_create(f"emulated-{token}")
    os.ftruncate(file, size)
    return file, _HANDLE.pack(os.getpid(), file, size, token.encode())


def _free(base: int, file: int, size: int) -> None:
    _exported.pop(base, None)
    os.lseek(file, 0, os.SEEK_SET)
    _write(file, _FREED * size)
    os.close(file)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
