"""Neighbour: another process with a table on the device, from which this one copies by CUDA IPC."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import cupy
import numpy as np
import pyarrow as pa

from headwater.ops.device.column import DeviceColumn
from headwater.ops.device.ipc import Mapped, Shared, copied, share
from headwater.ops.device.table import DeviceTable

SCHEMA = pa.schema([("key", pa.int64()), ("x", pa.float64())])
_START_SECONDS = 60


class Neighbour:
    """A process that keeps rows of `SCHEMA` on the device, between ``with`` and its end.

    Args:
        rows: how many.

    Attributes:
        bytes: that a copy has.
    """

    def __init__(self, rows: int):
        self.bytes = 16 * rows
        context = multiprocessing.get_context("spawn")  # a forked one can't use CUDA
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_keep, args=(theirs, rows), daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(_START_SECONDS):
            self._process.kill()
            raise TimeoutError("the other process doesn't begin")
        self._shared: Shared = self._connection.recv()

    def copy(self) -> DeviceTable:
        """Copy the rows: map their memory, copy, and unmap it."""
        tables, mapped = self._copied()
        mapped.close()
        return tables[0][0]

    def mapped(self) -> Mapped:
        """Map their memory until what is returned is closed; copies needn't do so meanwhile."""
        return self._copied()[1]

    def _copied(self) -> tuple[list[list[DeviceTable]], Mapped]:
        return copied(self._shared, SCHEMA, [0], cupy)

    def __enter__(self) -> Neighbour:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(10)


def _keep(connection: Connection, rows: int) -> None:
    """What the other process does: makes rows, says where they are, and waits until nobody needs them."""
    key, x = cupy.arange(rows, dtype=np.int64), cupy.zeros(rows, dtype=np.float64)
    columns: Any = tuple(map(DeviceColumn, SCHEMA.types, (key, x)))
    table = DeviceTable(columns, SCHEMA, rows)
    cupy.cuda.get_current_stream().synchronize()
    connection.send(share([[table]], SCHEMA, cupy))
    with suppress(EOFError, KeyboardInterrupt):
        connection.recv()
