"""Copies between the device memory of two processes of a machine, by CUDA IPC.

The process that has tables describes where their arrays lie: for each the handle of the allocation that it is part of,
and its place in there. Another one maps the allocations, copies what it wants into memory of its own, and unmaps them.
The two may use one device, or one each; then the copy crosses the link between them, and never the host.

Until the other has unmapped them, the owner must keep the tables: what it frees meanwhile is undefined there.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from ..backend import Array
from .column import DeviceColumn, physical_type
from .memory import is_out_of_memory
from .modules import on_device
from .table import DeviceTable


class OutdatedError(RuntimeError):
    """Memory of another process is mapped of which it isn't known any more whose it is."""


class IpcRefusedError(RuntimeError):
    """CUDA doesn't let these two processes share memory, or not this memory."""


@dataclass(frozen=True)
class SharedArray:
    """Where an array lies.

    Attributes:
        allocation: number of the handle; -1 for an array of no bytes.
        offset: in the allocation, in bytes.
        length: elements.
    """

    allocation: int
    offset: int
    length: int


@dataclass(frozen=True)
class SharedColumn:
    """A `DeviceColumn`, without its type; ``dictionary`` is a number, -1 for none."""

    values: SharedArray
    valid: SharedArray | None
    dictionary: int


@dataclass(frozen=True)
class Shared:
    """Tables of one schema that another process may copy.

    Attributes:
        schema: in Arrow's form.
        handles: of the allocations in which their arrays lie.
        dictionaries: of their columns of strings, as streams of Arrow's.
        groups: for each group of tables, for each table its rows and columns.
        age: of the owner's promises; what was mapped at another age may be other memory by now.
    """

    schema: bytes
    handles: tuple[bytes, ...]
    dictionaries: tuple[bytes, ...]
    groups: tuple[tuple[tuple[int, tuple[SharedColumn, ...]], ...], ...]
    age: str = ""

    def fits(self, schema: pa.Schema) -> bool:
        """Whether the tables have the columns of a schema."""
        theirs = pa.ipc.read_schema(pa.py_buffer(self.schema))
        return theirs.names == schema.names and theirs.types == schema.types


def can_share(tables: Sequence[DeviceTable]) -> bool:
    """Whether `share` can describe tables; not if they have arrays with gaps."""
    columns = [column for table in tables for column in table.columns]
    return all(
        array.flags.c_contiguous for c in columns for array in (c.values, c.valid) if array is not None
    )


def share(
    groups: Sequence[Sequence[DeviceTable]], schema: pa.Schema, xp: ModuleType, age: str = ""
) -> Shared:
    """Describe tables for another process, which may copy them as long as they are kept.

    What they hold must have been computed already.

    Args:
        groups: tables of one schema, which `can_share`.
        schema: theirs.
        xp: CuPy.
        age: of this process's promises: another one after it has broken one, by freeing memory that was still lent.

    Raises:
        IpcRefusedError: memory that can't be shared.
    """
    if not on_device(xp):
        raise IpcRefusedError("the tables lie on the host")
    exporter = _Exporter(xp)
    with _refused_by_cuda(xp):
        shared = tuple(
            tuple((t.rows, tuple(map(exporter.column, t.columns))) for t in group) for group in groups
        )
    dictionaries = tuple(_packed(dictionary) for dictionary in exporter.dictionaries)
    return Shared(schema.serialize().to_pybytes(), tuple(exporter.handles), dictionaries, shared, age)


