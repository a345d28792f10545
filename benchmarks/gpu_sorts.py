"""Sorts in the device's memory, of an eighth of the rows at a time, and on one core."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cupy
import markdown
import numpy as np
import pyarrow as pa
from sections import Sections

from headwater.ops.device.operators.sort import DeviceSort
from headwater.ops.device.table import DeviceTable, to_device
from headwater.ops.kernel import Context
from headwater.ops.sort import SortKernel, SortKey

KEYS = (SortKey("price"),)
CONTEXT = Context(memory_bytes=8 << 30)
PARTS = 8


def sorts_table(count: int, sections: Sections) -> None:
    """Measure sorts of two columns, and print them."""
    made = sections.run("rows to sort", lambda: sorts(count))
    lines = []
    for name, call in made.items() if made else ():
        if (taken := sections.run(f"sort {name}", lambda call=call: milliseconds(call))) is not None:
            lines.append([f"sort of {count:,} rows {name}", taken, 16 * count / taken / 1e6])
    print(markdown.table(["operator", "ms", "GB/s"], lines), flush=True)


def sorts(count: int) -> dict[str, Callable[[], None]]:
    """The same sort in several ways."""
    rng = np.random.default_rng(4)
    price = np.round(rng.random(count) * 9e4 + 900, 2)
    rows = pa.table({"price": price, "id": rng.permutation(count)})
    table = to_device(rows, cupy)
    room, part = 4 * table.nbytes, table.nbytes // PARTS
    return {
        "in the device's memory": lambda: drain(DeviceSort(KEYS, room).run([cut(table)], CONTEXT)),
        "by parts of an eighth": lambda: drain(DeviceSort(KEYS, part).run([cut(table)], CONTEXT)),
        "on one core": lambda: drain(SortKernel(KEYS).run([iter([rows])], CONTEXT)),
    }


def cut(table: DeviceTable) -> Iterator[DeviceTable]:
    """A table as a stream of parts."""
    step = max(1, -(-table.rows // PARTS))
    return (table.slice(at, at + step) for at in range(0, table.rows, step))


def drain(stream: Iterable[Any]) -> None:
    """Run a stream to its end."""
    for _ in stream:
        pass


def milliseconds(call: Callable[[], None], turns: int = 3) -> float:
    """The median time of a call, of which the host does a part; after one that compiles."""
    call()
    taken = []
    for _ in range(turns):
        cupy.cuda.Device().synchronize()
        begin = time.perf_counter()
        call()
        cupy.cuda.Device().synchronize()
        taken.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(taken)
