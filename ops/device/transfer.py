"""ToDevice and ToHost: where a stream of tables crosses between host and device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import pyarrow as pa

from ..backend import array_namespace
from ..kernel import Broadcast, Context, Kernel, Stream
from ..morsels import rechunk, slices
from .column import physical_type
from .device_kernel import DeviceKernel, DeviceStream
from .memory import halved_on_oom
from .table import DeviceTable, to_arrow, to_device

#: rows that cross at a time, counted from the start of a partition: enough to keep a device busy, few enough that
#: several batches of wide rows fit its memory
UNIT_ROWS = 1 << 20


@dataclass(frozen=True)
class ToDevice(DeviceKernel):
    """Brings a stream of host tables to the device, `UNIT_ROWS` at a time."""

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> DeviceStream:  # type: ignore[override]
        xp = array_namespace()
        for table in rechunk(inputs[0], UNIT_ROWS):
            yield from halved_on_oom(table.num_rows, partial(_crossed, table, xp))

    @property
    def label(self) -> str:
        return "to device"


@dataclass(frozen=True)
class ToHost(Kernel):
    """Brings a stream of device tables back, in slices of `MORSEL_ROWS`."""

    def run(self, inputs: Sequence[DeviceStream], context: Context) -> Stream:  # type: ignore[override]
        for table in inputs[0]:
            yield from slices(to_arrow(table))

    @property
    def label(self) -> str:
        return "to host"


def _crossed(table: pa.Table, xp: ModuleType, start: int, stop: int) -> DeviceTable:
    return to_device(table.slice(start, stop - start), xp)


def crosses(schema: pa.Schema) -> str | None:
    """Return why rows of a schema can't lie on a device; None if they can.

    Example:
        >>> crosses(pa.schema([("x", pa.int64())])), crosses(pa.schema([("x", pa.list_(pa.int8()))]))
        (None, "'x' is list<item: int8>")
    """
    for field in schema:
        if physical_type(field.type) is None:
            return f"{field.name!r} is {field.type}"
    return None
