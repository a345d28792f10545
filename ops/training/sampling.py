"""Sampling: which rows are in which shard, and which of them are in its part of a batch.

Pure functions of the pipeline's own numbers, so that any worker draws the same batch at any time, and every row
is drawn exactly once an epoch whatever comes and goes.
"""

from __future__ import annotations

import hashlib
import threading

import numpy as np

from ...errors import ParameterError


def generator(*key: int | str) -> np.random.Generator:
    """Return a random stream that depends on a key alone, and on no other stream.

    Args:
        key: whole numbers and texts, as (seed, "dropout", shard, step). Keys that differ give independent streams.

    Example:
        >>> generator(0, 1).random(2).tolist() == generator(0, 1).random(2).tolist()
        True
        >>> generator(0, 1).random() == generator(0, 1, 0).random()
        False

    Source:
        J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011), for Philox.
    """
    return np.random.Generator(_philox(key))


def shard_shares(shards: int, batch_size: int) -> np.ndarray:
    """Return how many rows of a global batch each shard gives.

    Args:
        shards: how many there are.
        batch_size: rows of a global batch. If it is smaller than ``shards``, some shards give none, ever.

    Returns:
        Shape (shards,), int64; they differ by at most one and sum to ``batch_size``.

    Example:
        >>> shard_shares(4, 10).tolist()
        [2, 3, 2, 3]
    """
    return np.diff(_cumulative_shares(shards, batch_size))


def shard_bounds(rows: int, shards: int, batch_size: int) -> np.ndarray:
    """Cut rows into shards in proportion to their share of a batch.

    Every shard then takes part in all but the last step of an epoch with its full share, and none needs
    more than ``steps_per_epoch`` steps. A shard without a share has no rows.

    Args:
        rows: how many there are.
        shards: how many to cut; part of the pipeline, never of the cluster.
        batch_size: rows of a global batch.

    Returns:
        Shape (shards + 1,), int64, ascending from 0 to ``rows``: shard i has the rows from bound i to bound i + 1.

    Example:
        >>> shard_bounds(100, 4, 10).tolist()
        [0, 20, 50, 70, 100]
    """
    # With B the batch size, c_i the shares before shard i and b_i = c_(i+1) - c_i, shard i has
    # n_i = floor(rows c_(i+1) / B) - floor(rows c_i / B) rows, an integer between floor(y) and ceil(y) for
    # y = rows b_i / B. Let T = ceil(rows / B), so that T - 1 < rows / B <= T.
    #   n_i <= ceil(y) <= T b_i: T steps of b_i rows are enough.
    #   n_i >= floor(y) >= (T - 1) b_i: the first T - 1 steps are full.
    if rows < 0:
        raise ParameterError(f"shard_bounds(rows={rows}): give 0 or more.")
    cumulative = _cumulative_shares(shards, batch_size)
    return np.array([rows * int(share) // batch_size for share in cumulative], np.int64)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return how many steps it takes for every row to be drawn once.

    Example:
        >>> steps_per_epoch(101, 10)
        11
    """
    return -(-rows // batch_size)


def batch_rows(
    seed: int, epoch: int, shard: int, step: int, rows: int, share: int, shuffle: bool = True
) -> np.ndarray:
    """Return which rows of a shard are in its part of one batch.

    Each call makes the epoch's permutation anew; `Order` keeps it.

    Args:
        seed: of the training.
        epoch, step: which batch; the step counts within the epoch.
        shard: its index.
        rows: of the shard.
        share: rows that the shard gives to a full batch, see `shard_shares`.
        shuffle: False takes the rows in their order.

    Returns:
        Row numbers within the shard, shape (up to ``share``,), int64; none after the epoch's end.

    Example:
        >>> sorted(int(row) for step in range(3) for row in batch_rows(0, 0, 0, step, rows=5, share=2))
        [0, 1, 2, 3, 4]
    """
    return Order(seed, shard, rows, share, shuffle).batch(epoch, step)


class Order:
    """In which order a shard's rows are drawn; keeps the permutation of the last epoch asked for.

    It takes 4 bytes a row (8 from 2**31 rows), and three times 8 while it is made: a shard of 10**8 rows needs
    0.4 GB and ten seconds an epoch. May be used by several threads.

    A shard of which every batch takes all rows is read in order: where they stand in a sum makes no sample.

    Args:
        seed, shard, rows, share, shuffle: as in `batch_rows`.

    Attributes:
        shuffle: whether rows are drawn in another order than they stand.
    """

    def __init__(self, seed: int, shard: int, rows: int, share: int, shuffle: bool = True):
        self.seed, self.shard = seed, shard
        self.rows, self.share = int(rows), int(share)
        self.shuffle = shuffle and self.share < self.rows
        self._lock = threading.Lock()
        self._kept: tuple[int, np.ndarray] | None = None

    def batch(self, epoch: int, step: int) -> np.ndarray:
        """Return the rows of one step, as `batch_rows`."""
        place = self.place(step)
        if not self.shuffle or place.start == place.stop:
            return np.arange(place.start, place.stop, dtype=np.int64)
        return self.epoch(epoch)[place].astype(np.int64)

    def place(self, step: int) -> slice:
        """Return where in an epoch's order the rows of one step stand."""
        start = min(step * self.share, self.rows)
        return slice(start, min(start + self.share, self.rows))

    def epoch(self, epoch: int) -> np.ndarray:
        """Return all rows in the order of one epoch; shape (rows,), int32 or int64."""
        if not self.shuffle:
            return np.arange(self.rows, dtype=np.int64)
        with self._lock:
            if self._kept is None or self._kept[0] != epoch:
                self._kept = None  # first, so that two are never held
                self._kept = epoch, permutation(self.rows, self.seed, "order", epoch, self.shard)
            return self._kept[1]


def permutation(rows: int, *key: int | str) -> np.ndarray:
    """Return a permutation that depends on a key alone, whatever the version of NumPy.

    Args:
        rows: how many, up to 2**40.
        key: as of `generator`.

    Returns:
        Shape (rows,), int32, or int64 from 2**31 rows.

    Example:
        >>> sorted(permutation(4, 7).tolist())
        [0, 1, 2, 3]
    """
    # Rows sorted by random numbers. The row's number in the low bits leaves no ties for a sort to break, and plain
    # sorting is vectorized where sorting of indices isn't. At 10**8 rows, 37 random bits are left.
    bits = max(1, (rows - 1).bit_length())
    low = np.uint64((1 << bits) - 1)
    drawn = _philox(key).random_raw(rows)
    drawn &= ~low
    drawn |= np.arange(rows, dtype=np.uint64)
    drawn.sort()
    drawn &= low
    return drawn.astype(np.int32) if rows < 1 << 31 else drawn.view(np.int64)


def _cumulative_shares(shards: int, batch_size: int) -> np.ndarray:
    if shards < 1 or batch_size < 1:
        raise ParameterError(f"shards={shards}, batch_size={batch_size}: give whole numbers, 1 or more.")
    return np.array([i * batch_size // shards for i in range(shards + 1)], np.int64)


def _philox(key: tuple[int | str, ...]) -> np.random.Philox:
    # Hashed, because a seed sequence takes (1,) and (1, 0) for the same.
    said = "\0".join(repr(part) if isinstance(part, str) else str(int(part)) for part in key)
    digest = int.from_bytes(hashlib.blake2b(said.encode(), digest_size=16).digest(), "little")
    return np.random.Philox(key=[digest >> 64, digest & (2**64 - 1)])
