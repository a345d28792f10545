"""PartitionedTable: rows that already lie by segment, as a device leaves them for the host to write."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class PartitionedTable:
    """Rows in the order of the segments that a partitioner gave them, and within a segment in the stream's order.

    A stage whose last step partitions has a stream of these in place of tables.

    Attributes:
        table: the rows.
        offsets: the first row of each segment, and the end of the last; shape (segments + 1,), int64.
    """

    table: pa.Table
    offsets: np.ndarray

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return self.table.num_rows

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.table.nbytes
