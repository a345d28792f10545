"""DeviceInfo: what a worker tells of its GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DeviceInfo:
    """A worker's GPU.

    Attributes:
        name: of the product.
        memory_bytes: that it has.
        identity: names it among all devices of all machines.
        count: devices that the process sees; it uses the first.
        sharers: processes among which its memory is divided.
        pool_bytes: most bytes that this process's arrays take of it; 0 is not bounded.
    """

    name: str
    memory_bytes: int
    identity: str
    count: int = 1
    sharers: int = 1
    pool_bytes: int = 0

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def __str__(self) -> str:
        shared = f", shared by {self.sharers} workers" if self.sharers > 1 else ""
        return f"{self.name}, {self.memory_bytes / (1 << 30):.0f} GiB{shared}"
