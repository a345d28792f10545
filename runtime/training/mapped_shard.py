"""MappedShard: a shard whose rows are all in a file that is mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...ops.backend import array_namespace
from ...ops.training.program import BLOCK_ROWS, Batch, Shard, shard_rng
from ...ops.training.sampling import Order
from .buffers import to_device
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

    @property
    def index(self) -> int:
        return self.file.index

    @property
    def rows(self) -> int:
        return self.file.rows

    @property
    def first_row(self) -> int:
        return self.file.first_row

    def batch(self, epoch: int, step: int) -> Batch:
        """Return its rows of a global batch, drawn without replacement within an epoch."""
        xp = array_namespace()
        if not self.order.shuffle:
            place = self.order.place(step)
            return to_device(self.file.slice(place.start, place.stop), xp)
        return to_device(self.file.take(self.order.batch(epoch, step), xp), xp)

    def blocks(self) -> Iterator[Batch]:
        """Give all of its rows in order, `BLOCK_ROWS` at a time."""
        xp = array_namespace()
        for start in range(0, self.rows, BLOCK_ROWS):
            yield to_device(self.file.slice(start, start + BLOCK_ROWS), xp)

    def rng(self, *purpose: int) -> np.random.Generator:
        """Return random numbers keyed by the seed, the shard's index and a purpose."""
        return shard_rng(self.order.seed, self.index, *purpose)
