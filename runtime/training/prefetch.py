"""Prefetch: a thread draws the next batches while a step computes, so that no step waits for its rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import copy_context

import numpy as np

from ...ops.training.program import BLOCK_ROWS, Batch, Shard
from .streamed_shard import StreamedShard

#: batches that are drawn ahead before one is drawn by the asking thread again, to see how long that takes
_MEASURED_EVERY = 256


class Prefetcher:
    """Draws batches ahead, for all shards of a process.

    Use it in a ``with``, or close it. Batches depend on (epoch, step) alone, so they are the same as without it.

    Args:
        depth: batches to draw ahead of each shard.
        least_seconds: what is drawn sooner is drawn when it is asked for; handing it over from thread to
            thread would take longer.
    """

    def __init__(self, depth: int = 2, least_seconds: float = 0.0005):
        self.depth, self.least_seconds = depth, least_seconds
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
        #: batches to come that are drawn ahead, until it is measured again whether that is worth it
        self._ahead = 0
        self._was_slow = False

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
            started = time.perf_counter()
            batch = self.shard.batch(epoch, step)  # first, so that a pass over streamed rows begins with it
            self._learn(time.perf_counter() - started)
            self._draw_ahead(epoch, step)
            return batch
        self._draw_ahead(epoch, step)
        try:
            return mine.result()
        except CancelledError:  # closed meanwhile
            return self.shard.batch(epoch, step)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Batch]:
        """Give all of its rows in order, so many at a time."""
        return self.shard.blocks(rows)

    def rng(self, *purpose: int) -> np.random.Generator:
        """Return random numbers keyed by the seed, the shard's index and a purpose."""
        return self.shard.rng(*purpose)

    def _learn(self, seconds: float) -> None:
        """Draw ahead from now on if two draws in a row were slow; one alone may have made an epoch's order."""
        slow = seconds >= self._prefetcher.least_seconds
        if isinstance(self.shard, StreamedShard) or (
            slow and (self._was_slow or not self._prefetcher.least_seconds)
        ):
            self._ahead = _MEASURED_EVERY
        self._was_slow = slow

    def _draw_ahead(self, epoch: int, step: int) -> None:
        coming = []
        depth = min(self._prefetcher.depth, self._ahead)
        self._ahead = max(0, self._ahead - 1)
        for _ in range(depth):
            step += 1
            if step >= self._steps:
                epoch, step = epoch + 1, 0
            coming.append((epoch, step))
        for key in [key for key in self._drawn if key not in coming]:
            self._drawn.pop(key).cancel()
        for key in coming:
            if key not in self._drawn and (future := self._prefetcher.submit(self.shard, *key)):
                self._drawn[key] = future
