"""MappedShard: a shard whose rows are all in a file that is mapped into memory, and on the device if they fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from ...ops.backend import array_namespace
from ...ops.device.crossing import staged
from ...ops.training.program import BLOCK_ROWS, Batch, Shard, shard_rng
from ...ops.training.sampling import Order
from .buffers import to_device
from .read_ahead import read_ahead
from .resident import ResidentRows
from .shard_file import ShardFile


@dataclass(frozen=True)
class MappedShard:
    """A shard over a `ShardFile`; the `Shard` protocol.

    Drawn batches are new arrays; blocks, and batches of rows in order, are views of the file, which can't be
    written to.

    Attributes:
        file: its rows.
        order: in which they are drawn.
        validation: its part of the validation rows, or None.
    """

    file: ShardFile
    order: Order
    validation: Shard | None = None
    _resident: ResidentRows = field(init=False, repr=False, compare=False)

    @property
    def index(self) -> int:
        return self.file.index

    @property
    def rows(self) -> int:
        return self.file.rows

    @property
    def first_row(self) -> int:
        return self.file.first_row

    def __post_init__(self) -> None:
        object.__setattr__(self, "_resident", ResidentRows(self.file.arrays))

    def batch(self, epoch: int, step: int) -> Batch:
        """Return its rows of a global batch, drawn without replacement within an epoch."""
        xp = array_namespace()
        there = self._on_device(xp)
        if not self.order.shuffle:
            place = self.order.place(step)
            if there is not None:
                return {name: array[place] for name, array in there.items()}
            return to_device(self.file.slice(place.start, place.stop), xp)
        drawn = self.order.batch(epoch, step)
        if there is not None:
            rows = staged(xp, drawn)
            return {name: array[rows] for name, array in there.items()}
        return to_device(self.file.take(drawn, xp), xp, pinned=True)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Batch]:
        """Give all of its rows in order, so many at a time."""
        xp = array_namespace()
        there = self._on_device(xp)
        if there is not None:
            for start in range(0, self.rows, rows):
                yield {name: array[start : start + rows] for name, array in there.items()}
            return
        parts = (to_device(self.file.slice(start, start + rows), xp) for start in range(0, self.rows, rows))
        yield from parts if xp is np else read_ahead(parts)

    def rng(self, *purpose: int) -> np.random.Generator:
        """Return random numbers keyed by the seed, the shard's index and a purpose."""
        return shard_rng(self.order.seed, self.index, *purpose)

    def _on_device(self, xp: ModuleType) -> Batch | None:
        """All rows on the device, where they are kept there."""
        return None if xp is np else self._resident.arrays(xp)
