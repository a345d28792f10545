"""A process with blocks on its device, which does what the test that started it says, and answers."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from multiprocessing.connection import Client
from typing import Any

import pyarrow as pa

from headwater.ops.backend import array_namespace
from headwater.ops.device.cache import BlockKey, DeviceCache
from headwater.ops.device.table import to_device
from headwater.runtime.workers.device_lending import DeviceLending


class Lender:
    """What the test can call, by name."""

    def __init__(self) -> None:
        self.cache = DeviceCache(1 << 30)
        self.lending = DeviceLending(self.cache)

    def put(self, key: BlockKey, segments: list[list[pa.Table]], offsets: list[int]) -> bool:
        xp = array_namespace()
        return self.cache.put(
            key, [[to_device(table, xp) for table in tables] for tables in segments], offsets
        )

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        return asyncio.run(self.lending.handlers()[op](**request))

    def clear(self) -> None:
        self.cache.clear()
        gc.collect()

    def forget(self, run: str) -> None:
        self.cache.forget(run)
        self.lending.forget(run)

    def sweep(self) -> int:
        return self.lending.sweep()

    def leases(self) -> int:
        return self.lending.leases

    def kept_bytes(self) -> int:
        return self.lending._book.bytes

    def break_driver(self) -> None:
        """Let CUDA refuse to export, as it does for memory of ``cudaMallocAsync``."""
        runtime = array_namespace().cuda.runtime

        def refuse(pointer: int) -> bytes:
            raise runtime.CUDARuntimeError(1)

        runtime.ipcGetMemHandle = refuse

    def pid(self) -> int:
        return os.getpid()


def main(address: str) -> None:
    lender = Lender()
    with Client(address) as connection:
        while True:
            try:
                name, args, kwargs = connection.recv()
            except EOFError:
                return
            try:
                connection.send(getattr(lender, name)(*args, **kwargs))
            except Exception as error:
                connection.send(error)


if __name__ == "__main__":
    main(sys.argv[1])