class Mapped:
    """Allocations of another process that this one has mapped; those that others here have mapped too, only once.

    Args:
        handles: of the allocations.
        xp: CuPy.
        age: of the owner's promises.

    Attributes:
        addresses: where they are here.

    Raises:
        OutdatedError: one of them is still mapped from another age; memory that was freed since, and another
            allocation in its place, may have the same handle.
        IpcRefusedError: CUDA doesn't map them.
    """

    def __init__(self, handles: Sequence[bytes], xp: ModuleType, age: str = ""):
        self._xp, self._handles = xp, []
        self.addresses: list[int] = []
        xp.cuda.Device().use()
        try:
            for handle in handles:
                with _opening, _refused_by_cuda(xp):
                    address, users, since = _open.get(handle) or (
                        xp.cuda.runtime.ipcOpenMemHandle(handle),
                        0,
                        age,
                    )
                    if since != age:
                        raise OutdatedError("its owner may have let go of what is mapped of it")
                    _open[handle] = address, users + 1, age
                self._handles.append(handle)
                self.addresses.append(address)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmap them. Nothing may read them any more."""
        self._xp.cuda.Device().use()
        while self._handles:
            handle = self._handles.pop()
            with _opening:
                address, users, age = _open.pop(handle)
                if users > 1:
                    _open[handle] = address, users - 1, age
                    continue
                with suppress(self._xp.cuda.runtime.CUDARuntimeError):  # the owner has died
                    self._xp.cuda.runtime.ipcCloseMemHandle(address)


#: what this process has mapped of others: by handle the address, how many use it, and the age
_open: dict[bytes, tuple[int, int, str]] = {}
_opening = threading.Lock()


def copied(
    shared: Shared, schema: pa.Schema, wanted: Sequence[int], xp: ModuleType
) -> tuple[list[list[DeviceTable]], Mapped]:
    """Copy another process's tables into memory of this one; all is there when this returns.

    Traffic: each array's bytes are read once and written once.

    Args:
        shared: what `share` has told there.
        schema: of the tables that are made, one that `Shared.fits`.
        wanted: numbers of groups.
        xp: CuPy.

    Returns:
        The tables of each group that is wanted; and the memory of the other process, still mapped, as mapping takes
        longer than copying, and the next ones may lie in the same allocations. The caller closes it, before the owner
        may let go of the tables.

    Raises:
        OutdatedError: some of it is still mapped from before.
        IpcRefusedError: CUDA doesn't map the memory.
    """
    columns = [column for group in wanted for _, table in shared.groups[group] for column in table]
    arrays = [array for column in columns for array in (column.values, column.valid) if array is not None]
    needed = sorted({array.allocation for array in arrays} - {-1})
    mapped = Mapped([shared.handles[number] for number in needed], xp, shared.age)
    try:
        with _refused_by_cuda(xp):
            copier = _Copier(shared, dict(zip(needed, mapped.addresses)), xp)
            try:
                return [[copier.table(t, schema) for t in shared.groups[group]] for group in wanted], mapped
            finally:
                copier.stream.synchronize()
    except BaseException:
        mapped.close()
        raise


class _Copier:
    """Makes tables of mapped ones."""

    def __init__(self, shared: Shared, places: Mapping[int, int], xp: ModuleType):
        self._xp, self._places = xp, places
        self._dictionaries = [_unpacked(data) for data in shared.dictionaries]
        self.stream = xp.cuda.get_current_stream()

    def table(self, there: tuple[int, tuple[SharedColumn, ...]], schema: pa.Schema) -> DeviceTable:
        rows, columns = there
        return DeviceTable(tuple(map(self._column, columns, schema.types)), schema, rows)

    def _column(self, there: SharedColumn, type: pa.DataType) -> DeviceColumn:
        dtype = physical_type(type)
        assert dtype is not None
        valid = None if there.valid is None else self._array(there.valid, np.dtype(bool))
        dictionary = None if there.dictionary < 0 else self._dictionaries[there.dictionary]
        return DeviceColumn(type, self._array(there.values, dtype), valid, dictionary)

    def _array(self, there: SharedArray, dtype: np.dtype) -> Array:
        here = self._xp.empty(there.length, dtype)
        if here.nbytes:
            source, runtime = self._places[there.allocation] + there.offset, self._xp.cuda.runtime
            kind = runtime.memcpyDeviceToDevice
            runtime.memcpyAsync(here.data.ptr, source, here.nbytes, kind, self.stream.ptr)
        return here


class _Exporter:
    """Finds the allocation of each array, and its handle."""

    def __init__(self, xp: ModuleType):
        self._xp = xp
        xp.cuda.Device().use()  # a thread has no context before its first call
        self.handles: list[bytes] = []
        self.dictionaries: list[pa.Array] = []
        self._allocations: list[tuple[int, int]] = []
        self._numbers: dict[int, int] = {}

    def column(self, column: DeviceColumn) -> SharedColumn:
        valid = None if column.valid is None else self._array(column.valid)
        return SharedColumn(self._array(column.values), valid, self._dictionary(column.dictionary))

    def _array(self, array: Array) -> SharedArray:
        if not array.nbytes:
            return SharedArray(-1, 0, len(array))
        pointer = int(array.data.ptr)
        for number, (base, size) in enumerate(self._allocations):
            if base <= pointer < base + size:
                return SharedArray(number, pointer - base, len(array))
        base, size = _allocation(self._xp, pointer)
        self._allocations.append((base, size))
        self.handles.append(bytes(self._xp.cuda.runtime.ipcGetMemHandle(base)))
        return SharedArray(len(self.handles) - 1, pointer - base, len(array))

    def _dictionary(self, dictionary: pa.Array | None) -> int:
        if dictionary is None:
            return -1
        number = self._numbers.setdefault(id(dictionary), len(self.dictionaries))
        if number == len(self.dictionaries):
            self.dictionaries.append(dictionary)
        return number


@contextmanager
def _refused_by_cuda(xp: ModuleType) -> Iterator[None]:
    try:
        yield
    except xp.cuda.runtime.CUDARuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise IpcRefusedError(str(error)) from error


def _allocation(xp: ModuleType, pointer: int) -> tuple[int, int]:
    """The first byte of the allocation in which an address lies, and its size; of the pool's, not of the array's."""
    base, size = ctypes.c_ulonglong(0), ctypes.c_size_t(0)
    status = _driver(xp).cuMemGetAddressRange_v2(
        ctypes.byref(base), ctypes.byref(size), ctypes.c_ulonglong(pointer)
    )
    if status:
        raise IpcRefusedError(f"the driver doesn't know the memory at {pointer:#x} (error {status})")
    return base.value, size.value


@cache
def _driver(xp: ModuleType) -> Any:
    """The driver's library; CuPy has no name for the one function that is needed of it."""
    stand_in = getattr(xp.cuda, "_libcuda", None)
    if stand_in is not None:
        return stand_in
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise IpcRefusedError(str(error)) from error


def _packed(dictionary: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([dictionary], names=[""])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _unpacked(data: bytes) -> pa.Array:
    return pa.ipc.open_stream(pa.py_buffer(data)).read_next_batch().column(0)
