"""Blocks: how many rows a pass over a shard takes at a time, where sums don't depend on it but in rounding.

On a CPU some thousands, which its cache holds; on a device as many as keep it busy, and as fit its memory several
times. Either number comes from the shapes alone, so that results don't depend on the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..backend import array_namespace
from .program import BLOCK_ROWS, Batch, Shard

#: bytes of a block in float64, as it is worked on
DEVICE_BYTES = 256 << 20


def device_rows(width: int) -> int:
    """Return the rows of a block on a device, a multiple of `BLOCK_ROWS`.

    Args:
        width: numbers that are held of a row at a time, as features and scores.

    Example:
        >>> device_rows(16) // BLOCK_ROWS, device_rows(10**6) // BLOCK_ROWS
        (256, 1)
    """
    return max(1, DEVICE_BYTES // (8 * max(1, width) * BLOCK_ROWS)) * BLOCK_ROWS


def pass_over(shard: Shard, width: int) -> Iterator[Batch]:
    """Give a shard's rows in order, in blocks for the namespace in use.

    Args:
        shard: where they are.
        width: as of `device_rows`.
    """
    return shard.blocks() if array_namespace() is np else shard.blocks(device_rows(width))
