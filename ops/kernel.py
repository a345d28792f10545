"""Kernel: what a stage does to one partition; streams of tables in, a stream of tables out.

Kernels are small picklable records made by the planner from nodes, with no reference to the plan.
Their output depends on the rows alone: never on the worker, the time, or how the stream is cut
into tables beyond what the data decides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

T = TypeVar("T")

#: rows in one table of a stream; a multiple of typical vector widths, small enough to stay in cache
MORSEL_ROWS = 131_072


@dataclass
class Context:
    """What a kernel may know about where it runs.

    Attributes:
        partition: index of the partition being computed, counted in the kernel's own input.
        memory_bytes: how much memory, in bytes, the kernel may hold before it spills.
        operator: the operator as the user knows it, for errors.
        spill_root: a folder for spill files; None uses the system's temporary folder.
    """

    partition: int = 0
    memory_bytes: int = 256 << 20
    operator: str = ""
    spill_root: Path | None = None
    metrics: dict[str, int] = field(default_factory=dict)

    def spill_folder(self) -> tempfile.TemporaryDirectory[str]:
        """Make a folder that the kernel removes when it is done (use it in a ``with``)."""
        return tempfile.TemporaryDirectory(prefix="spill-", dir=self.spill_root)


class Broadcast:
    """The whole of one input, the same for every partition: as a stream, a table, or built once.

    Args:
        load: reads the whole input as tables in partition order.
        schema: its schema.
        cache: what `once` remembers, shared by the tasks of a process that read the same input.
    """

    def __init__(self, load: Callable[[], Iterator[pa.Table]], schema: pa.Schema, cache: dict[Any, Any]):
        self._load = load
        self.schema = schema
        self._cache = cache

    def __iter__(self) -> Iterator[pa.Table]:
        """Read the whole input as a stream."""
        return self._load()

    def table(self) -> pa.Table:
        """The whole input as one table."""
        return self.once("table", lambda: _concat(iter(self), self.schema))

    def once(self, name: str, build: Callable[[], T]) -> T:
        """Return ``build()``, computed once for all partitions that share this input in a process."""
        if name not in self._cache:
            self._cache[name] = build()
        return self._cache[name]


Stream = Iterator[pa.Table]


class Kernel:
    """Computes one partition of an operator's output.

    ``inputs`` holds, for each of the operator's inputs in order, a stream of tables (narrow and wide
    inputs, in map order) or a `Broadcast`. The streams have the declared schemas and may be empty.
    What comes out has the declared output schema; empty tables may be left out.
    """

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        """Compute the partition, streaming."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The kernel's name in explain, progress and errors."""
        return type(self).__name__.removesuffix("Kernel")


def _concat(stream: Stream, schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *stream])
