"""StreamedShard: a shard of which only the first rows are kept as arrays; the others are decoded at each pass.

It trades time for disk: where a shard's file doesn't fit, and to measure what keeping it gains. The batches
and blocks are those of a `MappedShard`, bit for bit.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pyarrow as pa

from ...ops.backend import array_namespace
from ...ops.training.features import Features
from ...ops.training.program import BLOCK_ROWS, Batch, Shard, shard_rng
from ...ops.training.sampling import Order
from .buffers import empty, to_device
from .read_ahead import read_ahead
from .shard_file import ShardFile, row_bytes

#: bytes of batches that one pass gathers
_AHEAD_BYTES = 64 << 20


class StreamedShard:
    """A shard read from tables; the `Shard` protocol.

    A batch may have any rows, so one pass over the tables gathers the batches of as many steps as fit in memory.

    Args:
        cached: its first rows, a multiple of `BLOCK_ROWS`, and what is known of all of them.
        rows: how many it has.
        tables: begins a pass over the other rows, in order.
        features: turns them into arrays.
        order: in which rows are drawn.
        validation: its part of the validation rows, or None.
        ahead_bytes: how much to gather in a pass, at least a batch.
    """

    def __init__(
        self,
        cached: ShardFile,
        rows: int,
        tables: Callable[[], Iterator[pa.Table]],
        features: Features,
        order: Order,
        validation: Shard | None = None,
        ahead_bytes: int = _AHEAD_BYTES,
    ):
        self.cached, self.rows, self.order, self.validation = cached, rows, order, validation
        self.index, self.first_row = cached.index, cached.first_row
        self._tables, self._features = tables, features
        self._steps_ahead = max(1, ahead_bytes // row_bytes(cached.layout) // max(1, order.share))
        self._lock = threading.Lock()
        self._gathered = self._room(0)
        #: (epoch, first step, end) of what is gathered
        self._span = (-1, 0, 0)

    def batch(self, epoch: int, step: int) -> Batch:
        """Return its rows of a global batch, drawn without replacement within an epoch."""
        xp, count = array_namespace(), len(self.order.batch(epoch, step))
        with self._lock:
            known, first, last = self._span
            if count and (epoch != known or not first <= step < last):
                self._gather(epoch, step)
                first = step
            start = (step - first) * self.order.share
            batch = self._room(count, xp)
            for name, array in batch.items():
                array[...] = self._gathered[name][start : start + count]
        return to_device(batch, xp, pinned=True)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Batch]:
        """Give all of its rows in order, so many at a time."""
        blocks = self._blocks(rows, array_namespace())
        return blocks if array_namespace() is np else read_ahead(blocks)

    def _blocks(self, rows: int, xp: ModuleType) -> Iterator[Batch]:
        whole = (
            self.cached.rows // rows * rows
        )  # what is kept is a multiple of BLOCK_ROWS, and maybe not of these
        for start in range(0, whole, rows):
            yield to_device(self.cached.slice(start, start + rows), xp)
        held, block = 0, self._room(rows, xp)
        rest = self.cached.slice(whole, self.cached.rows)
        for arrays in itertools.chain([rest], (arrays for _, arrays in self._pass())):
            size = len(next(iter(arrays.values())))
            done = 0
            while done < size:
                count = min(size - done, rows - held)
                for name, array in arrays.items():
                    block[name][held : held + count] = array[done : done + count]
                held, done = held + count, done + count
                if held == rows:
                    yield to_device(block, xp, pinned=True)
                    held, block = 0, self._room(rows, xp)
        if held:
            yield to_device({name: array[:held] for name, array in block.items()}, xp, pinned=True)

    def rng(self, *purpose: int) -> np.random.Generator:
        """Return random numbers keyed by the seed, the shard's index and a purpose."""
        return shard_rng(self.order.seed, self.index, *purpose)

    def _gather(self, epoch: int, step: int) -> None:
        """Bring the rows of some steps into memory, in the order of the steps."""
        last = min(step + self._steps_ahead, -(-self.rows // self.order.share))
        wanted = np.concatenate([self.order.batch(epoch, s) for s in range(step, last)])
        places = np.argsort(wanted)
        ascending = wanted[places]
        gathered = self._room(len(wanted))
        head = int(np.searchsorted(ascending, self.cached.rows))
        for name, array in self.cached.take(ascending[:head]).items():
            gathered[name][places[:head]] = array
        if head < len(wanted):
            for start, arrays in self._pass():
                size = len(next(iter(arrays.values())))
                low, high = np.searchsorted(ascending, [start, start + size]).tolist()
                for name, array in arrays.items():
                    gathered[name][places[low:high]] = array[ascending[low:high] - start]
        self._gathered, self._span = gathered, (epoch, step, last)

    def _pass(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Read the rows that aren't kept, some thousands at a time, each with the number of the first."""
        row = self.cached.rows
        if row == self.rows:
            return
        for table in self._tables():
            for start in range(0, table.num_rows, BLOCK_ROWS):
                part = table.slice(start, BLOCK_ROWS)
                yield row, self._features.to_arrays(part, self.cached.widths, self.first_row + row)
                row += part.num_rows

    def _room(self, rows: int, xp: ModuleType = np) -> dict[str, np.ndarray]:
        return {name: empty((rows, *shape), dtype, xp) for name, (shape, dtype) in self.cached.layout.items()}
