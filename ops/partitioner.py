"""Partitioner: which segment of a block each row goes to. A function of the rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .sort import SortKey


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


@dataclass(frozen=True)
class HashPartitioner(Partitioner):
    """Rows with equal key values together; equal values of any integer width hash alike."""

    keys: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class RoundRobinPartitioner(Partitioner):
    """Row r of map partition m goes to segment (m + r) mod count."""

    count: int


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


@dataclass(frozen=True)
class KeySample:
    """Key values drawn from a partition, for the boundaries of a range exchange.

    Attributes:
        rows: how many rows the partition has, the sample's weight.
        keys: the key columns of the drawn rows.
    """

    rows: int
    keys: pa.Table
