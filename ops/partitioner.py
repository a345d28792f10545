"""Partitioner: which segment of a block each row goes to. A function of the rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..errors import PlanError
from ..lineage.hashing import hash_columns
from .ordering import SortKey, key_names, quantiles, segments
from .sample import random_stream

_HALF = np.uint64(32)


class Partitioner:
    """Gives each row of a map task's output a segment.

    Attributes:
        count: number of segments.
    """

    count: int

    def assign(self, table: pa.Table, partition: int, offset: int) -> np.ndarray:
        """Return the segment of each row.

        Args:
            table: a table of the partition's stream.
            partition: index of the map partition.
            offset: how many rows of that partition came before this table.

        Returns:
            Array of shape (rows,), dtype uint32, values below ``count``.
        """
        raise NotImplementedError

    def describe(self) -> str:
        """The partitioner in one short line, as "hash [a, b] into 8"."""
        raise NotImplementedError


@dataclass(frozen=True)
class SinglePartitioner(Partitioner):
    """Everything to segment 0."""

    count: int = 1

    def assign(self, table: pa.Table, partition: int, offset: int) -> np.ndarray:
        return np.zeros(table.num_rows, dtype=np.uint32)

    def describe(self) -> str:
        return "single"


@dataclass(frozen=True)
class HashPartitioner(Partitioner):
    """Rows with equal key values together; equal values of any integer width hash alike."""

    keys: tuple[str, ...]
    count: int

    def assign(self, table: pa.Table, partition: int, offset: int) -> np.ndarray:
        hashes = hash_columns([table.column(name) for name in self.keys])
        return (((hashes >> _HALF) * np.uint64(self.count)) >> _HALF).astype(np.uint32)

    def describe(self) -> str:
        return f"hash [{', '.join(self.keys)}] into {self.count}"


@dataclass(frozen=True)
class RoundRobinPartitioner(Partitioner):
    """Row r of map partition m goes to segment (m + r) mod count."""

    count: int

    def assign(self, table: pa.Table, partition: int, offset: int) -> np.ndarray:
        start = (partition + offset) % self.count
        return ((start + np.arange(table.num_rows)) % self.count).astype(np.uint32)

    def describe(self) -> str:
        return f"round robin into {self.count}"


@dataclass(frozen=True)
class RangePartitioner(Partitioner):
    """Rows by the order of sort keys; segment i holds rows below boundary i, as `sort` orders them.

    Attributes:
        keys: the sort keys.
        count: number of segments.
        boundaries: at most count - 1 rows of the key columns, sorted; None until samples are in.
    """

    keys: tuple[SortKey, ...]
    count: int
    boundaries: pa.Table | None = None

    def assign(self, table: pa.Table, partition: int, offset: int) -> np.ndarray:
        if self.boundaries is None:
            raise PlanError(f"{self.describe()} has no boundaries yet.")
        return segments(table, self.boundaries, self.keys)

    def describe(self) -> str:
        return f"range [{', '.join(str(key) for key in self.keys)}] into {self.count}"


@dataclass(frozen=True)
class KeySample:
    """Key values drawn from a partition, for the boundaries of a range exchange.

    Attributes:
        rows: how many rows the partition has, the sample's weight.
        keys: the key columns of the drawn rows.
    """

    rows: int
    keys: pa.Table


class KeySampler:
    """Draws rows from a partition's stream, each equally likely, without replacement.

    Every row draws a number, and those with the smallest are kept; so the sample depends on the rows
    and the seed, not on how the stream is cut.

    Args:
        keys: the sort keys whose columns to keep.
        seed_parts: what names the random stream, as (seed or key of the stage, partition).
        size: how many rows at most.
    """

    def __init__(self, keys: Sequence[SortKey], seed_parts: Sequence[int | str], size: int = 1000):
        self._names = key_names(keys)
        self._draws = random_stream("keys", *seed_parts)
        self._size = size
        self._rows = 0
        self._kept: pa.Table | None = None
        self._priorities = np.empty(0)

    def update(self, table: pa.Table) -> None:
        """Take the next table of the stream in."""
        self._rows += table.num_rows
        draws = self._draws.random(table.num_rows)
        full = len(self._priorities) == self._size
        limit = self._priorities.max() if full and self._size else np.inf
        near = np.flatnonzero(draws < limit)
        if len(near) > self._size:
            near = np.sort(near[np.argpartition(draws[near], self._size)[: self._size]])
        if self._kept is not None and not len(near):
            return
        rows = table.select(self._names).take(pa.array(near))
        rows = rows if self._kept is None else pa.concat_tables([self._kept, rows])
        priorities = np.concatenate([self._priorities, draws[near]])
        best = np.sort(np.argsort(priorities, kind="stable")[: self._size])
        self._kept, self._priorities = rows.take(pa.array(best)).combine_chunks(), priorities[best]

    def result(self) -> KeySample | None:
        """Return the sample in row order; None if there was no table."""
        return None if self._kept is None else KeySample(self._rows, self._kept)


def range_boundaries(samples: Sequence[KeySample], keys: Sequence[SortKey], count: int) -> pa.Table:
    """Choose the boundaries of a range exchange, so that partitions get about equally many rows.

    Args:
        samples: of all partitions; each weighs as its partition has rows.
        keys: most significant first.
        count: how many partitions are wanted.

    Returns:
        At most ``count - 1`` distinct rows of the key columns, sorted; fewer where there are few
        keys or some are frequent, none for no samples.
    """
    if not samples:
        return pa.table({key.column: pa.nulls(0) for key in keys})
    weights = [np.full(s.keys.num_rows, s.rows / max(s.keys.num_rows, 1)) for s in samples]
    return quantiles(pa.concat_tables([s.keys for s in samples]), np.concatenate(weights), keys, count)
