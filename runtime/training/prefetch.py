"""Prefetch: a thread draws the next batches while a step computes, so that no step waits for its rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import copy_context

import numpy as np

from ...ops.training.program import Batch, Shard


class Prefetcher:
    """Draws batches ahead, for all shards of a process.

    Use it in a ``with``, or close it. Batches depend on (epoch, step) alone, so they are the same as without it.

    Args:
        depth: batches to draw ahead of each shard.
    """

    def __init__(self, depth: int = 2):
        self.depth = depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="headwater-prefetch")
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop drawing ahead, and wait for the thread; shards draw their own batches from now on."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, shard: Shard, epoch: int, step: int) -> Future[Batch] | None:
        """Begin to draw a batch; None once closed."""
        with self._lock:
            if self._closed:
                return None
            # the array namespace may have been chosen for the calling thread alone
            return self._pool.submit(copy_context().run, shard.batch, epoch, step)


class PrefetchedShard:
    """A shard whose next batches are drawn ahead; the `Shard` protocol. Used by one thread.

    Args:
        shard: where the rows are.
        prefetcher: draws them.
        steps_per_epoch: after which step the next epoch begins.
    """

    def __init__(self, shard: Shard, prefetcher: Prefetcher, steps_per_epoch: int):
        self.shard, self._prefetcher, self._steps = shard, prefetcher, max(1, steps_per_epoch)
        self._drawn: dict[tuple[int, int], Future[Batch]] = {}

    @property
    def index(self) -> int:
        return self.shard.index

    @property
    def rows(self) -> int:
        return self.shard.rows

    @property
    def first_row(self) -> int:
        return self.shard.first_row

    @property
    def validation(self) -> Shard | None:
        return self.shard.validation

    def batch(self, epoch: int, step: int) -> Batch:
        """Return its rows of a global batch. What went wrong while it was drawn is raised here."""
        mine = self._drawn.pop((epoch, step), None)
        if mine is None:
            batch = self.shard.batch(epoch, step)  # first, so that a pass over streamed rows begins with it
            self._draw_ahead(epoch, step)
            return batch
        self._draw_ahead(epoch, step)
        try:
            return mine.result()
        except CancelledError:  # closed meanwhile
            return self.shard.batch(epoch, step)

    def blocks(self) -> Iterator[Batch]:
        """Give all of its rows in order."""
        return self.shard.blocks()

    def rng(self, *purpose: int) -> np.random.Generator:
        """Return random numbers keyed by the seed, the shard's index and a purpose."""
        return self.shard.rng(*purpose)

    def _draw_ahead(self, epoch: int, step: int) -> None:
        coming = []
        for _ in range(self._prefetcher.depth):
            step += 1
            if step >= self._steps:
                epoch, step = epoch + 1, 0
            coming.append((epoch, step))
        for key in [key for key in self._drawn if key not in coming]:
            self._drawn.pop(key).cancel()
        for key in coming:
            if key not in self._drawn and (future := self._prefetcher.submit(self.shard, *key)):
                self._drawn[key] = future
